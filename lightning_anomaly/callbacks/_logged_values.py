"""The values that a callback logs at every validation, and the keys under which it logs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_anomaly._internal.checks import check_text
from lightning_anomaly._internal.processes import gather_results
from lightning_anomaly.callbacks._guard import Guard

_MOST_LAYERS = 12  # logged one by one, unless the user names layers


class LoggedValues:
    """What the validations of a fit have measured, as `{name: value}`; a value of a layer is named `layer/NAME`.

    A missing key crashes what monitors it, and a placeholder looks like health. So a value that nobody has measured is
    logged only under a key that a callback or a learning rate scheduler of this Trainer monitors: the neutral value.
    """

    def __init__(self, prefix: str, neutral: Mapping[str, float], in_progress_bar: str = "") -> None:
        self.prefix = check_text("log_key_prefix", prefix)
        self.measured: dict[str, float] = {}
        self._neutral = dict(neutral)
        self._in_progress_bar = in_progress_bar
        self._layers: list[str] = []
        self._log_layers = False

    def begin_validation(self, last: Mapping[str, float], layers: Iterable[str] = (), *, chosen: bool = False) -> None:
        """Begin a validation with the `last` values, but for those of layers that the module no longer has.

        Layers are logged one by one if the user has `chosen` them, or if they are few.
        """
        self._layers = list(layers)
        self._log_layers = chosen or len(self._layers) <= _MOST_LAYERS
        kept = self._neutral.keys() | {f"layer/{name}" for name in self._layers}
        self.measured = {name: value for name, value in last.items() if name in kept}

    def log_values(self, trainer: Any, pl_module: Any) -> None:
        """Log what all processes have measured, and the monitored keys; a collective call."""
        common = set.intersection(*gather_results(lambda: set(self.measured)))
        monitored = self.monitored_keys(trainer)
        neutral = self._neutral | {f"layer/{name}": 0.0 for name in self._layers}
        values = {name: value for name, value in neutral.items() if self._log_key(name) in monitored}
        values |= {name: value for name, value in self.measured.items() if name in common}
        for name, value in values.items():
            if self._log_layers or not name.startswith("layer/"):
                # The maximum of equal numbers is exact, their mean is rounded.
                pl_module.log(self._log_key(name), value, on_step=False, on_epoch=True, batch_size=1,
                              prog_bar=name == self._in_progress_bar, sync_dist=True, reduce_fx="max")  # fmt: skip

    def monitored_keys(self, trainer: Any) -> set[str]:
        """Return the keys of this prefix that a callback or a scheduler of a fit monitors."""
        readers = (*trainer.callbacks, *trainer.lr_scheduler_configs) if trainer.state.fn == "fit" else ()
        monitors = [getattr(reader, "monitor", None) for reader in readers]
        prefixes = f"{self.prefix}/", f"{self.prefix}_layers/"
        return {key for key in monitors if isinstance(key, str) and key.startswith(prefixes)}

    def without_measurement(self, trainer: Any, advice: str = "") -> str:
        """Say what is logged if a validation measures nothing; the text begins with a space."""
        if self.measured:
            return " The last values are logged again."
        dead = [f"'{key}'" for key in sorted(self.monitored_keys(trainer))]
        constant = f" Whatever monitors {', '.join(dead)} will only see a constant." if dead else ""
        return f" Nothing is measured.{advice}{constant}"

    def warn_without_validations(self, trainer: Any, guard: Guard) -> None:
        """Warn if a fit has no validations."""
        if not trainer.enable_validation:
            self.measured = {}
            guard.warn(
                "no validation",
                "This Trainer has no validations (no validation loader, no `validation_step`, or `limit_val_batches = "
                f"0`).{self.without_measurement(trainer)}",
            )

    def _log_key(self, name: str) -> str:
        layer = name.removeprefix("layer/")
        return f"{self.prefix}/{name}" if layer == name else f"{self.prefix}_layers/{layer}"


@contextmanager
def without_module_logging(pl_module: Any) -> Iterator[None]:
    """Ignore what the module logs meanwhile, in its `forward` for example: these are not values of the validation."""
    before = {name: value for name, value in vars(pl_module).items() if name == "log"}  # set by a user
    vars(pl_module)["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(pl_module)["log"]
        vars(pl_module).update(before)
