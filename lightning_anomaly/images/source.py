"""Find images in a batch, and read the images of a tensor, a Dataset or a DataLoader by their positions."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_anomaly._internal.checks import check_integer, check_labels
from lightning_anomaly._internal.random_state import isolated_random_state
from lightning_anomaly.images.loaders import (
    BATCH,
    batch_size_of,
    draw_positions,
    epoch_positions,
    first_loader,
    load_at,
)

_ATTEMPTS = 100  # images to try before none counts as readable
_BATCHES = 8  # for each worker process, so that it is worth starting


def tensors_in(values: Any) -> list[Tensor]:
    """Find all tensors in nested mappings, sequences and dataclasses."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    elif is_dataclass(values) and not isinstance(values, type):
        values = [getattr(values, field.name) for field in fields(values)]
    parts = values if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def first_tensor(batch: Any) -> Tensor | None:
    """Find the input of a model in a nested batch: its first tensor of floating-point numbers or of images in bytes.

    A tensor with one number per sample is taken only if no images follow.
    """
    inputs = [
        tensor
        for tensor in tensors_in(batch)
        if (tensor.ndim >= 3 if tensor.dtype == torch.uint8 else tensor.ndim >= 1 and tensor.is_floating_point())
    ]
    if inputs and inputs[0].ndim == 1:
        inputs = [tensor for tensor in inputs if tensor.ndim > 2] or inputs
    return inputs[0] if inputs else None


def labels_in(batch: Any, count: int) -> list[int]:
    """Return the second item of a batch, or its "label" or "labels", if it has an integer for each of `count` items."""
    if isinstance(batch, Mapping):
        labels = batch.get("label", batch.get("labels"))
    else:
        labels = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.is_floating_point():
        return []
    return [int(label) for label in labels.tolist()]


class WithWholeImage(NamedTuple):
    """An image for a network, or a batch of them, and the whole image: an item of `FolderImages`."""

    image: Tensor
    whole: Tensor


class ImageSource:
    """Images of one size by their positions, from a tensor `(N, ...)`, a Dataset or a DataLoader.

    One batch is in memory at a time. Every reading of a data set draws the same random numbers, and the random states
    of torch, NumPy and Python are restored. `max_images` chooses so many of the images that a loader draws, at
    random; None takes all images of the data set, in its order.
    """

    def __init__(
        self,
        images: Any,
        argument: str,
        batch_size: int | None = None,
        *,
        max_images: int | None = None,
        convert: Callable[[Any], Tensor | None] = first_tensor,
    ) -> None:
        self.argument, self._convert = argument, convert
        self._loader = None if isinstance(images, Tensor) and images.ndim else loader_of(images, argument)
        self._data: Any = images
        default_size, drawn = BATCH, None
        if self._loader is not None:
            self._data = self._loader.dataset
            default_size, drawn = batch_size_of(self._loader) or BATCH, epoch_positions(self._loader)
        self.batch_size = check_integer("batch_size", default_size if batch_size is None else batch_size, 1)
        if len(self) == 0:
            raise ValueError(f"Parameter `{argument}` should hold images. Found none.")
        self.positions: Sequence[int] = range(len(self))
        if max_images is not None:
            self.positions = draw_positions(drawn or self.positions, max_images)
        elif drawn is not None and len({*drawn}) == len(drawn) < len(self):  # not drawn with replacement
            raise ValueError(
                f"Parameter `{argument}` should be a loader over all images of its data set. Found a sampler that "
                "leaves some out: give a loader over `Subset(data_set, indices)` instead."
            )
        self.folder, self.class_names = folder_of(self._data), class_names(self._data)
        self.skipped: dict[str, str] = getattr(dataset_with(self._data, "skipped"), "skipped", {})  # see `FolderImages`
        self.whites: dict[str, float] = getattr(dataset_with(self._data, "whites"), "whites", {})  # see `FolderImages`
        self._labels: dict[int, Any] = {}  # of the batches read so far, by position
        self.unreadable: dict[int, str] = {}  # `{position: error}` of the images read so far; they are read as zeros
        self.shape: tuple[int, ...] = ()
        self.whole_shape: tuple[int, ...] | None = None  # of whole images; None if the data set hands none
        self._blank = torch.zeros(1, device="cpu")  # the whole image of an unreadable one `(1, ...)`
        for position in self.positions[:_ATTEMPTS]:
            _, image = next(self.batches([position]))
            if position not in self.unreadable:
                self.shape, self.dtype = tuple(image.shape[1:]), image.dtype
                return
        raise ValueError(
            f"Parameter `{argument}` should hold images that can be read. Found none among the first "
            f"{len(self.unreadable)}: {next(iter(self.unreadable.values()))}."
        )

    def __len__(self) -> int:
        return len(self._data)

    @cached_property
    def names(self) -> list[str] | None:
        """The file names of the images, see `file_names`."""
        return file_names(self._data)

    @cached_property
    def splits(self) -> list[str] | None:
        """The part of the data that each image is of, such as train or val, see `FolderImages`."""
        return _column(self._data, "splits")

    def files(self, positions: Iterable[int]) -> list[str]:
        """Return the paths of the files of images, empty if unknown."""
        return ["" if self.names is None else os.path.join(self.folder, self.names[place]) for place in positions]

    @cached_property
    def _targets(self) -> list[Any] | None:
        return class_labels(self._data)

    def set_labels(self, labels: Sequence[Any] | None) -> None:
        """Replace the labels that come with the data, if others are given."""
        if labels is not None:
            self._targets = check_labels(labels, len(self))

    def labels(self, positions: Iterable[int]) -> list[str | None]:
        """Return the classes of images that were read, by name if they have one; None if unknown.

        They are those given, or else the data set's `targets`, or else the labels in its batches.
        """
        names, targets = dict(enumerate(self.class_names)), self._targets
        found = [self._labels.get(place) if targets is None else targets[place] for place in positions]
        return [None if label is None else str(names.get(label, label)) or None for label in found]

    @property
    def numel(self) -> int:
        """Numbers in an image, or in the whole one if these are more; at least 1."""
        return max(1, math.prod(self.shape), self._blank.numel())

    @property
    def nbytes(self) -> int:
        """Memory for all images at once (bytes); 0 for a tensor, which is in memory already."""
        return 0 if self._loader is None else len(self.positions) * math.prod(self.shape) * self.dtype.itemsize

    def readable(self) -> Iterator[Tensor]:
        """Read all images, batch by batch `(n, ...)`, without the unreadable ones."""
        for positions, images in self.batches(self.positions):
            readable = [position not in self.unreadable for position in positions.tolist()]
            if any(readable):
                yield images if all(readable) else images[readable]

    def notes(self, unusable: Iterable[int] = ()) -> dict[str, str]:
        """Note which images could not be read, and which others are `unusable`, as they give NaN."""
        nonfinite = {*unusable}.difference(self.unreadable)
        notes = {}
        for kind, places, problem in (
            ("unreadable", self.unreadable, "cannot be read"),
            ("nonfinite", nonfinite, "give NaN or infinite values"),
        ):
            if places:
                first = min(places)
                error = f" ({self.unreadable[first]})" if kind == "unreadable" else ""
                notes[f"{kind} {self.argument}"] = (
                    f"{len(places)} of the {len(self.positions)} images in `{self.argument}` {problem}, the first at "
                    f"{self.place(first)}{error}: they are left out."
                )
        return notes

    def place(self, position: int) -> str:
        """Name an image by its position, and its file if that is known."""
        return f"position {position}" + (f", {self.names[position]}" if self.names else "")

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the images at some positions: yield positions `(n,)` and images `(n, ...)`.

        Batches have nearly equal sizes, as a last batch of one image would break models that squeeze.
        """
        return ((chunk, images) for chunk, images, _ in self.with_whole(positions))

    def with_whole(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Read like `batches`, and yield whole images too, which are the images unless the data set hands both."""
        if not len(positions):
            return
        count = -(-len(positions) // self.batch_size)
        chunks = torch.tensor_split(torch.as_tensor(positions, dtype=torch.int64, device="cpu"), count)
        if self._loader is None:
            yield from ((chunk, images, images) for chunk in chunks for images in [self._data[chunk]])
            return
        workers = min(self._loader.num_workers, -(-count // _BATCHES))
        batches = iter(load_at(self._loader, [chunk.tolist() for chunk in chunks], num_workers=workers))
        for number, chunk in enumerate(chunks):
            with isolated_random_state(number):
                try:
                    batch = next(batches)  # goes on after an error
                except Exception as error:  # whatever the data set raises
                    error.__traceback__ = None  # it would keep the worker processes alive
                    alone = [self._read_alone(position) for position in chunk.tolist()]
                    images, whole = (torch.cat(tensors) for tensors in zip(*alone, strict=True))
                else:
                    images, whole = self._images_of(batch, chunk.tolist())
            yield chunk, images, whole

    def _read_alone(self, position: int) -> list[Tensor]:
        """Read one image `(1, ...)` and the whole image, of a batch that could not be read."""
        assert self._loader is not None
        try:
            with isolated_random_state(0):
                batch = next(iter(load_at(self._loader, [[position]], num_workers=0)))
        except Exception as error:
            kind = type(error).__name__
            # A text with `<` shows an object, `<_io.BufferedReader ...>`, which means nothing to a reader.
            self.unreadable[position] = kind if "<" in str(error) else f"{kind}: {error}"
            return [torch.zeros(1, *self.shape, device="cpu"), self._blank]
        return [tensors.cpu() for tensors in self._images_of(batch, [position])]

    def _images_of(self, batch: Any, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Return the images and the whole ones in a batch of the items at `positions`, or raise ValueError."""
        images = self._convert(batch)
        if images is None:
            found = getattr(batch, "dtype", type(batch).__name__)
            raise ValueError(f"Parameter `{self.argument}` should hold images, floating-point or bytes. Found {found}.")
        if len(images) != len(positions):
            raise ValueError(
                f"Parameter `{self.argument}` should give one image for each item of its data set, in a tensor "
                f"(n, ...). Found shape {tuple(images.shape)} for n = {len(positions)}: its `collate_fn` should stack "
                "images of one size, leave none out and add none."
            )
        if self.shape and (shape := tuple(images.shape[1:])) != self.shape:
            found = f"{self.shape} and {shape}, the latter at {self.place(positions[0])}"
            raise ValueError(f"Parameter `{self.argument}` should hold images of one size. Found {found}.")
        whole = batch.whole if isinstance(batch, WithWholeImage) else images
        self.whole_shape = None if whole is images else tuple(whole.shape[1:])
        self._blank = torch.zeros_like(whole[:1], device="cpu")
        self._labels.update(zip(positions, labels_in(batch, len(positions)), strict=False))
        return images, whole


def image_hashes(images: Tensor) -> list[int]:
    """Hash the bytes of each image to 64 bits."""
    rows = images.detach().cpu().reshape(len(images), math.prod(images.shape[1:])).contiguous().view(torch.uint8)
    return [int.from_bytes(hashlib.sha256(row.data).digest()[:8], "little", signed=True) for row in rows.numpy()]


def scaled(images: Tensor) -> Tensor:
    """Return images in floating point, bytes scaled to 0..1."""
    return images if images.is_floating_point() else images.float().div_(255)


def dataset_with(dataset: Any, attribute: str) -> Any:
    """Return the data set with an attribute: this one or the one that it is a subset of; None if neither has it."""
    while dataset is not None and not hasattr(dataset, attribute):
        dataset = getattr(dataset, "dataset", None)
    return dataset


def file_names(dataset: Any) -> list[str] | None:
    """Return the file of each image relative to the data set's `root`; None without `samples` that name files."""
    samples = _column(dataset, "samples")
    if samples is None or not all(isinstance(sample, tuple) and isinstance(sample[0], str) for sample in samples):
        return None
    root = os.path.join(folder_of(dataset), "")
    return [path.removeprefix(root) for path, *_ in samples]


def folder_of(dataset: Any) -> str:
    """Return the data set's `root`; empty if it has none, or one that is no path."""
    root = getattr(dataset_with(dataset, "root"), "root", None)
    return os.fspath(root) if isinstance(root, (str, os.PathLike)) else ""


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names in a data set's `classes`; none if it has no such list."""
    classes = getattr(dataset_with(dataset, "classes"), "classes", None)
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()


def class_labels(dataset: Any) -> list[str] | None:
    """Return the class of each image, by name if it has one; None without `targets` that are integers."""
    targets = _column(dataset, "targets")
    if targets is None or not all(isinstance(target, int) for target in targets):
        return None
    names = dict(enumerate(class_names(dataset)))
    return [str(names.get(target, target)) for target in targets]


def labels_and_names(loaders: Any) -> dict[str, list[str]]:
    """Return `labels` and file `names`, if known, in the order in which the first of a Trainer's loaders draws them."""
    loader = first_loader(loaders)
    dataset = getattr(loader, "dataset", None)
    columns = {"labels": class_labels(dataset), "names": file_names(dataset)}
    positions = epoch_positions(loader) if any(columns.values()) else None
    return {name: [column[place] for place in positions] for name, column in columns.items() if column and positions}


def _column(dataset: Any, name: str) -> list[Any] | None:
    """Return an attribute with a value for each item, of a data set or of the one that it is a subset of."""
    if isinstance(dataset, Subset):
        column = _column(dataset.dataset, name)
        return None if column is None else [column[index] for index in dataset.indices]
    values = getattr(dataset, name, None)
    if not isinstance(values, (list, Tensor)) or len(values) != len(dataset):
        return None
    return values if isinstance(values, list) else values.tolist()


def loader_of(images: Any, argument: str) -> DataLoader[Any]:
    """Return a loader over a data set with a length, or raise ValueError."""
    loader = DataLoader(images, BATCH) if isinstance(images, Dataset) else images
    data = loader.dataset if isinstance(loader, DataLoader) else loader
    if not isinstance(loader, DataLoader) or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        found = type(data).__name__
    elif loader.batch_sampler is None:
        found = "`batch_size=None`: give a number, and a data set of single images"
    else:
        return loader
    raise ValueError(
        f"Parameter `{argument}` should be a tensor (N, ...), a map-style Dataset with a length, or a DataLoader over "
        f"one that puts its images into batches. Found {found}."
    )
