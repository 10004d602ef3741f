"""What is said of filters and samples: rare clusters, samples that a filter sets apart, and outlier scores."""
