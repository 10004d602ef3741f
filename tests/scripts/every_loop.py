"""Compile every loop, so that they are in numba's cache before several processes need them."""

import torch

from lightning_anomaly.filters.analyze import analyze
from lightning_anomaly.scores.pixels import pixel_statistics

analyze(torch.nn.Conv2d(1, 2, 3), torch.rand(64, 1, 8, 8))
pixel_statistics(torch.rand(2, 1, 8, 8))
