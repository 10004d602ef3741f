"""The score below which most samples lie, as pages show it."""

import torch

from lightning_anomaly.pages.html_page import usual_score


def test_the_usual_score_is_a_quantile_of_the_finite_ones() -> None:
    scores = torch.arange(101.0)
    assert usual_score(torch.cat([scores, torch.tensor([torch.inf, torch.nan])])) == 95
    assert usual_score(torch.tensor([torch.inf])) == usual_score(torch.zeros(9)) == 0
