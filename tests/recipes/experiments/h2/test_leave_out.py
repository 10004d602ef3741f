"""What is left out of a training, and what in its place."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from trainers import SMALL_RUNS

from recipes.experiments.common.trainings import quick_matrix
from recipes.experiments.h2 import leave_out as h2_leave_out

pytestmark = SMALL_RUNS
(TRAINING,) = quick_matrix(["overfitting"])


def test_outlier_samples_are_left_out_and_as_many_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_on, steps = [], []
    fit = h2_leave_out.fit

    def counting(training, images, callbacks):
        trained_on.append(images.data.train_labels)
        module = fit(training, images, callbacks)
        steps.append(module.trainer.global_step)
        return module

    def first_thirty(network: nn.Module, images, probe_size: int) -> dict[str, Tensor]:
        return {"ours": torch.arange(256) < 30, "paper": torch.arange(256) < 19}

    monkeypatch.setattr(h2_leave_out, "fit", counting)
    monkeypatch.setattr(h2_leave_out, "training_outliers", first_thirty)
    monkeypatch.setattr(h2_leave_out, "found_damage", lambda *arguments: {})
    found = h2_leave_out.leave_out(replace(TRAINING, epochs=2))
    assert [len(labels) for labels in trained_on] == [256, 226, 226, 226]
    assert torch.equal(trained_on[1], trained_on[0][30:])
    assert steps == [4 * 2] * 4
    assert len({tuple(labels.tolist()) for labels in trained_on}) == 4
    assert found["ours"]["left_out"] == 30
    assert found["ours"]["wrong"] <= 30
    assert len(found["ours"]["random"]) == 2
    assert all(run["best_loss"] > 0 for run in [found["all"], found["ours"]["outliers"], *found["ours"]["random"]])
    assert set(found["paper"]) == {"left_out", "wrong", "damaged"}  # too few to leave out


def test_training_images_are_analysed_in_probes(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []
    analyze_places = h2_leave_out.analyze_places

    def counting(maps, places, reading):
        probes.append(places)
        return analyze_places(maps, places, reading)

    class Some:
        def normalised(self, part: str) -> Tensor:
            return trained.probe

    monkeypatch.setattr(h2_leave_out, "analyze_places", counting)
    found = h2_leave_out.training_outliers(trained.model, Some(), 200)
    assert [len(places) for places in probes] == [200, 200] * 2
    assert torch.cat(probes[:2]).sort().values.tolist() == [*range(400)]
    assert 70 < (probes[0] < 200).sum() < 130  # damaged images lie side by side, and must not come into one probe
    assert found["ours"][trained.damaged].all()
    assert found["ours"].sum() < 20
    assert found["paper"].shape == (400,)
