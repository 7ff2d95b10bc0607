"""Measuring us against a peer: two workers in processes of their own, asked in turn, with nothing else running.

A worker reads one JSON request a line, does the work once, and prints the seconds it took. Each side keeps its own
process, so that neither gains or loses by what the other does to memory, threads or settings.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Worker:
    """A side of the duel: `python SCRIPT --worker SIDE ...`, or another command."""

    def __init__(self, script: str, side: str, *arguments: str, command: list[str] | None = None) -> None:
        command = command or [sys.executable, script, "--worker", side, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"the worker ended: exit code {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The worker's side: answer requests until the input ends. `work` returns {"seconds": ..., ...}."""
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), flush=True)


def timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def duel(ours: Worker, peer: Worker, request: dict[str, Any], runs: int) -> tuple[list[float], list[float]]:
    """Units of work per second of both sides, in turn, after one run each that is not counted."""
    ours.ask(request)
    peer.ask(request)
    pairs = [(ours.ask(request), peer.ask(request)) for _ in range(runs)]
    return [a["work"] / a["seconds"] for a, _ in pairs], [b["work"] / b["seconds"] for _, b in pairs]


def row(
    identity: str,
    work: str,
    unit: str,
    ours: list[float],
    peer: list[float] | None = None,
    *,
    peer_name: str = "",
    peer_version: str = "",
    limit: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A result: medians, the ratio pair by pair (above 1: we are faster), its lowest and highest value."""
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True)) if peer else []
    return {
        "id": identity,
        "work": work,
        "unit": unit,
        "ours": round(statistics.median(ours), 3),
        "peer": round(statistics.median(peer), 3) if peer else None,
        "peer_name": peer_name or None,
        "peer_version": peer_version or (metadata.version(peer_name) if peer_name else None),
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)] if ratios else [round(min(ours), 3), round(max(ours), 3)],
        "limit": round(limit, 2) if limit else None,
        "runs": len(ours),
        **more,
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write `results/NAME.json` and print a line for each row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    common = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit + ("+" if dirty else ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {platform.machine()}, Linux {platform.release()}",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps([{**r, **common} for r in rows], indent=1) + "\n")
    for r in rows:
        versus = (
            f"  {r['peer_name']} {r['peer']}  ratio {r['ratio']} {r['spread']}" if r["peer"] else f"  {r['spread']}"
        )
        print(f"{r['id']}: {r['ours']} {r['unit']}{versus}", f"limit {r['limit']}" if r["limit"] else "")


def _processor() -> str:
    import os

    text = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    extra = "".join(f" {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in flags.split())
    return f"{model}, {os.cpu_count()} cores{extra}"


def read_bandwidth() -> float:
    """Bytes per second of reading memory once, from a buffer far larger than any cache a program gets to itself."""
    import torch

    data = torch.ones(1 << 28, dtype=torch.float32)
    return data.numel() * 4 / min(timed(data.sum) for _ in range(5))


def matrix_peak() -> float:
    """bf16 operations per second of a large matrix product."""
    import torch

    a = torch.randn(4096, 4096).bfloat16()
    return 2 * 4096**3 / min(timed(lambda: a @ a) for _ in range(5))
