"""Helpers of the sandbox tests."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.sandbox import Call, Job, Layers, Outcome, Policy, Sandbox, Warm, python_argv

BUILDS = {"full": Layers(), "mountless": Layers(mounts=False), "bare": Layers(namespaces=False)}
LIMITS = Policy(wall_seconds=8.0, cpu_seconds=8.0, memory_bytes=256 << 20)

Run = Callable[..., Outcome]


def runner(sandbox: Sandbox) -> Run:
    def run(code: str, *arguments: str, **fields: Any) -> Outcome:
        files = {"main.py": code.encode(), **fields.pop("files", {})}
        return sandbox.run_blocking(Job(argv=python_argv("main.py", *arguments), files=files, **fields))

    return run


WARM = Warm(modules=(Path(__file__).with_name("warm_main.py"),))


def warm_runner(sandbox: Sandbox) -> Run:
    """The same as a call of a warm interpreter: the code is executed as its main module in a fork."""

    def run(code: str, *arguments: str, **fields: Any) -> Outcome:
        files = {name: data.decode("latin-1") for name, data in fields.pop("files", {}).items()}
        if unknown := set(fields) - {"policy", "result"}:
            pytest.skip(f"a call has no {', '.join(sorted(unknown))}")
        payload = json.dumps({"code": code, "arguments": arguments, "files": files}).encode()
        return sandbox.run_warm_blocking(WARM, (Call(entry="warm_main:main", payload=payload, **fields),))[0]

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
