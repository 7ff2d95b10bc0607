"""What a user waits for: `codemill --help`, and the whole quickstart with its peak of memory.

`python benchmarks/cli.py --quickstart` runs the recipe from an empty output folder; models and packages come from the
cache, so that downloads do not count.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

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
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        rows = [
            row("quickstart-seconds", "recipes/quickstart.yaml, downloads apart", "s", [seconds], limit=600),
            row("quickstart-memory", "largest process of it", "GiB", [peak], limit=8),
        ]
        write("quickstart", rows)
        return
    times = [timed(lambda: subprocess.run([CODEMILL, "--help"], check=True, capture_output=True)) for _ in range(11)]
    write("cli", [row("help-seconds", "codemill --help", "s", times, limit=0.3)])


if __name__ == "__main__":
    main()
