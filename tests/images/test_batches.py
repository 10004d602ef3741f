"""The input and the labels are found in a batch of any structure; names are those of the data set."""

from dataclasses import dataclass
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Items
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_anomaly._internal.checks import check_labels
from lightning_anomaly.images.batches import BatchLabels, first_tensor
from lightning_anomaly.images.dataset_facts import class_names, in_drawn_order
from lightning_anomaly.images.image_source import ImageSource

IMAGES = torch.rand(9, 1, 4, 4)
LABELS, DOMAINS = torch.arange(9) % 3, torch.arange(9) // 3


class Files(Dataset[Any]):
    """Has the attributes of torchvision's `ImageFolder`, whose labels it may change."""

    root, classes, targets = "data", ["ape", "bee", "cat"], LABELS.tolist()
    samples = [(f"data/{place}.png", place % 3) for place in range(9)]
    target_transform: Any = None

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        label = self.targets[index]
        return IMAGES[index], label if self.target_transform is None else self.target_transform(label)


def wraps(data: Any) -> Any:
    return Items(9, lambda index: (data[index][0], data[index][1] // 2), dataset=data)


def read(images: Any) -> list[str | None]:
    source = ImageSource(images, "images", 4)
    assert sum(len(batch) for batch in source.readable_batches()) == 9
    return source.labels(range(9))


def test_files_and_classes_are_those_of_the_data_set_or_of_its_subset() -> None:
    for data, places in ((Files(), range(9)), (Subset(Files(), [4, 8, 1]), [4, 8, 1])):
        source = ImageSource(data, "images")
        assert source.names == [f"{place}.png" for place in places]
        assert source.class_names == ("ape", "bee", "cat")
    other: Any = Files()
    other.samples, other.targets, other.classes, other.root = [*range(9)], [0.5] * 9, 10, ["first", "second"]
    for images in (IMAGES, wraps(Files()), other):
        source = ImageSource(images, "images")
        assert (source.names, source.class_names, source.folder) == (None, (), source.folder * (images is not other))


def test_files_and_targets_come_in_the_order_that_a_loader_draws() -> None:
    dataset: Any = TensorDataset(torch.rand(4, 1, 2, 2))
    drawn = DataLoader(dataset, 2, sampler=[3, 1, 0])
    assert in_drawn_order(drawn) == in_drawn_order(None) == (None, None)
    dataset.targets = torch.tensor([0, 1, 0, 2])
    assert in_drawn_order({"first": drawn}) == ([2, 1, 0], None)
    dataset.targets, dataset.root = [0.5] * 4, "data"  # as in a regression
    dataset.samples = [(f"data/{place}.png", 0) for place in range(4)]
    assert in_drawn_order([drawn]) == (None, ["3.png", "1.png", "0.png"])


def test_labels_are_those_of_the_batches_and_targets_where_these_have_none() -> None:
    data = Files()
    assert read(data) == ["ape", "bee", "cat"] * 3
    data.targets = [2, 0, 1] * 3  # of items; the attribute of the class is older
    data.target_transform = lambda label: (label + 1) % 3
    assert read(data) == ["2", "0", "1"] * 3  # which of both counts is not known without a run
    assert read(wraps(Files())) == ["0", "0", "1"] * 3
    only_images: Any = TensorDataset(IMAGES)
    assert read(only_images) == [None] * 9
    only_images.targets = LABELS
    assert read(only_images) == ["0", "1", "2"] * 3


def test_classes_have_the_names_that_hugging_face_and_yolo_give_them() -> None:
    label, box = SimpleNamespace(names=["ape", "bee", "cat"]), SimpleNamespace(names=None)
    for attributes in (
        {"features": {"image": box, "label": label}},
        {"names": {0: "ape", 2: "cat", 1: "bee"}},
    ):
        data: Any = TensorDataset(IMAGES, LABELS)
        vars(data).update(attributes)
        assert read(data) == ["ape", "bee", "cat"] * 3
    for attributes in (
        {"features": {"label": label, "genus": label}},
        {"names": {1: "ape", 2: "bee"}},
        {"names": "abc"},
    ):
        data = TensorDataset(IMAGES, LABELS)
        vars(data).update(attributes)
        assert read(data) == ["0", "1", "2"] * 3


def test_two_classes_of_one_name_keep_their_numbers() -> None:
    data: Any = TensorDataset(IMAGES, LABELS)
    data.classes = ["crane", "bee", "crane"]
    assert class_names(data) == ()
    assert read(data) == ["0", "1", "2"] * 3


class Item(NamedTuple):
    image: Tensor
    place: Tensor
    target: Tensor


PLACES, NAMES = torch.arange(9), ["ape", "bee", "cat"] * 3


@pytest.mark.parametrize(
    ("batch", "targets", "expected"),
    [
        ((IMAGES, LABELS), None, LABELS),
        ((IMAGES, LABELS, PLACES), None, LABELS),
        ((IMAGES, LABELS, LABELS), None, LABELS),
        ((IMAGES, DOMAINS, LABELS), LABELS, LABELS),
        ((IMAGES, DOMAINS, LABELS), DOMAINS, DOMAINS),
        ({"camera": DOMAINS, "label": LABELS.float()}, DOMAINS, LABELS),
        ({"camera": DOMAINS, "label": torch.eye(3)[LABELS]}, None, LABELS),
        ({"x": IMAGES, "domain": DOMAINS, "y": LABELS}, None, LABELS),
        ({"image": IMAGES, "genus": LABELS}, None, LABELS),
        ({"domain": DOMAINS, "part": {"class": LABELS}}, None, LABELS),
        (Item(IMAGES, DOMAINS, LABELS), None, LABELS),
        ((IMAGES, LABELS.float(), torch.ones(9, 3, dtype=torch.int64)), None, None),
        ((IMAGES, LABELS[:, None], torch.ones(9)), None, LABELS),
        ((IMAGES, LABELS[:, None], torch.ones(9)), DOMAINS, DOMAINS),
        ((IMAGES, LABELS + 0.5, torch.ones(9, 3, dtype=torch.int64)), None, None),
        ((IMAGES, DOMAINS, LABELS), None, "`1`, `2`"),
        ({"label": DOMAINS, "target": LABELS, "place": PLACES}, None, "`label`, `target`"),
        ((IMAGES, NAMES), None, NAMES),
        ((IMAGES, NAMES, PLACES), None, NAMES),
        ((IMAGES, LABELS, NAMES), None, NAMES),
        ((IMAGES, LABELS, [f"{place}.png" for place in range(9)], ["train"] * 9), None, LABELS),
        ((IMAGES, DOMAINS, NAMES), None, "`2`, `1`"),
        ({"camera": DOMAINS, "species": NAMES}, None, "`species`, `camera`"),
        ({"camera": DOMAINS, "label": NAMES}, None, NAMES),
        ({"label": LABELS, "camera": ["a", "b", "a"] * 3}, None, LABELS),
        ((IMAGES, ["train"] * 9), None, None),
        ({"image": IMAGES, "camera": "abcabcabc"}, None, None),  # one text of the batch
    ],
)
def test_the_label_is_told_from_other_integers_and_texts_or_unknown_with_a_reason(
    batch: Any, targets: Tensor | None, expected: Any
) -> None:
    found = BatchLabels()
    for places in ([0, 1, 2, 3], [4, 5, 6, 7, 8]):
        part = apply_to_collection(batch, Tensor, itemgetter(places))
        found.add(places, apply_to_collection(part, list, lambda texts, at=places: [texts[p] for p in at]), None)
    labels = found.at(range(9), None if targets is None else targets.tolist())
    expected = expected.tolist() if isinstance(expected, Tensor) else expected
    assert labels == (expected if isinstance(expected, list) else [None] * 9)
    assert (expected if isinstance(expected, str) else "") in found.problem
    assert bool(found.problem) == isinstance(expected, str)


def test_a_note_says_that_labels_are_unknown_as_several_integers_may_be_these() -> None:
    source = ImageSource(TensorDataset(IMAGES, DOMAINS, LABELS), "reference")
    assert len([*source.batches(range(9))]) > 0
    assert source.labels(range(9)) == [None] * 9
    (note,) = source.notes().values()
    assert "`reference`" in note
    assert "`1`, `2`" in note


def test_negative_labels_are_unknown_whichever_labels_are_asked_for_with_them() -> None:
    found = BatchLabels()
    found.add(range(4), (IMAGES[:4], torch.tensor([0, -100, 1, -100])), None)
    assert found.at(range(4), None) == [0, None, 1, None]
    assert found.at([0, 1], None) == [0, None]


def test_missing_labels_of_a_table_are_unknown_and_the_others_integers() -> None:
    for column in (
        pd.Series([1, None, 2]),
        pd.Series([1, None, 2], dtype="Int64"),
        [1.0, float("nan"), np.int64(2)],
        torch.tensor([1, torch.nan, 2]),
    ):
        assert check_labels(column, 3) == [1, None, 2]
    assert check_labels(pd.Series(["a", None, "b"], dtype="string"), 3) == ["a", None, "b"]


def test_names_are_those_of_class_to_idx_and_count_only_where_labels_are_those_of_their_list() -> None:
    data: Any = Files()
    data.class_to_idx = {"ape": 2, "bee": 0, "cat": 1}
    assert class_names(data) == ("bee", "cat", "ape")
    assert read(data) == ["bee", "cat", "ape"] * 3
    for names in ({"ape": 0, "bee": 0, "cat": 1}, {}):  # two names of one class, and none
        data.class_to_idx = names
        assert class_names(data) == ()


@dataclass(frozen=True)
class Dataclass:
    names: list[str]
    images: Tensor


@pytest.mark.parametrize(
    "batch",
    [Dataclass(["a"], IMAGES), {"labels": torch.arange(3), "images": IMAGES}, (("a", b"b", None), [IMAGES])],
    ids=["dataclass", "dict", "nested"],
)
def test_the_first_images_are_found(batch: Any) -> None:
    assert first_tensor(batch) is IMAGES


def test_byte_images_are_preferred_to_floating_point_targets() -> None:
    for raw in (IMAGES.byte(), IMAGES[:, 0].byte()):
        assert first_tensor((raw, IMAGES)) is raw


@pytest.mark.parametrize(
    "other",
    [IMAGES.long(), IMAGES.bool(), IMAGES.short(), IMAGES.byte()[:, 0, 0], torch.tensor(1.0)],
    ids=["classes of pixels", "mask", "integers", "bytes without pixels", "number"],
)
def test_other_tensors_are_skipped(other: Tensor) -> None:
    assert first_tensor({"other": other, "image": IMAGES}) is IMAGES
    assert first_tensor(other) is None


def test_numbers_without_axes_of_an_image_are_the_input_only_without_images() -> None:
    for numbers in (torch.rand(3), torch.rand(3, 4)):
        assert first_tensor({"labels": numbers, "image": IMAGES}) is IMAGES
        assert first_tensor((numbers, torch.arange(3), torch.rand(3, 2))) is numbers
