"""From maps to clusterings: principal components, k-means, mixtures, and the number of components."""
