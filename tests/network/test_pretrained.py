"""The network that is taken when none is given."""

import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision import models
from torchvision.transforms import Normalize

from lightning_anomaly.network.pretrained import load_pretrained

WEIGHTS = models.MobileNet_V3_Large_Weights.DEFAULT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub, and no network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_without_the_extra_a_cached_network_of_torchvision_normalizes_its_images(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = models.mobilenet_v3_large().eval()
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            values.uniform_(0.5, 1.5, generator=generator)
    torch.save(network.state_dict(), cache / Path(WEIGHTS.url).name)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"MobileNet.*docs/results.*lightning-anomaly\[photos\]"):
        name, model, class_names = load_pretrained()
    assert torch.equal(torch.get_rng_state(), state)
    assert name == "MobileNet V3"
    assert class_names == tuple(WEIGHTS.meta["categories"])
    scaling = WEIGHTS.transforms()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), network(Normalize(scaling.mean, scaling.std)(images)))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_with_the_extra_nothing_is_downloaded(capfd: pytest.CaptureFixture[str]) -> None:
    name, model, class_names = load_pretrained()
    assert capfd.readouterr() == ("", "")
    assert name == "EfficientNet Lite0"
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    assert len(class_names) == 1000


def test_without_either_one_sentence_says_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"lightning-anomaly\[photos\].*MobileNet.*no network"):
        load_pretrained()
