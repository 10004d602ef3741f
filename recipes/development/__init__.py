"""What only developers run; README.md says what is here."""
