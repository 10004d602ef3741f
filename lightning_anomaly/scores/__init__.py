"""What is said of one sample: its look (pixels) and its content (features)."""
