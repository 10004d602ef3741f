"""What is said of filters and samples: rare clusters, and samples that a filter sets apart."""
