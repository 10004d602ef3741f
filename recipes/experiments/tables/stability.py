"""The stability of each rule's verdicts, and their overlap with the clustering that the index selects."""

from __future__ import annotations

from itertools import product

import pandas as pd

from recipes.experiments.tables.writer import Frame, runs

_SHARES = (0.5, 0.55, 0.6, 0.667)
RULES = ("vote", "best", *(f"index^{power} > {share:g}" for power, share in product(range(1, 7), _SHARES)))
DAMAGED = ("0", "8")  # of the probe's images
ENOUGH = {"seeds": 0.95, "left out": 0.85}  # the required overlaps


def parts() -> dict[str, Frame]:
    """Split runs into those that the rule was chosen on and others, and into AlexNet and small networks."""
    some = runs("stability")
    some["part"] = some.condition.isin(["overfitting", "augmented"]).map({True: "chosen on", False: "others"})
    some["size"] = (some.network == "alexnet").map({True: "AlexNet", False: "small networks"})
    groups = some.sort_values("part", kind="stable").groupby(["part", "size"], sort=False)
    return {": ".join(key): group for key, group in groups}


def share(some: Frame, damaged: str, rule: str, what: str) -> float:
    """Compute the share of filters that both flag among those that either flags, over all runs."""
    shared, either = zip(*(line["damaged"][damaged][rule][what] for line in some.line), strict=True)
    return float(sum(shared) / sum(either))


def reaches(some: Frame, rule: str) -> bool:
    """Whether a rule is stable enough on probes without and with damaged images."""
    return all(share(some, count, rule, what) >= least for count in DAMAGED for what, least in ENOUGH.items())


def stability() -> Frame:
    """For each rule and part of the runs: flagged filters and the four overlaps, on ordinary / damaged probes."""
    rows = []
    for rule in ("best", *reversed(RULES[2:]), "vote"):
        for name, some in parts().items():
            flagged = (sum(line["damaged"][count][rule]["flagged"] for line in some.line) for count in DAMAGED)
            cells = [" / ".join(f"{value:.0f}" for value in flagged)]
            for what in ("seeds", "left out", "selected", "other probe"):
                cells.append(" / ".join(f"{share(some, count, rule, what):.3f}" for count in DAMAGED))
            rows.append((rule, f"{name} ({len(some)})", *cells, "yes" if reaches(some, rule) else "no"))
    header = ["rule", "trainings", "flagged", "two seeds", "2% left out", "the index's", "another probe", "stable"]
    return pd.DataFrame(rows, columns=header)
