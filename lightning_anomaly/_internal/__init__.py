"""Small tools that all folders share."""
