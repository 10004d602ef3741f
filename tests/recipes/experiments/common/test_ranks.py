"""Statistics of ranks, against scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from recipes.experiments.common.ranks import auroc, average_precision


@pytest.mark.parametrize("levels", [4, 1000], ids=["ties", "no ties"])
def test_rates_are_those_of_scikit_learn(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(200, generator=generator) < 0.1
    values = torch.randint(0, levels, (200,), generator=generator) + truth * levels / 4
    assert auroc(truth, values) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert average_precision(truth, values) == pytest.approx(average_precision_score(truth, values), abs=1e-12)
