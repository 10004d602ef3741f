"""The tables of H1, made of lines whose curves are known."""

from h1_lines import RISING, runs

from recipes.experiments.h1 import tables


def test_runs_on_all_images_have_a_table_of_their_own() -> None:
    (long, healthy), short = runs(RISING, seed=4, train_size=50_000), runs(RISING[::-1], seed=0)
    rows = tables.long_table([*short, healthy, long]).splitlines()[2:]
    follows = "0.200 → 0.700 | +1.00 / +1.00 | +0.400"
    flat = "0.200 → 0.200 | - / - | +0.000"
    assert rows == [
        f"| net | some | overfitting | 4 | 1.00 → 3.50 | 3 of 8 | {follows} | {follows} | +0.00 | +1.00 | +0.000 |",
        f"| net | some | augmented | 4 | 1.00 → 1.00 | 8 of 8 | {flat} | {flat} | - | - | +0.000 |",
    ]
    for table in (tables.run_table, tables.signal_table, tables.layer_table):
        assert table([*short, long]) == table(short)
    assert [axis.get_lines()[0].get_ydata()[-1] for axis in tables.draw_long([*short, long]).axes] == [3.5, 0.7, 0.7]
