"""Progress on standard error: a live bar on a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Counts work towards `total` (None when unknown). Use as a context manager; `advance` and `note` from anywhere."""

    def __init__(self, title: str, total: float | None = None, unit: str = "", every: float = 10.0) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done = 0.0
        self._note = ""
        self._live: Any = None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Live

            self._live = Live(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn(
                    "{task.completed:,.0f}/{task.total:,.0f} " + self.unit if self.total else "{task.completed:,.0f}"
                ),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=False,
            )
            self._live.start()
            self._bar = self._live.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount
        if note is not None:
            self._note = note
        if self._live is not None:
            self._live.update(self._bar, completed=self.done, note=self._note)
        elif time.monotonic() - self._printed >= self.every:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        whole = f"/{self.total:,.0f}" if self.total else ""
        seconds = self._printed - self._started
        print(
            f"{self.title}: {self.done:,.0f}{whole} {self.unit} {self._note} ({seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif kind is None:
            self._print()
