"""What runs in the server's environment, which need not have truing: a guard before its routes, an engine that loads weights."""
