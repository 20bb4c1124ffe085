"""`python -m truing`, which the launcher of several processes runs."""

from truing.cli import main

if __name__ == "__main__":
    main()
