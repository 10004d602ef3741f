"""The comparison inside a Trainer: it logs what the function finds, stops what it should, and touches nothing."""

import gc
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from trainers import QUIET, SmallNet, hook_count, images, loader, quiet_trainer, said, watcher
from untouched import FrozenNorm, same, train

from lightning_anomaly import AnomalyEarlyStopping, TwoSampleCallback, two_sample_test
from lightning_anomaly.callbacks import two_sample as two_sample_file
from lightning_anomaly.two_sample.comparison import compare_groups

pytestmark = QUIET
TRAIN, VAL = images(60) + 0.1, images(80, seed=1)
OUTPUT = {
    "confidence_auc": 0.5,
    "confidence_gap": 0.0,
    "confidence_error_ratio": 1.0,
    "confidence_rise": 0.0,
    "confidence_p_value": 1.0,
}  # where it was not compared


class Values(pl.Callback):
    """What was logged at each validation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("two_sample")}
        if logged:
            self.seen.append(logged)


def fit(folder: Path, *others: Any, module: Any = None, **options: Any) -> tuple[pl.LightningModule, Values]:
    torch.manual_seed(0)
    values = Values()
    model = SmallNet() if module is None else module
    trainer = quiet_trainer(folder, *others, values, **options)
    trainer.fit(model, loader(80), loader(seed=1))
    return model, values


def test_it_logs_what_the_test_finds_at_every_validation(tmp_path: Path) -> None:
    compared = TwoSampleCallback(TRAIN, VAL)
    model, values = fit(tmp_path, compared, max_epochs=3, num_sanity_val_steps=1)
    report = two_sample_test(model, TRAIN, VAL)  # the weights are those of the last validation
    assert len(values.seen) == 3
    assert values.seen[-1] == pytest.approx(
        {
            "two_sample/count": report.count,
            "two_sample/fraction": report.fraction,
            "two_sample/p_value": report.p_value,
            "two_sample/confidence_auc": report.confidence_auc,
            "two_sample/confidence_gap": report.confidence_gap,
            "two_sample/confidence_error_ratio": report.confidence_error_ratio,
            "two_sample/confidence_rise": 0.0,
            "two_sample/confidence_p_value": report.confidence_p_value,
            "two_sample/layer/conv1": report.fraction_in(["conv1"]),
            "two_sample/layer/conv2": report.fraction_in(["conv2"]),
            "two_sample/layer/head": report.fraction_in(["head"]),
        }
    )
    assert report.count > 0
    assert compared.report is not None
    assert compared.report.filters == report.filters


class Sizes(SmallNet):
    """Knows the sizes of its batches."""

    def forward(self, x: Tensor) -> Tensor:
        self.sizes = {*getattr(self, "sizes", ()), len(x)}
        return super().forward(x)


def test_layers_significance_batch_size_and_prefix_are_the_users(tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": ["conv2"], "significance": 0.2, "batch_size": 7}
    compared = TwoSampleCallback(TRAIN, VAL, log_key_prefix="two_sample_too", **options)
    model, values = fit(tmp_path, compared, module=Sizes(), max_epochs=1)
    assert model.sizes & set(range(1, 8))
    assert 64 not in model.sizes
    logged = ("count", "fraction", "p_value", "layer/conv2", "layer/head", *OUTPUT)
    assert set(values.seen[0]) == {f"two_sample_too/{name}" for name in logged}
    assert compared.report is not None
    assert compared.report.significance == 0.2


@pytest.mark.parametrize(("module", "precision"), [(FrozenNorm, "32-true"), (SmallNet, "bf16-mixed")])
def test_training_is_bit_identical(tmp_path: Path, module: Any, precision: Any) -> None:
    bare = train(tmp_path, module, precision=precision)
    compared = TwoSampleCallback(TRAIN, VAL)
    watched = train(tmp_path, module, compared, precision=precision)
    assert compared.report is not None
    assert same(watched, bare)
    assert {look["hooks"] for look in watched[:-1]} == {0}


def test_a_plain_early_stopping_stops_when_chance_is_no_explanation(tmp_path: Path) -> None:
    def stopping() -> EarlyStopping:
        return EarlyStopping("two_sample/p_value", mode="max", divergence_threshold=0.01, patience=10**9)

    _, healthy = fit(tmp_path, TwoSampleCallback(VAL[:40], VAL[40:]), stopping(), max_epochs=4)
    assert [values["two_sample/p_value"] >= 0.01 for values in healthy.seen] == [True] * 4
    _, other = fit(tmp_path, TwoSampleCallback(TRAIN * 2, VAL), stopping(), max_epochs=4)
    assert [values["two_sample/p_value"] for values in other.seen] == pytest.approx([0.001])


def test_a_failing_comparison_is_a_warning_and_the_last_values_are_logged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails_later(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ArithmeticError("the comparison broke")
        return compare_groups(*args, **kwargs)

    monkeypatch.setattr(two_sample_file, "compare_groups", fails_later)
    with pytest.warns(
        UserWarning, match="could not compare .*the comparison broke.* and logs its last values"
    ) as caught:
        model, values = fit(tmp_path, TwoSampleCallback(TRAIN, VAL), max_epochs=3)
    assert len([w for w in caught if "the comparison broke" in str(w.message)]) == 1
    assert len(values.seen) == 3
    assert values.seen[0] == values.seen[1] == values.seen[2]
    assert hook_count(model) == 0


def test_a_failing_comparison_keeps_nothing_in_memory(tmp_path: Path) -> None:
    class Full(SmallNet):
        """Fails when it has made its maps, as with a GPU whose memory is full."""

        maps: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if len(x) == len(TRAIN):  # our images: no batch of the loaders has as many
                self.maps.append(weakref.ref(output))
                raise torch.OutOfMemoryError("full")
            return output

    compared = TwoSampleCallback(TRAIN, VAL)
    with pytest.warns(UserWarning, match="could not compare .*full.*, so nothing is watched"):
        fit(tmp_path, compared, module=Full(), max_epochs=1)
    gc.collect()
    assert compared.history
    assert [maps() for maps in Full.maps] == [None]


def test_images_that_the_model_cannot_take_do_not_stop_a_training(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="could not compare"):
        model, values = fit(tmp_path, TwoSampleCallback(images(40, channels=3), images(80, channels=3)), max_epochs=2)
    nothing = {"count": 0, "fraction": 0, "p_value": 1, **OUTPUT}
    nothing |= {f"layer/{name}": 0 for name in ("conv1", "conv2", "head")}
    assert values.seen == [{f"two_sample/{name}": value for name, value in nothing.items()}] * 2
    assert hook_count(model) == 0


def test_a_layer_that_is_never_called_is_said_once_and_logged_as_nothing(tmp_path: Path) -> None:
    class Idle(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Conv2d(1, 1, 1).requires_grad_(False)

    with pytest.warns(UserWarning, match="Layer 'idle' is left out of the analysis: it was never called") as caught:
        _, values = fit(tmp_path, TwoSampleCallback(TRAIN, VAL), module=Idle(), max_epochs=3)
    assert len([w for w in caught if "'idle'" in str(w.message)]) == 1
    assert [seen["two_sample/layer/idle"] for seen in values.seen] == [0.0, 0.0, 0.0]


@pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="lightning < 2.6")
def test_averaged_weights_are_compared_before_they_are_swapped_back(tmp_path: Path) -> None:
    compared, average = TwoSampleCallback(TRAIN, VAL), callbacks.WeightAveraging()
    model, _ = fit(tmp_path, average, compared, max_epochs=2)
    report = two_sample_test(model, TRAIN, VAL)  # the averaged weights are the module's own at the end
    assert compared.report is not None
    for name, layer in report.layers.items():
        assert torch.equal(layer.p_value, compared.report.layers[name].p_value)


def test_layers_that_are_built_later_are_found_and_wrong_names_are_an_error(tmp_path: Path) -> None:
    class Later(SmallNet):
        def configure_model(self) -> None:
            if not hasattr(self, "late"):
                self.late = nn.Conv2d(1, 1, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.late(x)
            return super().forward(x)

    _, values = fit(tmp_path, TwoSampleCallback(TRAIN, VAL, layers=["late"]), module=Later(), max_epochs=1)
    assert "two_sample/layer/late" in values.seen[0]
    with pytest.raises(ValueError, match=r"`layers` should name layers of the model. Found \['absent'\]"):
        fit(tmp_path, TwoSampleCallback(TRAIN, VAL, layers=["absent"]))


def test_two_callbacks_need_two_prefixes(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, TwoSampleCallback(TRAIN, VAL), TwoSampleCallback(TRAIN, VAL))
    with pytest.raises(ValueError, match=r"`log_key_prefix` should be different .* Found 'two_sample' twice"):
        trainer.fit(SmallNet(), loader(80), loader(seed=1))
    message = "different for each TwoSampleCallback and each AnomalyFilterCallback .* Found 'anomaly_filters' twice"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, TwoSampleCallback(TRAIN, VAL, log_key_prefix="anomaly_filters"), watcher())
    _, values = fit(
        tmp_path, TwoSampleCallback(TRAIN, VAL), TwoSampleCallback(TRAIN, VAL, log_key_prefix="two_sample_too")
    )
    assert values.seen[0]["two_sample/count"] == values.seen[0]["two_sample_too/count"]


def test_its_images_do_not_get_into_the_probe_of_another_callback(tmp_path: Path) -> None:
    alone, beside = watcher(), watcher()
    fit(tmp_path, alone, max_epochs=2)
    compared = TwoSampleCallback(TRAIN, VAL)
    fit(tmp_path, compared, beside, max_epochs=2)
    assert alone.report is not None
    assert beside.report is not None
    assert beside.report.to_dict() == alone.report.to_dict()


def test_the_module_runs_in_the_trainers_precision(tmp_path: Path) -> None:
    class Notes(SmallNet):
        kinds: set[Any] = set()

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if len(x) in (40, 60):  # our images: no batch of the loaders has as many
                self.kinds.add((out.dtype, torch.is_inference_mode_enabled()))
            return out

    for precision, dtype in (("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)):
        Notes.kinds = set()
        fit(tmp_path, TwoSampleCallback(TRAIN, VAL), module=Notes(), max_epochs=1, precision=precision)
        assert Notes.kinds == {(dtype, False)}


class Nothing(IterableDataset[Any]):
    """A validation set of which only its end tells that it is empty."""

    def __iter__(self) -> Any:
        return iter([])


def test_a_loader_that_turns_out_to_be_empty_does_not_take_the_values_away(tmp_path: Path) -> None:
    compared, values = TwoSampleCallback(TRAIN, VAL), Values()
    stopping = EarlyStopping("two_sample/fraction", mode="min", patience=1000)
    trainer = quiet_trainer(tmp_path, compared, stopping, values, num_sanity_val_steps=0)
    trainer.fit(SmallNet(), loader(80), DataLoader(Nothing()))
    assert compared.report is not None
    assert values.seen[-1]["two_sample/count"] == compared.report.count > 0


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    class Three(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv3 = nn.Conv2d(1, 2, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.conv3(x)
            return super().forward(x)

    compared = TwoSampleCallback(TRAIN, VAL)
    with pytest.warns(UserWarning, match="Nothing will be compared"):
        fit(tmp_path, compared, limit_val_batches=0, max_epochs=1)
    (logged,) = quiet_trainer(tmp_path, compared).validate(SmallNet(), loader(seed=1), verbose=False)
    assert logged["two_sample/count"] > 0
    _, values = fit(tmp_path, compared, module=Three(), max_epochs=1)
    assert "two_sample/layer/conv3" in values.seen[0]
    _, values = fit(tmp_path, compared, max_epochs=1)
    assert "two_sample/layer/conv3" not in values.seen[0]


def test_validate_alone_compares_too(tmp_path: Path) -> None:
    compared = TwoSampleCallback(TRAIN, VAL)
    (logged,) = quiet_trainer(tmp_path, compared).validate(SmallNet(), loader(seed=1), verbose=False)
    assert logged["two_sample/count"] == two_sample_test(SmallNet(), TRAIN, VAL).count


@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
@pytest.mark.parametrize("options", [{"barebones": True}, {"limit_val_batches": 0}], ids=str)
def test_without_validation_there_is_nothing_to_compare(tmp_path: Path, options: dict[str, Any]) -> None:
    compared = TwoSampleCallback(TRAIN, VAL)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "log_every_n_steps", "enable_model_summary")
    trainer = quiet_trainer(tmp_path, compared, **(dict.fromkeys(names) if "barebones" in options else {}), **options)
    told = (
        pytest.warns(UserWarning, match="Nothing will be compared") if "limit_val_batches" in options else nullcontext()
    )
    with told:
        trainer.fit(SmallNet(), loader(80), loader(seed=1))
    assert compared.report is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_inputs": TRAIN[:0]}, "`train_inputs` should hold samples"),
        ({"val_inputs": VAL[:, :, 1:]}, r"should hold images of the same shape. Found \(1, 8, 8\) and \(1, 7, 8\)"),
        ({"val_inputs": loader()}, "`val_inputs` should be a tensor .* Found DataLoader"),
        ({"train_inputs": (TRAIN,)}, r"`train_inputs` should be a tensor \(N, ...\). Found tuple"),
        ({"batch_size": 0}, "`batch_size` .* Found `batch_size = 0`"),
        ({"significance": 2}, r"`significance` should be a number in \(0, 1\]. Found `significance = 2`"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        TwoSampleCallback(**{"train_inputs": TRAIN, "val_inputs": VAL, **changed})
    assert "dict" not in str(raised.value)  # which the function takes, and this does not


def test_a_model_with_another_output_is_told_once_who_waits_for_it(tmp_path: Path) -> None:
    class Scores(SmallNet):
        def forward(self, x: Tensor) -> Any:
            return {"scores": super().forward(x)}

        def loss(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0])["scores"], batch[1])

    reader = EarlyStopping("two_sample/confidence_auc", mode="min", patience=100)
    with pytest.warns(UserWarning, match="The output is not compared: it is a dict") as caught:
        _, values = fit(tmp_path, TwoSampleCallback(TRAIN, VAL), reader, module=Scores(), max_epochs=2)
    (text,) = said(caught)
    assert text.endswith("EarlyStopping on 'two_sample/confidence_auc' will never have a reason to stop.")
    assert all(seen[f"two_sample/{name}"] == value for seen in values.seen for name, value in OUTPUT.items())
    assert values.seen[-1]["two_sample/count"] > 0


def test_what_a_module_logs_in_its_forward_is_of_its_own_validation(tmp_path: Path) -> None:
    class Logs(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if not self.training:
                self.log("largest", output.max())
            return output

    def largest(*callbacks: Any) -> float:
        model, _ = fit(tmp_path, *callbacks, module=Logs())
        assert "log" not in vars(model)
        return model.trainer.callback_metrics["largest"].item()

    assert largest(TwoSampleCallback(TRAIN * 9, VAL), watcher(probe="train")) == largest()


def test_one_value_of_each_callback_is_in_the_progress_bar(tmp_path: Path) -> None:
    class Bar(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            shown.append(set(trainer.progress_bar_metrics))

    shown: list[set[str]] = []
    fit(tmp_path, TwoSampleCallback(TRAIN, VAL), watcher(), Bar(), max_epochs=1, num_sanity_val_steps=0)
    assert shown == [{"two_sample/fraction", "anomaly_filters/count"}]


def test_images_too_few_for_the_output_name_who_waits_for_it(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="AnomalyEarlyStopping judges by 9 images of one kind"),
        pytest.warns(UserWarning, match="give at least 10 of each") as caught,
    ):
        fit(tmp_path, TwoSampleCallback(TRAIN[:9], VAL), AnomalyEarlyStopping(), max_epochs=2)
    _, text = said(caught)
    assert text.endswith("AnomalyEarlyStopping on 'two_sample/confidence_rise' will never have a reason to stop.")


def test_units_have_their_keys_also_where_the_first_comparison_fails(tmp_path: Any, monkeypatch: Any) -> None:
    calls: list[int] = []

    def fails_first(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no memory is left")
        return compare_groups(*args, **kwargs)

    monkeypatch.setattr(two_sample_file, "compare_groups", fails_first)
    compared, best = TwoSampleCallback(TRAIN, VAL), ModelCheckpoint(tmp_path, monitor="two_sample/layer/head")
    trainer = quiet_trainer(tmp_path, compared, best, max_epochs=3, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="no memory is left"):
        trainer.fit(SmallNet(), loader(), loader(seed=1))
    keys = [set(entry["metrics"]) for entry in compared.history]
    assert keys[0] == keys[1] == keys[2] >= {"layer/conv1", "layer/head"}
