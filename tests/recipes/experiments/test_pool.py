"""Damaged images among others, as the experiments on odd images make them, and what scores them."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_anomaly import analyze, find_outliers
from recipes.experiments.fitting import prepare
from recipes.experiments.measures import outliers
from recipes.experiments.measures.pool import DRAWS, Pool, make_pool
from recipes.experiments.spec import EXPERIMENTS

TRAINING = replace(EXPERIMENTS["outliers"].quick_trainings()[1], epochs=1)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(TRAINING, None, None)


def test_a_probe_has_its_share_of_one_kind_behind_validation_images(pool: Pool) -> None:
    val = prepare(TRAINING).data.val_images
    assert torch.equal(pool.images[: pool.clean], val)
    kinds = []
    for kind, share, chosen, truth in pool.probes():
        kinds.append((kind, share))
        assert len(set(chosen.tolist())) == len(chosen) == 128
        assert truth.sum() == max(1, round(128 * share))
        assert set(chosen[truth].tolist()) <= set(pool.damaged[kind])
        assert (chosen[~truth] < pool.clean).all()
    assert len(kinds) == len(pool.damaged) * sum(DRAWS.values())
    assert (pool.images[pool.damaged["black"]] == 0).all()


def test_some_training_images_are_damaged_and_the_reference_is_not(pool: Pool) -> None:
    plain = prepare(TRAINING).data.train_images
    assert torch.equal(pool.reference[0], plain)
    changed = (pool.trained_on[0] != plain).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(place for places in pool.planted.values() for place in places) == [253, 254, 255]
    scores = torch.arange(256).double()
    assert all(own == {"x": 1.0} for own in pool.among_trained({"x": scores}).values())


def test_areas_by_kind_are_scikit_learns(pool: Pool) -> None:
    scores = torch.rand(len(pool.images), generator=torch.Generator().manual_seed(0))
    places = pool.damaged["black"]
    truth = [False] * pool.clean + [True] * len(places)
    expected = roc_auc_score(truth, torch.cat([scores[: pool.clean], scores[places]]))
    assert pool.by_kind({"x": scores})["black"]["x"] == pytest.approx(expected)


def test_scores_of_a_probe_are_those_of_an_analysis(pool: Pool) -> None:
    inputs = pool.inputs[:120]
    found = outliers.probe_scores(outliers.look_at(pool.network, inputs))["outlier score"]
    torch.testing.assert_close(found, analyze(pool.network, inputs).outlier_scores)


def test_what_is_found_in_a_part_is_what_a_search_of_that_part_finds(pool: Pool) -> None:
    reference = pool.reference[1]
    chosen = torch.tensor([*range(100), *pool.damaged["noise"]])
    whole = find_outliers(pool.network, pool.inputs, reference)
    part = find_outliers(pool.network, pool.inputs[chosen], reference)
    found = outliers._found(whole.scores[chosen], whole.p_values[chosen], whole.n_reference)
    assert found.nonzero()[:, 0].tolist() == sorted(part.found)
    assert part.found
