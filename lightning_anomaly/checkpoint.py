"""Load a model from a checkpoint file: a plain state_dict or a Lightning checkpoint."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn


def load_model(path: Path, model: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model on the CPU and load the weights of a file into it, a state_dict or a Lightning checkpoint.

    `model` is the class or function that builds it, as `module:name`; its `arguments` take precedence over the
    `hyper_parameters` of a Lightning checkpoint. It may be a part of the LightningModule that was saved.
    """
    factory = _find(model)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch has no common class for what its reader raises
        raise ValueError(
            f"`{path.name}` should be a file of `torch.save` with tensors and plain values alone, as loading anything "
            f"else could run any code: save `model.state_dict()`, and give that file. {_text(error)}"
        ) from error
    try:
        built: nn.Module = _build(factory, path, checkpoint, arguments or {})
    except Exception as error:  # whatever the user's class raises
        raise ValueError(
            f"`{path.name}` does not fit `{model}`: give the class that was saved as `--model`, and the arguments that "
            f"it was made with as `--model-args`, such as '{{\"channels\": 3}}'. {_text(error)}"
        ) from error
    return built


def _find(model: str) -> Callable[..., Any]:
    place, _, name = model.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: no module, a relative one
        raise ValueError(
            "`--model` should name a class or function that can be imported, as `module:name`, such as "
            f"`torchvision.models:resnet18`. Found `{model}`: {error}."
        ) from error
    return factory


def _build(factory: Any, path: Path, checkpoint: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    if hasattr(factory, "load_from_checkpoint") and "pytorch-lightning_version" in checkpoint:
        return factory.load_from_checkpoint(path, map_location="cpu", **arguments)
    parameters = inspect.signature(factory).parameters
    stored = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key in parameters}
    built = factory(**{**stored, **arguments})
    built.load_state_dict(_part(checkpoint.get("state_dict", checkpoint), list(built.state_dict())))
    return built


def _part(state: Mapping[str, Any], keys: list[str]) -> Mapping[str, Any]:
    """The model's own tensors: those under `network.` in a LightningModule that has it as `network`."""
    prefixes = [key.removesuffix(keys[0]) for key in state if key.endswith(f".{keys[0]}")] if keys else []
    fitting = [prefix for prefix in prefixes if all(prefix + key in state for key in keys)]
    if not fitting or keys[0] in state:
        return state
    if len({state[prefix + keys[0]].data_ptr() for prefix in fitting}) > 1:  # one part may have two names
        raise ValueError(f"The file has the model several times, as {fitting}: save the one to look at alone.")
    return {key: state[fitting[0] + key] for key in keys}


def _text(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 300)
