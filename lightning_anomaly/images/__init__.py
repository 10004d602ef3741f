"""The one way in for images: those of a tensor, a Dataset or a DataLoader, by their positions."""
