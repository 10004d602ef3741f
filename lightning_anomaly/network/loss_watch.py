"""See, while a step runs, what its loss is given and what modules return for the images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_anomaly.images.batches import first_tensor
from lightning_anomaly.network.layer_maps import compiled_models_eager
from lightning_anomaly.network.layers import modules_by_name

# What losses of classes are given, by the names of torch's functions.
OF_CLASSES = {
    "cross_entropy": "logits",
    "nll_loss": "log-probabilities",
    "ctc_loss": "log-probabilities",
    "binary_cross_entropy_with_logits": "logits",
    "binary_cross_entropy": "probabilities",
}
SOFTMAX = {"softmax", "log_softmax"}  # functions and methods, of which a user's own loss may consist
# What an activation is given if its result is what a loss is given.
BEFORE = {
    ("log-probabilities", "log_softmax"): "logits",
    ("log-probabilities", "log"): "probabilities",
    ("probabilities", "softmax"): "logits",
    ("probabilities", "sigmoid"): "logits",
}
WITHOUT_CLASSES = {  # what other losses compare
    **dict.fromkeys(["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"], "numbers"),
    **dict.fromkeys(["gaussian_nll_loss", "poisson_nll_loss"], "numbers"),
    "kl_div": "distributions",
    **dict.fromkeys(["cosine_similarity", "cosine_embedding_loss", "hinge_embedding_loss"], "embeddings"),
    **dict.fromkeys(["triplet_margin_loss", "triplet_margin_with_distance_loss"], "embeddings"),
    **dict.fromkeys(["margin_ranking_loss", "multi_margin_loss", "soft_margin_loss"], "margins"),
    **dict.fromkeys(["multilabel_margin_loss", "multilabel_soft_margin_loss"], "several classes of an image"),
}
_ACTIVATIONS = {name for _, name in BEFORE}
_WATCHED = {*OF_CLASSES, *SOFTMAX, *WITHOUT_CLASSES, *_ACTIVATIONS}
_ARGUMENTS = "input", "log_probs", "target", "targets"  # of losses
_FEW = 16  # images that tell whether a step prepares images


class FunctionCall(NamedTuple):
    """A call of a loss or of an activation."""

    name: str
    input: Tensor
    target: Any  # of a loss
    result: Tensor


class ModuleCall(NamedTuple):
    """A call of a module with images."""

    name: str  # of the module in the model, empty for the model itself
    output: Any
    prepared: Tensor | None  # what it was given, if these are not the images of the batch


class _WatchedForward:
    """A model's `forward` that shows its calls to functions, which may come and go in any order."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._forward = model, model.forward
        self._before = {name: value for name, value in vars(model).items() if name == "forward"}
        self._seen_by: list[Callable[..., None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        for see in self._seen_by:
            see("", self._model, args, kwargs, output)
        return output

    def add(self, see: Callable[..., None]) -> None:
        vars(self._model)["forward"] = self
        self._seen_by.append(see)

    def remove(self, see: Callable[..., None]) -> None:
        self._seen_by.remove(see)
        if not self._seen_by and vars(self._model).get("forward") is self:
            del vars(self._model)["forward"]
            vars(self._model).update(self._before)


class StepWatch(TorchFunctionMode):
    """Sees the calls of losses, activations and modules in one step of a model with a batch."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()
        images = first_tensor(batch)
        self.model, self.batch, self.count = model, batch, 0 if images is None else len(images)
        self.losses, self.activations, self.calls = list[FunctionCall](), list[FunctionCall](), list[ModuleCall]()
        self._shape = () if images is None else tuple(images.shape)
        self._given = None if images is None else images[:_FEW].clone()  # a step may change them in place
        self._stack = ExitStack()

    def attach(self) -> None:
        """Watch the step to come; `remove` must follow, also after an exception."""
        self._stack.enter_context(compiled_models_eager())
        self._watch_forward(self.model)
        for name, module in modules_by_name(self.model).items():
            if module is not self.model and not isinstance(module, torch.jit.ScriptModule):  # accepts no hooks
                hook = module.register_forward_hook(partial(self._take_module, name), with_kwargs=True)
                self._stack.callback(hook.remove)
        self._stack.enter_context(self)

    def remove(self) -> None:
        """Take everything off."""
        self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), getattr(func, "__name__", "")
        if name in _WATCHED:
            with suppress(Exception):  # the step goes on, whatever a function is called with
                given, *others = list(args) + [kwargs[key] for key in _ARGUMENTS if key in kwargs]
                target = None if name in SOFTMAX or not others else others[0]
                call = FunctionCall(name, given.detach(), target, result.detach())
                if name in _ACTIVATIONS:
                    self.activations.append(call)
                if name not in _ACTIVATIONS or name in SOFTMAX:
                    self.losses.append(call)
        return result

    def _watch_forward(self, model: nn.Module) -> None:
        """Watch `forward` itself, as a step may call it without the hooks of the module."""
        watched = model.forward if isinstance(model.forward, _WatchedForward) else _WatchedForward(model)
        watched.add(self._take_module)
        self._stack.callback(watched.remove, self._take_module)

    def _take_module(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with suppress(Exception):
            given = next(iter((*args, *kwargs.values())), None)
            if isinstance(given, Tensor) and self._given is not None:
                count = min(len(self._given), len(given))
                first, second = (images[:count].float().flatten() for images in (self._given, given))
                # The same values within 1%, as conversions round them, whatever their number and shape.
                same = first.shape == second.shape and torch.allclose(first, second, 1e-2, 1e-3, equal_nan=True)
                if same or (given.ndim == len(self._shape) > 2 and tuple(given.shape[:2]) == self._shape[:2]):
                    self.calls.append(ModuleCall(name, output, None if same else given[:_FEW].clone()))
