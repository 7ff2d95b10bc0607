"""Builds inside the jail, kept outside of it: what was built once is found again by everything that went into it.

The jail hands its files back through the result channel, as bytes. Only this side writes them down, under a name made
of the sources, the commands and the versions of the tools; a run gets the folder read-only. So nothing that a program
does while it is built or run can change what another one finds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from codemill.core.errors import InputError
from codemill.core.paths import cache_dir, safe_relative
from codemill.sandbox.job import Job, Outcome
from codemill.sandbox.languages import OUTPUTS, java_names
from codemill.sandbox.plan import python_argv
from codemill.sandbox.policy import MIB, Policy
from codemill.sandbox.sandbox import Sandbox
from codemill.sandbox.toolchain import Toolchain

RESULT_BYTES = 64 * MIB
_FORMAT = 1  # part of every name: another way of building or keeping makes what is kept worthless
_MEMORY = 1024 * MIB
_MOST_FILES = 10_000
_SHARD_BYTES = 256 * MIB  # what is kept in each of the cache's 16 folders
_IN_USE_SECONDS = 3600.0  # what was used so lately is not thrown away


def build_policy(policy: Policy, seconds: float) -> Policy:
    """Limits of a build: those of `policy` widened to what compilers need, and `seconds` of wall and processor time."""
    return Policy(
        wall_seconds=seconds,
        cpu_seconds=2 * seconds,
        memory_bytes=max(policy.memory_bytes, _MEMORY),
        address_space=False,
        processes=max(policy.processes, 64),
        file_bytes=max(policy.file_bytes, RESULT_BYTES),
        disk_bytes=max(policy.disk_bytes, 4 * RESULT_BYTES),
        descriptors=max(policy.descriptors, 256),
        output_bytes=min(policy.output_bytes, MIB // 4),
        require=policy.require,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What is built, and of what.

    `steps`: commands, one after the other, in one private folder.
    `files`, `workspace`, `env`, `readable`, `self_exe`: as in `Job`.
    `outputs`: the folder below the working folder whose new files are wanted; "." for the working folder itself, with
        the files that were there before as they were.
    `tools`: versions of the tools; part of the identity of what is built.
    """

    steps: tuple[tuple[str, ...], ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    workspace: Path | None = None
    outputs: str = OUTPUTS
    env: Mapping[str, str] = field(default_factory=dict)
    readable: tuple[Path, ...] = ()
    self_exe: Path | None = None
    tools: tuple[str, ...] = ()

    def identity(self) -> str:
        """A hash of everything that decides what is built."""
        digest = hashlib.sha256()
        workspace = _tree_identity(self.workspace) if self.workspace else ""
        plain = [_FORMAT, os.uname().machine, self.steps, self.outputs, sorted(self.env.items()), self.tools, workspace]
        digest.update(json.dumps(plain).encode())
        for name, data in sorted(self.files.items()):
            digest.update(json.dumps([name, len(data)]).encode() + data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """How a build ended. `folder` holds its files, readable for everyone; None when there are none.

    `outcome` is that of the jail, None for what had been built before. `codes` are the exit statuses of the steps that
    ended, negative for a signal. `started` false: the jail ended before the first step, which no program can bring
    about. `missing`: a tool that the jail has not. `problem`: why a build whose steps all succeeded gave nothing.
    """

    folder: Path | None = None
    outcome: Outcome | None = None
    codes: tuple[int, ...] = ()
    started: bool = True
    missing: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that can be run any number of times."""

    toolchain: Toolchain
    source: str
    text: bytes
    main: str
    files: Mapping[str, bytes] = field(default_factory=dict)  # beside the source, in the build and in each run
    folder: Path | None = None  # of what was built; None for a language that is run from its source

    def job(self, policy: Policy, arguments: tuple[str, ...] = (), stdin: bytes = b"") -> Job:
        """One run. The limits of `policy` are adapted to what the language's runtime needs to start at all."""
        language, values = self.toolchain.language, {"source": self.source, "main": self.main}
        if self.folder is not None:
            values["built"] = str(self.folder)
        return Job(
            argv=(*self.toolchain.argv(language.run, policy.memory_bytes, **values), *arguments),
            files=self.files if self.folder else {**self.files, self.source: self.text},
            readable=(*self.toolchain.trees, *([self.folder] if self.folder else [])),
            env=self.toolchain.environment(policy.memory_bytes),
            stdin=stdin,
            policy=self.toolchain.limited(policy),
        )


async def build_program(
    toolchain: Toolchain,
    text: str,
    sandbox: Sandbox,
    *,
    seconds: float = 60.0,
    files: Mapping[str, bytes] | None = None,
) -> tuple[Program | None, Built]:
    """Build a program of one source file, or find it built. The program is None when it could not be built."""
    language = toolchain.language
    data = text.encode("utf-8", "surrogatepass")  # a lone surrogate is for the compiler to refuse
    main, name = os.path.splitext(language.source)[0], language.source
    if language.name == "java":
        main, name = java_names(text)
    program = Program(toolchain=toolchain, source=name, text=data, main=main, files=dict(files or {}))
    if not language.build:
        return program, Built()
    policy = build_policy(sandbox.policy, seconds)
    request = Build(
        steps=tuple(
            toolchain.argv(step, policy.memory_bytes, source=name, main=main) for step in language.build
        ),
        files={**program.files, name: data},
        env=toolchain.environment(policy.memory_bytes),
        readable=toolchain.trees,
        self_exe=toolchain.self_exe,
        tools=(toolchain.version,),
    )  # fmt: skip
    built = await build(request, sandbox, policy)
    if built.folder is None:
        return None, built
    return replace(program, folder=built.folder), built


async def build(request: Build, sandbox: Sandbox, policy: Policy) -> Built:
    """Build in the sandbox, or find what the same request built before.

    Raises what `Sandbox.run` raises; how a build goes wrong by its own doing is in what is returned.
    """
    name = request.identity()
    folder = cache_dir() / "built" / name[0] / name
    if (folder / "files").is_dir():
        os.utime(folder)
        return Built(folder=folder / "files")
    script = Path(__file__).with_name("builder.py")
    outcome = await sandbox.run(
        Job(
            argv=python_argv(script),
            workspace=request.workspace,
            files=request.files,
            readable=(script, *request.readable),
            env=request.env,
            self_exe=request.self_exe,
            stdin=json.dumps({"steps": request.steps, "outputs": request.outputs}).encode(),
            policy=policy,
            result=True,
            result_bytes=RESULT_BYTES,
        )
    )
    report = _read(outcome.result)
    if not outcome.succeeded or report.files is None or len(report.codes) != len(request.steps) or any(report.codes):
        return replace(report.built, outcome=outcome)
    try:
        await asyncio.to_thread(_keep, folder, _beside_the_old(request, report.files))
    except InputError as error:
        return replace(report.built, outcome=outcome, problem=str(error))
    return replace(report.built, folder=folder / "files", outcome=outcome)


_Files = dict[str, tuple[bytes, bool]]  # contents and whether it can be executed, by name


@dataclass(frozen=True, slots=True)
class _Report:
    """What came through the result channel; `files` is None when they are not all there."""

    built: Built
    files: _Files | None

    @property
    def codes(self) -> tuple[int, ...]:
        return self.built.codes


def _read(data: bytes) -> _Report:
    started, codes, missing, files, problem = False, [], "", None, ""
    try:
        while data and files is None:
            line, _, data = data.partition(b"\n")
            record = json.loads(line)
            if "ready" in record:
                started = True
            elif "files" in record:
                files = _cut(record["files"], data)
            else:
                codes.append(int(record["code"]))
                missing = str(record.get("missing", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InputError) as error:
        problem = f"its report cannot be read: {error}"
    return _Report(Built(started=started, codes=tuple(codes), missing=missing, problem=problem), files)


def _beside_the_old(request: Build, made: _Files) -> _Files:
    """What a build made, with the files that it was given where its outputs lie beside them. Those win."""
    if request.outputs != ".":
        return made
    old: _Files = {}
    if request.workspace is not None:
        for path in sorted(request.workspace.rglob("*")):
            if path.is_file() and not path.is_symlink():
                name = path.relative_to(request.workspace).as_posix()
                old[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    for name, data in request.files.items():
        old[name] = (data, name in old and old[name][1])
    taken = {parent.as_posix() for name in old for parent in PurePosixPath(name).parents}
    new = {
        name: file
        for name, file in made.items()
        if name not in taken and not any(str(above) in old for above in (name, *PurePosixPath(name).parents))
    }
    return {**old, **new}


def _cut(listing: Any, data: bytes) -> _Files:
    """The files of a report. Raises `ValueError` or `InputError` for one that does not fit, whoever wrote it."""
    files: _Files = {}
    if len(listing) > _MOST_FILES:
        raise ValueError(f"more than {_MOST_FILES:,} files")
    start = 0
    for path, size in listing:
        safe = safe_relative(path, "build").as_posix()
        if type(size) is not int or not 0 <= size <= len(data) - start or safe in files or safe == ".":
            raise ValueError(f"{path!r} does not fit")
        files[safe] = (data[start : start + size], True)  # where chmod is withheld, no linker can mark its program
        start += size
    return files


def _keep(folder: Path, files: _Files) -> None:
    """Put files where they are found again, whole or not at all. Who comes second keeps what is there."""
    shard = folder.parent
    shard.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=shard, prefix="."))
    try:
        (temporary / "files").mkdir()
        for name, (data, executable) in files.items():
            _write_file(temporary / "files" / name, data, executable=executable)
        _open_to_all(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "files").is_dir():
                raise
        _prune(shard)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_file(path: Path, data: bytes, *, executable: bool) -> None:
    """A file that is on disk when this returns. Raises `InputError` where its name does not fit the others'."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
            os.fchmod(out.fileno(), 0o755 if executable else 0o644)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, UnicodeEncodeError, ValueError):
        raise InputError(f"build: {path.name!r} is both a file and a folder, or no file name") from None


def _open_to_all(folder: Path) -> None:
    """Jobs run as a user of their own, who must be able to read this."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o755)


def _prune(shard: Path) -> None:
    """Keep a part of the cache below its size: what was not used for longest goes first."""
    entries = []
    for entry in os.scandir(shard):
        used = entry.stat(follow_symlinks=False).st_mtime
        size = sum(path.stat().st_size for path in Path(entry.path).rglob("*") if path.is_file())
        entries.append((used, size, entry.path))
    total = sum(size for _, size, _ in entries)
    for used, size, path in sorted(entries):
        if total <= _SHARD_BYTES or used > time.time() - _IN_USE_SECONDS:
            return
        shutil.rmtree(path, ignore_errors=True)
        total -= size


@lru_cache(maxsize=64)
def _tree_identity(workspace: Path) -> str:
    """A hash of the names and contents of a pristine folder's files."""
    digest = hashlib.sha256()
    for path in sorted(workspace.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(workspace).as_posix().encode("utf-8", "surrogateescape")
            data = path.read_bytes()
            digest.update(f"{len(name)} {len(data)} {path.stat().st_mode & 0o100} ".encode() + name + data)
    return digest.hexdigest()
