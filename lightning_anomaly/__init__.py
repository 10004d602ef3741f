"""See overfitting inside a convolutional network, filter by filter."""

__version__ = "0.1.0"
