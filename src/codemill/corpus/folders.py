"""Collecting a folder on disk without following links, blocking on devices or leaving the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from codemill.core.errors import InputError
from codemill.corpus.snapshot import BLOCK, Collector


def collect_folder(folder: Path, collector: Collector) -> None:
    """Give every file below `folder` to the collector, in a fixed order.

    Each folder is opened relative to its parent and each file with O_NOFOLLOW, so a link put in place while
    we walk is not followed either. A file with several hard links is an ordinary file here. Raises
    `InputError` when `folder` itself cannot be read; what cannot be read below it is recorded.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read as a folder: {error.strerror}") from None
    try:
        os.listdir(descriptor)
        _collect(descriptor, "", collector)
    except PermissionError as error:
        raise InputError(f"{folder}: cannot be read as a folder: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _collect(descriptor: int, prefix: str, collector: Collector) -> None:
    with os.scandir(descriptor) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = prefix + name
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _collect_folder(descriptor, name, path, collector)
            elif stat.S_ISREG(status.st_mode):
                _collect_file(descriptor, name, path, collector)
            else:
                collector.count_member()
                link = stat.S_ISLNK(status.st_mode)
                collector.skip(path, 0, "symbolic link" if link else "not a regular file")
        except OSError as error:
            collector.skip(path, 0, f"cannot be read: {error.strerror}")


def _collect_folder(parent: int, name: str, path: str, collector: Collector) -> None:
    collector.count_member()
    if collector.skip_folder(path):
        return
    if path.count("/") >= collector.limits.depth:
        collector.skip(path, 0, f"more than {collector.limits.depth} folders deep")
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        _collect(descriptor, path + "/", collector)
    finally:
        os.close(descriptor)


def _collect_file(parent: int, name: str, path: str, collector: Collector) -> None:
    # O_NONBLOCK: a named pipe put in the file's place after the look at it must not hang the job.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=parent), "rb", buffering=0) as handle:
        status = os.fstat(handle.fileno())
        if not stat.S_ISREG(status.st_mode):
            collector.skip(path, 0, "not a regular file")
            return
        admitted = collector.admit(path, status.st_size)
        if admitted is not None:
            collector.store(admitted, blocks_of(handle))


def blocks_of(handle: object) -> Iterator[bytes]:
    """The bytes of an open file in blocks of at most `BLOCK`."""
    while block := handle.read(BLOCK):  # type: ignore[attr-defined]
        yield block
