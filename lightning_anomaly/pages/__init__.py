"""What people look at: figures, and pages of one HTML file."""
