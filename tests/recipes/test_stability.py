import pytest
import torch

from lightning_anomaly import AnalysisSettings
from recipes import stability
from recipes.common.networks import build
from recipes.common.options import one_sentence_errors


@pytest.fixture(scope="module")
def probes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randint(100, 156, (2 * stability.PROBE, 1, 1, 1), generator=generator, dtype=torch.uint8)
    return stability.damaged_probes(smooth.expand(-1, 1, 8, 8), 8)


def lenet5() -> torch.nn.Module:
    """The same untrained network each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("lenet5", 1, 10)


def test_each_probe_has_as_many_damaged_images(probes):
    images, damaged = probes
    assert damaged[: stability.PROBE].sum() == damaged[stability.PROBE :].sum() == 8
    flat = (images == images[:, :, :1, :1]).flatten(1).all(1)
    assert torch.equal(flat, ~damaged)


def test_analyses_agree_on_filters_that_single_out_damaged_images(probes):
    images, damaged = probes
    settings = AnalysisSettings(n_init=5, max_components=3, rectify=False)
    found = stability.measure(lenet5(), images.float() / 255, damaged, settings, repeats=2)
    assert found["damaged_found"] == 8
    assert found["flagged"] > 0
    assert found["others_found"] == 0
    assert found["seeds_jaccard"] > 0.9
    assert found["left_out_jaccard"] > 0.8


def test_the_share_of_equal_verdicts_counts_filters(probes):
    images, _ = probes
    network = lenet5()
    maps = stability.capture(network, images[: stability.PROBE].float() / 255, AnalysisSettings())
    some = stability.choose(maps, torch.arange(256))
    settings = AnalysisSettings(n_init=1)
    first, second = (stability.analyze_maps(each, settings) for each in (maps, some))
    flags = [[v for layer in report.layers.values() for v in layer.verdicts] for report in (first, second)]
    assert stability.same_verdict(first, first) == 1
    assert stability.same_verdict(first, second) == sum(a == b for a, b in zip(*flags, strict=True)) / 22


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--repeats 1", "argument --repeats: should be an integer of at least 2. Found 1."),
        ("--train-size 400 --val-size 600", "error: Option `--val-size` should leave at least 1024 validation images"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(options, message, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        one_sentence_errors(stability.run, lambda: stability.parse(options.split()))
    assert message in f"{ended.value} {capsys.readouterr().err}"
