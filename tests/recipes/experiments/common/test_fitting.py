"""Which layers are watched, and how a training goes on with some filters masked."""

import torch

from lightning_anomaly.pruning.mask import mask_filters
from recipes.common.networks import build
from recipes.experiments.common.fitting import further_epochs, watched_layers
from recipes.experiments.common.trainings import prepare, quick_matrix

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
