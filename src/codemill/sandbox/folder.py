"""A folder that hostile programs write to, as the host handles it: nothing that they planted in it is followed.

Every step goes through descriptors, from the folder down, without symbolic links and without leaving its file system;
what is opened is looked at through its descriptor and not by its name, which may lead elsewhere by then. There may be
names that are no text, pipes, folders without permissions or a thousand levels deep.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

from codemill.core.errors import InputError

MAX_DEPTH = 1024
_PATH_BYTES = 3500  # of one system call; the kernel takes 4096
_OPENAT2 = 437  # one number on every machine
_BENEATH = 0x01 | 0x02 | 0x04 | 0x08  # no other file system, no magic links, no symbolic links, nothing above
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_TRIES = 10

Kind = Literal["file", "folder", "link", "other"]


class OverLimitError(InputError):
    """A folder holds more than it may: its user has to delete something, or go back to an earlier state."""


class AlreadyThereError(InputError):
    """Where something new shall be something is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies at a path, relative to the folder; `path` holds bytes that are no UTF-8 as lone surrogates.

    `kind`: "other" is a pipe, a socket or a device. `size` is in bytes, for a link that of its target's name.
    """

    path: str
    status: os.stat_result

    @property
    def kind(self) -> Kind:
        mode = self.status.st_mode
        if stat.S_ISREG(mode):
            return "file"
        return "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "other"

    @property
    def size(self) -> int:
        return self.status.st_size

    @property
    def executable(self) -> bool:
        return bool(self.status.st_mode & stat.S_IXUSR)

    def __repr__(self) -> str:
        return f"Entry({_shown(self.path)}, {self.kind}, {self.size} bytes)"


def checked(path: str) -> str:
    """A path from a caller, relative and without `.` and `..`; the folder itself is "". Raises `InputError`."""
    parts = path.removesuffix("/").split("/")
    if path in ("", ".", "./"):
        return ""
    if path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise InputError(
            f"{_shown(path)}: unsafe path: it must be relative, without '.' and '..', and stay inside its folder"
        )
    encoded(path, "path")
    return "/".join(parts)


def encoded(text: str, what: str) -> bytes:
    """A caller's text as UTF-8, bytes that were none back from their surrogates. Models write others in JSON, too, which
    stand for nothing: `InputError`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} {_shown(text)}: character {error.start} is half of a surrogate pair") from None


def link_stays_inside(path: str, target: str) -> bool:
    """Whether a symbolic link leads inside the folder by its name alone, wherever others that pass this test lead.

    That is, `..` comes first and not more often than the link is deep: after the name of another link it goes up from
    where that one leads.
    """
    parts = target.split("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return bool(target) and not target.startswith("/") and ".." not in parts[ups:] and ups <= path.count("/")


class Folder:
    """One folder of the host. Paths are relative to it, as `checked` returns them, "" for itself.

    `within`: a path in it that all others are relative to; it is found anew each time, as anything below the folder is.
    `ours`: permissions that hide what is in it from an ordinary user are lifted for the moment of a look, and what is
    written gets `owner`, where there is one. Errors are `InputError` with the path, but for `OSError` when the disk is full
    and the like.
    """

    def __init__(self, path: Path, *, within: str = "", ours: bool = True, owner: int | None = None) -> None:
        self.path, self._within, self._ours, self._owner = path, within, ours, owner
        try:
            # Of ours a handle, for which it does not matter what a program has made of the folder's permissions.
            access = os.O_PATH if ours else os.O_RDONLY
            self.descriptor = os.open(path, access | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened as a folder: {error.strerror}") from None

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    # Looking ---------------------------------------------------------------------------------------------------

    def visit(
        self, path: str = "", *, racing: bool = False, most: int | None = None
    ) -> Iterator[tuple[str, list[Entry]]]:
        """Each folder from `path` on and what is in it, by name; `most` entries of it, whichever come first. `racing`:
        programs are at work on it, so what is gone is passed over. What one of them keeps closed is too much, since
        anything may be in it."""
        pending = [path]
        while pending:
            here = pending.pop()
            if here.count("/") >= MAX_DEPTH:
                raise OverLimitError(f"{_shown(here)}: more than {MAX_DEPTH} folders deep; delete them or roll back")
            try:
                found = self._listed(here, most)
            except OSError as error:
                if racing and here != path and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                if racing and error.errno in (errno.EACCES, errno.EAGAIN):
                    raise OverLimitError(f"{_shown(here)}: is kept closed by a program; stop it or roll back") from None
                raise _named(error, here) from None
            yield here, found
            pending += [entry.path for entry in reversed(found) if entry.kind == "folder"]

    def walk(self, path: str = "", *, racing: bool = False) -> Iterator[Entry]:
        """Everything below a folder, a folder before what is in it."""
        for _, entries in self.visit(path, racing=racing):
            yield from entries

    def entries(self, path: str = "") -> list[Entry]:
        """What is in one folder, by name."""
        return next(self.visit(path))[1]

    def use(self, limit_bytes: int, limit_entries: int) -> tuple[int, int]:
        """Bytes on disk and count of entries, while programs write. Stops early above a limit; folders deeper than can be
        followed are too many bytes."""
        size, count = 0, 0
        try:
            for _, entries in self.visit(racing=True, most=limit_entries + 1):
                count += len(entries)
                size += sum(entry.status.st_blocks for entry in entries) * 512
                if size > limit_bytes or count > limit_entries:
                    break
        except OverLimitError:
            return limit_bytes + 1, count
        return size, count

    def look(self, path: str) -> Entry | None:
        """What lies at a path, None if nothing does."""
        parent, _, name = path.rpartition("/")
        try:
            with self._opened_folder(parent) as folder:
                return Entry(path, os.stat(name or ".", dir_fd=folder, follow_symlinks=False))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise _named(error, path) from None

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of a regular file that has this one name."""
        with self.reading(path) as descriptor:
            status = os.fstat(descriptor)
            if status.st_nlink != 1:
                raise InputError(
                    f"{path!r}: the file has {status.st_nlink} names; only a file with one is read: copy it"
                )
            if status.st_size > limit:
                raise OverLimitError(f"{path!r}: {status.st_size} bytes; at most {limit} are read")
            data = bytearray()
            while len(data) <= limit and (block := os.read(descriptor, min(_CHUNK, limit + 1 - len(data)))):
                data += block
        if len(data) > limit:
            raise OverLimitError(f"{path!r}: grows while it is read, past {limit} bytes")
        return bytes(data)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[int]:
        """A regular file, as a descriptor to read from."""
        with self._above(path) as (folder, name):
            descriptor = self._open_file(path, name, folder)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_file(self, path: str, name: str, folder: int) -> int:
        handle = os.open(name, _LOOK, dir_fd=folder)  # has no effect on what is opened, a device for instance
        try:
            status = os.fstat(handle)
            kind = Entry(path, status).kind
            if kind != "file":
                what = {"folder": "a folder", "link": "a symbolic link, which is never followed", "other": "no file"}
                raise InputError(f"{_shown(path)}: is {what[kind]}")
            if self._ours and status.st_uid != (os.geteuid() if self._owner is None else self._owner):
                raise InputError(f"{_shown(path)}: belongs to another user than everything else here")
            with self._allowed(handle, stat.S_IRUSR):
                return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(handle)

    # Changing --------------------------------------------------------------------------------------------------

    def make_folders(self, path: str) -> None:
        """A folder and those above it, where they are not there yet."""
        parts = path.split("/") if path else []
        for depth in range(1, len(parts) + 1):
            with contextlib.suppress(AlreadyThereError):
                self.make_folder("/".join(parts[:depth]))

    def make_folder(self, path: str, mode: int = 0o755) -> None:
        """One folder, where there is nothing."""
        with self._above(path) as (above, name):
            os.mkdir(name, 0o700, dir_fd=above)
            made = os.open(name, os.O_RDONLY | _FOLDER, dir_fd=above)
            try:
                self._give(made)
                os.fchmod(made, mode)
            finally:
                os.close(made)

    def write(self, path: str, data: bytes, mode: int) -> None:
        """A whole file appears under its name, in place of a file that was there."""
        with self.writing(path, mode) as descriptor:
            write_all(descriptor, data)

    @contextlib.contextmanager
    def writing(self, path: str, mode: int, mtime_ns: int | None = None) -> Iterator[int]:
        """A new file, as a descriptor, that gets its name when the block ends well."""
        temporary = f".codemill-{secrets.token_hex(8)}"
        with self._above(path) as (folder, name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
            try:
                yield descriptor
                self._give(descriptor)
                os.fchmod(descriptor, mode)
                if mtime_ns is not None:
                    os.utime(descriptor, ns=(mtime_ns, mtime_ns))
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            finally:
                os.close(descriptor)

    def link(self, path: str, target: str) -> None:
        """A symbolic link where there is nothing."""
        with self._above(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)
            if self._owner is not None:
                os.chown(name, self._owner, self._owner, dir_fd=folder, follow_symlinks=False)

    def read_link(self, path: str) -> str:
        with self._above(path) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def open_up(self) -> None:
        """Give the owner of the folder itself all rights to it."""
        os.chmod(f"/proc/self/fd/{self.descriptor}", 0o700)

    def set_mode(self, path: str, mode: int) -> None:
        """Permissions of a file or folder."""
        handle = self._open(path, _LOOK)
        try:
            if stat.S_ISLNK(os.fstat(handle).st_mode):
                raise InputError(f"{path!r}: is a symbolic link, which is never followed")
            os.chmod(f"/proc/self/fd/{handle}", mode)
        finally:
            os.close(handle)

    def set_time(self, path: str, mtime_ns: int) -> None:
        parent, _, name = path.rpartition("/")
        with contextlib.suppress(OSError), self._opened_folder(parent) as folder:
            os.utime(name or ".", ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)

    def move_out(self, path: str, target: Folder) -> None:
        """Take whatever lies at a path out of this folder, to be removed from another one on the same file system."""
        with self._above(path) as (folder, name):
            _make_movable(name, folder)
            os.rename(name, secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=target.descriptor)

    def empty(self) -> None:
        """Remove everything, when no program is at work any more. However deep it is, it takes two descriptors: a folder in
        a folder is moved to the top before it is looked into."""
        prefix, number = secrets.token_hex(8), 0
        with self._opened_folder("") as top:
            while names := os.listdir(top):
                for name in names:
                    if not _make_movable(name, top):
                        os.unlink(name, dir_fd=top)
                        continue
                    folder = os.open(name, os.O_RDONLY | _FOLDER, dir_fd=top)
                    try:
                        for below in os.listdir(folder):
                            if _make_movable(below, folder):
                                number += 1
                                os.rename(below, f"{prefix}-{number}", src_dir_fd=folder, dst_dir_fd=top)
                            else:
                                os.unlink(below, dir_fd=folder)
                    finally:
                        os.close(folder)
                    os.rmdir(name, dir_fd=top)

    # Steps -----------------------------------------------------------------------------------------------------

    def _listed(self, path: str, most: int | None) -> list[Entry]:
        """What is in a folder, also where a program takes rights away between two steps, as long as it does not do so on
        purpose and again and again."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(PermissionError), self._opened_folder(path) as descriptor:
                return _list(path, descriptor, most)
        with self._opened_folder(path) as descriptor:
            return _list(path, descriptor, most)

    @contextlib.contextmanager
    def _above(self, path: str) -> Iterator[tuple[int, str]]:
        """The folder that a path lies in, as a descriptor, and its name there; errors in the block are about the path."""
        parent, _, name = path.rpartition("/")
        try:
            with self._opened_folder(parent) as folder:
                yield folder, name
        except OSError as error:
            raise _named(error, path) from None

    @contextlib.contextmanager
    def _opened_folder(self, path: str) -> Iterator[int]:
        """A folder's descriptor. Where its owner took away rights of his own, they are back for as long as it is open."""
        with contextlib.ExitStack() as stack:
            # What the block raises must not come to the handler in there: a program may take rights away meanwhile.
            yield self._enter_folder(path, stack)

    def _enter_folder(self, path: str, stack: contextlib.ExitStack) -> int:
        try:
            descriptor = self._open(path, os.O_RDONLY | _FOLDER)
            stack.callback(os.close, descriptor)
            if not self._ours or os.geteuid() == 0 or os.fstat(descriptor).st_mode & 0o700 == 0o700:
                return descriptor
        except PermissionError:
            if not self._ours:
                raise
        descriptor = self.descriptor
        stack.enter_context(self._allowed(descriptor, stat.S_IRWXU))
        for part in filter(None, f"{self._within}/{path}".split("/")):
            descriptor = os.open(part, _LOOK | _FOLDER, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
            stack.enter_context(self._allowed(descriptor, stat.S_IRWXU))
        descriptor = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=descriptor)
        stack.callback(os.close, descriptor)
        return descriptor

    @contextlib.contextmanager
    def _allowed(self, handle: int, rights: int) -> Iterator[None]:
        """The owner's `rights` to what a handle stands for, inside the block."""
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if not self._ours or os.geteuid() == 0 or mode & rights == rights:
            yield
            return
        os.chmod(f"/proc/self/fd/{handle}", mode | rights)
        try:
            yield
        finally:
            os.chmod(f"/proc/self/fd/{handle}", mode)

    def _open(self, path: str, flags: int) -> int:
        """Open below the folder, never through a link."""
        rest = os.fsencode(f"{self._within}/{path}".strip("/")) or b"."
        current = self.descriptor
        while rest:
            cut = len(rest)
            if not _has_openat2() or cut > _PATH_BYTES:
                most = rest.rfind(b"/", 0, _PATH_BYTES) if _has_openat2() else -1
                cut = most if most > 0 else rest.find(b"/") if b"/" in rest else cut
            step, rest = rest[:cut], rest[cut + 1 :]
            try:
                following = _open_step(current, step, _LOOK | _FOLDER if rest else flags)
            finally:
                if current != self.descriptor:
                    os.close(current)
            current = following
        return current

    def _give(self, descriptor: int) -> None:
        if self._owner is not None:
            os.fchown(descriptor, self._owner, self._owner)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _list(path: str, descriptor: int, most: int | None) -> list[Entry]:
    prefix = path + "/" if path else ""
    found = []
    with os.scandir(descriptor) as listing:
        for entry in islice(listing, most):
            with contextlib.suppress(FileNotFoundError):
                found.append(Entry(prefix + entry.name, entry.stat(follow_symlinks=False)))
    return sorted(found, key=lambda entry: entry.path)


def _make_movable(name: str, folder: int) -> bool:
    """Whether it is a folder; it then gets the rights without which only root could move or empty it."""
    handle = os.open(name, _LOOK, dir_fd=folder)
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        return stat.S_ISDIR(status.st_mode)
    finally:
        os.close(handle)


def _open_step(folder: int, path: bytes, flags: int) -> int:
    if not _has_openat2():
        status = os.fstat(folder)
        descriptor = os.open(path, flags | os.O_NOFOLLOW, dir_fd=folder)
        if os.fstat(descriptor).st_dev != status.st_dev:
            os.close(descriptor)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return descriptor
    for _ in range(100):
        descriptor = _openat2(folder, path, flags)
        if descriptor >= 0 or ctypes.get_errno() != errno.EAGAIN:  # something was renamed meanwhile
            break
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def _openat2(folder: int, path: bytes, flags: int) -> int:
    how = struct.pack("=QQQ", flags, 0, _BENEATH)
    libc = _libc()
    result: int = libc.syscall(ctypes.c_long(_OPENAT2), folder, path, how, ctypes.c_size_t(len(how)))
    return result


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@lru_cache(maxsize=1)
def _has_openat2() -> bool:
    """From Linux 5.6 on, where no filter of a container is in the way."""
    root = os.open("/", os.O_RDONLY | _FOLDER)
    try:
        descriptor = _openat2(root, b".", _LOOK)
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor >= 0
    finally:
        os.close(root)


def _named(error: OSError, path: str) -> Exception:
    """An error that says which path it is about. One of the machine, a full disk for instance, stays what it is."""
    if error.errno == errno.EEXIST:
        return AlreadyThereError(f"{_shown(path)}: is there already")
    what = {
        errno.ELOOP: "leads through a symbolic link, which is never followed",
        errno.ENOENT: "is not there",
        errno.ENOTDIR: "is no folder, or leads through something that is none",
        errno.EISDIR: "is a folder",
        errno.EXDEV: "leads to another file system",
        errno.EACCES: "is closed to this user",
        errno.EPERM: "is closed to this user",
        errno.ENAMETOOLONG: "is too long a name",
        errno.EAGAIN: "is held, or moved about, by a program that runs; try again when that has ended",
    }.get(error.errno or 0)
    return InputError(f"{_shown(path)}: {what}") if what else error


def _shown(path: str) -> str:
    return repr(path if len(path) < 200 else path[:200] + "…")
