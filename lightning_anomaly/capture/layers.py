"""The layers of a model that have feature maps, and their names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lightning_anomaly.checks import check_names

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WRAPPERS = ("_orig_mod", "_forward_module")  # what torch.compile and Fabric call a model that they wrap


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Name the layers of a model as without `torch.compile` and Fabric; a parametrization is no layer."""
    if not isinstance(model, nn.Module):
        found = repr(model) if isinstance(model, (str, type)) else f"a {type(model).__name__}"
        raise ValueError(
            f"Parameter `model` should be a torch.nn.Module. Found {found}: build the model and load the weights of a "
            "checkpoint with `model.load_state_dict`; `python -m lightning_anomaly CHECKPOINT` does both."
        )
    named = {name: module for name, module in model.named_modules() if "parametrizations" not in name.split(".")}
    return {_clean_name(name): module for name, module in named.items()}


def _clean_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def select_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """Choose the layers to watch: modules by name, in the order of `layers` or of the model.

    The output of a layer has shape `(N, F, ...)`. None takes every convolution, lazy and transposed ones included, that
    accepts hooks (layers of a ScriptModule do not); there may be none.
    """
    modules = modules_by_name(model)
    convolutions: dict[str, nn.Module] = {
        name: module for name, module in modules.items() if isinstance(module, CONVOLUTIONS)
    }
    names = check_names("layers", layers, "layer names")
    if names is None:
        return convolutions
    # A shared layer has several names.
    by_all_names = {_clean_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    unknown = [name for name in names if name not in by_all_names]
    if unknown:
        raise ValueError(
            f"Parameter `layers` should name layers of the model. Found {unknown}, "
            f"but its convolutions are {list(convolutions)}."
        )
    return {name: by_all_names[name] for name in names}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Choose the linear layers, whatever the shape of their output."""
    return {name: module for name, module in modules_by_name(model).items() if isinstance(module, nn.Linear)}


def unseen_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, str]:
    """Make a note where `select_layers` takes every convolution, and none is there or some are scripted."""
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
