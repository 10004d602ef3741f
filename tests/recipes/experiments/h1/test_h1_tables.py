"""The tables of H1, made of lines whose curves are known."""

from h1_lines import RISING, runs

from recipes.experiments.h1 import tables


def test_runs_on_all_images_have_a_table_of_their_own() -> None:
    (long, healthy), short = runs(RISING, seed=4, train_size=50_000), runs(RISING[::-1], seed=0)
    alone, _ = runs(RISING, seed=5, train_size=50_000)
    rows = tables.long_table([*short, healthy, long]).splitlines()[2:]
    follows, constant = "0.200 → 0.700, +0.400, +1.00 / +1.00", "{0} → {0}, +0.000, +0.00 / +0.00"
    flat = "{0} → {0}, +0.000, - / -"
    bad = " | ".join([follows, follows, constant.format("0.000"), constant.format("0.500")])
    good = " | ".join(flat.format(value) for value in ("0.200", "0.200", "0.000", "0.500"))
    assert rows == [
        f"| net | some | overfitting | 4 | 1.00 → 3.50 | 3 of 8 | {bad} |",
        f"| net | some | augmented | 4 | 1.00 → 1.00 | 8 of 8 | {good} |",
    ]
    signals = tables.long_signal_table([*short, healthy, long, alone]).splitlines()[2:]
    assert signals[0] == "| net | anomaly fraction | +1.00 | +1.00 | +0.400 | +0.000 | 1.00 | - | 1 of 1 pairs |"
    assert signals[4] == "| net | epoch number | +1.00 | +1.00 | +4.000 | +4.000 | 0.50 | - | 0 of 1 pairs |"
    assert [row.replace("| all |", "| net |") for row in signals[5:]] == signals[:5]
    for table in (tables.run_table, tables.signal_table, tables.layer_table):
        assert table([*short, long]) == table(short)
    ends = [axis.get_lines()[0].get_ydata()[-1] for axis in tables.draw_long([*short, long]).axes]
    assert ends == [3.5, 0.7, 0.7, 0.0]


def test_the_fraction_at_the_best_epoch_and_at_the_end_and_how_it_follows_the_loss() -> None:
    lines = [*runs(RISING, seed=0), *runs(RISING, seed=1)]
    assert "| net | some | overfitting | 2 | 1.00 → 3.50 | 3 of 8 | 0.200 → 0.700 |" in tables.run_table(lines)
    signals = tables.signal_table(lines)
    assert "| net | anomaly fraction | 4 | +1.00 |" in signals
    assert "| net | sparsity | 4 | +0.00 |" in signals


def test_changes_are_told_apart_given_those_of_sparsity() -> None:
    """Counts rise as sparsity does, which differs more from seed to seed than by overfitting."""
    lines = []
    for seed in range(4):
        for line, more in zip(runs(RISING, seed=seed, train_size=50_000), (0.02, 0.0), strict=True):
            steep = 0.01 * (seed + 1)
            for place, epoch in enumerate(line["epochs"]):
                for layers in epoch["layers"].values():
                    layers["0"] |= {"sparsity": 0.5 + steep * place, "count": 100 * (steep + more / 4) * place}
            lines.append(line)
    (fraction, *_) = tables.long_signal_table(lines).splitlines()[2:]
    assert fraction.split(" | ")[6:8] == ["0.62", "1.00"]
