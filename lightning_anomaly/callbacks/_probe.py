"""The probe of a validation: its maps, whether its images stay the same, and small copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler

from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.callbacks._figures import Guard
from lightning_anomaly.capture.hooks import MapCapture, isolated_random_state
from lightning_anomaly.capture.images import (
    first_tensor,
    magnitudes,
    part_of,
    plain_tensor,
    sampler_of,
    training_batches,
    unpadded_length,
)
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.capture.probe import most_samples, probing
from lightning_anomaly.distributed import rank_and_world
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.pictures import shrink, take_pictures
from lightning_anomaly.settings import AnalysisSettings
from lightning_anomaly.shared_analysis import AnalysisResult, OutputSpec, analyze_shared
from lightning_anomaly.verdicts.rare import LIVE, NONFINITE

__all__ = [
    "CHANGED",
    "ProbeImages",
    "SmallImages",
    "ValidationWatch",
    "analyze_probe",
    "is_empty_result",
    "run_training_probe",
    "shortcomings",
    "small_images",
    "unlogged",
]

CHANGED = {
    "val": "The validation images of the probe changed from one validation to the next, so the anomaly counts are not "
    'comparable. Give the same ones each time, without random augmentation, or use `probe = "train"`.',
    "train": "The training images of the probe changed from one validation to the next, so the anomaly counts are not "
    "comparable. Augment with the random numbers of torch, NumPy or Python, which are the same ones for each probe, or "
    'use `probe = "val"`: without a worker, a generator of the data set\'s own gives the training other numbers too.',
}
_SIDE = 4  # pixels, or up to twice as many, along each axis of a sample: what changes images changes some of them


class ProbeImages:
    """A few pixels of each image of the probe, from one validation to the next.

    Rounding that differs, as on a GPU it may, is no change: they are compared to a hundredth.
    """

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._now: list[Tensor] = []
        self._seen = 0

    def record(self, batch: Any, limit: int) -> None:
        """Take the pixels of a batch, up to `limit` samples; they stay on their device, so nothing waits for it."""
        images = plain_tensor(batch)
        if images is None or images.numel() == 0:
            return
        images = images.detach()[: max(0, limit - self._seen)]
        grid = [slice(None)] + [slice(size // _SIDE // 2, None, max(1, size // _SIDE)) for size in images.shape[1:]]
        # A view, whatever the memory format; then a copy, as the model may change its input in place.
        self._now.append(magnitudes(images[tuple(grid)]).to(torch.float32, copy=True).flatten())
        self._seen += len(images)

    def forget(self) -> None:
        """Drop what was seen of a validation that has not ended."""
        self._now, self._seen = [], 0

    def changed(self) -> bool:
        """End a validation; whether its images are others than those of the one before."""
        if not self._seen:
            return False
        before, self._before = self._before, torch.cat(self._now).cpu()
        self.forget()
        if before is None or before.shape != self._before.shape:
            return before is not None
        tolerance = 1e-3 * before.nan_to_num(0, 0, 0).abs().mean().item()
        return not torch.allclose(before, self._before, rtol=1e-2, atol=tolerance, equal_nan=True)


_LARGEST_IMAGE = 64  # pixels; what is shown is smaller


class SmallImages:
    """The images of a probe, or its signals, kept during a validation."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def record(self, batch: Any, limit: int) -> None:
        """Keep those of a batch, of up to `limit` samples in all."""
        missing = limit - sum(map(len, self._batches))
        images = small_images(batch) if missing > 0 else None
        if images is not None:
            self._batches.append(images[:missing])

    def taken(self) -> Tensor | None:
        """Images `(N, C, H, W)` or signals `(N, C, L)`; None if there are none, or of several sizes."""
        return torch.cat(self._batches) if len({images.shape[1:] for images in self._batches}) == 1 else None

    def forget(self) -> None:
        """Drop them."""
        self._batches = []


def small_images(batch: Any) -> Tensor | None:
    """The samples of a batch, small and on the CPU; None if they are nothing that can be drawn.

    Returns:
        Images, or the middle slices of volumes, `(n, C, H, W)` of at most 64 pixels a side; or signals `(n, C, L)`.
    """
    tensor = plain_tensor(batch)
    if tensor is None or not 2 <= tensor.ndim <= 5 or not tensor.numel():
        return None
    return shrink(tensor, _LARGEST_IMAGE).clone()  # the model may change its input in place


class ValidationWatch:
    """Take the maps of a probe of `probe_size` samples, over all processes, during one validation.

    Attributes:
        gathered: Number of samples that all processes have together, at most.
        notes: Notes for the report.
        images: This process's images of the probe; None if they are not known.
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
        on_batch: Callable[[Any], None],
    ) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._probe = probe
        self._probe_size = probe_size
        self._settings = settings
        self._on_batch = on_batch
        together = _in_several_processes(trainer)
        self.gathered = probe_size
        if probe == "val" and together:
            self.gathered = min(probe_size, unpadded_length(trainer.val_dataloaders))
        self._probed = False
        self._size: int | None = None  # of the batch that runs
        self._before = 0
        self.notes: dict[str, str] = {}
        self.images: Tensor | None = None
        self._limit = -(-probe_size // (trainer.world_size if together else 1))
        self._capture = MapCapture(
            layers,
            limit=self._limit,
            rectify=settings.rectify,
            max_map_side=settings.max_map_side,
            taking=self._in_step,
        )

    def _in_step(self) -> bool:
        """Whether the model is not run by somebody else's hook before the validation step, on images of its own."""
        return self._probe == "train" or getattr(self._module, "_current_fx_name", None) in (None, "validation_step")

    def before_batch(self, batch: Any) -> None:
        """Hook the layers for the validation step to come."""
        if self._probe == "val" and not self._capture.full:
            images = plain_tensor(batch)
            # Of a list of single images, sequences or tables the first tensor need not say how many samples there are.
            self._size = len(images) if images is not None and images.ndim > 3 else None
            self._before = self._taken
            self._capture.attach()
            self._on_batch(batch)

    def run_training_probe(self) -> None:
        """Run the training probe, after the first step of a validation; a second call does nothing.

        Averaged weights are in place then whatever the order of the callbacks, and of several processes all have the
        buffers of the first, which is what is validated and saved: the step has brought them.
        """
        if self._probe == "train" and not self._probed:
            self._probed = True
            with torch.inference_mode(False), torch.no_grad():
                run_training_probe(
                    self._trainer, self._module, self._capture, self._probe_size, self._settings.seed, self._on_batch
                )

    def after_batch(self) -> None:
        """Take the hooks off again; a second call does nothing."""
        self._capture.remove()
        taken = self._taken - self._before
        # Of the last batch there may be more than the probe needs.
        if self._size is not None and taken and self._taken < self._limit and taken != self._size:
            self.notes["other samples"] = (
                f"A validation batch of {self._size} samples gave {taken} maps: the module calls its layers with parts "
                "of a batch, of which the first counts, or with other samples. So the report's samples are not "
                "numbered as those of the loader, and their images are not shown."
            )
        self._size = None

    def end(self, notes: Mapping[str, str], images: Tensor | None) -> None:
        """Keep notes and images for the report, but no images of other samples."""
        self.images = None if self.notes else images
        self.notes = {**notes, **self.notes}

    @property
    def _taken(self) -> int:
        return most_samples(self._capture.maps)

    @property
    def taken(self) -> tuple[dict[str, LayerMaps], dict[str, str], Tensor | None, int]:
        """Maps by layer, notes, images, and how many samples all processes have together at most."""
        return self._capture.maps, self.notes, self.images, self.gathered


def analyze_probe(
    trainer: Any,
    watch: ValidationWatch | None,
    settings: AnalysisSettings,
    spec: OutputSpec,
    failure: Exception | None,
    guard: Guard,
) -> AnalysisResult:
    """Analyze what a validation took; a collective call, which raises in all processes if one has failed."""
    # A process without a watch has failed, and takes part all the same.
    maps, notes, images, limit = ({}, {}, None, 0) if watch is None else watch.taken
    with torch.inference_mode(False), torch.no_grad():
        if _in_several_processes(trainer):
            return analyze_shared(maps, images, settings, notes, limit=limit, spec=spec, failure=failure)
        if failure is not None:
            raise failure
        report = analyze_maps(maps, settings, notes)
        pictures = None
        if spec.pictures:
            with guard("take pictures for the browser"):  # which are not worth an analysis
                pictures = take_pictures(report.layers, maps, images)
        return AnalysisResult(report, images, pictures)


def _in_several_processes(trainer: Any) -> bool:
    return trainer.world_size > 1 and rank_and_world()[1] > 1


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
    own = vars(pl_module)
    before = own.get("log")
    own["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del own["log"]
        if before is not None:
            own["log"] = before


def _in_order(loader: Any) -> bool:
    """Whether each epoch is of a loader's first batches, where it is limited."""
    kinds = type(sampler_of(loader)), type(getattr(loader, "batch_sampler", None))
    return kinds == (SequentialSampler, BatchSampler)


def run_training_probe(
    trainer: Any, pl_module: Any, capture: MapCapture, size: int, seed: int, on_batch: Callable[[Any], None]
) -> None:
    """Run this process's share of a fixed random sample of the training set, as Lightning evaluates, and take maps."""
    strategy = trainer.strategy
    precision = strategy.precision_plugin

    def forward(batch: Any, watching: AbstractContextManager[object]) -> None:
        batch = pl_module._on_before_batch_transfer(precision.convert_input(batch))
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        inputs = first_tensor(batch)
        with precision.forward_context(), watching:
            call(batch if inputs is None else inputs)

    # Dealt out as `sample_order` expects it, so that process 0 has as many samples as any.
    first, loader = None, trainer.train_dataloader
    if trainer.overfit_batches or _in_order(loader):  # of each process, where they have a sampler of their own
        first = trainer.num_training_batches * getattr(sampler_of(loader), "num_replicas", 1)
    sample = training_batches(trainer.train_dataloader, size, seed, first)
    own, most = (part_of(sample, slice(rank, None, trainer.world_size), seed) for rank in (trainer.global_rank, 0))
    with isolated_random_state(seed), unlogged(pl_module), probing(pl_module, capture) as call:
        for batch in own:
            on_batch(batch)
            forward(batch, capture)
            if capture.full:
                return
        if len(own) < len(most):  # what the module does with a batch may communicate: all processes do it as often
            for batch in part_of(sample, slice(1), seed):
                forward(batch, nullcontext())
