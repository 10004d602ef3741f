"""The probe of a validation: its maps, whether its images stay the same, and small copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.callbacks._figures import Guard
from lightning_anomaly.capture.drawing import shrink
from lightning_anomaly.capture.hooks import MapCapture, isolated_random_state
from lightning_anomaly.capture.images import (
    drawn_positions,
    file_names,
    first_loader,
    first_tensor,
    holder,
    reread,
    shuffles,
    training_positions,
    unpadded_length,
)
from lightning_anomaly.capture.probe import most_samples, probing, tensors_in
from lightning_anomaly.distributed import rank_and_world
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.pictures import take_pictures
from lightning_anomaly.settings import AnalysisSettings
from lightning_anomaly.shared_analysis import AnalysisResult, OutputSpec, analyze_shared
from lightning_anomaly.verdicts.rare import LIVE, NONFINITE

__all__ = [
    "CHANGED",
    "ValidationWatch",
    "analyze_probe",
    "is_empty_result",
    "same_pixels",
    "sample_pixels",
    "shortcomings",
    "small_images",
    "transferred",
    "unlogged",
]

CHANGED = {
    "val": "The validation images of the probe changed from one validation to the next, so the anomaly counts are not "
    'comparable. Give the same ones each time, without random augmentation, or use `probe = "train"`.',
    "train": "The training images of the probe changed from one validation to the next, so the anomaly counts are not "
    "comparable. Augment with the random numbers of torch, NumPy or Python, which are the same ones for each probe, or "
    'use `probe = "val"`.',
}
_SIDE = 4  # pixels, or up to twice as many, along each axis of a sample: what changes images changes some of them


def sample_pixels(batch: Any, limit: int) -> Tensor:
    """Copy a few pixels of each sample of a batch, of `limit` at most; they stay on their device."""
    images = first_tensor(batch)
    if images is None or images.numel() == 0:
        return torch.zeros(0, device="cpu")
    places = [slice(size // _SIDE // 2, None, max(1, size // _SIDE)) for size in images.shape[1:]]
    grid = (slice(limit), *places)
    # A view, whatever the memory format; then a copy, as the model may change its input in place.
    return images.detach()[grid].to(torch.float32, copy=True).flatten()


def same_pixels(before: Tensor, now: Tensor) -> bool:
    """Whether pixels are equal to a hundredth: rounding that differs, as on a GPU it may, is no change."""
    tolerance = 1e-3 * before.nan_to_num(0, 0, 0).abs().sum().item() / max(1, len(before))
    return before.shape == now.shape and torch.allclose(before, now, rtol=1e-2, atol=tolerance, equal_nan=True)


_LARGEST_IMAGE = 64  # pixels; what is shown is smaller


def small_images(batch: Any) -> Tensor | None:
    """The samples of a batch, small and on the CPU; None if they are nothing that can be drawn.

    Returns:
        Images, or the middle slices of volumes, `(n, C, H, W)` of at most 64 pixels a side; or signals `(n, C, L)`.
    """
    tensor = first_tensor(batch)
    if tensor is None or not 2 <= tensor.ndim <= 5 or not tensor.numel():
        return None
    return shrink(tensor, _LARGEST_IMAGE).clone()  # the model may change its input in place


def class_targets(batch: Any) -> Tensor | None:
    """Copy what may be the classes of a batch: its first integers of 64 bits with one for each sample."""
    images = first_tensor(batch)
    for own in tensors_in(batch):
        if images is not None and own.dtype == torch.int64 and own.ndim == 1 and own.shape == images.shape[:1]:
            return own.clone()
    return None


def class_names(loaders: Any) -> Sequence[str]:
    """Find the names of the classes in the first data set, where it has them as those of torchvision do."""
    data = holder(getattr(first_loader(loaders), "dataset", None), "classes")
    return getattr(data, "classes", None) or ()


class ValidationWatch:
    """Take the maps of a probe of `probe_size` samples, over all processes, during one validation.

    Attributes:
        gathered: Number of samples that all processes have together, at most.
        maps: This process's maps, by layer.
        samples: What is known of its samples beside their maps.
        notes: Notes for the report.
    """

    def __init__(
        self,
        trainer: Any,
        pl_module: Any,
        *,
        layers: dict[str, nn.Module],
        probe: str,
        probe_size: int,
        settings: AnalysisSettings,
        notes: Mapping[str, str],
        keep_images: bool,
    ) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._probe = probe
        self._probe_size = probe_size
        self._seed = settings.seed
        self.notes = notes
        world = rank_and_world()[1]
        self.gathered = probe_size
        if probe == "val" and world > 1:
            self.gathered = min(probe_size, unpadded_length(trainer.val_dataloaders))
        self._probed = False
        self._limit = -(-probe_size // world)
        self._pixels: list[Tensor] = []
        self._images: list[Tensor] | None = [] if keep_images else None
        self._targets: list[Tensor | None] = []  # of the whole validation
        self._capture = MapCapture(
            layers,
            limit=self._limit,
            rectify=settings.rectify,
            max_map_side=settings.max_map_side,
            model=pl_module,
        )
        self.maps = self._capture.maps
        self.samples = self._capture.samples

    def before_batch(self, batch: Any) -> None:
        """Hook the layers for the validation step to come."""
        if self._probe == "val":
            self._targets.append(class_targets(batch))
            if not self._capture.full:
                self._capture.attach()
                self._record(batch)

    def _record(self, batch: Any) -> None:
        room = self._limit - most_samples(self.maps)
        self._pixels.append(sample_pixels(batch, room))
        if self._images is not None:
            images = small_images(batch)
            # Where layers get parts of a batch, or make several samples of one, maps have no image each.
            known = images is not None and sum(map(len, self._images)) == most_samples(self.maps)
            self._images = [*self._images, images[:room]] if images is not None and known else None

    def run_training_probe(self) -> None:
        """Run the training probe, after the first step of a validation; a second call does nothing.

        Averaged weights are in place then whatever the order of the callbacks, and of several processes all have the
        buffers of the first, which is what is validated and saved: the step has brought them.
        """
        if self._probe == "train" and not self._probed:
            self._probed = True
            with torch.inference_mode(False), torch.no_grad():
                run_training_probe(
                    self._trainer, self._module, self._capture, self._probe_size, self._seed, self._record
                )

    def after_batch(self) -> None:
        """Take the hooks off again; a second call does nothing."""
        self._capture.remove()

    @property
    def pixels(self) -> Tensor:
        """A few pixels of each sample, to know them again."""
        return torch.cat([own.cpu() for own in self._pixels]) if self._pixels else torch.zeros(0, device="cpu")

    @property
    def images(self) -> Tensor | None:
        """Images `(N, C, H, W)` or signals `(N, C, L)`; None if they are not known, or of several sizes."""
        one_size = len({images.shape[1:] for images in self._images or ()}) == 1
        return torch.cat(self._images) if self._images and one_size else None

    def _classes(self, samples: int) -> tuple[Tensor, Tensor] | None:
        """The classes of all samples of this validation, and those predicted for the probe, if both are known."""
        logits = self.samples.collected(samples).logits
        targets = [own for own in self._targets if own is not None]
        if logits is None or not targets or len(targets) < len(self._targets):
            return None
        classes = torch.cat(targets).cpu()
        known = len(classes) >= samples and classes.min() >= 0 and classes.max() < logits.shape[1]
        return (classes, logits.argmax(1)) if known else None

    def describe_samples(self, samples: int) -> dict[str, list[str] | None]:
        """Return the `labels` and the `names` of the samples of the probe, each None if unknown.

        A label is the class, and the predicted one where that is another; a name is a file of the data set.
        """
        loaders = self._trainer.val_dataloaders
        known, classes = self._classes(samples), dict(enumerate(class_names(loaders)))
        labels = None
        if known is not None:
            pairs = zip(*([classes.get(own, own) for own in part[:samples].tolist()] for part in known), strict=True)
            labels = [f"{own}" if own == predicted else f"{own}, predicted {predicted}" for own, predicted in pairs]
        loader = first_loader(loaders)
        files = file_names(getattr(loader, "dataset", None))
        in_order = self._probe == "val" and rank_and_world()[1] == 1 and not shuffles(loaders)
        positions = drawn_positions(loader) if files is not None and in_order else None
        names = None if files is None or positions is None else [files[place] for place in positions[:samples]]
        return {"labels": labels, "names": names}

    def class_notes(self, samples: int) -> dict[str, str]:
        """Note that the probe lacks classes which as many samples at equal distances in this validation have."""
        known = self._classes(samples)
        if known is None:
            return {}
        parts = known[0][:samples], known[0][:: -(-len(known[0]) // samples)], known[0]
        probe, spread, every = (len({*part.tolist()}) for part in parts)
        if probe >= 0.9 * spread:  # there may be more classes than samples in a probe
            return {}
        return {
            "sorted": f"The first {samples} validation samples, which are the probe, have {probe} of {every} classes: "
            "shuffle the data set once, with a fixed seed, before it goes into the loader."
        }


def analyze_probe(
    watch: ValidationWatch | None,
    settings: AnalysisSettings,
    spec: OutputSpec,
    failure: Exception | None,
    guard: Guard,
) -> AnalysisResult:
    """Analyze what a validation took; a collective call, which raises in all processes if one has failed."""
    # A process without a watch has failed, and takes part all the same.
    notes: Mapping[str, str] = {} if watch is None else watch.notes
    maps, samples, images, limit = (
        ({}, None, None, 0) if watch is None else (watch.maps, watch.samples, watch.images, watch.gathered)
    )
    with torch.inference_mode(False), torch.no_grad():
        if rank_and_world()[1] > 1:
            return analyze_shared(
                maps, images, settings, notes, limit=limit, spec=spec, samples=samples, failure=failure
            )
        if failure is not None:
            raise failure
        report = analyze_maps(maps, settings, notes, samples=samples)
        pictures = None
        if spec.pictures:
            with guard("take pictures for the browser"):  # which are not worth an analysis
                pictures = take_pictures(report.layers, maps, images)
        return AnalysisResult(report, images, pictures)


def shortcomings(report: AnomalyReport, probe_size: int) -> dict[str, str]:
    """What a report should be warned about, by a key: its notes, and a probe of fewer than `probe_size` samples."""
    found = {key: note for key, note in report.notes.items() if key != "few samples"}
    if report.n_samples < probe_size and report.layers:
        text = f"The probe has {report.n_samples} samples, fewer than `probe_size = {probe_size}`."
        found["small probe"] = " ".join([text, report.notes.get("few samples", "")]).strip()
    return found


def is_empty_result(report: AnomalyReport) -> bool:
    """Whether no filter could have been found, for want of layers, of samples or of finite maps."""
    verdicts = {verdict for layer in report.layers.values() for verdict in layer.verdicts}
    nonfinite = NONFINITE in verdicts and verdicts.isdisjoint(LIVE)  # masked filters stay dead beside them
    return not verdicts or nonfinite or "few samples" in report.notes


@contextmanager
def unlogged(pl_module: Any) -> Iterator[None]:
    """Drop what the module logs inside, in its `forward` for example: it is of a probe, not of the validation."""
    vars(pl_module)["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(pl_module)["log"]


def transferred(trainer: Any, pl_module: Any, batch: Any) -> Any:
    """Convert a batch and move it to the device, through the module's hooks, as Lightning does in validation."""
    batch = pl_module._on_before_batch_transfer(trainer.strategy.precision_plugin.convert_input(batch))
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def run_training_probe(
    trainer: Any, pl_module: Any, capture: MapCapture, size: int, seed: int, on_batch: Callable[[Any], None]
) -> None:
    """Run this process's share of a fixed random sample of the training set, as Lightning evaluates, and take maps."""
    precision = trainer.strategy.precision_plugin

    def forward(batch: Any, watching: AbstractContextManager[object]) -> None:
        batch = transferred(trainer, pl_module, batch)
        inputs = first_tensor(batch)
        with precision.forward_context(), watching:
            call(batch if inputs is None else inputs)

    # Dealt out as `sample_order` expects it, so that process 0 has as many samples as any.
    loader, world = trainer.train_dataloader, trainer.world_size
    positions = training_positions(loader, size, seed)
    own, most = (reread(loader, positions[rank::world], seed=seed) for rank in (trainer.global_rank, 0))
    with isolated_random_state(seed), unlogged(pl_module), probing(pl_module) as call:
        for batch in own:
            on_batch(batch)
            forward(batch, capture)
            if capture.full:
                return
        if len(own) < len(most):  # what the module does with a batch may communicate: all processes do it as often
            for batch in reread(loader, positions[:1], seed=seed):
                forward(batch, nullcontext())
