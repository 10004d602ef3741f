"""The benchmark at tiny sizes: that both sides do the same work, and that every part says what it measured."""

import json
from importlib.metadata import version

import pytest
from trainers import SMALL_RUNS

from lightning_anomaly import AnalysisSettings
from recipes.benchmarks import __main__ as benchmark
from recipes.benchmarks.cost import exponent
from recipes.benchmarks.speed import live_points, speed
from recipes.common.maps import capture

pytestmark = [*SMALL_RUNS, pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("benchmark")
    files = ["--json", str(folder / "numbers.json"), "--picture", str(folder / "picture.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")  # starting processes takes seconds
        numbers = benchmark.run(benchmark.parse(["--quick", "--data", "digits", *files]))
    return numbers, folder


def test_every_part_measures_something(measured) -> None:
    numbers, _ = measured
    assert [row["case"].split(",")[0] for row in numbers["speed"]] == ["mixtures", "analysis", "analysis"]
    for row in numbers["speed"]:
        assert row["subset"] == 2
        smallest, largest = row["torch_over_loop_range"]
        assert 0 < smallest <= row["torch_over_loop"] <= largest
        assert min(row["loop_seconds"], row["joblib_seconds"], row["torch_seconds"]) > 0
    assert [row["of"] for row in numbers["growth"]] == ["filters", "samples", "components"]
    (overhead,) = numbers["overhead"]
    assert overhead["train_images"] == 400
    parts = ("capture", "pca", "clustering", "rest")
    assert sum(overhead[f"{part}_seconds"] for part in parts) == pytest.approx(overhead["added_seconds"])
    (comparison,) = numbers["comparison"]
    assert (comparison["train_images"], comparison["compared"], comparison["batch_size"]) == (400, 100, 128)
    assert comparison["timed_batches"] == 1  # of four, three are to warm up
    assert comparison["share"] == comparison["added_seconds"] / comparison["epoch_seconds"]
    assert comparison["comparison_seconds"] > 0 < comparison["forward_seconds"]
    by_peer = {(row["task"], row["peer"]): row for row in numbers["peers"]}
    for task in ("mixtures", "k-means"):
        assert min(by_peer[task, peer]["seconds"] for peer in ("scikit-learn, a loop", "ours, torch")) > 0
        for engine in ("numba", "torch"):
            assert by_peer[task, f"ours, {engine}"]["same_clusters"] == 1
    for task, peer in (("mixtures", "gmm-gpu, float32"), ("k-means", "torch-kmeans, float64")):
        row = by_peer[task, peer]
        assert row["same_clusters"] > 0.5 if "seconds" in row else "pip install" in row["said"]
    (large,) = numbers["large"]
    assert large["extra_mib"] == large["analysed_mib"] - large["alone_mib"] > large["maps_mib"] > 0
    assert large["filters"] == 4800
    assert min(large["seconds"], large["cpu_seconds"]) > 0
    assert "16x16 pooled to 8x8" in large["said"]


def test_what_it_costs_on_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = benchmark.run(benchmark.parse(["--quick", "--data", "digits", "--device", "cpu"]))
    networks = ["lenet5", "lenet5 on noise"]
    rows = numbers["training"]
    assert [row["network"] for row in rows] == [network for network in networks for _ in range(3)]
    assert [row["engine"] for row in rows[:3]] == ["without the callback", "auto", "torch"]
    for row in rows[1:3]:
        assert row["added_seconds"] == row["validation_seconds"] - rows[0]["validation_seconds"]
        assert row["analysis_seconds"] > 0
    for row in numbers["steps"]:
        assert min(row["analysis"], row["pca"], row["em"]) > 0
    assert all("aten::" in name for row in numbers["profile"] for name, _, _ in row["longest"])
    assert [(row["with"], row["without"]) for row in numbers["waits"]] == [(0, 0)] * 2
    assert [(row["backend"], row["same"]) for row in numbers["shared"]] == [("gloo", True)] * 2
    assert "| lenet5 on noise | CPU | torch |" in capsys.readouterr().out


def test_the_numbers_are_written_and_drawn(measured) -> None:
    numbers, folder = measured
    written = json.loads((folder / "numbers.json").read_text())
    assert written["growth"] == json.loads(json.dumps(numbers["growth"]))
    assert written["machine"]["torch"] == version("torch")
    assert (folder / "picture.png").stat().st_size > 10_000
    assert "| mixtures |" in benchmark.tables(numbers)
    share = 100 * numbers["comparison"][0]["share"]
    assert f"| {share:.2f}% | {share / 5:.2f}% |" in benchmark.tables(numbers)


def test_both_sides_of_the_race_do_the_same_work(trained, no_processes: None) -> None:
    name, layer = next(iter(capture(trained.model, trained.probe[:150], AnalysisSettings()).items()))
    points, rows = live_points({name: layer})
    assert points.shape == (8, 150, 2)
    assert [row.shape for row in rows] == [(150, 64)] * 8
    for row in speed("digits", {name: layer}, 8, 1):
        assert row["subset"] == row["filters"] == 8
        assert row["same_k"] == row["same_verdict"] == row["same_outliers"] == 1


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_only_what_is_asked_for_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = benchmark.run(benchmark.parse(["--quick", "--data", "digits", "--parts", "growth"]))
    assert set(numbers) == {"machine", "data", "growth"}
    assert "| growth in |" in capsys.readouterr().out


def test_the_images_are_asked_for_as_in_all_recipes() -> None:
    options = benchmark.parse(["--data-root", "here", "--download"])
    assert (options.data, options.data_root, options.download) == ("cifar10", "here", True)
