"""Archives made to do harm: nothing leaves the snapshot, nothing unbounded is unpacked, nothing is lost in silence."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from corpus_support import tar_member, write_tar

from codemill.core.errors import InputError, IntegrityError
from codemill.corpus.archives import collect_archive
from codemill.corpus.snapshot import Collector, Limits

HOSTILE_NAMES = {
    "p/../../out.py": "unsafe path",
    "/etc/out.py": "unsafe path",
    "C:/out.py": "unsafe path",
    "p\\..\\out.py": "unsafe path",
    "p/new\nline.py": "unprintable character in the file name",
    "p/\u202egnp.py": "unprintable character in the file name",
    "p/bad\udcff.py": "file name is not UTF-8",
    "/".join("d" * 70): "more than 64 folders deep",
    "p/" + "n" * 300 + ".py": "path too long",
}


def collect(archive: Path, limits: Limits | None = None) -> Collector:
    root = archive.parent / "files"
    root.mkdir()
    collector = Collector(root, "test", limits or Limits())
    collect_archive(archive, collector)
    return collector


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("name", "reason"), HOSTILE_NAMES.items())
def test_tar_names_that_leave_or_mislead_are_skipped(tmp_path: Path, name: str, reason: str) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", [tar_member("p/good.py", b"1"), tar_member(name, b"bad")])
    collector = collect(archive)
    assert files_below(tmp_path / "files") == {"p/good.py": b"1"}
    assert [skipped.reason for skipped in collector.skipped] == [reason]
    assert collector.skipped[0].path.isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "files"]


@pytest.mark.parametrize(
    ("kind", "link", "reason"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "symbolic link"),
        (tarfile.LNKTYPE, "p/good.py", "hard link"),
        (tarfile.CHRTYPE, "", "not a regular file"),
        (tarfile.FIFOTYPE, "", "not a regular file"),
    ],
)
def test_tar_links_and_devices_are_not_made(tmp_path: Path, kind: bytes, link: str, reason: str) -> None:
    # The second member would be written through the link if the link were made.
    members = [tar_member("p/good.py", b"1"), tar_member("p/l", b"", kind, link), tar_member("p/l/x.py", b"2")]
    collector = collect(write_tar(tmp_path / "a.tar.gz", members))
    assert files_below(tmp_path / "files") == {"p/good.py": b"1", "p/l/x.py": b"2"}
    assert [skipped.reason for skipped in collector.skipped] == [reason]


@pytest.mark.parametrize("second", ["p/a.py", "p/./a.py", "P/A.py", "p/a.py/b.py"])
def test_the_first_of_two_members_with_one_name_wins(tmp_path: Path, second: str) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", [tar_member("p/a.py", b"first"), tar_member(second, b"second")])
    collector = collect(archive)
    assert files_below(tmp_path / "files") == {"p/a.py": b"first"}
    assert [skipped.reason for skipped in collector.skipped] == ["name taken by an earlier member"]


def test_names_that_differ_in_their_unicode_form_only_are_one(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", [tar_member("caf\u00e9.py", b"1"), tar_member("cafe\u0301.py", b"2")])
    assert len(collect(archive).skipped) == 1


def test_tool_folders_are_skipped_once_each(tmp_path: Path) -> None:
    names = ("p/.git/config", "p/.git/hooks/x", "p/node_modules/a/b.js", "p/git/a.py")
    collector = collect(write_tar(tmp_path / "a.tar.gz", [tar_member(name, b"x") for name in names]))
    assert list(files_below(tmp_path / "files")) == ["p/git/a.py"]
    assert sorted(skipped.path for skipped in collector.skipped) == ["p/.git", "p/node_modules"]


def test_a_large_member_is_recorded_not_kept(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", [tar_member("a.py", b"x" * 101), tar_member("b.py", b"x" * 100)])
    collector = collect(archive, Limits(file_bytes=100))
    assert list(files_below(tmp_path / "files")) == ["b.py"]
    assert [(s.path, s.bytes, s.reason) for s in collector.skipped] == [("a.py", 101, "larger than 100 bytes")]


@pytest.mark.parametrize(
    ("limits", "message"), [(Limits(members=3), "3 members"), (Limits(total_bytes=300_000), "300000 bytes")]
)
def test_past_a_total_limit_the_source_is_refused(tmp_path: Path, limits: Limits, message: str) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", [tar_member(f"{n}.py", b"x" * 100_000) for n in range(4)])
    with pytest.raises(InputError, match=message):
        collect(archive, limits)


def test_a_tar_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.gz"
    header = tarfile.TarInfo("zeros.bin")
    header.size = 1 << 30
    with gzip.open(archive, "wb", compresslevel=1) as out:
        out.write(header.tobuf())
        for _ in range(100):
            out.write(bytes(1 << 20))
    with pytest.raises(InputError, match="decompression bomb"):
        collect(archive, Limits(ratio=1))


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros.bin", bytes(80 << 20))
    with pytest.raises(InputError, match="decompression bomb"):
        collect(archive)
    assert files_below(tmp_path / "files") == {}


def test_zip_names_and_links(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    link = zipfile.ZipInfo("p/link.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("p/good.py", b"1")
        out.writestr("p/../../out.py", b"2")
        out.writestr(link, "/etc/passwd")
    data = archive.read_bytes().replace(b"p/good.py", b"p/go\0d.py")
    collector = collect(archive)
    assert files_below(tmp_path / "files") == {"p/good.py": b"1"}
    assert {s.reason for s in collector.skipped} == {"unsafe path", "symbolic link"}
    cut = Collector(None, "test")
    (tmp_path / "nul.zip").write_bytes(data)
    collect_archive(tmp_path / "nul.zip", cut)
    assert cut.files == 0  # zipfile alone would have written "p/go"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_with_another_compression_is_refused(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", method) as out:
        out.writestr("a.py", b"1" * 100)
    with pytest.raises(IntegrityError, match="compressed"):
        collect(archive)


def test_encrypted_zip_member_is_skipped(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.py", b"1")
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    assert [s.reason for s in collect(archive).skipped] == ["encrypted"]


def _whole_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        out.addfile(*(lambda m: (m[0], io.BytesIO(m[1])))(tar_member("a.py", bytes(range(256)) * 64)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.tar.gz", _whole_tar()[:-40]),
        ("plain.tar.gz", b"this is no archive at all"),
        ("noise.tar.gz", gzip.compress(b"\xff" * 2000)),
        ("empty.tar.gz", b""),
        ("cut.zip", b"PK\x03\x04 and no more"),
    ],
)
def test_broken_archives_are_integrity_errors(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        collect(tmp_path / name)


def test_a_huge_extended_header_is_not_read_into_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 500 << 20
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(header.tobuf() + bytes(4096)))
    with pytest.raises(IntegrityError, match="header with a size"):
        collect(tmp_path / "a.tar.gz")
