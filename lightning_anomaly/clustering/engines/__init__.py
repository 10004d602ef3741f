"""What runs the loops: numba or plain torch."""
