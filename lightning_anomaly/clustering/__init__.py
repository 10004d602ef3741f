"""Cluster the maps of each filter: principal components, k-means and Gaussian mixtures."""
