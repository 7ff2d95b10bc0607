"""What a user waits for: `codemill --help`, and the whole quickstart with its peak of memory.

`python benchmarks/cli.py --quickstart` runs the recipe from an empty output folder; models and packages come from the
cache, so that downloads do not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from duel import row, timed, write

CODEMILL = str(Path(sys.executable).with_name("codemill"))
RECIPE = str(Path(__file__).parents[1] / "recipes" / "quickstart.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", action="store_true")
    arguments = parser.parse_args()
    if arguments.quickstart:
        with tempfile.TemporaryDirectory() as out:
            seconds = timed(lambda: subprocess.run([CODEMILL, "run", RECIPE, "--out", out], check=True))
            report = json.loads(next(Path(out).glob("*/report*/report.json")).read_text())
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        rows = [
            row("quickstart-seconds", "recipes/quickstart.yaml, downloads apart", "s", [seconds], limit=600),
            row("quickstart-memory", "largest process of it", "GiB", [peak], limit=8),
            *findings(report),
        ]
        write("quickstart", rows)
        return
    times = [timed(lambda: subprocess.run([CODEMILL, "--help"], check=True, capture_output=True)) for _ in range(11)]
    write("cli", [row("help-seconds", "codemill --help", "s", times, limit=0.3)])


def findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run found: each suite before, after and the paired difference, and bits per byte."""
    rows = []
    for name, suite in report["suites"].items():
        found = {side: suite[side]["scores"]["pass@1"] for side in ("before", "after")}
        found["difference"] = suite["comparison"]["difference"]
        for side, estimate in found.items():
            work = "after - before, paired" if side == "difference" else f"{suite['compared']} tasks, greedy, pass@1"
            interval = [round(estimate["low"], 4), round(estimate["high"], 4)]
            rows.append(row(f"quickstart-{name}-{side}", work, "share", [estimate["value"]]) | {"spread": interval})
    bits = report["bits_per_byte"]
    for side in ("before", "after"):
        rows.append(
            row(f"quickstart-bits-per-byte-{side}", "held-out files", "bits/byte", [bits[side]["bits_per_byte"]])
        )
    return rows


if __name__ == "__main__":
    main()
