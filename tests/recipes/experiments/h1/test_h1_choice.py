"""A signal is chosen on the runs of one seed, and scored on the others."""

from h1_lines import RISING, runs

from recipes.experiments.h1 import choice


def test_a_signal_is_scored_by_what_it_follows_and_tells() -> None:
    found = choice.score(runs(RISING, seed=0), "fraction", "val", last=False)
    assert found == choice.Score(follows=1.0, tells=1.0)
    assert choice.score(runs(RISING, seed=0), "fraction", "val", last=True, sign=-1).worth == -1
    constant = choice.score(runs([0.2] * 8, seed=0), "fraction", "val", last=False)
    assert (constant.follows, constant.tells) == (0, 0.5)
    assert choice.score(runs(RISING, seed=0)[:1], "fraction", "val", last=False) is None


def test_smoothing_is_chosen_with_the_signal() -> None:
    restless = [value + 0.06 * (-1) ** epoch for epoch, value in enumerate(RISING)]
    assert choice.score(runs(restless, seed=0), "fraction", "val", last=False, window=3).follows == 1
    rows = choice.choice_table(
        [*runs(restless, seed=0), *runs(RISING, seed=1), *runs(RISING, network="held out", seed=3)]
    )
    assert "| anomaly fraction, mean of 3 epochs | all | +1.00 / 1.00 | +1.00 / 1.00 | +1.00 / 1.00 |" in rows


def test_a_signal_is_chosen_on_one_seed_and_reported_on_the_others() -> None:
    rows = choice.choice_table(
        [*runs(RISING[::-1], seed=0), *runs(RISING, seed=1), *runs(RISING[::-1], seed=3, network="held out")]
    ).splitlines()
    assert "seed 0 (2 runs) | other seeds (2 runs) | another network (2 runs)" in rows[0]
    assert "| - anomaly fraction | all | +1.00 / 1.00 | -1.00 / 0.00 | +1.00 / 1.00 |" in rows
    assert "| epoch number | all | +1.00 / 0.50 | +1.00 / 0.50 | +1.00 / 0.50 |" in rows


def test_the_figure_has_both_scores_of_each_signal_in_each_part() -> None:
    lines = [*runs(RISING, seed=0), *runs(RISING[::-1], seed=1)]
    follows, tells = choice.draw(lines).axes
    names = [text.get_text() for text in follows.get_yticklabels()]
    place = names.index("anomaly fraction (all)")
    for axes, scores in ((follows, [1, -1]), (tells, [1, 0])):
        parts = [dict(zip(dots.get_ydata(), dots.get_xdata(), strict=True)) for dots in axes.get_lines()[:2]]
        assert [part[place] for part in parts] == scores
