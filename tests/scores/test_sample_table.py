"""The table of samples: what is known of each in one row, which users query, group and merge."""

import os

import numpy as np
import pandas as pd
import torch

from lightning_anomaly.scores.sample_table import COLUMNS, first_by, sample_reasons, sample_table, with_rows


def made_up() -> pd.DataFrame:
    columns = {"look_score": torch.tensor([1.0, torch.inf, torch.nan, 5, 5]).double(), "look_reason": [*"abcde"]}
    return sample_table({"name": [f"{name}.png" for name in "vwxyz"], **columns}, range(5), "photos")


def test_columns_are_in_one_order_with_one_type_whatever_is_known() -> None:
    table = sample_table(
        {name: [column.kind() if column.kind is not object else None] for name, column in COLUMNS.items()}, [7]
    )
    assert [*table] == [*COLUMNS]
    assert [*table.index] == [7]
    assert table.index.name == "position"
    for name, column in COLUMNS.items():
        assert table[name].dtype == {float: np.float64, int: np.int64, bool: np.bool_}.get(column.kind, object)
    assert all(column.about.endswith(".") for column in COLUMNS.values())


def test_samples_are_named_by_their_files_or_positions_and_what_is_unknown_is_empty() -> None:
    assert made_up()["path"][0] == os.path.abspath(os.path.join("photos", "v.png"))
    assert {*made_up()["class"], *made_up()["error"]} == {""}
    assert [*sample_table({}, [3, 9])["name"]] == ["image 3", "image 9"]


def test_the_first_are_those_with_the_largest_finite_values_and_ties_keep_their_order() -> None:
    assert first_by(made_up(), "look_score") == [3, 4, 0]


def test_rows_are_added_without_changing_types_or_what_is_empty() -> None:
    both = with_rows(made_up(), sample_table({"name": ["notes.txt"], "error": ["no image"]}, [-1]))
    assert both.loc[[0, 1, 2, 3, 4]].equals(made_up())
    assert both.loc[-1].drop("look_score").to_dict() == {
        **{"name": "notes.txt", "path": os.path.abspath("notes.txt"), "error": "no image"},
        **{"class": "", "look_reason": "", "verdict": ""},
    }
    assert np.isnan(both["look_score"][-1])


def test_the_reason_of_the_larger_score_comes_first_and_other_classes_of_copies_replace_that_of_the_label() -> None:
    row = {
        "error": "",
        "class": "a",
        "look_score": 1.0,
        "look_reason": "dark",
        "label_score": 2.0,
        "label_reason": "b?",
    }
    assert [*sample_reasons(row).items()] == [("label", "b?"), ("look", "dark")]
    assert sample_reasons(row | {"also_in": "c"})["label"] == "filed under a, also under c"
    assert sample_reasons(row | {"error": "cut"}) == {"file": "cannot be read: cut"}
