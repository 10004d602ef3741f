"""The selection and the names of layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_anomaly.network.layers import convolution_notes, modules_by_name, select_layers


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3))


def test_every_convolution_is_selected_in_the_model_s_order():
    model = nn.ModuleDict(
        {
            "sound": nn.Conv1d(1, 2, 3),
            "head": nn.Linear(3, 3),
            "list": nn.ModuleList([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 1, 2)]),
            "others": nn.ModuleList([nn.Conv3d(1, 2, 3), nn.ConvTranspose1d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1)]),
            "lazy": nn.LazyConv2d(4, 3),
            "weighted": parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),
        }
    )
    expected = ["sound", "list.0", "list.2", "others.0", "others.1", "others.2", "lazy", "weighted"]
    assert list(select_layers(model)) == expected
    assert select_layers(model)["list.2"] is model["list"][2]
    assert not any("parametrizations" in name for name in modules_by_name(model))
    assert select_layers(layer := nn.Conv2d(1, 1, 1)) == {"": layer}
    assert select_layers(nn.Linear(2, 2)) == {}
    assert "no convolution" in convolution_notes(nn.Linear(2, 2))["no layers"]
    assert convolution_notes(nn.Linear(2, 2), [""]) == convolution_notes(model) == {}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_note_names_the_convolutions_that_scripts_hide_beside_others():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())))
    assert list(select_layers(model)) == ["0"]
    assert "'1.0'" in convolution_notes(model)["scripted"]


def test_named_layers_are_selected_in_the_given_order_and_need_not_be_convolutions():
    assert list(select_layers(network(), iter(["2", "1"]))) == ["2", "1"]


def test_a_shared_layer_is_selected_once_and_by_any_of_its_names():
    shared = nn.Sequential(nn.Conv2d(1, 1, 1))
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared, "none": nn.Identity()})})
    model["b"].none = None
    assert list(select_layers(model)) == ["a.0"]
    assert select_layers(model, ["b.c.0", "a.0"]) == {"b.c.0": shared[0], "a.0": shared[0]}
    assert select_layers(torch.compile(model, backend="eager"), ["b.c.0"]) == {"b.c.0": shared[0]}
    for name in ("b.none", "b.none.0", "b.d", "b.c.1"):
        with pytest.raises(ValueError, match=r"`layers`.*are \['a\.0'\]"):
            select_layers(model, [name])
