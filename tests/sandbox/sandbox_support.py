"""Helpers of the sandbox tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codemill.sandbox import Job, Layers, Outcome, Policy, Sandbox, python_argv

BUILDS = {"full": Layers(), "mountless": Layers(mounts=False), "bare": Layers(namespaces=False)}
LIMITS = Policy(wall_seconds=8.0, cpu_seconds=8.0, memory_bytes=256 << 20)

Run = Callable[..., Outcome]


def runner(sandbox: Sandbox) -> Run:
    def run(code: str, *arguments: str, **fields: Any) -> Outcome:
        files = {"main.py": code.encode(), **fields.pop("files", {})}
        return sandbox.run_blocking(Job(argv=python_argv("main.py", *arguments), files=files, **fields))

    return run


def processes_with(token: str) -> list[int]:
    """Processes of this machine whose command line holds `token`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if token.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return true()
