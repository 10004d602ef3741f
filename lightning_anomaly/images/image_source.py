"""Find images in a batch, and read the images of a tensor, a Dataset or a DataLoader by their positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly._internal.checks import check_integer, check_labels
from lightning_anomaly._internal.random_state import isolated_random_state
from lightning_anomaly.images.batches import BatchLabels, WithWholeImage, collate_whole, first_tensor, name_labels
from lightning_anomaly.images.dataset_facts import (
    class_names,
    class_targets,
    dataset_column,
    dataset_folder,
    file_names,
)
from lightning_anomaly.images.loaders import BATCH, batch_size_of, dataset_with, epoch_positions, loader_of, shuffled
from lightning_anomaly.images.worker_process import load_batches

_ATTEMPTS = 100  # images to try before none counts as readable
_BATCHES = 8  # for each worker process, so that it is worth starting


class ImageSource:
    """Images of one size by their positions, from a tensor `(N, ...)`, a Dataset or a DataLoader, batch by batch.

    Every reading draws the same random numbers. `max_images` draws as many of a loader's epoch; None takes all, in
    order. If none of the first 100 can be read, `shapes` are those of an image and of a whole one, or that is an error.
    """

    def __init__(
        self,
        images: Any,
        argument: str,
        batch_size: int | None = None,
        *,
        labels: Sequence[Any] | None = None,
        max_images: int | None = None,
        convert: Callable[[Any], Tensor | None] = first_tensor,
        shapes: tuple[tuple[int, ...], tuple[int, ...] | None] | None = None,
    ) -> None:
        self.argument, self._convert = argument, convert
        loader = self._loader = None if isinstance(images, Tensor) and images.ndim else loader_of(images, argument)
        self._data: Any = images if loader is None else loader.dataset
        drawn = None if loader is None else epoch_positions(loader)
        if batch_size is None:
            batch_size = BATCH if loader is None else batch_size_of(loader)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        if len(self) == 0:
            raise ValueError(f"Parameter `{argument}` should hold images. Found none.")
        self.positions: Sequence[int] = range(len(self))
        if max_images is not None:
            self.positions = sorted(shuffled(drawn or self.positions)[:max_images])
        elif drawn is not None and len({*drawn}) == len(drawn) < len(self):  # not drawn with replacement
            raise ValueError(
                f"Parameter `{argument}` should be a loader over all images of its data set. Found a sampler that "
                "leaves some out: give a loader over `Subset(data_set, indices)` instead."
            )
        self.folder, self.class_names = dataset_folder(self._data), class_names(self._data)
        self.splits = dataset_column(self._data, "splits")  # the part of the data of each image, see `FolderImages`
        self.skipped: dict[str, str] = getattr(dataset_with(self._data, "skipped"), "skipped", {})  # see `FolderImages`
        self.whites: dict[str, float] = getattr(dataset_with(self._data, "whites"), "whites", {})  # see `FolderImages`
        self.batch_labels = BatchLabels()  # of the batches read so far
        self._given = None if labels is None else check_labels(labels, len(self))  # labels that replace these
        if rows := [label for label in self._given or () if not isinstance(label, Hashable)]:
            raise ValueError(
                "Parameter `labels` should have a name or a number for each image, or None. Found a "
                f"{type(rows[0]).__name__} of {len(rows[0])}: of one-hot rows, give `labels.argmax(1)`."
            )
        self.unreadable: dict[int, str] = {}  # `{position: error}` of the images last read; they are read as zeros
        self.shape: tuple[int, ...] = ()
        self.whole_shape: tuple[int, ...] | None = None  # of whole images; None if the data set hands none
        self._blank = torch.zeros(1, device="cpu")  # the whole image of an unreadable one `(1, ...)`
        for position in self.positions[:_ATTEMPTS]:
            _, image = next(self.batches([position]))
            if position not in self.unreadable:
                self.shape, self.dtype = tuple(image.shape[1:]), image.dtype
                return
        if shapes is None:
            raise ValueError(
                f"Parameter `{argument}` should hold images that can be read. Found none among the first "
                f"{len(self.unreadable)}: {next(iter(self.unreadable.values()))}."
            )
        (self.shape, self.whole_shape), self.dtype = shapes, torch.float32
        self._blank = torch.zeros(1, *(self.whole_shape or self.shape), dtype=torch.uint8, device="cpu")

    def __len__(self) -> int:
        return len(self._data)

    @cached_property
    def names(self) -> list[str] | None:
        """The file names of the images, see `file_names`."""
        return file_names(self._data)

    @cached_property
    def targets(self) -> list[int] | None:
        """The classes of the images that the data set itself names, see `class_targets`."""
        return class_targets(self._data)

    def labels(self, positions: Iterable[int]) -> list[str | None]:
        """Return the classes of images that were read: those given, in batches, or else `targets`; None if unknown."""
        places = [*positions]
        labels = self.batch_labels.at(places, self.targets) if self._given is None else [self._given[p] for p in places]
        return name_labels(labels, () if self.batch_labels.renamed and self._given is None else self.class_names)

    @property
    def labels_before_reading(self) -> Sequence[Any]:
        """What is known of the classes before images are read: those given, or else the data set's `targets`."""
        return self._given or self.targets or [None] * len(self)

    @property
    def numel(self) -> int:
        """Numbers in an image, or in the whole one if these are more; at least 1."""
        return max(1, math.prod(self.shape), self._blank.numel())

    @property
    def nbytes(self) -> int:
        """Memory for all images at once (bytes); 0 for a tensor, which is in memory already."""
        return 0 if self._loader is None else len(self.positions) * math.prod(self.shape) * self.dtype.itemsize

    def readable_batches(self) -> Iterator[Tensor]:
        """Read all images, batch by batch `(n, ...)`, without the unreadable ones."""
        for positions, images in self.batches(self.positions):
            readable = [position not in self.unreadable for position in positions.tolist()]
            if any(readable):
                yield images if all(readable) else images[readable]

    def with_gaps(self, values: Tensor) -> Tensor:
        """Give values `(n, ...)` of the readable images their places among all, with NaN at the others `(N, ...)`."""
        if not self.unreadable:
            return values
        readable = [place for place, position in enumerate(self.positions) if position not in self.unreadable]
        filled = values.new_full((len(self.positions), *values.shape[1:]), torch.nan)
        filled[readable] = values
        return filled

    def notes(self, unusable: Iterable[int] = ()) -> dict[str, str]:
        """Note which images could not be read, which others are `unusable`, as they give NaN, and what labels are."""
        found = unusable_notes(self.argument, self.unreadable, unusable, len(self.positions), self.names)
        return found | self.label_notes()

    def label_notes(self) -> dict[str, str]:
        """Note how folders were read as classes, and why no label is known."""
        if self._given is not None:
            return {}
        nested = getattr(dataset_with(self._data, "class_note"), "class_note", "")
        notes = {f"classes {self.argument}": nested} if nested else {}
        if problem := self.batch_labels.problem:
            notes[f"labels {self.argument}"] = f"No label of `{self.argument}` is known: {problem}."
        return notes

    def place(self, position: int) -> str:
        """Name an image by its position, and its file if that is known."""
        return f"position {position}" + (f", {self.names[position]}" if self.names else "")

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield positions `(n,)` and images `(n, ...)` in nearly equal batches, as a last one of one breaks models."""
        return ((chunk, images) for chunk, images, _ in self.with_whole(positions))

    def with_whole(
        self, positions: Sequence[int], describe: Callable[[Tensor], Any] | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """Read like `batches`, and yield whole images too, or what `describe` says of them where they are decoded."""
        if not len(positions):
            return
        count = -(-len(positions) // self.batch_size)
        chunks = torch.tensor_split(torch.as_tensor(positions, dtype=torch.int64, device="cpu"), count)
        if self._loader is None:
            yield from ((chunk, images, images) for chunk in chunks for images in [self._data[chunk]])
            return
        workers = min(self._loader.num_workers, -(-count // _BATCHES))
        if workers and self.whole_shape is not None and describe is not None:
            describe(self._blank)  # compiles loops, which workers would otherwise do each for itself
        for chunk, (images, whole, seen) in zip(chunks, self._read(chunks, workers, describe), strict=True):
            if images is None:
                again = self._read(torch.split(chunk, 1), min(1, workers)) if len(chunk) > 1 else [(None, None, seen)]
                alone = [self._alone(*one) for one in zip(chunk.tolist(), again, strict=True)]
                images, whole = (torch.cat(tensors) for tensors in zip(*alone, strict=True))
                seen = describe(whole) if self.whole_shape is not None and describe is not None else None
            yield chunk, images, whole if seen is None else seen

    def _read(
        self, chunks: Sequence[Tensor], workers: int, describe: Callable[[Tensor], Any] | None = None
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Read batches: yield images, whole images and the description of these; for an unreadable batch the error."""
        assert self._loader is not None
        places = [*map(Tensor.tolist, chunks)]
        loaded = load_batches(self._loader, places, partial(collate_whole, self._loader.collate_fn, describe), workers)
        for number, chunk in enumerate(places):
            try:
                batch, error = next(loaded)
            except (OSError, EOFError):
                raise ChildProcessError(
                    f"A process that reads `{self.argument}` died or hangs, perhaps as memory ran out: use fewer of "
                    "them, or smaller batches."
                ) from None
            if not error:
                with isolated_random_state(number):
                    images = self._images_of(batch[0], chunk)
            yield (None, None, error) if error else (*images, batch[1])

    def _alone(self, position: int, loaded: tuple[Any, Any, Any]) -> list[Tensor]:
        """Return an image `(1, ...)` and the whole one that were read alone; zeros with a note if they cannot be."""
        images, whole, error = loaded
        if images is not None:
            return [images.cpu(), whole.cpu()]
        self.unreadable[position] = error
        return [torch.zeros(1, *self.shape, device="cpu"), self._blank]

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
        if whole is images:
            self.batch_labels.add(positions, batch, first_tensor(batch))
        for position in positions:
            self.unreadable.pop(position, None)
        return images, whole


def unusable_notes(
    argument: str, unreadable: Mapping[int, str], unusable: Iterable[int], count: int, names: Sequence[str] | None
) -> dict[str, str]:
    """Note how many of `count` images could not be read, by their errors, and how many others give NaN."""
    notes, nonfinite = {}, {place: "" for place in unusable if place not in unreadable}
    for kind, places, problem in (
        ("unreadable", unreadable, "cannot be read"),
        ("nonfinite", nonfinite, "give NaN or infinite values"),
    ):
        if places:
            first = min(places)
            where = f"position {first}" + (f", {names[first]}" if names else "")
            error = f" ({places[first]})" if places[first] else ""
            notes[f"{kind} {argument}"] = (
                f"{len(places)} of the {count} images in `{argument}` {problem}, the first at {where}{error}: they are "
                "left out."
            )
    return notes


def image_hashes(images: Tensor) -> list[int]:
    """Hash the bytes of each image to 64 bits."""
    rows = images.detach().cpu().reshape(len(images), math.prod(images.shape[1:])).contiguous().view(torch.uint8)
    return [int.from_bytes(hashlib.sha256(row.data).digest()[:8], "little", signed=True) for row in rows.numpy()]


def scaled(images: Tensor) -> Tensor:
    """Return images in floating point, bytes scaled to 0..1."""
    return images if images.is_floating_point() else images.float().div_(255)
