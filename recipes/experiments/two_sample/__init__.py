"""What tells overfitting where H1's count does not: filters that tell training images from others."""
