"""Episodes of several turns: a policy's turns, and what tools and environments answer, as one sequence of tokens."""
