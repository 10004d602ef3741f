"""A model as the package uses it: its layers, hooks and features."""
