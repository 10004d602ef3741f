"""The scripts that draw the pictures of the documentation."""
