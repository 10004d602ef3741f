"""Images of a tensor, a Dataset, a DataLoader or a folder, read by their positions; and small copies of them."""

from lightning_anomaly.images.folder_images import FolderImages, classes_and_splits, load_image

__all__ = ["FolderImages", "classes_and_splits", "load_image"]
