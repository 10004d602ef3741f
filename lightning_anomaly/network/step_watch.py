"""See, while a step runs, what its losses are given and which modules are called with its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_anomaly.images.batches import first_tensor, label_columns, named_tensors
from lightning_anomaly.network.forward import images_at_a_time
from lightning_anomaly.network.layers import modules_by_name
from lightning_anomaly.network.module_calls import hooks_running, is_traced, seen_calls

# What losses of classes are given, by the names of torch's functions.
OF_CLASSES = {
    "cross_entropy": "logits",
    "nll_loss": "log-probabilities",
    "ctc_loss": "log-probabilities",
    "binary_cross_entropy_with_logits": "logits",
    "binary_cross_entropy": "probabilities",
}
SOFTMAX = {"softmax", "log_softmax", "logsumexp"}  # functions and methods, of which a user's own loss may consist
WITHOUT_CLASSES = {  # what other losses compare
    **dict.fromkeys(["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"], "numbers"),
    **dict.fromkeys(["gaussian_nll_loss", "poisson_nll_loss"], "numbers"),
    "kl_div": "distributions",
    **dict.fromkeys(["cosine_similarity", "cosine_embedding_loss", "hinge_embedding_loss"], "embeddings"),
    **dict.fromkeys(["triplet_margin_loss", "triplet_margin_with_distance_loss"], "embeddings"),
    **dict.fromkeys(["margin_ranking_loss", "multi_margin_loss", "soft_margin_loss"], "margins"),
    **dict.fromkeys(["multilabel_margin_loss", "multilabel_soft_margin_loss"], "several classes of an image"),
}
_WATCHED = {*OF_CLASSES, *SOFTMAX, *WITHOUT_CLASSES}
_ARGUMENTS = "input", "log_probs", "target", "targets"  # of losses
_VALUES = 2**22  # of what a loss is given for the images compared


@dataclass(eq=False)
class LossCall:
    """A call of a loss of classes, of another loss, or of a softmax; the tensors are copies."""

    name: str
    given: Tensor
    target: Any = None  # None of a softmax
    axis: int = 1  # of the classes in `given`
    node: Any = None  # of the result in the graph
    trains: bool = False  # whether `backward` was called on what was computed from it

    @property
    def is_binary(self) -> bool:
        """Whether it is given one score for each thing that it judges."""
        return self.name.startswith("binary")


class ModuleCall(NamedTuple):
    """A call of a module with images."""

    name: str  # of the module in the model, empty for the model itself
    outputs: Sequence[tuple[str, Tensor, int]] = ()  # key, tensor and its version, which tells whether it was changed
    prepared: Tensor | None = None  # what it was called with (k, ...), if these are not the images of the batch
    key: str = ""  # of the images, if they are a keyword argument
    args: tuple[Any, ...] = ()  # further arguments, if there is no tensor among them
    kwargs: Mapping[str, Any] = {}

    def again(self, function: Callable[..., Any], images: Tensor) -> Any:
        """Call a function with other images in the same way."""
        args, kwargs = ((), {self.key: images}) if self.key else ((images,), {})
        return function(*args, *self.args, **kwargs, **self.kwargs)


class StepWatch(TorchFunctionMode):
    """Sees the calls of losses and modules in one step of a model with a batch, between `attach` and `remove`."""

    def __init__(self, model: nn.Module, batch: Any, most: int = 32) -> None:
        super().__init__()
        images = first_tensor(batch)
        self.model, self.batch, self.form = model, batch, form_of(batch)
        self.count = 0 if images is None else len(images)
        # A step may change its batch, so what is compared later is copied now.
        self.columns = {name: column.clone() for name, column in label_columns(batch, self.count, images).items()}
        self._most = (
            most if images is None or not len(images) else min(most, images_at_a_time(images))
        )  # that run again
        self.checked = (
            torch.arange(self.n_checked(1), device="cpu") * self.count // self.n_checked(1)
        )  # places in the batch
        self.images = None if images is None else images[self.checked.to(images.device)].detach().clone()
        self.losses, self.calls = list[LossCall](), list[ModuleCall]()
        self.unreadable = list[str]()  # names of losses inside of a transformation such as `vmap`
        self.saw_backward = False
        self._shape = () if images is None else tuple(images.shape)
        self._names = {module: name for name, module in modules_by_name(model).items()}
        self._running = list[nn.Module]()  # modules that were called with images, in which a softmax is no loss
        self._stack = ExitStack()

    def n_checked(self, values: int) -> int:
        """Return how many images are compared, fewer than all, where each has so many `values`."""
        return max(1, min(self._most, self.count // 2, _VALUES // max(1, values)))

    def attach(self) -> None:
        """Watch the step to come; `remove` must follow, also after an exception."""
        self._stack.enter_context(seen_calls(self._after_call, self._before_call))
        self._stack.enter_context(self)

    def remove(self) -> None:
        """Take everything off; a second call does nothing."""
        self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "backward" and args and isinstance(args[0], Tensor):
            self._mark_what_trains(args[0].grad_fn)
        result = func(*args, **kwargs)
        if name in _WATCHED and not (hooks_running() or is_traced() or (name in SOFTMAX and self._running)):
            try:
                self.losses.append(_loss_call(name, args, kwargs, result))
            except Exception:  # the step goes on, whatever a function is called with
                self.unreadable.append(name)
        return result

    def _mark_what_trains(self, root: Any) -> None:
        """Mark the losses in the graph of what `backward` is called on."""
        self.saw_backward, todo, seen = True, [root], set[Any]()
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        for loss in self.losses:
            loss.trains |= loss.node in seen

    def _takes_images(self, module: nn.Module, given: Any) -> bool:
        """Whether a module of the model is given a tensor with the number, axes and channels of the images."""
        axes = len(self._shape)
        alike = isinstance(given, Tensor) and given.ndim == axes > 1 and tuple(given.shape[:2]) == self._shape[:2]
        return module in self._names and alike

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if self._takes_images(module, next(iter(args), None)):
            self._running.append(module)

    def _after_call(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module in self._running:  # also ends those that it called and that raised an exception
            del self._running[self._running.index(module) :]
        given: Any = next(iter((*args, *kwargs.values())), None)
        with suppress(Exception):
            if self.images is not None and self._takes_images(module, given):
                given = given[self.checked.to(given.device)].detach()
                # The same values within 1%, as conversions round them.
                same = given.shape == self.images.shape and torch.allclose(
                    given.float(), self.images.float(), 1e-2, 1e-3, equal_nan=True
                )
                if same or given.ndim > 2:
                    outputs = [(key, tensor, _version(tensor)) for key, tensor in float_tensors(output)]
                    call = ModuleCall(self._names[module], outputs, None if same else given)
                    self.calls.append(call._replace(**_other_arguments(args, kwargs)))


def float_tensors(output: Any) -> list[tuple[str, Tensor]]:
    """Return what may be scores in an output: its dense tensors of floating-point numbers, by key."""
    tensors = [(key, tensor.detach()) for key, tensor in named_tensors(output) if tensor.is_floating_point()]
    return [(k, t) for k, t in tensors if t.layout == torch.strided and not t.is_nested and t.ndim and t.numel()]


def form_of(batch: Any) -> tuple[str, ...]:
    """Describe the tensors of a batch, which tells whether another batch has the same ones."""
    return tuple(f"{name} {tensor.ndim} {tensor.is_floating_point()}" for name, tensor in named_tensors(batch))


def is_unchanged(tensor: Tensor, version: int) -> bool:
    """Whether a tensor has the values that a module returned."""
    return _version(tensor) == version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference tensors count no changes


def _other_arguments(args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call beside its images, see `ModuleCall`."""
    key = "" if args else next(iter(kwargs))
    args, kwargs = args[1:], {name: value for name, value in kwargs.items() if name != key}
    plain = not any(named_tensors([args, kwargs]))
    return {"key": key, "args": args if plain else (), "kwargs": kwargs if plain else {}}


def _loss_call(name: str, args: Any, kwargs: Any, result: Tensor) -> LossCall:
    """Copy what a function was called with, which raises an exception inside of a transformation such as `vmap`."""
    given, *others = list(args) + [kwargs[key] for key in _ARGUMENTS if key in kwargs]
    given.data_ptr()
    copy = given.detach().clone()
    if name in SOFTMAX:
        axis = kwargs.get("dim", others[0] if others else -1)
        return LossCall(name, copy, None, int(axis) % copy.ndim, result.grad_fn)
    target = others[0].detach().clone() if others and isinstance(others[0], Tensor) else None
    axis = 2 if name == "ctc_loss" else min(1, copy.ndim - 1)
    return LossCall(name, copy, target, axis, result.grad_fn)
