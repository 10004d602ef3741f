"""Lines of H1 whose curves are known."""

from typing import Any


def line(**curves: list[float]) -> dict[str, Any]:
    """A training with these curves; `fraction` is in hundredths of a layer of 100 filters."""
    length = len(next(iter(curves.values())))
    epochs: list[dict[str, Any]] = []
    for position in range(length):
        values = {name: curve[position] for name, curve in curves.items()}
        of_layer = {"count": 100 * values.pop("fraction", 0.0), "live": 100, "isolated": 0, "silent": 0, "dead": 0,
                    "set_apart": 0, "sparsity": values.pop("sparsity", 0.5), "weight_variance": 2.0,
                    "weight_norm": 2.0, "separation": 0.0, "kurtosis": 3.0, "outside": 0.5, "second": 0.5}  # fmt: skip
        defaults = {
            "val_loss": 1.0,
            "val_acc": 0.5,
            "test_acc": 0.5,
            "test_loss": 1.0,
            "changed": 0.5,
            "disparity": 1.0,
        }
        layers = {reading: {"0": of_layer} for reading in ("val", "val_unrectified", "val_paper", "train")}
        epochs.append({**defaults, **values, "layers": layers})
    return {"cell": {"network": "net", "condition": "overfitting"}, "epochs": epochs}


def runs(fraction: list[float], **settings: Any) -> list[dict[str, Any]]:
    """An overfitting run whose anomaly fraction is this, and a healthy one in which it is flat."""
    loss = [3.0, 2.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    cell = {"network": "net", "data": "some", "train_size": 4000, **settings}
    bad = line(fraction=fraction, val_loss=loss) | {"cell": {**cell, "condition": "overfitting"}}
    good = line(fraction=[0.2] * 8, val_loss=sorted(loss)[::-1]) | {"cell": {**cell, "condition": "augmented"}}
    return [run | {"key": str(run["cell"])} for run in (bad, good)]


RISING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
