"""Verdicts on filters: rare clusters and isolated samples."""
