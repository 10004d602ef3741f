from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from trainers import SMALL_RUNS

from recipes.quickstart import describe_find, describe_scores, find, parse, run

pytestmark = SMALL_RUNS


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("logs")
    arguments = ["--epochs", "8", "--log-dir", str(folder), "--picture", str(folder / "curves.png")]
    return run(parse(arguments)), folder


def test_event_files_hold_the_count_and_both_losses_at_the_same_steps(finished) -> None:
    events = EventAccumulator(str(next(finished[1].glob("quickstart/version_*"))), size_guidance={"images": 0})
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["anomaly_filters/count"] == steps["val_loss"] == steps["train_loss"] != []
    assert len(steps["val_loss"]) == 8
    assert {"anomaly_filters/filters", "anomaly_filters/outliers"} <= set(events.Tags()["images"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    overlay = layout.category[0].chart[0].multiline.tag
    assert list(overlay) == ["^train_loss$", "^val_loss$", "^anomaly_filters/count$", "^anomaly_filters/isolated$"]


def test_the_votes_find_the_over_exposed_images_and_no_other(finished) -> None:
    callback, _ = finished
    votes = callback.report.outlier_samples
    over_exposed = {159, 172}  # where seed 0 plants them
    found, precision, _ = find(votes, over_exposed)
    assert set(found) == over_exposed
    assert precision == 1


def test_all_six_damaged_images_have_the_largest_scores(finished) -> None:
    report = finished[0].report
    assert set(report.by_outlier_score[:6]) == {159, 172, 137, 195, 235, 269}  # where seed 0 plants them
    planted = {"over_exposed": [159, 172], "white": [137, 195], "salt_and_pepper": [235, 269]}
    said = describe_scores(report, planted).splitlines()
    assert said[0] == "by outlier score, 6 of the 6 are the first 6:"
    assert [line.rpartition(", ")[2] for line in said[7:]] == ["not damaged"] * 2


def test_picture_is_written(finished) -> None:
    assert Path(finished[1] / "curves.png").stat().st_size > 10_000


def test_a_filter_browser_lies_beside_the_event_files(finished) -> None:
    (page,) = finished[1].rglob("*.html")
    assert page == next(finished[1].glob("quickstart/version_*")) / "anomaly_filters" / "browser.html"


def test_undamaged_digits_are_found_to_have_no_outliers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = run(parse(["--epochs", "6", "--damaged", "0", "--log-dir", str(tmp_path)]))
    assert callback.report.count == 0
    said = capsys.readouterr().out
    assert "0 validation images were damaged; 0 images are outliers" in said
    assert f"open {tmp_path / 'quickstart' / 'version_0' / 'anomaly_filters' / 'browser.html'}" in said
    assert "precision" not in said


def test_find_ranks_by_votes_and_counts_right_and_wrong() -> None:
    assert find([0, 2, 5, 1, 0], {2, 4}) == ([2, 1, 3], 1 / 3, 1 / 2)


def test_description_names_kinds_and_what_was_missed() -> None:
    text = describe_find([0, 3, 0], {"white": [1], "salt_and_pepper": [2]})
    assert "image   1: outlier of   3 filters, white" in text
    assert "not found: 2 (salt_and_pepper)" in text
    assert "precision 1.00, recall 0.50" in text
