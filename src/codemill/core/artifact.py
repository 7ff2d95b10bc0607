"""Artifacts: folders whose `manifest.json`, written last, says what made them and what is inside.

A folder without a manifest is unfinished. The manifest carries the lineage: the configuration, the artifacts that went
in (by fingerprint), the software versions and the hash of every file that came out.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import codemill
from codemill.core.errors import InputError, IntegrityError
from codemill.core.paths import atomic_write_text

MANIFEST = "manifest.json"
FORMAT = 1


def fingerprint(value: Any) -> str:
    """A short stable hash of plain JSON data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of this software, Python and the named packages."""
    found = {"codemill": codemill.__version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_manifest(
    folder: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    seconds: float = 0.0,
    facts: Mapping[str, Any] | None = None,
    packages: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Close an artifact. `inputs` maps a role to the fingerprint of the artifact used; `facts` are for people."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST and "workspaces" not in path.parts
    }
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "config": dict(config),
        "inputs": dict(inputs or {}),
        "facts": dict(facts or {}),
        "files": files,
        "seconds": round(seconds, 3),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": versions(*packages),
        "machine": platform.platform(),
    }
    manifest["fingerprint"] = fingerprint({key: manifest[key] for key in ("kind", "config", "inputs", "files")})
    atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artifact. Raises `InputError` for a folder without one."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder}: no {MANIFEST}, so this is not a finished codemill artifact") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise IntegrityError(f"{path}: unreadable: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise IntegrityError(f"{path}: manifest format {manifest.get('format')!r} is not {FORMAT}")
    return manifest


def is_finished(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def folder_identity(folder: Path) -> str:
    """What exactly is in a folder: its manifest's fingerprint, else a hash over its files' names and contents."""
    if is_finished(folder):
        return str(read_manifest(folder)["fingerprint"])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files])
