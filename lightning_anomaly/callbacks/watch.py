"""One validation under watch: its maps are taken while it runs and analysed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.callbacks.probe import gather, run_training_probe, unpadded_length
from lightning_anomaly.capture import MapCapture
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.settings import AnalysisSettings

__all__ = ["ValidationWatch", "builds_layers_later", "shortcomings"]


class ValidationWatch:
    """Takes the maps of a probe during one validation and analyses them.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        layers: The layers to watch, by name.
        probe: `"val"` or `"train"`.
        probe_size: Number of probe samples over all processes.
        settings: How to analyse.
        on_batch: Called with every batch of the probe.
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
        self._together = trainer.world_size > 1 and dist.is_available() and dist.is_initialized()
        self._gathered = probe_size
        if probe == "val" and self._together:
            self._gathered = min(probe_size, unpadded_length(trainer.val_dataloaders))
        self._probed = False
        self._failure: Exception | None = None
        self._capture = MapCapture(
            layers,
            limit=-(-probe_size // (trainer.world_size if self._together else 1)),
            rectify=settings.rectify,
            max_map_side=settings.max_map_side,
        )

    def before_batch(self, batch: Any) -> None:
        """Hooks the layers for the validation step to come, or runs the training probe before the first one."""
        if self._probe == "train":
            self._run_training_probe()
        elif not self._capture.full:
            self._capture.attach()
            self._on_batch(batch)

    def after_batch(self) -> None:
        """Takes the hooks off again; a second call does nothing."""
        self._capture.remove()

    def analyse(self, notes: Mapping[str, str]) -> tuple[AnomalyReport | None, Exception | None]:
        """The report, or why there is none. All processes call it and learn the same; none waits for one that failed.

        Args:
            notes: Notes that the report should have.
        """
        probed = True
        if self._probe == "train":
            self._run_training_probe()  # for a process without any validation batch
            probed = self._failure is None
            if self._together:
                probed = self._trainer.strategy.reduce_boolean_decision(probed, all=True)
        report: AnomalyReport | None = None
        try:
            if probed:
                with torch.inference_mode(False), torch.no_grad():
                    maps = gather(self._capture.maps, self._gathered) if self._together else self._capture.maps
                    if self._trainer.is_global_zero:
                        report = analyze_maps(maps, self._settings, notes)
        except Exception as error:
            self._failure = error
        report, told = self._trainer.strategy.broadcast((report, repr(self._failure or "another process failed")))
        return report, None if report is not None else self._failure or RuntimeError(told)

    def _run_training_probe(self) -> None:
        # Before the first validation step, where averaged weights are in place whatever the order of the callbacks.
        if self._probed:
            return
        self._probed = True
        try:
            with torch.inference_mode(False), torch.no_grad():
                run_training_probe(
                    self._trainer, self._module, self._capture, self._probe_size, self._settings.seed, self._on_batch
                )
        except Exception as error:
            self._failure = error


def shortcomings(report: AnomalyReport, probe_size: int) -> dict[str, str]:
    """What a report should be warned about, by a key: its notes, and a probe of fewer than `probe_size` samples."""
    found = {key: note for key, note in report.notes.items() if key != "few samples"}
    if report.n_samples < probe_size and report.layers:
        text = f"The probe has {report.n_samples} samples, fewer than `probe_size = {probe_size}`."
        found["small probe"] = " ".join([text, report.notes.get("few samples", "")]).strip()
    return found


def builds_layers_later(pl_module: Any) -> bool:
    """Whether a module has a `setup` or `configure_model` of its own, after which it may have other layers."""
    for hook in ("setup", "configure_model"):
        owner = next((cls for cls in type(pl_module).__mro__ if hook in vars(cls)), None)
        if owner is not None and not owner.__module__.startswith(("lightning.", "pytorch_lightning.")):
            return True
    return False
