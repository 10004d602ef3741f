"""A model from a checkpoint file: a plain state_dict or a checkpoint of Lightning's.

Nothing in the file is run. What a user can get wrong ends in an error of one sentence that says what to do.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.tables import listed

__all__ = ["load_model"]

_WEIGHTS_ALONE = "save the weights alone, `torch.save(model.state_dict(), 'weights.pt')`, and give that file"


def load_model(path: Path, model: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model and give it the weights of a checkpoint.

    Args:
        path: A file that `torch.save` wrote: a state_dict, or a checkpoint of Lightning's. In the latter the model may
            be a part of the LightningModule, whose other tensors are left out.
        model: What builds it, a class or a function, as `module:name`.
        arguments: Its arguments by name. They take precedence over the `hyper_parameters` of the checkpoint, of which
            only those are given that it takes.

    Returns:
        The model, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else, there is no such model, or one does not belong to the other.
    """
    factory = _find(model)
    checkpoint = _read(path)
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping) or not state or not _holds_tensors(state):
        found = _some(list(checkpoint)) if checkpoint else "nothing"
        raise ValueError(
            f"`{path.name}` should be a state_dict or a Lightning checkpoint. Found {found} in it: {_WEIGHTS_ALONE}."
        )
    built = _build(factory, model, {**_stored_arguments(factory, checkpoint), **(arguments or {})})
    _fill(built, state, path.name, model)
    return built


def _holds_tensors(state: Mapping[str, Any]) -> bool:
    """Whether these are tensors, but for what layers with a state of another kind add to theirs."""
    return all(isinstance(value, Tensor) or str(key).endswith("_extra_state") for key, value in state.items())


def _find(model: str) -> Callable[..., Any]:
    place, _, name = model.partition(":")
    if not place or not name or place.startswith("."):
        raise ValueError(f"`--model` should be `module:Class`, such as `torchvision.models:resnet18`. Found `{model}`.")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise ValueError(f"Importing `{place}` failed: {error}. Install what it needs.") from error
        raise ValueError(
            f"`--model` should name a module that can be imported. Found `{place}`: start from the folder that holds "
            f"it, or install its package."
        ) from error
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"Importing `{place}` failed with {error!r}: repair it first.") from error
    if not callable(found := getattr(module, name, None)):
        public = {key: value for key, value in vars(module).items() if not key.startswith("_") and callable(value)}
        models = [key for key, value in public.items() if isinstance(value, type) and issubclass(value, nn.Module)]
        own = [key for key, value in public.items() if getattr(value, "__module__", None) == place]
        raise ValueError(
            f"`--model` should name a class or function of `{place}`, {_some(models or own)}. Found `{name}`."
        )
    factory: Callable[..., Any] = found
    return factory


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        raise ValueError(f"`{path}` should be a file that `torch.save` wrote. Found a folder: {_WEIGHTS_ALONE}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint `{path}`: give the path of a file that `torch.save` wrote.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which is refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails in many ways
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found or (isinstance(error, UnpicklingError) and _begins_like_a_pickle(path)):
            what = f"a `{found[1]}`" if found else "more than tensors and plain values"
            raise ValueError(
                f"`{path.name}` holds {what}, which is not read because unpickling it could run any code that somebody "
                f"put there: {_WEIGHTS_ALONE}."
            ) from error
        if "TorchScript" in str(error):
            raise ValueError(
                f"`{path.name}` is a TorchScript archive, whose layers do not show their maps: {_WEIGHTS_ALONE}."
            ) from error
        raise ValueError(
            f"`{path.name}` cannot be read ({type(error).__name__}): give a file that `torch.save` wrote, unharmed."
        ) from error
    return checkpoint if isinstance(checkpoint, Mapping) else {f"(a {type(checkpoint).__name__})": None}


def _begins_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")  # `torch.save`, today and before it wrote archives


def _stored_arguments(factory: Callable[..., Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that Lightning stored, of which the factory gets what it takes, as Lightning does it."""
    stored, name = checkpoint.get("hyper_parameters"), checkpoint.get("hparams_name")
    if isinstance(stored, Mapping):  # LightningCLI's own words are no arguments
        stored = {key: value for key, value in stored.items() if key not in ("_instantiator", "_class_path")}
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some that are not written in Python have none
        return {}
    if not isinstance(stored, Mapping):
        return {}
    if isinstance(name, str) and name != "kwargs" and name in parameters:  # one dict of all, under a name of its own
        return {name: dict(stored)}
    kinds = [parameter.kind for parameter in parameters.values()]
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    return {key: value for key, value in stored.items() if takes_all or key in parameters}


def _build(factory: Callable[..., Any], model: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        built = factory(**arguments)
        configure = getattr(built, "configure_model", None)  # where a LightningModule may make its layers
        if callable(configure):
            configure()
    except Exception as error:  # whatever the user's class raises
        raise ValueError(
            f"`{model}` cannot be built with the arguments {_as_json(arguments)} ({type(error).__name__}: {error}): "
            "give those it was trained with, such as `--model-args '{\"channels\": 3}'`."
        ) from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"`--model` should give a torch.nn.Module. Found `{model}`, a {type(built).__name__}.")
    return built


def _fill(model: nn.Module, state: Mapping[str, Tensor], file: str, name: str) -> None:
    own = list(model.state_dict())
    prefix = _prefix(own, state, file)
    if prefix:
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        problems = [f"the file lacks {_some(missing)}"] * bool(missing)
        problems += [f"the model lacks {_some(unexpected)}"] * bool(unexpected)
    except RuntimeError as error:  # shapes
        problems = [line.strip().rstrip(".") for line in str(error).splitlines()[1:2]]
    if problems:
        raise ValueError(
            f"`{file}` is not a checkpoint of `{name}` as built here ({' and '.join(problems)}): give the class that "
            "was saved as `--model` and the arguments it was made with as `--model-args`."
        )


def _prefix(own: Sequence[str], stored: Mapping[str, Any], file: str) -> str:
    """Where the model is within the one that was saved: `network.` in a LightningModule that has it as `network`."""
    if not own or own[0] in stored:
        return ""
    prefixes = [key.removesuffix(own[0]) for key in stored if key.endswith(f".{own[0]}")]
    fitting = [prefix for prefix in prefixes if all(f"{prefix}{key}" in stored for key in own)]
    others = [prefix for prefix in fitting[1:] if not _same(own, stored, fitting[0], prefix)]
    if others:
        raise ValueError(
            f"`{file}` should hold the model once. Found it as {_some([fitting[0], *others])}: save the one to look at "
            "alone."
        )
    return fitting[0] if fitting else ""


def _same(own: Sequence[str], stored: Mapping[str, Any], first: str, second: str) -> bool:
    """Whether two parts of what was saved hold the same: one part under two names."""
    pairs = [(stored[f"{first}{key}"], stored[f"{second}{key}"]) for key in own if not key.endswith("_extra_state")]
    return all(a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)  # NaN is NaN


def _some(names: Sequence[Any]) -> str:
    return listed([f"`{name}`" for name in names], 4) if names else "which has no model"


def _as_json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, default=lambda value: f"({type(value).__name__})")
