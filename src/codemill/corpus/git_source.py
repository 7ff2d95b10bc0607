"""Reading one commit of a git repository, local or remote, with nothing in it being run.

Only plumbing commands that read objects are used: no checkout, hence no filters, hooks or submodules.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from codemill.core.errors import InputError, UnavailableError
from codemill.corpus.snapshot import BLOCK, Collector

_FULL_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.quotePath": "true",
    "protocol.ext.allow": "never",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    # Whose the folder is does not matter: no command used here runs anything that its configuration names.
    "safe.directory": "*",
}
# What of the caller's environment git may see; GIT_DIR and its like would point it at another repository.
_KEPT_VARIABLES = frozenset({"GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS"})


def is_url(location: str) -> bool:
    """Whether a git location is remote: a URL, or `user@host:path`."""
    return "://" in location or re.match(r"[\w.-]+@[\w.-]+:", location) is not None


def local_commit(repository: Path, revision: str) -> str:
    """The commit that `revision` names in a local repository. Raises `InputError`."""
    result = _run(["rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}"], repository)
    if result.returncode:
        if _run(["rev-parse", "--git-dir"], repository).returncode:
            raise InputError(f"{repository}: not the top folder of a git repository")
        raise InputError(f"{repository}: no commit {revision!r} in this repository")
    return result.stdout.decode().strip()


def remote_commit(url: str, revision: str) -> str:
    """The commit that a branch, a tag or HEAD names at `url`; a full hash needs no network."""
    if _FULL_HASH.fullmatch(revision):
        return revision
    result = _run(["ls-remote", "--", url], None, remote=True)
    if result.returncode:
        raise UnavailableError(f"{url}: git cannot read it: {_last_line(result.stderr)}")
    found = dict(line.split("\t", 1)[::-1] for line in result.stdout.decode("utf-8", "replace").splitlines())
    for name in (revision, f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}"):
        if name in found:
            return found[name]
    raise InputError(f"{url}: no branch or tag {revision!r}; a commit needs its full hash of 40 digits")


def collect_local(repository: Path, commit: str, collector: Collector) -> None:
    """Give the files of a commit to the collector, byte for byte as they are stored."""
    git = ["git", *_options(), "cat-file", "--batch"]
    environment = _environment(repository, remote=False)
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            git, cwd=repository, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for mode, identity, size, name in _members(repository, commit):
                if mode not in ("100644", "100755", "100664"):
                    collector.count_member()
                    kinds = {"120000": "symbolic link", "160000": "submodule"}
                    collector.skip(name, 0, kinds.get(mode, "not a regular file"))
                    continue
                path = collector.admit(name, size)
                if path is not None:
                    process.stdin.write(identity.encode() + b"\n")
                    process.stdin.flush()
                    _expect(process.stdout, identity, collector.origin)
                    collector.store(path, _content(process.stdout, size, collector.origin))
            process.stdin.close()


def collect_remote(url: str, commit: str, collector: Collector, scratch: Path) -> None:
    """Fetch one commit from `url` into a passing repository below `scratch` and collect it."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".git-") as folder:
        repository = Path(folder)
        _check(_run(["init", "--quiet", "--bare", "--template=", "."], repository), url)
        fetch = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"]
        # Most servers hand out a single commit by its hash; one that refuses gives all branches and tags.
        if _run([*fetch, "--depth=1", "--", url, commit], repository, remote=True).returncode:
            refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            _check(_run([*fetch, "--", url, *refs], repository, remote=True), url)
        collect_local(repository, local_commit(repository, commit), collector)


def _members(repository: Path, commit: str) -> Iterator[tuple[str, str, int, str]]:
    """Mode, object, size and name of each entry of a tree. Bytes that are not UTF-8 become surrogates."""
    git = ["git", *_options(), "ls-tree", "-r", "-z", "--long", "--full-tree", commit]
    environment = _environment(repository, remote=False)
    with subprocess.Popen(
        git, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        rest = b""
        while block := process.stdout.read(BLOCK):
            *entries, rest = (rest + block).split(b"\0")
            for entry in entries:
                head, _, name = entry.partition(b"\t")
                mode, _kind, identity, size = head.decode().split()
                if not size.isdigit() and size != "-":  # git prints "BAD"
                    raise InputError(_missing(str(repository), identity))
                yield mode, identity, 0 if size == "-" else int(size), os.fsdecode(name)
    if process.returncode or rest:
        raise InputError(f"{repository}: git cannot list commit {commit}; `git fsck` may tell why")


def _expect(stream: IO[bytes], identity: str, origin: str) -> None:
    header = stream.readline().split()
    if len(header) != 3 or header[1] != b"blob":
        raise InputError(_missing(origin, identity))


def _missing(origin: str, identity: str) -> str:
    return f"{origin}: object {identity} is missing from the repository; `git fsck` may tell why"


def _content(stream: IO[bytes], size: int, origin: str) -> Iterator[bytes]:
    while size > 0:
        block = stream.read(min(size, BLOCK))
        if not block:
            raise InputError(f"{origin}: git ended in the middle of a file")
        size -= len(block)
        yield block
    stream.read(1)  # the line feed that ends each object


def _options() -> list[str]:
    return [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]


def _environment(repository: Path | None, *, remote: bool) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k in _KEPT_VARIABLES}
    kept |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        # A local repository is read without transport: a "partial clone" must not make git fetch the rest.
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git" if remote else "none",
        "LC_ALL": "C",
    }
    kept.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    if repository is not None:
        kept["GIT_CEILING_DIRECTORIES"] = str(repository.resolve().parent)
    return kept


def _run(arguments: list[str], repository: Path | None, *, remote: bool = False) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", *_options(), *arguments],
            cwd=repository,
            env=_environment(repository, remote=remote),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise UnavailableError("git is not installed; install it, or give the folder as path:DIR") from None


def _check(result: subprocess.CompletedProcess[bytes], url: str) -> None:
    if result.returncode:
        raise UnavailableError(f"{url}: git cannot read it: {_last_line(result.stderr)}")


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no message"
