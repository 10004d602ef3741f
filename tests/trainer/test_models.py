"""Models as users write them: batches of any structure, signals and volumes, compiled parts, torchvision's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from lightning.pytorch.loggers import CSVLogger
from reports import facts
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainers import SmallNet, hook_count, images, loader, quiet_trainer, watcher

from lightning_anomaly import AnalysisSettings, AnomalyReport, analyze

QUICK = AnalysisSettings(rare_fraction=0.25, max_components=2, n_init=1, max_map_side=2)


class Wrapped(pl.LightningModule):
    def __init__(self, net: nn.Module, take: Callable[[Any], Tensor] = lambda batch: batch[0]) -> None:
        super().__init__()
        self.net = net
        self.take = take

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(self.take(batch)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(self.take(batch)).square().mean(), batch_size=20)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.01)


def watch(folder: Any, module: Any, data: Any = None, logger: Any = False, epochs: int = 2) -> AnomalyReport:
    """Fit with a watcher, which draws figures for a logger, and return its report; no hook may remain."""
    callback = watcher(log_figures=logger is not False)
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, callback, logger=logger, max_epochs=epochs)
    trainer.fit(module, data or loader(), data or loader())
    assert hook_count(module) == 0
    assert callback.report.n_samples == 60
    assert len(callback.history) == epochs
    return callback.report


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))


def test_batches_of_any_structure_give_the_report_of_analyze(tmp_path: Any) -> None:
    class Still(Wrapped):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    nested = [{"label": [1], "views": [(x, 2), {"x": x}]} for x in images()]
    still = Still(net(), lambda batch: batch["views"][0][0])
    report = watch(tmp_path, still, DataLoader(nested, batch_size=20))
    expected = analyze(net(), images(), settings=AnalysisSettings(rare_fraction=0.05, n_init=2, max_components=3))
    assert list(report.layers) == ["net.0", "net.2"]
    assert list(facts(report)["layers"].values()) == list(facts(expected)["layers"].values())


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv1d(1, 4, 9, stride=2), nn.ReLU(), nn.Conv1d(4, 3, 5)), (60, 1, 400)),
        (nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2)), (60, 1, 8, 9, 10)),
    ],
    ids=["sound", "volumes"],
)
def test_signals_and_volumes_are_analyzed_and_volumes_have_pictures(
    tmp_path: Any, network: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[7] *= 20
    wrapped, logger = Wrapped(network, lambda batch: batch), CSVLogger(tmp_path)
    report = watch(tmp_path, wrapped, DataLoader(list(x), 20), logger, epochs=1)
    first = report.layers["net.0"]
    assert len(first.map_size) == len(shape) - 2
    assert first.analyzed_size != first.map_size
    assert (report.images is not None) == (len(shape) == 5)
    assert len(list(Path(logger.log_dir).rglob("outliers/*.png"))) == (len(shape) == 5)
    assert report.save_html(tmp_path / "filters.html").path.is_file()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by dynamo
def test_compiled_parts_give_the_report_of_the_plain_network(tmp_path: Any) -> None:
    def compiled_parts() -> pl.LightningModule:
        module = Wrapped(net())
        module.net[0].compile(backend="eager")
        module.net[2] = torch.compile(module.net[2], backend="eager")
        return module

    class Quiet(Wrapped):
        def validation_step(self, batch: Any, batch_idx: int) -> None:  # dynamo cannot trace Lightning's `log`
            self.net(self.take(batch))

    torch._dynamo.reset()
    expected = watch(tmp_path, Wrapped(net()))
    for module in (compiled_parts(), torch.compile(Quiet(net()), backend="eager")):
        assert facts(watch(tmp_path, module)) == facts(expected)


class Interrupts(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 3:
            raise KeyboardInterrupt


def test_the_last_figures_are_drawn_when_the_user_interrupts_the_fit(tmp_path: Path) -> None:
    logger, ours = CSVLogger(tmp_path), watcher(log_figures=True)
    trainer = quiet_trainer(tmp_path, ours, Interrupts(), logger=logger, max_epochs=9)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(SmallNet(), loader(), loader())
    drawn = sorted(file.stem for file in (Path(logger.log_dir) / "anomaly_filters/verdicts").iterdir())
    assert drawn == [f"step={step:06d}" for step in (2, 5, 8)]  # the last is the third


# Of torchvision's families that call their convolutions in different ways, at 64x64.
FAMILIES = ["alexnet", "convnext_tiny", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_classifiers_are_analyzed_and_unchanged(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    report = analyze(model, images(6, 3, 64), settings=QUICK)
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert list(report.layers) == list(convolutions)
    assert all(len(report.layers[n].verdicts) == m.out_channels for n, m in convolutions.items())
    assert report.n_samples == 6
    assert not any(layer.filters("nonfinite") for layer in report.layers.values())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())
    assert hook_count(model) == 0
