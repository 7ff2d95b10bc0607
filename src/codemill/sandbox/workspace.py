"""A repository to work in over many steps: an agent's commands run in it, its files are read, written and compared.

The repository is copied once into a folder of the host that only its jobs and we can reach; each command is a job of the
sandbox with that folder in place of a new one. Everything the host does there treats it as hostile, see `folder`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from codemill.core.errors import ConfigError, InputError, UnavailableError
from codemill.sandbox.changes import LEFT_OUT, Change, Changes
from codemill.sandbox.copy_in import copy_in
from codemill.sandbox.folder import Entry, Folder, OverLimitError, checked, encoded
from codemill.sandbox.job import Job, KeptFolder, Outcome
from codemill.sandbox.launcher import WORK
from codemill.sandbox.plan import Layers, gives_own_user
from codemill.sandbox.policy import MIB, Policy
from codemill.sandbox.snapshots import Snapshots

READ_BYTES = 16 * MIB
_PREFIX = "codemill-workspace-"
_FIRST_USER, _USERS = 2_000_000_000, 100_000_000  # apart from those of single jobs
_TREE = WORK.strip("/")
_INODE_BYTES = 4096
_OVERSHOOT = 256 * MIB  # what a program may write before it is noticed
_MOST_SECONDS = 1e8  # three years; the kernel cannot count to every number that a caller may name
_STORE = 8  # snapshots take so many times what the folder may hold

P = ParamSpec("P")
T = TypeVar("T")
Submit = Callable[[Job, threading.Event], "Future[Outcome]"]


class Workspace:
    """Made by `Sandbox.workspace`. `with` opens it and removes everything at the end; `async with` gives the same calls as
    coroutines, see `AsyncWorkspace`.

    Programs have the repository as their working folder and a private folder around it as HOME and TMPDIR; what they leave
    in both is there for the next one. Paths are relative to the repository; a name that is no UTF-8 holds lone
    surrogates, as everywhere in Python. Symbolic links are never followed.

    Commands, deletions, snapshots and diffs take turns; files may be read and written while a command runs. Errors are
    `InputError` (`OverLimitError` where the workspace holds more than it may) and `UnavailableError` for a full disk.

    `base`: the snapshot of how it began. `left_out`: paths of the source that could not be taken along.
    """

    def __init__(
        self,
        submit: Submit,
        layers: Layers,
        source: Path,
        *,
        policy: Policy,
        readable: tuple[Path, ...],
        env: Mapping[str, str],
        history: bool,
        total_seconds: float | None,
    ) -> None:
        if total_seconds is not None and not total_seconds > 0:
            raise ConfigError(f"workspace: total_seconds is {total_seconds!r}: it must be above 0")
        self.source, self.policy = source, policy
        self.base = ""
        self.left_out: tuple[str, ...] = ()
        self._submit, self._layers, self._history = submit, layers, history
        self._readable, self._env = readable, dict(env)
        self._seconds_left = total_seconds
        self._turn = threading.Lock()
        self._resources: contextlib.ExitStack | None = None
        self._use: tuple[int, int] | None = None  # bytes and entries, None when they may have changed
        self._box: Folder  # the private folder
        self._tree: Folder  # the repository in it
        self._trash: Folder
        self._kept: KeptFolder
        self._snapshots: Snapshots
        self._changes: Changes

    # Beginning and end -----------------------------------------------------------------------------------------

    def __enter__(self) -> Workspace:
        if self._resources is not None:
            raise InputError("workspace: it is open already; make another one with Sandbox.workspace")
        with contextlib.ExitStack() as stack, _clear_errors():
            self._open(stack)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncWorkspace:
        await asyncio.to_thread(self.__enter__)
        self._async = AsyncWorkspace(self)
        return self._async

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)
        self._async.close()

    def close(self) -> None:
        """Remove everything; waits for a command that runs."""
        with self._turn:
            resources, self._resources = self._resources, None
            if resources is not None:
                resources.close()

    def _open(self, stack: contextlib.ExitStack) -> None:
        remove_abandoned()
        owned = gives_own_user(self._layers, self._readable)
        owner = _FIRST_USER + secrets.randbelow(_USERS) if owned else None
        # Without a root of its own a program comes to its folder through those above it.
        place = stack.enter_context(_own_folder(0o700 if self._layers.own_mounts else 0o711))
        box, store, trash = place / "box", place / "store", place / "trash"
        for folder in (box, box / _TREE, store, trash):
            folder.mkdir(0o700)
        if owner is not None:
            os.chown(box, owner, owner)
            os.chown(box / _TREE, owner, owner)
        self._box, self._tree = Folder(box, owner=owner), Folder(box, within=_TREE, owner=owner)
        self._trash = Folder(trash)
        for opened in (self._box, self._tree, self._trash):
            stack.callback(opened.close)
        self.left_out = copy_in(self.source, self._tree, history=self._history)
        sizes = [max(entry.size, entry.status.st_blocks * 512) for entry in self._box.walk()]
        limit = sum(sizes) + self.policy.disk_bytes + _INODE_BYTES * (len(sizes) + 8)
        entries = len(sizes) + self.policy.disk_bytes // _INODE_BYTES + 1024
        self._kept = KeptFolder(path=box, owner=owner, limit_bytes=limit, limit_entries=entries)
        limits = {"limit_bytes": 2 * limit, "limit_entries": 2 * entries, "store_bytes": _STORE * limit}
        self._snapshots = Snapshots(self._box, store, **limits)
        self._changes = Changes(self._tree, self._snapshots, _TREE)
        self.base = self._snapshots.take()

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._turn, self._at_hand():
            yield

    @contextlib.contextmanager
    def _at_hand(self) -> Iterator[None]:
        if self._resources is None:
            raise InputError("workspace: it is not open; use it inside its `with` block")
        with _clear_errors():
            yield

    # Commands ----------------------------------------------------------------------------------------------------

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run a program with its arguments, or the text of a shell script, in the repository. What it changes stays; no
        process of it does.

        `timeout`: seconds of wall time instead of the policy's; processor time changes in proportion. `env`: variables of
        this command, beside those of the workspace. The outcome's end is "disk" where too much is there afterwards.
        """
        return self._run(threading.Event(), command, timeout, stdin, env)

    def _run(
        self,
        cancel: threading.Event,
        command: Sequence[str] | str,
        timeout: float | None,
        stdin: bytes,
        env: Mapping[str, str] | None,
    ) -> Outcome:
        with self._in_turn():
            policy, kept = self._limits(timeout), self._room()
            variables = {**self._env, **(env or {})}
            argv = _argv(command)
            job = Job(argv=argv, kept=kept, readable=self._readable, env=variables, stdin=stdin, policy=policy)
            self._use = None
            future = self._submit(job, cancel)
            try:
                outcome = future.result()
            except BaseException:
                cancel.set()
                future.exception()  # the turn is over when the job is
                raise
            if self._seconds_left is not None:
                self._seconds_left -= outcome.seconds
            size, count = self._measured()
            if outcome.end == "exited" and (size > kept.limit_bytes or count > kept.limit_entries):
                outcome = dataclasses.replace(outcome, end="disk", exit_code=None)
            return outcome

    def _limits(self, timeout: float | None) -> Policy:
        wall = self.policy.wall_seconds if timeout is None else timeout
        if timeout is not None and not 0 < timeout <= _MOST_SECONDS:
            raise InputError(f"workspace: timeout is {timeout!r}: it must be above 0 and at most {_MOST_SECONDS:.0f}")
        if self._seconds_left is not None:
            if self._seconds_left <= 0:
                raise OverLimitError("workspace: the seconds that its commands may take together are used up")
            wall = min(wall, self._seconds_left)
        cpu = self.policy.cpu_seconds * wall / self.policy.wall_seconds
        return dataclasses.replace(self.policy, wall_seconds=wall, cpu_seconds=cpu)

    def _room(self) -> KeptFolder:
        """What the next command may fill. One that finds too much must be able to delete some of it, so it may have as much
        as it finds; a folder that went far over its limit has to be rolled back."""
        self._box.open_up()
        tree = self._box.look(_TREE)
        if tree is None or tree.kind != "folder":
            raise InputError("workspace: a command has moved or removed the repository's folder; roll back")
        self._tree.set_mode("", tree.status.st_mode & 0o777 | 0o700)
        size, count = self._measured()
        kept, (most_bytes, most_entries) = self._kept, self._most()
        if size > most_bytes or count > most_entries:
            raise OverLimitError(
                f"workspace: it holds {size} bytes in {count} entries and may hold {kept.limit_bytes} in "
                f"{kept.limit_entries}; delete files or roll back"
            )
        room_bytes, room_entries = max(size, kept.limit_bytes), max(count, kept.limit_entries)
        return dataclasses.replace(kept, limit_bytes=room_bytes, limit_entries=room_entries)

    def _measured(self) -> tuple[int, int]:
        if self._use is None:
            self._use = self._box.use(*self._most())
        return self._use

    def _most(self) -> tuple[int, int]:
        """Bytes and entries above which nothing is run any more."""
        return 2 * self._kept.limit_bytes + _OVERSHOOT, 2 * self._kept.limit_entries + _OVERSHOOT // _INODE_BYTES

    # Files -------------------------------------------------------------------------------------------------------

    def read(self, path: str, *, limit: int = READ_BYTES) -> bytes:
        """The whole of a regular file of at most `limit` bytes."""
        with self._at_hand():
            return self._tree.read(_named(path), limit)

    def write(self, path: str, data: bytes | str, *, executable: bool | None = None) -> None:
        """Make or replace a file, and make the folders above it. `executable` None leaves it as it is."""
        name, content = _named(path), encoded(data, "text") if isinstance(data, str) else data
        if len(content) > self.policy.file_bytes:
            raise OverLimitError(f"{path!r}: {len(content)} bytes; a file may have {self.policy.file_bytes}")
        with self._at_hand():
            there = self._tree.look(name)
            if there is not None and there.kind != "file":
                raise InputError(f"{path!r}: a {there.kind} is there; delete it first")
            mode = there.status.st_mode & 0o777 if there else 0o644
            if executable is not None:
                mode = mode | 0o111 if executable else mode & ~0o111
            self._tree.make_folders(name.rpartition("/")[0])
            self._tree.write(name, content, mode)
            self._use = None

    def delete(self, path: str) -> None:
        """Remove a file, a link, or a folder with everything in it."""
        with self._in_turn():
            self._use = None
            self._tree.move_out(_named(path), self._trash)
            self._trash.empty()

    def list(self, path: str = "") -> tuple[Entry, ...]:
        """What is in one folder, by name."""
        with self._at_hand():
            return tuple(self._tree.entries(checked(path)))

    def walk(self, path: str = "") -> tuple[Entry, ...]:
        """Everything below a folder, a folder before what is in it."""
        found: list[Entry] = []
        with self._at_hand():
            for entry in self._tree.walk(checked(path), racing=True):
                found.append(entry)
                if len(found) > 2 * self._kept.limit_entries:
                    raise OverLimitError(f"{path!r}: more than {len(found) - 1} entries; delete files or roll back")
        return tuple(found)

    # States ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Remember how everything is, the private folder around the repository included. Only what is new since the last
        one takes room, and only what changed is read."""
        with self._in_turn():
            return self._snapshots.take()

    def rollback(self, snapshot: str) -> None:
        """Make everything as it was: contents, permissions, times; what is new since is gone. Later snapshots stay."""
        with self._in_turn():
            self._use = None
            self._box.open_up()
            self._snapshots.rollback(snapshot, self._trash)
            self._trash.empty()

    def forget(self, snapshot: str) -> None:
        """Give up a snapshot and the room that only it takes; not the first one, which diffs are made against."""
        with self._in_turn():
            if snapshot == self.base:
                raise InputError(f"workspace: snapshot {snapshot!r} is how it began, and stays")
            self._snapshots.forget(snapshot)

    def changed(self, since: str | None = None, *, leave_out: Sequence[str] = LEFT_OUT) -> tuple[Change, ...]:
        """Paths of files and links that are not as in a snapshot, the first one by default. `leave_out`: patterns for names
        of files and folders that do not count where they are new. What is in `.git` never counts."""
        with self._in_turn():
            return self._changes.found(since or self.base, leave_out)

    def diff(self, since: str | None = None, *, leave_out: Sequence[str] = LEFT_OUT, limit: int = READ_BYTES) -> str:
        """The same as a text of at most `limit` characters that `git apply` takes. What it cannot carry, a pipe or a link
        that leads out, is named in lines that begin with `#`, before everything else."""
        with self._in_turn():
            return self._changes.diff(since or self.base, leave_out, limit)

    def apply(self, diff: str) -> tuple[str, ...]:
        """Change files as a diff says, all of it or, if some of it does not fit, nothing. Returns the paths."""
        with self._in_turn():
            self._use = None
            limits = {"file_bytes": self.policy.file_bytes, "total_bytes": self.policy.disk_bytes}
            paths = self._changes.apply(diff, trash=self._trash, **limits)
            self._trash.empty()
            return paths


def _in_thread(method: Callable[Concatenate[Workspace, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    @wraps(method)
    async def call(self: AsyncWorkspace, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self.workspace, *args, **kwargs)

    return call


class AsyncWorkspace:
    """The calls of a `Workspace` as coroutines. Cancelling `run` kills the command; the others go on to their end."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._commands = ThreadPoolExecutor(1, thread_name_prefix="workspace")

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Outcome:
        cancel = threading.Event()
        run = self._commands.submit(self.workspace._run, cancel, command, timeout, stdin, env)
        try:
            return await asyncio.wrap_future(run)
        except asyncio.CancelledError:
            cancel.set()
            raise

    read = _in_thread(Workspace.read)
    write = _in_thread(Workspace.write)
    delete = _in_thread(Workspace.delete)
    list = _in_thread(Workspace.list)
    walk = _in_thread(Workspace.walk)
    snapshot = _in_thread(Workspace.snapshot)
    rollback = _in_thread(Workspace.rollback)
    forget = _in_thread(Workspace.forget)
    changed = _in_thread(Workspace.changed)
    diff = _in_thread(Workspace.diff)
    apply = _in_thread(Workspace.apply)

    def close(self) -> None:
        self._commands.shutdown(wait=False)


def remove_abandoned() -> None:
    """Remove the workspaces that killed processes of this user have left in the folder for temporary files: those that
    nobody holds the lock of."""
    with os.scandir(tempfile.gettempdir()) as listing:
        paths = [entry.path for entry in listing if entry.name.startswith(_PREFIX)]
    for path in paths:
        with contextlib.suppress(OSError, InputError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(Path(path))
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _own_folder(mode: int) -> Iterator[Path]:
    """A new folder that is locked until the end, when it is removed with all that is in it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                break
        os.close(descriptor)  # another process took it for an abandoned one, before it was locked
    try:
        os.fchmod(descriptor, mode)
        yield path
    finally:
        with contextlib.suppress(OSError):  # what could not be removed is left to the next start
            _remove(path)
        os.close(descriptor)


def _remove(path: Path) -> None:
    folder = Folder(path)
    try:
        folder.empty()
    finally:
        folder.close()
    path.rmdir()


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What the machine refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"workspace: {error}; is {tempfile.gettempdir()} full? TMPDIR names another folder for it"
        ) from None


def _named(path: str) -> str:
    name = checked(path)
    if not name:
        raise InputError(f"{path!r}: is the repository itself, not a file in it")
    return name


def _argv(command: Sequence[str] | str) -> tuple[str, ...]:
    if not isinstance(command, str):
        return tuple(command)
    shell = shutil.which("bash", path="/usr/local/bin:/usr/bin:/bin") or "/bin/sh"
    return (os.path.basename(shell), "-c", command)
