"""Which layers are watched, and how a training goes on with some filters masked."""

from dataclasses import replace
from pathlib import Path

import torch
from trainers import QUIET

from lightning_anomaly.pruning.mask import mask_filters
from recipes.common.networks import build
from recipes.experiments.common.fitting import further_epochs, trained, watched_layers
from recipes.experiments.common.trainings import prepare, quick_matrix

pytestmark = QUIET
TRAINING = quick_matrix(("noise30",))[0]


def test_layers_are_watched_behind_their_batchnorm() -> None:
    layers = watched_layers(build("vgg11_bn", 1, 10), prefix="")
    network = build("vgg11_bn", 1, 10)
    assert len(layers) == 8
    assert all(network[int(norm)].num_features == network[int(conv)].out_channels for norm, conv in layers.items())
    assert watched_layers(build("lenet5", 1, 10)) == {"network.0": "network.0", "network.3": "network.3"}


def test_a_mask_is_kept_in_further_training_and_the_rest_is_trained() -> None:
    images = prepare(TRAINING)
    network = build("lenet5", 1, 10)
    before = network[3].weight.detach().clone()
    mask = mask_filters(network, {"0": [1], "3": [0, 5]})
    epochs = []
    for epoch in further_epochs(TRAINING, images, network, 2, mask):
        epochs.append(epoch)
        assert mask.verify()
        assert not torch.equal(network[3].weight[1], before[1])
        before = network[3].weight.detach().clone()
    assert epochs == [1, 2]


def test_a_network_whose_weights_are_kept_is_not_trained_again(tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=1)
    images = prepare(training)
    first, kept = (trained(training, images, str(tmp_path)) for _ in range(2))
    assert not first.training
    assert not kept.training
    (file,) = tmp_path.rglob("*.pt")
    assert file == tmp_path / f"{training.key}.pt"
    for one, other in zip(first.state_dict().values(), kept.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    torch.save({name: torch.zeros_like(value) for name, value in first.state_dict().items()}, file)
    assert not any(value.any() for value in trained(training, images, str(tmp_path)).state_dict().values())
