"""The source paper's experiments with controls: a folder for each question, with the lines that answer it."""
