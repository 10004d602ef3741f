"""Benchmarks of time and memory: `python -m recipes.benchmarks speed overhead`, or all parts without a name.

Networks have random weights and images are noise, so nothing is downloaded. `--device cuda` runs networks on a GPU. The
large networks take longest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.options import one_sentence_errors, quiet
from recipes.development.benchmarks.parts import PARTS
from recipes.development.benchmarks.timing import machine, markdown


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; ignore the numbers")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each part, print its table, and return all numbers."""
    if unknown := set(options.parts) - set(PARTS):
        raise ValueError(f"Parts should be some of {', '.join(PARTS)}. Found {', '.join(sorted(unknown))}.")
    quiet()
    numbers: dict[str, Any] = {"machine": machine()}
    print(numbers["machine"])
    for part in options.parts or PARTS:
        numbers[part] = list(PARTS[part](options.device, options.quick))
        print(f"\n{part}: {PARTS[part].__doc__}\n{markdown(numbers[part])}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


if __name__ == "__main__":
    one_sentence_errors(run, parse)
