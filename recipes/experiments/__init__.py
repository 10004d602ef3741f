"""The source paper's experiments with controls: a script for each hypothesis, one for stopping, one for the tables."""
