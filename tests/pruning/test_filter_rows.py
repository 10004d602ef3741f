"""A mask changes only the rows of its filters, for every kind of convolution."""

import pytest
import torch
from functional import same, state_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_anomaly.pruning import mask_filters

CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(4, 6, 3),
    "2d": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
    "3d": lambda: nn.Conv3d(4, 6, 2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed 1d": lambda: nn.ConvTranspose1d(4, 6, 3, bias=False),
    "transposed 2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(4, 6, 2),
    "grouped transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "depthwise transposed": lambda: nn.ConvTranspose2d(4, 8, 3, groups=4, bias=False),
}
FILTERS = [[0], [1, 4], [5, 3, 2]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = [(kind, FILTERS[i % 3], DTYPES[i % 4]) for i, kind in enumerate(CONVOLUTIONS)]


@pytest.mark.parametrize(("kind", "filters", "dtype"), CASES, ids=str)
def test_a_mask_changes_only_its_filters(kind: str, filters: list[int], dtype: torch.dtype) -> None:
    """Their outputs and gradients are 0; those of the others are bit-identical."""
    conv = CONVOLUTIONS[kind]().to(dtype)
    inputs = torch.randn(3, 4, *[5] * len(conv.kernel_size), generator=torch.Generator().manual_seed(1)).to(dtype)
    before = conv(inputs)
    before.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in conv.named_parameters()}
    mask = mask_filters(conv, {"": filters})
    after = conv(inputs)
    others = [channel for channel in range(conv.out_channels) if channel not in filters]
    assert before.abs().flatten(2).sum(2).min() > 0
    assert after[:, filters].count_nonzero() == 0
    assert torch.equal(after[:, others], before[:, others])
    assert mask.verify()
    mask.keep_gradients()
    lost = [((p.grad == 0) & (gradients[name] != 0)).sum().item() for name, p in conv.named_parameters()]
    masked = round(mask.parameter_fraction * sum(p.numel() for p in conv.parameters()))
    assert sum(lost) == masked
    assert all(torch.isfinite(p.grad).all() and p.dtype == dtype for p in conv.parameters())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


REFUSED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "old weight_norm": lambda: torch.nn.utils.weight_norm(nn.Conv2d(4, 6, 3)),
    "custom bias": lambda: parametrize.register_parametrization(nn.Conv2d(4, 6, 3), "bias", Doubled()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("how", REFUSED)
def test_parametrized_weights_are_refused_and_unchanged(how: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), REFUSED[how]()).eval()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"`filters` .* Found '1'"):
        mask_filters(model, {"0": [1], "1": [1]})
    assert same(model.state_dict(), before)
