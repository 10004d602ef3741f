"""Choose filters, and mask them in place."""

from lightning_anomaly.pruning.mask import FilterMask, mask_filters

__all__ = ["FilterMask", "mask_filters"]
