"""Images of a tensor, a Dataset, a DataLoader or a folder, read by their positions."""

from lightning_anomaly.images.files import FolderImages

__all__ = ["FolderImages"]
