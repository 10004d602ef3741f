"""Images that tests of what is done to images share."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    """Mid-tones without flat areas, which every kind of damage changes."""
    return torch.randint(40, 120, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
