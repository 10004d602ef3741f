"""Choose the layers of a model that have feature maps, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from lightning_anomaly._internal.checks import check_names, check_text

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WRAPPERS = ("_orig_mod", "_forward_module")  # names that torch.compile and Fabric add


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by their names without `torch.compile` and Fabric, except parametrizations."""
    if not isinstance(model, nn.Module):
        found = repr(model) if isinstance(model, (str, type)) else f"a {type(model).__name__}"
        raise TypeError(
            f"Parameter `model` should be a torch.nn.Module. Found {found}: load a checkpoint with "
            "`Net.load_from_checkpoint` of its LightningModule, or with `model.load_state_dict`."
        )
    named = {name: module for name, module in model.named_modules() if "parametrizations" not in name.split(".")}
    return {_clean_name(name): module for name, module in named.items()}


def state_hash(model: nn.Module) -> str:
    """Hash the weights and buffers of a model, whatever their names."""
    digest = hashlib.sha256()  # many processors have instructions for it
    for tensor in (*model.parameters(), *model.buffers()):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_logits_call(model: nn.Module, name: str | None) -> Callable[..., Any]:
    """Return a model, or its method or submodule with a dotted name."""
    if name is None:
        return model
    call: object = None
    with suppress(AttributeError):
        call = attrgetter(check_text("logits_from", name))(model)
    if not callable(call):
        raise ValueError(
            "Parameter `logits_from` should name a method or submodule that takes images and returns logits. "
            f"Found {name!r}; the submodules of {type(model).__name__} are {[*model._modules]}."
        )
    return call


def _clean_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def select_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """Choose the layers to watch by name; None takes every convolution but scripted ones, which accept no hooks."""
    modules = modules_by_name(model)
    convolutions = {name: modules[name] for name in modules if isinstance(modules[name], CONVOLUTIONS)}
    names = check_names("layers", layers, "layer names")
    if names is None:
        return convolutions
    # A shared layer has several names.
    by_all_names = {_clean_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    unknown = [name for name in names if name not in by_all_names]
    if unknown:
        raise ValueError(
            f"Parameter `layers` should name layers of the model. Found {unknown}; "
            f"its convolutions are {list(convolutions)}."
        )
    return {name: by_all_names[name] for name in names}


def convolution_notes(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, str]:
    """Note that the model has no convolutions or scripted ones, unless `layers` are named."""
    if layers is not None:
        return {}
    scripted = [
        name
        for name, module in modules_by_name(model).items()
        if isinstance(module, torch.jit.ScriptModule) and module.original_name.startswith("Conv")
    ]
    if scripted:
        return {"scripted": f"Convolutions in ScriptModules are skipped, as these accept no hooks: {scripted}."}
    if not select_layers(model):
        return {
            "no layers": "The model has no convolution, so there are no filters to analyze: name layers whose output "
            "has shape (N, F, ...) as `layers`, if there are any."
        }
    return {}
