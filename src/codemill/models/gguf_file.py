"""Reading the GGUF container: metadata and a table of tensors, checked before a single weight is touched.

The file comes from outside, so nothing in it is believed: counts are compared with the bytes that are there before
anything is allocated, every tensor must lie inside the file, and whatever is unknown is an error.
Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.core.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME = 1 << 16  # bytes of a key or a tensor's name
MAX_ITEMS = 1 << 22  # items of one metadata array; the largest vocabularies in use have 260,000

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. `shape` is row-major (last dimension contiguous), as numpy and torch have it."""

    name: str
    shape: tuple[int, ...]
    kind: int  # a gguf.GGMLQuantizationType
    offset: int  # bytes from the start of the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The checked table of contents of one GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def text(self, key: str) -> str:
        return self._typed(key, str, "a string")

    def integer(self, key: str) -> int:
        value = self._typed(key, int, "an integer")
        if isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise IntegrityError(f"{self.path}: metadata {key} is {value!r}, which is no size or token id")
        return value

    def number(self, key: str) -> float:
        value = float(self._typed(key, (int, float), "a number"))
        if not math.isfinite(value) or value <= 0:
            raise IntegrityError(f"{self.path}: metadata {key} is {value!r}, it must be finite and above 0")
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        """An array whose items are all of type `kind`."""
        values = self._typed(key, list, "an array")
        if any(type(value) is not kind for value in values):
            raise IntegrityError(f"{self.path}: metadata {key} must be an array of {kind.__name__}")
        return values

    def _typed(self, key: str, kind: Any, what: str) -> Any:
        if key not in self.metadata:
            raise IntegrityError(f"{self.path}: metadata {key} is missing; this GGUF file is not complete")
        value = self.metadata[key]
        if not isinstance(value, kind):
            raise IntegrityError(f"{self.path}: metadata {key} must be {what}, not {type(value).__name__}")
        return value

    def rows(self, tensor: GgufTensor, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of the first dimension (all of a vector), dequantised. float32, shaped like the tensor."""
        import gguf
        import numpy as np

        count = tensor.shape[0] if len(tensor.shape) > 1 else 1
        size = tensor.nbytes // count
        first, last = (start, stop) if len(tensor.shape) > 1 else (0, 1)
        raw = np.fromfile(self.path, np.uint8, count=size * (last - first), offset=tensor.offset + size * first)
        if raw.size != size * (last - first):
            raise IntegrityError(f"{self.path}: tensor {tensor.name} ends early; the file shrank while it was read")
        kind = gguf.GGMLQuantizationType(tensor.kind)
        if kind == gguf.GGMLQuantizationType.F32:
            values = raw.view(np.float32)
        elif kind == gguf.GGMLQuantizationType.F16:
            values = raw.view(np.float16).astype(np.float32)
        else:
            values = gguf.quants.dequantize(raw.reshape(-1, size // _inner(tensor)), kind)
        shape = (last - first, *tensor.shape[1:]) if len(tensor.shape) > 1 else tensor.shape
        return np.ascontiguousarray(values, np.float32).reshape(shape)


def _inner(tensor: GgufTensor) -> int:
    """How many rows of the last dimension one row of the first dimension holds."""
    return math.prod(tensor.shape[1:-1])


def read_gguf(path: Path) -> GgufFile:
    """Read the table of contents. Raises `IntegrityError` for a file that is cut off, inconsistent or unknown."""
    try:
        with path.open("rb") as handle:
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise IntegrityError(f"{path}: not a readable GGUF file: {error}") from None


class _Reader:
    """One pass over the header, with a position that can never leave the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def fail(self, message: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: {message} (byte {self.position:,} of {self.size:,})")

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise self.fail(f"cut off: {count:,} more bytes are announced than the file has")
        self.position += count
        return self.data[self.position - count : self.position]

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self, limit: int | None = None) -> str:
        length = self.scalar("<Q")
        if limit is not None and length > limit:
            raise self.fail(f"a name of {length:,} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.fail("a string that is not UTF-8") from None

    def count(self, what: str, smallest: int) -> int:
        """A count of things of at least `smallest` bytes each: more than the rest of the file can hold is a lie."""
        count: int = self.scalar("<Q")
        if count * smallest > self.size - self.position or count > MAX_ITEMS:
            raise self.fail(f"{count:,} {what} are announced, more than the file can hold")
        return count

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.fail(f"metadata of unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind = self.scalar("<I")
        if kind == _STRING:
            return [self.string() for _ in range(self.count("strings", 8))]
        if kind not in _SCALARS:
            raise self.fail(f"a metadata array of unsupported type {kind}")
        form = _SCALARS[kind]
        count = self.count("numbers", struct.calcsize(form))
        return list(struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form))))

    def read(self) -> GgufFile:
        if self.take(4) != MAGIC:
            raise self.fail("not a GGUF file")
        version = self.scalar("<I")
        if version not in VERSIONS:
            raise self.fail(f"GGUF version {version} is not one of {VERSIONS} (or the file is big-endian)")
        tensors, keys = self.count("tensors", 24), self.count("metadata entries", 13)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string(MAX_NAME)
            if key in metadata:
                raise self.fail(f"metadata {key} appears twice")
            metadata[key] = self.value(self.scalar("<I"))
        return GgufFile(
            self.path, metadata, self.tensors(tensors, metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        )

    def tensors(self, count: int, alignment: Any) -> dict[str, GgufTensor]:
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise self.fail(f"alignment {alignment!r} is not a power of two")
        entries = [(self.string(MAX_NAME), self.shape(), self.scalar("<I"), self.scalar("<Q")) for _ in range(count)]
        start = -(-self.position // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in found:
                raise self.fail(f"tensor {name} appears twice")
            nbytes = self.tensor_bytes(name, shape, kind)
            if offset % alignment or start + offset + nbytes > self.size:
                raise self.fail(f"tensor {name} of {nbytes:,} bytes does not lie inside the file")
            found[name] = GgufTensor(name, shape, kind, start + offset, nbytes)
        return found

    def shape(self) -> tuple[int, ...]:
        dimensions = self.scalar("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"a tensor with {dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(dimensions))[::-1]  # GGUF has the contiguous dimension first
        if any(extent < 1 for extent in shape):
            raise self.fail(f"a tensor of shape {shape}")
        return shape

    def tensor_bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        import gguf

        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self.fail(f"tensor {name} has the unknown type {kind}; a newer gguf package may know it") from None
        if shape[-1] % block:
            raise self.fail(f"tensor {name}: rows of {shape[-1]} do not divide into blocks of {block}")
        return math.prod(shape) // block * block_bytes
