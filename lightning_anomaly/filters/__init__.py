"""The method, from feature maps to a report: settings, PCA, mixtures, verdicts."""
