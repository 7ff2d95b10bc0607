"""Collecting the members of a source archive (.tar.gz, .zip) that may have been made to do harm."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from codemill.core.errors import InputError, IntegrityError
from codemill.corpus.folders import blocks_of
from codemill.corpus.snapshot import Collector, Limits

FREE_BYTES = 64 << 20  # below this an archive's compression ratio is nobody's business
HEADER_BYTES = 1 << 20  # a longer extended header is read into memory by tarfile: an attack, not a file name


def collect_archive(archive: Path, collector: Collector) -> None:
    """Give every member of a `.tar.gz` or `.zip` to the collector.

    Raises `IntegrityError` for a broken archive and `InputError` for one that unpacks to too much.
    """
    try:
        if archive.name.endswith(".zip"):
            _collect_zip(archive, collector)
        else:
            _collect_tar(archive, collector)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise IntegrityError(f"{archive.name}: broken archive: {str(error) or type(error).__name__}") from None


class _Capped(io.RawIOBase):
    """A stream that refuses to give more bytes than the limits allow for an archive of this size."""

    def __init__(self, inner: gzip.GzipFile, compressed: int, limits: Limits, origin: str) -> None:
        self._inner, self._origin = inner, origin
        self._left = min(FREE_BYTES + limits.ratio * compressed, 2 * limits.total_bytes)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise InputError(f"{self._origin}: unpacks to far more than its size: a decompression bomb")
        return data


class _Member(tarfile.TarInfo):
    """A tar header whose sizes are believable."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        extended = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if member.size < 0 or (member.type in extended and member.size > HEADER_BYTES):
            raise tarfile.ReadError(f"header with a size of {member.size} bytes")
        return member


def _collect_tar(archive: Path, collector: Collector) -> None:
    with archive.open("rb") as raw, gzip.GzipFile(fileobj=raw) as unpacked:
        stream = _Capped(unpacked, archive.stat().st_size, collector.limits, collector.origin)
        # "r|" only ever reads forwards: no header can send the reader back to run in a circle.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, encoding="utf-8") as members:
            while member := members.next():
                _collect_tar_member(members, member, collector)
                # Else all headers, which may be long, stay in memory.
                members.members.clear()  # type: ignore[attr-defined]


def _collect_tar_member(members: tarfile.TarFile, member: tarfile.TarInfo, collector: Collector) -> None:
    if member.size < 0:
        raise tarfile.ReadError(f"member with a size of {member.size} bytes")
    if member.isdir():
        collector.count_member()
        return
    if not member.isreg() or member.issparse():
        collector.count_member()
        kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link"}
        collector.skip(member.name, 0, kinds.get(member.type, "not a regular file"))
        return
    path = collector.admit(member.name, member.size)
    content = members.extractfile(member) if path is not None else None
    if path is not None and content is not None:
        collector.store(path, blocks_of(content))


def _collect_zip(archive: Path, collector: Collector) -> None:
    with zipfile.ZipFile(archive) as members:
        unpacked = sum(info.file_size for info in members.infolist())
        if unpacked > FREE_BYTES + collector.limits.ratio * archive.stat().st_size:
            raise InputError(f"{collector.origin}: unpacks to far more than its size: a decompression bomb")
        for info in members.infolist():
            if info.is_dir():
                collector.count_member()
            else:
                _collect_zip_member(members, info, collector)


def _collect_zip_member(members: zipfile.ZipFile, info: zipfile.ZipInfo, collector: Collector) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)  # the Unix mode, 0 where the archive was made elsewhere
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise IntegrityError(f"{collector.origin}: compressed in a way that source archives are not")
    if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
        collector.count_member()
        reason = "encrypted" if info.flag_bits & 1 else "not a regular file"
        collector.skip(info.filename, 0, "symbolic link" if kind == stat.S_IFLNK else reason)
        return
    path = collector.admit(info.orig_filename, info.file_size)
    if path is None:
        return
    with members.open(info) as content:
        collector.store(path, blocks_of(content))
