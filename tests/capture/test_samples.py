"""What is captured of samples beside maps: statistics of pixels, and the features and logits of the last layer."""

import pytest
import torch
from functional import Net
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.pixels import describes_pixels, pixel_names, pixel_statistics
from lightning_anomaly.capture.samples import SampleStatistics


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def features(net: Net, x: Tensor) -> Tensor:
    return net.hidden(net.second(net.conv(x).relu()).mean((2, 3))).relu()


def classifier() -> Net:
    """Normalizes its images, and has an in-place activation behind its logits."""
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(4, 4, 1), "hidden": nn.Linear(4, 6)}
    layers |= {"unused": nn.Linear(6, 2), "last": nn.Linear(6, 5)}
    return Net(lambda net, x: net.last(features(net, 2 * x - 1)).relu_(), **layers)


@pytest.mark.parametrize("taken", [10, 7])
def test_pixels_are_those_of_the_first_layer_and_logits_those_of_the_last(taken):
    model, x = classifier(), images(10, 3, 8, 8)
    capture = MapCapture({"conv": model.conv}, limit=taken, model=model)
    with torch.no_grad():
        for batch in x.split(4):
            with capture:
                model.eval()(batch)
        expected = features(model, 2 * x - 1)
        logits = model.last(expected)
    found = capture.samples.collected(taken)
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(found.pixels, pixel_statistics(2 * x - 1)[:taken])
    torch.testing.assert_close(found.features, expected[:taken])
    torch.testing.assert_close(found.logits, logits[:taken])  # before the in-place activation
    assert capture.samples.collected(taken + 1).pixels is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_with_one_output_or_outputs_for_patches_has_no_classes():
    for last in (nn.Linear(3, 1), nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 2))):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
        capture = MapCapture({"0": model[0]}, model=model)
        with capture, torch.no_grad():
            model(images(5, 1, 8, 8))
        found = capture.samples.collected(5)
        assert found.pixels is not None
        assert found.features is found.logits is None


@pytest.mark.parametrize("shape", [(6, 1, 9, 12), (6, 3, 8, 8), (6, 2, 20), (6, 1, 5, 6, 7), (6, 5, 6, 6)])
def test_each_pixel_statistic_has_a_name_and_does_not_depend_on_the_unit(shape):
    x = images(*shape)
    found = pixel_statistics(x)
    assert found.shape == (6, len(pixel_names(shape[1], len(shape) - 2)))
    other = pixel_statistics(9 * x - 4)
    for column, changed in zip(found.T, other.T, strict=True):  # equal up to a factor and a constant
        before, now = ((values - values.mean()) / values.std().clamp(min=1e-12) for values in (column, changed))
        torch.testing.assert_close(now, before, rtol=1e-2, atol=1e-2)


def test_shares_of_pixels_include_those_at_the_limit():
    """The limits are 2% of the range for the brightest and the darkest share, and 1% for flat neighbours."""
    x = torch.tensor([[0, 2, 3, 50, 50], [97, 98, 99, 100, 50], [50, 51, 60, 50, 0], [50, 50, 50, 50, 50]]).double()
    found, names = pixel_statistics(x[None, None])[0].tolist(), pixel_names(1, 2)
    assert found[names.index("brightest share")] == 3 / 20
    assert found[names.index("darkest share")] == 3 / 20
    flat = [value for value, name in zip(found, names, strict=True) if name == "flat share"]
    assert flat == [(x.diff(dim=axis).abs() <= 1).double().mean().item() for axis in (0, 1)]


def test_images_with_too_few_pixels_have_no_statistics():
    for shape in ((4, 3, 8, 3), (4, 7), (4, 1, 2, 2, 2), (4, 0, 8, 8), (4, 1, 4, 4, 4, 4)):
        assert not describes_pixels(torch.Size(shape))
    assert describes_pixels(torch.Size((4, 1, 4)))
    assert describes_pixels(torch.Size((4, 1, 4, 4, 4)))
    capture = MapCapture({"": (model := nn.Conv2d(3, 2, 3))}, model=model)
    with capture:
        model(images(4, 3, 8, 3))
    assert (capture.samples.collected(4), capture.samples.problem) == (SampleStatistics(shape=(3, 8, 3)), None)
