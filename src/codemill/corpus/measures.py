"""What is measured on a file: numbers and findings only, no opinion. The policy of `filters.py` judges them.

The order keeps hostile files cheap: a first pass reads blocks in constant memory; only a file that passes it
is decoded, and only text of ordinary shape meets regular expressions, all of which run in linear time.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

HEADER_LINES = 5  # where a generated file says so
HEADER_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class RawSignals:
    """What one pass over the bytes tells. Lengths in bytes, without line ends."""

    size: int
    lines: int
    longest_line: int
    has_nul: bool
    blank: bool
    head: bytes
    hash: str


@dataclass(frozen=True, slots=True)
class TextSignals:
    """What the text tells. Lengths in characters, shares of all characters."""

    lines: int
    longest_line: int
    mean_line: float
    alphabetic_share: float
    control_share: float
    blob_share: float  # of runs that look like encoded bytes (base64, hexadecimal, escapes)
    longest_blob: int


def measure_bytes(blocks: Iterable[bytes]) -> RawSignals:
    """One pass in constant memory: size, lines, the longest line, NUL bytes, content hash."""
    digest = hashlib.blake2b(digest_size=32)
    size = ends = longest = open_line = 0
    has_nul, blank, head, last = False, True, b"", b""
    for block in blocks:
        digest.update(block)
        if len(head) < 1024:
            head += block[: 1024 - len(head)]
        size += len(block)
        has_nul = has_nul or b"\0" in block
        blank = blank and not block.strip()
        lengths = [len(line) for line in block.split(b"\n")]
        ends += len(lengths) - 1
        lengths[0] += open_line
        open_line = lengths[-1]
        longest = max(longest, max(lengths))
        last = block[-1:]
    lines = ends + (last not in (b"", b"\n"))
    return RawSignals(size, lines, longest, has_nul, blank, head, digest.hexdigest())


_LETTERS = bytes(c for c in range(128) if chr(c).isalpha())
_CONTROLS = bytes(c for c in range(32) if chr(c) not in "\t\n\r\f\x1b") + b"\x7f"
_BLOBS = re.compile(
    # base64 or hexadecimal digits, wrapped over lines or not; an array of bytes; escapes
    r"[A-Za-z0-9+/]{60,}={0,2}(?:[\s\"',\\]{1,16}[A-Za-z0-9+/]{60,}={0,2})*"
    r"|(?:(?:0x|\\x)[0-9a-fA-F]{1,2}[\s,;]{0,40}){8,}"
    r"|(?:\\u[0-9a-fA-F]{4}){8,}"
)


def measure_text(text: str) -> TextSignals:
    """Signals of decoded text, as published for BigCode and The Stack v2; judged by `filters.Policy`."""
    total = max(len(text), 1)
    lengths = [len(line) for line in text.split("\n")]
    if lengths[-1] == 0 and len(lengths) > 1:
        lengths.pop()
    blobs = [match.end() - match.start() for match in _BLOBS.finditer(text)]
    if text.isascii():
        data = text.encode()
        letters = len(data) - len(data.translate(None, _LETTERS))
    else:
        letters = sum(map(str.isalpha, text))
        data = text.encode()
    controls = len(data) - len(data.translate(None, _CONTROLS))
    return TextSignals(
        lines=len(lengths),
        longest_line=max(lengths),
        mean_line=round(sum(lengths) / len(lengths), 3),
        alphabetic_share=round(letters / total, 6),
        control_share=round(controls / total, 6),
        blob_share=round(sum(blobs) / total, 6),
        longest_blob=max(blobs, default=0),
    )


def decode(data: bytes) -> str | None:
    """The text of UTF-8 bytes without a byte order mark, line ends kept; None when they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


_MAGIC = {b"%PDF-": "PDF", b"\x7fELF": "ELF", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"{\\rtf": "RTF"}
_OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def binary_format(head: bytes) -> str | None:
    """The format that the first bytes give away, where it is one of the few that may hold no NUL byte."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def other_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark names, when it is not UTF-8."""
    return next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), None)


_TOOLS = (
    r"protoc|protobuf|the protocol buffer compiler|grpc_tools|grpcio|buf|thrift|swig|cython|f2py"
    r"|pybind11-stubgen|bison|flex|lex|yacc|ply|antlr|javacc|ragel|re2c|gperf|autoconf|automake|configure|cmake"
    r"|gyp|c?bindgen|sqlc|mockgen|stringer|wire|ent|openapi|swagger|autorest|codegen|graphql-codegen|pyuic\d?"
    r"|moc|uic|rcc|setuptools[_-]scm|hatch-vcs|versioneer|pip-compile|uv|poetry|sphinx-quickstart|doxygen"
    r"|webpack|rollup|esbuild|browserify|babel|typescript|coffeescript|django [\d.]+|alembic|tree-?sitter"
)
_GENERATED = re.compile(
    r"@generated\b"
    r"|\b(?:do not|don't|please don't|never) (?:edit|modify)\b"
    r"|\b(?:auto-?generated|automatically generated|machine[- ]generated)"
    r"(?:\s+(?:by|from|with|using|via|file|code|on|at)\b|\s*[.!,;:*)>-]|\s*$)"
    r"|\bthis (?:file|code|module|script) (?:is|was|has been) generated\b"
    rf"|\bgenerated (?:by|from|with|using) (?:the )?(?:{_TOOLS})(?![\w-])",
    re.IGNORECASE | re.MULTILINE,
)
_LOCK_FILES = frozenset(
    {
        *("package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "deno.lock"),
        *("poetry.lock", "pipfile.lock", "pdm.lock", "uv.lock", "pixi.lock", "conda-lock.yml", "cargo.lock"),
        *(
            "go.sum",
            "composer.lock",
            "gemfile.lock",
            "flake.lock",
            "mix.lock",
            "pubspec.lock",
            "packages.lock.json",
        ),
        *("podfile.lock", "package.resolved", "gradle.lockfile"),
    }
)
_GENERATED_NAMES = re.compile(
    r"(?:_pb2(?:_grpc)?\.pyi?|\.pb(?:\.gw)?\.(?:go|cc|h)|\.g\.dart|\.designer\.cs)$|^pkg-info$", re.I
)


def generated_by(path: str, text: str) -> str | None:
    """What shows that a tool wrote the file: its name or a phrase in its first lines; else None."""
    name = PurePosixPath(path).name.lower()
    if name in _LOCK_FILES:
        return "lock file"
    if _GENERATED_NAMES.search(name) or any(part.endswith(".egg-info") for part in PurePosixPath(path).parts[:-1]):
        return "file name"
    header = "\n".join(text[:HEADER_CHARACTERS].split("\n")[:HEADER_LINES])
    found = _GENERATED.search(header)
    return found[0].lower() if found else None


_VENDORED = frozenset(
    {
        *(
            "vendor",
            "vendored",
            "_vendor",
            "_vendored",
            "third_party",
            "third-party",
            "thirdparty",
            "3rdparty",
        ),
        *("node_modules", "bower_components", "site-packages", "dist"),
    }
)


def vendored_folder(path: str) -> str | None:
    """The folder on the path that holds other people's code or built files. `build` counts at the top only:
    deeper down it is a common name of a package."""
    folders = PurePosixPath(path).parts[:-1]
    if folders and folders[0].lower() == "build":
        return folders[0]
    return next((folder for folder in folders if folder.lower() in _VENDORED), None)


def minified_name(path: str) -> bool:
    return re.search(r"[.-](?:min|bundle|packed)\.(?:m?js|css)$", path, re.I) is not None


_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")


def bidi_control(text: str) -> str | None:
    """Where a character first changes the order of the code shown: "line 3: U+202E" (CVE-2021-42574)."""
    found = None if text.isascii() else _BIDI.search(text)
    if found is None:
        return None
    return f"line {text.count(chr(10), 0, found.start()) + 1}: U+{ord(found[0]):04X}"


def merge_conflict(text: str) -> bool:
    """Whether the three markers of an unresolved merge stand in order at line starts."""
    start = re.search(r"^<{7} ", text, re.M)
    middle = re.compile(r"^={7}\r?$", re.M).search(text, start.end()) if start else None
    return middle is not None and re.compile(r"^>{7} ", re.M).search(text, middle.end()) is not None


def python_problem(text: str) -> str | None:
    """The label for Python that does not parse here: "python2" or "syntax-error"; None when it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as error:
        old = (
            "Missing parentheses in call to",
            "multiple exception types must be",
            "invalid decimal literal",
        )
        return "python2" if (error.msg or "").startswith(old[:2]) else "syntax-error"
    except (ValueError, RecursionError, MemoryError):
        return "syntax-error"
    return None


_TEST_NAMES = re.compile(
    r"^(?:test_.*\.pyi?|.*_test\.(?:py|go|c|cc|cpp|rs|rb|exs|dart)|conftest\.py"
    r"|.*[.-](?:test|spec)\.[mc]?[jt]sx?|.*Tests?\.(?:java|kt|cs|swift|php|scala)|.*_spec\.rb)$"
)
_TEST_FOLDERS = frozenset({"test", "tests", "testing", "spec", "specs", "__tests__", "testdata", "test_data"})
_CONFIG_NAMES = re.compile(
    r"^(?:pyproject\.toml|setup\.(?:cfg|py)|tox\.ini|noxfile\.py|pytest\.ini|mypy\.ini|package\.json"
    r"|tsconfig.*\.json|cargo\.toml|go\.mod|pom\.xml|build\.gradle(?:\.kts)?|cmakelists\.txt|(?:gnu)?makefile"
    r"|dockerfile.*|docker-compose.*\.ya?ml|requirements.*\.txt|environment\.ya?ml|\.pre-commit-config\.yaml"
    r"|\.readthedocs\.ya?ml|\.travis\.yml|\.gitlab-ci\.yml|mkdocs\.yml|manifest\.in|.*\.config\.[mc]?[jt]s"
    r"|\..*rc(?:\.\w+)?|\.editorconfig|\.gitignore|\.gitattributes|\.flake8|\.clang-format|ruff\.toml|justfile)$",
    re.I,
)


def place_labels(path: str) -> tuple[str, ...]:
    """What a file is for, by place and name: "test", "config", "docs". Such files are kept."""
    parts = PurePosixPath(path).parts
    folders = {part.lower() for part in parts[:-1]}
    labels = []
    if folders & _TEST_FOLDERS or _TEST_NAMES.match(parts[-1]):
        labels.append("test")
    if _CONFIG_NAMES.match(parts[-1]) or ".github" in folders:
        labels.append("config")
    if folders & {"doc", "docs", "documentation"}:
        labels.append("docs")
    return tuple(labels)
