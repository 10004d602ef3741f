"""Compare a network's responses to training and to validation images: its output and its filters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.checks import check_fraction
from lightning_anomaly._internal.notes import nonfinite, warn_of
from lightning_anomaly.images.source import ImageSource, first_tensor, image_hashes
from lightning_anomaly.network.forward import run, usable_layers
from lightning_anomaly.network.hooks import MapCapture
from lightning_anomaly.network.layers import modules_by_name, select_layers, state_hash, unseen_layers
from lightning_anomaly.network.maps import LayerMaps
from lightning_anomaly.two_sample.confidence import ExpectedErrors, compare_confidences, mean_error
from lightning_anomaly.two_sample.rank_test import (
    DIVISIONS,
    MIN_SAMPLES,
    layer_p_values,
    live_filters,
    random_divisions,
    rank_test,
)
from lightning_anomaly.two_sample.report import LayerComparison, TwoSampleReport

_VALUES = 2**21  # values tested in one operation, of which a few copies exist: 16 MB each


def two_sample_test(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    significance: float = 0.01,
    batch_size: int | None = None,
) -> TwoSampleReport:
    """Test whether a network treats its training images differently, by its output and by its filters.

    The output says *whether* it does: an overfitted network is more confident on training images, by its largest
    softmax probability. `confidence_auc` is 0.5 if it treats both kinds alike, whatever the number of images.

    The filters say *where*, by their largest rectified value on each image. If a network treats both kinds alike,
    chance finds a share of `significance` of its filters on average; most draws of images give none, a few give 10%,
    for which the report's `p_value` allows. A larger share says that convolutions have memorized training images, and
    in which layers. Only strong overfitting shows there, see `docs/results/two_sample.md`.

    **Give training images without augmentation, as validation sees them**, and draw both kinds at random: the test
    finds any other difference between them as well. The model runs as in `analyze`.

    Args:
        model: Any model, on any device. Its output is compared if it is logits or probabilities `(N, C)`, one logit
            `(N,)` or `(N, 1)` of two classes or its sigmoid, or a mapping with such `logits`. For outputs
            `(N, C, ...)` the mean over the positions counts. Any other type or shape gives a note. Numbers with another
            meaning, as in regression or embeddings, are mistaken for logits.
        train_inputs: Images that the model was trained on, like `inputs` of `analyze`.
        val_inputs: Images that it was not trained on. Give about 1,000 of each kind; fewer find less.
        layers: Names of the layers to compare; None takes every convolution. For a convolution followed by a BatchNorm,
            name the BatchNorm.
        significance: The p-value up to which a filter counts.
        batch_size: See `analyze`.

    Returns:
        The report. Its `notes` say what could not be compared and are also issued as warnings.

    Raises:
        ValueError: If a layer does not exist, inputs hold no images or are of another type, the two kinds differ in
            shape, or `significance` is not a number in (0, 1].

    Examples:
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = nn.Conv2d(1, 2, 3)
        >>> _ = nn.init.ones_(conv.weight)
        >>> two_sample_test(conv, images[:100] + 1, images[100:]).filters
        {'': [0, 1]}
    """
    train = ImageSource(train_inputs, "train_inputs", batch_size)
    val = ImageSource(val_inputs, "val_inputs", batch_size)
    report = compare_groups(model, train, val, layers, significance)
    warn_of(report.notes)
    return report


def compare_groups(
    model: nn.Module,
    train_inputs: ImageSource,
    val_inputs: ImageSource,
    layers: Iterable[str] | None,
    significance: float,
    last: LastComparison | None = None,
    val_pass: WatchedPass | None = None,
) -> TwoSampleReport:
    """Compute the report of `two_sample_test` without issuing warnings.

    `last` is an earlier comparison of the same images, which this one replaces: a layer with the same values keeps its
    test, and if only the head has changed, nothing else runs. `val_pass` was watched while somebody else ran the model
    on the validation images, which spares a pass.
    """
    last = LastComparison() if last is None else last
    significance = check_fraction("significance", significance, zero=False)
    check_groups(train_inputs, val_inputs)
    if last.started or not last.run_head(model):
        last.start(model, train_inputs, layers)
        last.finish(model, val_inputs, layers, val_pass)
    train, val = last.groups
    notes = unseen_layers(model, layers) | train.notes | val.notes
    n_train, n_val = train.n_samples, val.n_samples
    chance = torch.zeros(DIVISIONS, dtype=torch.int64, device="cpu")
    if min(n_train, n_val) < MIN_SAMPLES:
        notes["few images"] = (
            f"The {n_train} training and {n_val} validation images in `train_inputs` and `val_inputs` are too few for "
            f"a rank test: give at least {MIN_SAMPLES} of each, better 1,000."
        )
        return TwoSampleReport({}, n_train, n_val, significance, chance.double(), notes)
    actual = torch.arange(n_train + n_val, device="cpu")[:, None] < n_train
    divisions = torch.cat([actual, random_divisions(n_train, n_train + n_val)], 1)
    tests: dict[str, LayerTest] = {}
    keys: dict[str, bytes] = {}
    n_finite = carried_over = 0
    for name in [name for name in train.maps if name in val.maps]:
        values = torch.cat([group.maps[name].maps.T for group in (train, val)], 1).cpu()
        key = hashlib.blake2b(repr((name, n_train)).encode())
        key.update(values.contiguous().numpy().data)
        keys[name] = key.digest()
        if keys[name] in last.tests:
            carried_over += len(values)
            tests[name] = last.tests[keys[name]]
        else:
            tests[name] = _test_layer(values, divisions, significance)
        chance += tests[name].counts[1:]
        finite = int(values.isfinite().all(1).sum())
        n_finite += finite
        if finite < len(values):
            notes |= nonfinite(name, len(values) - finite, len(values), "and are not compared")
    last.tests = {keys[name]: test for name, test in tests.items()}
    compared = _add_share_p_values(tests)
    n_live = sum(int(layer.live.sum()) for layer in compared.values())
    if n_finite and not n_live:
        notes["none live"] = (
            f"None of the {n_finite} filters responds to enough of the {n_train} training and {n_val} validation "
            "images to be compared: give more images, or other `layers`."
        )
    chance_shares = chance.double() / max(1, n_live)
    report = TwoSampleReport(compared, n_train, n_val, significance, chance_shares, notes, carried_over=carried_over)
    if train.errors is None or val.errors is None:
        return report
    area, gap, p_value = compare_confidences(-train.errors, -val.errors)
    return replace(
        report,
        confidence_auc=area,
        confidence_gap=gap,
        confidence_error_ratio=mean_error(val.errors) / mean_error(train.errors),
        confidence_p_value=p_value,
        train_errors=train.errors,
        val_errors=val.errors,
    )


def check_groups(train_inputs: ImageSource, val_inputs: ImageSource) -> None:
    """Raise ValueError for inputs of different shapes."""
    if train_inputs.shape != val_inputs.shape:  # the maximum over more values is larger
        raise ValueError(
            "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
            f"Found {train_inputs.shape} and {val_inputs.shape}."
        )


class _Group(NamedTuple):
    """The responses of a network to the images of one kind."""

    maps: dict[str, LayerMaps]  # the largest value of each filter's map `(n, F)`
    n_samples: int
    notes: dict[str, str]
    errors: Tensor | None  # see `ExpectedErrors.result`
    head: str | None  # the linear layer whose output the model returned, if there is one
    features: Tensor | None  # its inputs `(n, D)`
    batch_size: int


class LastComparison:
    """What a comparison leaves to the next one of the same images."""

    def __init__(self) -> None:
        self.tests: dict[bytes, LayerTest] = {}  # by a hash of the layer's values
        self.groups: list[_Group] = []  # training images, then validation images
        self._probabilities: bool | None = None  # see `ExpectedErrors`
        self._state: str | None = None  # hash of the other parameters and buffers, if the head can run alone

    @property
    def started(self) -> bool:
        """Whether the training images wait for `finish`."""
        return len(self.groups) == 1

    def start(self, model: nn.Module, train_inputs: ImageSource, layers: Iterable[str] | None) -> None:
        """Run a network on the training images; a second call does nothing before `finish`."""
        if not self.started:
            output = ExpectedErrors()
            group = _run(model, train_inputs, layers, output)
            self.groups, self._probabilities = [group], output.probabilities
            suffices = group.head is not None and group.head not in group.maps and group.errors is not None
            self._state = state_hash(model, _head_of(model, group)) if suffices else None

    def finish(
        self, model: nn.Module, val_inputs: ImageSource, layers: Iterable[str] | None, val_pass: WatchedPass | None
    ) -> None:
        """Run a network on the validation images, unless somebody else's pass was watched."""
        output = ExpectedErrors(self._probabilities)
        if val_pass is None:
            self.groups.append(_run(model, val_inputs, layers, output))
        else:
            for result in val_pass.outputs:
                output.update(result)
            self.groups.append(_group(model, val_inputs, val_pass.capture, output))
        train, val = self.groups
        if val.head != train.head or val.errors is None:
            self._state = None

    def has_backbone_of(self, model: nn.Module) -> bool:
        """Whether nothing but the head of a model has changed, and the head can run alone."""
        return self._state is not None and state_hash(model, _head_of(model, self.groups[0])) == self._state

    def run_head(self, model: nn.Module) -> bool:
        """Run the head alone, and return whether that was enough."""
        if not self.has_backbone_of(model):
            return False
        head = _head_of(model, self.groups[0])
        for place, group in enumerate(self.groups):
            assert group.features is not None
            features = ImageSource(group.features.to(head.weight), "features", group.batch_size)
            errors = _run(head, features, None, ExpectedErrors(probabilities=False)).errors
            if errors is None:
                return False
            self.groups[place] = group._replace(errors=errors)
        return True


def _head_of(model: nn.Module, group: _Group) -> Any:
    return modules_by_name(model)[str(group.head)]


class WatchedPass:
    """Takes what a comparison needs while somebody else runs a model on images, batch by batch.

    In each batch, the first call of the model counts, and only if it returns a tensor `(n,)` or `(n, C)`.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] | None) -> None:
        self._model = model
        self.capture = _capture(model, layers)
        self.outputs: list[Tensor] = []
        self.images: list[int] = []  # their hashes, in the order of the batches
        self._hooks = ExitStack()

    def attach(self) -> None:
        """Hook the model for a batch. `remove` must follow."""
        called: list[bool] = []

        def take(module: nn.Module, args: Any, output: Any) -> None:
            images = first_tensor(args)
            if not called and images is not None and isinstance(output, Tensor) and output.ndim in (1, 2):
                self.images += image_hashes(images)
                self.outputs.append(output.detach().clone())
            called.append(True)

        self._hooks.enter_context(self.capture)
        self._hooks.callback(self._model.register_forward_hook(take).remove)

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        self._hooks.close()

    def saw(self, images: Sequence[int], ended: bool) -> bool:
        """Whether the model has seen these images in this order, by their hashes; all if the pass has ended."""
        return bool(self.images) and self.images == [*images[: None if ended else len(self.images)]]


def _run(
    model: nn.Module,
    inputs: ImageSource,
    layers: Iterable[str] | None,
    output: ExpectedErrors,
) -> _Group:
    """Run a network once on the images of one kind."""
    capture = _capture(model, layers)
    with output:
        run(model, inputs, capture, take_output=output.update)
    return _group(model, inputs, capture, output)


def _capture(model: nn.Module, layers: Iterable[str] | None) -> MapCapture:
    return MapCapture(select_layers(model, layers), summary=_largest, model=model)


def _group(model: nn.Module, inputs: ImageSource, capture: MapCapture, output: ExpectedErrors) -> _Group:
    """Check that every layer and the output responded to every image."""
    n_samples = len(inputs.positions) - len(inputs.unreadable)
    maps, _, notes = usable_layers(capture.maps, n_samples)
    notes |= inputs.notes()
    errors = output.result(n_samples)
    if errors is None:
        notes["output"] = f"The output is not compared: {output.problem}."
    samples = capture.samples.collected(n_samples)
    head = None if samples.head is None else samples.head.layer
    if head is not None and not isinstance(modules_by_name(model)[head], nn.Linear):
        head = None
    return _Group(maps, n_samples, notes, errors, head, samples.features, inputs.batch_size)


def _largest(maps: Tensor) -> Tensor:
    """Return the largest rectified value `(n, F)` of each map `(n, F, ...)`."""
    return (maps.flatten(2).amax(2) if maps.ndim > 2 else maps).clamp(min=0)


class LayerTest(NamedTuple):
    """The rank tests of one layer's filters, for the actual division of the images and 999 random ones."""

    comparison: LayerComparison
    counts: Tensor  # significant filters by division, the actual one first `(1 + 999,)`
    smallest: Tensor  # smallest p-value of a filter by division


def _test_layer(values: Tensor, divisions: Tensor, significance: float) -> LayerTest:
    """Test the filters of a layer by their values on all images `(F, n + m)`."""
    live = live_filters(values, int(divisions[:, 0].sum()))
    counts = torch.zeros(divisions.shape[1], dtype=torch.int64, device=values.device)
    smallest = torch.ones(divisions.shape[1], dtype=torch.float64, device=values.device)
    area, p_value = (values.new_full(live.shape, value, dtype=torch.float64) for value in (0.5, 1.0))
    for batch in torch.split(live.nonzero()[:, 0], max(1, _VALUES // max(divisions.shape))):
        areas, p_values = rank_test(values[batch], divisions)
        area[batch], p_value[batch] = areas[:, 0], p_values[:, 0]
        counts += (p_values <= significance).sum(0)
        smallest = torch.cat([smallest[None], p_values]).amin(0)
    return LayerTest(LayerComparison(live, area, p_value), counts, smallest)


def _add_share_p_values(tests: Mapping[str, LayerTest]) -> dict[str, LayerComparison]:
    """Add to each layer its `share_p_value`, which is corrected for the number of layers."""
    if not tests:
        return {}
    comparisons, counts, smallest = zip(*tests.values(), strict=True)
    p_values = layer_p_values(torch.stack(counts), torch.stack(smallest))
    layers = zip(tests, comparisons, p_values, strict=True)
    return {name: replace(layer, share_p_value=p_value) for name, layer, p_value in layers}
