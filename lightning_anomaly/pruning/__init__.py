"""Choose filters, mask them in place, and remove them for good."""

from lightning_anomaly.pruning.compact import compact
from lightning_anomaly.pruning.mask import FilterMask, mask_filters

__all__ = ["FilterMask", "compact", "mask_filters"]
