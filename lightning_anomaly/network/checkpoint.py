"""Load a model from a file with a state_dict or a Lightning checkpoint."""

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
    """Build a model on the CPU, and load weights from a state_dict or a Lightning checkpoint.

    `model` is `module:name` of the class or function that builds it; its `arguments` take precedence over the
    `hyper_parameters` of a Lightning checkpoint. The model may be a part of the LightningModule that was saved.
    """
    factory = _find(model)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types
        raise ValueError(
            f"`{path.name}` should be a file of `torch.save` that holds only tensors and plain values, as loading "
            f"anything else could run any code: save `model.state_dict()`, and give that file. {_text(error)}"
        ) from error
    try:
        built: nn.Module = _build(factory, path, checkpoint, arguments or {})
    except Exception as error:  # from the user's class
        raise ValueError(
            f"`{path.name}` does not fit `{model}`: give the class that was saved as `--model`, and its arguments as "
            f"`--model-args`, such as '{{\"channels\": 3}}'. {_text(error)}"
        ) from error
    return built


def _find(model: str) -> Callable[..., Any]:
    module, _, name = model.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for an empty or relative name
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
    """Select the model's tensors: those under `network.` if the LightningModule has the model as `network`."""
    prefixes = [key.removesuffix(keys[0]) for key in state if key.endswith(f".{keys[0]}")] if keys else []
    fitting = [prefix for prefix in prefixes if all(prefix + key in state for key in keys)]
    if not fitting or keys[0] in state:
        return state
    if len({state[prefix + keys[0]].data_ptr() for prefix in fitting}) > 1:  # the same tensor may have two names
        raise ValueError(f"The file holds several such models, {fitting}: save only one of them.")
    return {key: state[fitting[0] + key] for key in keys}


def _text(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 300)
