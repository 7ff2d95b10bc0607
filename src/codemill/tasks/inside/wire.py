"""The wire between a judge and the answer it tests: messages that can hold builtin values and nothing else.

A message is four bytes of length and UTF-8 JSON. JSON, because reading it runs no code of the sender and its parser
is written for hostile input; pickle and marshal are neither. Scalars and lists stand for themselves, any other value is an
object with one key, its kind: `{"tuple": [1, 2]}`, `{"dict": [[keys], [values]]}`. NaN, infinities, -0.0, lone surrogates
and the difference between `True`, `1` and `1.0` survive.

What is not a value is for each side's own `refer` and `resolvers` to turn into a number and back. Values of subclasses of
builtin classes are rebuilt from their contents with the builtin class's own methods, so that nothing a subclass
overrides (`__eq__`, `__iter__`, `__repr__`) crosses. Reading checks everything and raises `WireError` and nothing else.
"""

from __future__ import annotations

import builtins
import json
import os
import sys

TYPE_CHECKING = False  # spares the jail the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

MESSAGE_BYTES = 16 << 20
DEPTH = 200  # containers inside containers
_ENVELOPE = 8  # containers that a message itself adds around its values
_PLAIN_INT = (
    1 << 13_000
)  # integers beyond it travel in hexadecimal: decimal text of theirs is slow and limited to 4300 digits
_DECIMAL_CHARACTERS = 100_000
_ARGUMENT_CHARACTERS = 4000
_FLAT = frozenset({str, float, bool, type(None)})
_CHUNK = 1 << 16

BUILTIN_TYPES = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}


class WireError(Exception):
    """What came is not a message: the other side does not keep to the protocol."""


class Closed(Exception):
    """The other side is gone."""


class Unsendable(TypeError):
    """A value that cannot cross: nested too deeply, too long, or neither a value nor something that can be called."""


def builtin_base(kind: type) -> type:
    """The builtin class nearest to a class."""
    return next(base for base in kind.__mro__ if BUILTIN_TYPES.get(base.__name__) is base)


def exception(kind: type[BaseException], arguments: list[Any], text: str) -> BaseException:
    """An exception of the other side made anew: its own class if that can be, else one that names it."""
    try:
        return kind(*arguments)
    except Exception:  # the class wants others than it was said to have
        return RuntimeError(f"{kind.__name__}: {text}")


class Channel:
    """Whole messages as bytes over a connected stream socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read, self._write = os.read, os.write  # an answer may replace those of the module
        self._buffer = bytearray()

    def send(self, body: bytes) -> None:
        """Raises `Unsendable` for a message above the limit and `Closed` where nobody reads any more."""
        if len(body) > MESSAGE_BYTES:
            raise Unsendable(f"{len(body):,} bytes cannot cross at once, the limit is {MESSAGE_BYTES:,}")
        data = len(body).to_bytes(4, "big") + body
        try:
            sent = self._write(self._descriptor, data)
            if sent < len(data):
                view = memoryview(data)
                while sent < len(data):
                    sent += self._write(self._descriptor, view[sent:])
        except OSError:
            raise Closed from None

    def receive(self) -> bytes:
        """The next message. Raises `Closed` at the end and `WireError` for a length above the limit."""
        data = self._read_some() if not self._buffer else b""
        if len(data) >= 4 and int.from_bytes(data[:4], "big") == len(data) - 4 <= MESSAGE_BYTES:
            return data[4:]  # nearly always: exactly one message, in one piece
        buffer = self._buffer
        buffer += data
        while len(buffer) < 4:
            buffer += self._read_some()
        end = 4 + int.from_bytes(buffer[:4], "big")
        if end - 4 > MESSAGE_BYTES:
            raise WireError(f"a message of {end - 4:,} bytes is announced, the limit is {MESSAGE_BYTES:,}")
        while len(buffer) < end:
            buffer += self._read_some()
        body = bytes(buffer[4:end])
        del buffer[:end]
        return body

    def _read_some(self) -> bytes:
        try:
            data = self._read(self._descriptor, _CHUNK)
        except OSError:
            raise Closed from None
        if not data:
            raise Closed
        return data


class Codec:
    """Values to JSON and back.

    `refer` gets an object that is no value and returns the tagged object that stands for it, or raises `Unsendable`.
    `resolvers` maps the tags that the other side's `refer` makes to functions of their decoded content. `stays` says of a
    class whether its instances are referred to even if a builtin class is among its bases.
    """

    def __init__(
        self,
        refer: Callable[[Any], Any],
        resolvers: Mapping[str, Callable[[Any], Any]],
        stays: Callable[[type], bool] = lambda kind: False,
    ) -> None:
        self._refer, self._stays = refer, stays
        self._resolvers = dict(resolvers)
        self._encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
        self._decode = json.JSONDecoder().raw_decode

    def resolve(self, **resolvers: Callable[[Any], Any]) -> None:
        """Add resolvers by tag."""
        self._resolvers.update(resolvers)

    def dumps(self, message: list[Any]) -> bytes:
        """The bytes of a message whose values went through `pack`."""
        # Surrogates pass as they are: escaped, a high and a low one would come back as one character.
        return self._encode(message).encode("utf-8", "surrogatepass")

    def loads(self, data: bytes) -> list[Any]:
        """The message in `data`, its values rebuilt. Raises `WireError` and nothing else."""
        try:
            text = data.decode("utf-8", "surrogatepass")
            message, end = self._decode(text)
            if end != len(text):
                raise WireError("something follows the message")
            if type(message) is not list:
                raise WireError("a message is a list")
            if "{" not in text and text.count("[") <= DEPTH:
                return message
            return self._unpack_list(message, 0)
        except WireError:
            raise
        except Exception as error:  # malformed JSON, a content that its kind does not take, no memory for it
            raise WireError(f"not a message: {type(error).__name__}: {str(error)[:200]}") from None

    def pack(self, value: Any, depth: int = 0) -> Any:
        """JSON data for a value. Raises `Unsendable`."""
        kind = type(value)
        if kind in _FLAT:
            return value
        if kind is int:
            return value if -_PLAIN_INT < value < _PLAIN_INT else {"int": hex(value)}
        if kind is list:
            return self._pack_list(value, depth)
        if kind is tuple:
            return {"tuple": self._pack_list(value, depth)}
        if kind not in _PACKERS and self._stays(kind):
            return self._refer(value)
        return self.contents(value, depth)

    def contents(self, value: Any, depth: int = 0) -> Any:
        """JSON data for what a value holds as one of the builtin class that its own is made from."""
        for base in type(value).__mro__:
            packer = _PACKERS.get(base) or _library_packer(base)
            if packer is not None:
                return packer(self, value, depth)
        return self._refer(value)

    def pack_arguments(self, error: BaseException) -> list[Any]:
        """The arguments of an exception if all of them cross and are short, else its text alone."""
        try:
            packed = [self.pack(argument) for argument in error.args]
            if len(self._encode(packed)) <= _ARGUMENT_CHARACTERS:
                return packed
        except BaseException:  # of whatever kind: an answer's exception may have any attribute as its `args`
            pass
        try:
            return [str(error)[:_ARGUMENT_CHARACTERS]]
        except BaseException:
            return ["an exception that cannot be printed"]

    def _pack_list(self, values: Any, depth: int) -> list[Any]:
        """`values` is a list or a tuple, or iterates as its builtin class does."""
        if depth >= DEPTH:
            raise Unsendable(f"a value nested more than {DEPTH} levels deep, or inside itself, cannot cross")
        kinds = set(map(type, values))
        if kinds <= _FLAT:
            return list(values)
        if len(kinds) == 1 and int in kinds and min(values) > -_PLAIN_INT and max(values) < _PLAIN_INT:
            return list(values)
        return [self.pack(value, depth + 1) for value in values]

    def _unpack(self, item: Any, depth: int) -> Any:
        kind = type(item)
        if kind is list:
            return self._unpack_list(item, depth)
        if kind is not dict:
            return item
        if len(item) != 1:
            raise WireError(f"an object with {len(item)} keys where one is the rule")
        ((tag, content),) = item.items()
        if type(content) is dict:
            raise WireError(f"a kind of value inside {tag[:60]!r} where its content should be")
        content = self._unpack(content, depth)
        builder = _BUILDERS.get(tag) or self._resolvers.get(tag)
        if builder is None:
            raise WireError(f"an unknown kind of value: {tag[:60]!r}")
        return builder(content)

    def _unpack_list(self, items: list[Any], depth: int) -> list[Any]:
        if depth > DEPTH + _ENVELOPE:
            raise WireError(f"nested more than {DEPTH} levels deep")
        kinds = set(map(type, items))
        if list in kinds or dict in kinds:
            return [self._unpack(item, depth + 1) for item in items]
        return items


# Packing, by class. Each takes the codec, the value and the depth; the value may be of a subclass.


def _pairs(codec: Codec, value: dict[Any, Any], depth: int) -> list[Any]:
    keys, values = list(dict.keys(value)), list(dict.values(value))
    return [codec._pack_list(keys, depth + 1), codec._pack_list(values, depth + 1)]


def _pack_class(codec: Codec, value: type, depth: int) -> Any:
    name = type.__dict__["__name__"].__get__(value)
    return {"type": name} if BUILTIN_TYPES.get(name) is value else codec._refer(value)


def _pack_default(codec: Codec, value: Any, depth: int) -> Any:
    factory = value.default_factory
    name = getattr(factory, "__name__", None)
    known = factory is None or (type(name) is str and BUILTIN_TYPES.get(name) is factory)
    return {"defaultdict": [name, *_pairs(codec, value, depth)]} if known else {"dict": _pairs(codec, value, depth)}


def _pack_ordered(codec: Codec, value: Any, depth: int) -> Any:
    order = _library("collections", "OrderedDict").__iter__(value)  # not always that of the dict below it
    return {"ordered dict": _pairs(codec, {key: dict.__getitem__(value, key) for key in order}, depth)}


def _pack_zone(value: Any) -> Any:
    """A fixed offset as [days, seconds, microseconds], None for no time zone; others do not cross as values."""
    zone = value.tzinfo
    if zone is None:
        return None
    if type(zone).__module__ != "datetime":
        raise Unsendable("a time zone other than a fixed offset cannot cross")
    offset = zone.utcoffset(None)
    return [offset.days, offset.seconds, offset.microseconds]


def _clock(value: Any) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold, _pack_zone(value)]


_PACKERS: dict[type, Callable[[Codec, Any, int], Any]] = {
    str: lambda codec, value, depth: str.__str__(value),
    int: lambda codec, value, depth: codec.pack(int.__int__(value)),
    float: lambda codec, value, depth: float.__float__(value),
    list: lambda codec, value, depth: codec._pack_list(list.__getitem__(value, slice(None)), depth),
    tuple: lambda codec, value, depth: {"tuple": codec._pack_list(tuple.__getitem__(value, slice(None)), depth)},
    dict: lambda codec, value, depth: {"dict": _pairs(codec, value, depth)},
    set: lambda codec, value, depth: {"set": codec._pack_list(list(set.__iter__(value)), depth)},
    frozenset: lambda codec, value, depth: {"frozenset": codec._pack_list(list(frozenset.__iter__(value)), depth)},
    bytes: lambda codec, value, depth: {"bytes": bytes.hex(value)},
    bytearray: lambda codec, value, depth: {"bytearray": bytearray.hex(value)},
    complex: lambda codec, value, depth: {"complex": [complex.real.__get__(value), complex.imag.__get__(value)]},
    range: lambda codec, value, depth: {"range": codec._pack_list([value.start, value.stop, value.step], depth)},
    slice: lambda codec, value, depth: {"slice": codec._pack_list([value.start, value.stop, value.step], depth)},
    type(...): lambda codec, value, depth: {"ellipsis": 0},
    type(NotImplemented): lambda codec, value, depth: {"not implemented": 0},
    type({}.keys()): lambda codec, value, depth: {"keys": codec._pack_list(list(value), depth)},
    type({}.values()): lambda codec, value, depth: {"values": codec._pack_list(list(value), depth)},
    type({}.items()): lambda codec, value, depth: {"items": _pairs(codec, dict(value), depth)},
    type: _pack_class,
}

# Classes of the standard library that programs return as if they were builtin, by module and name: their modules are
# imported only by programs that use them.
_LIBRARY: dict[tuple[str, str], Callable[[Codec, Any, int], Any]] = {
    ("collections", "Counter"): lambda codec, value, depth: {"counter": _pairs(codec, value, depth)},
    ("collections", "OrderedDict"): _pack_ordered,
    ("collections", "defaultdict"): _pack_default,
    ("collections", "deque"): lambda codec, value, depth: {
        "deque": [value.maxlen, codec._pack_list(list(_library("collections", "deque").__iter__(value)), depth + 1)]
    },
    ("decimal", "Decimal"): lambda codec, value, depth: {"decimal": _library("decimal", "Decimal").__str__(value)},
    ("fractions", "Fraction"): lambda codec, value, depth: {
        "fraction": codec._pack_list([value.numerator, value.denominator], depth)
    },
    ("datetime", "date"): lambda codec, value, depth: {"date": [value.year, value.month, value.day]},
    ("datetime", "time"): lambda codec, value, depth: {"time": _clock(value)},
    ("datetime", "datetime"): lambda codec, value, depth: {
        "datetime": [value.year, value.month, value.day, *_clock(value)]
    },
    ("datetime", "timedelta"): lambda codec, value, depth: {
        "timedelta": [value.days, value.seconds, value.microseconds]
    },
}


def is_value(kind: type) -> bool:
    """Whether instances of a class hold a builtin value."""
    return any(base in _PACKERS or _library_packer(base) is not None for base in kind.__mro__)


def _library_packer(kind: type) -> Callable[[Codec, Any, int], Any] | None:
    module, name = kind.__module__, kind.__qualname__
    packer = _LIBRARY.get((module, name)) if type(module) is type(name) is str else None
    return packer if packer and getattr(sys.modules.get(module), name, None) is kind else None


# Building, by tag, from content that is already decoded. A content that does not fit raises, whatever: `loads` translates.


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise WireError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _each(values: Any, kind: type) -> list[Any]:
    return [_typed(value, kind) for value in _typed(values, list)]


def _dict(content: Any) -> dict[Any, Any]:
    keys, values = content
    made = dict(zip(_typed(keys, list), _typed(values, list), strict=True))
    if len(made) != len(keys):
        raise WireError("a dict with the same key twice")
    return made


def _set(content: Any) -> set[Any]:
    made = set(_typed(content, list))
    if len(made) != len(content):
        raise WireError("a set with the same element twice")
    return made


def _hexadecimal(content: Any) -> int:
    return int(_typed(content, str), 16)


def _complex(content: Any) -> complex:
    real, imaginary = _each(content, float)
    return complex(real, imaginary)


def _library(module: str, name: str) -> Any:
    loaded = sys.modules.get(module) or __import__(module)
    return getattr(loaded, name)


def _counter(content: Any) -> Any:
    made = _library("collections", "Counter")()
    dict.update(made, _dict(content))  # as they are: a Counter may hold anything
    return made


def _ordered(content: Any) -> Any:
    return _library("collections", "OrderedDict")(_dict(content))


def _default(content: Any) -> Any:
    factory, keys, values = content
    kind = None if factory is None else BUILTIN_TYPES[_typed(factory, str)]
    return _library("collections", "defaultdict")(kind, _dict([keys, values]))


def _deque(content: Any) -> Any:
    limit, items = content
    if limit is not None and _typed(limit, int) < len(items):
        raise WireError("a deque longer than its limit")
    return _library("collections", "deque")(_typed(items, list), limit)


def _decimal(content: Any) -> Any:
    if len(_typed(content, str)) > _DECIMAL_CHARACTERS:
        raise WireError(f"a Decimal of {len(content):,} characters")
    return _library("decimal", "Decimal")(content)


def _moment(name: str, fields: int) -> Callable[[Any], Any]:
    """Builder of a class of `datetime` from integers; fold and time zone follow them where the class has them."""

    def build(content: Any) -> Any:
        numbers = _each(content[:fields], int)
        kind = _library("datetime", name)
        if name in ("date", "timedelta"):
            if len(content) != fields:
                raise WireError(f"a {name} of {len(content)} numbers")
            return kind(*numbers)
        fold, zone = content[fields:]
        if zone is not None:
            zone = _library("datetime", "timezone")(_library("datetime", "timedelta")(*_each(zone, int)))
        return kind(*numbers, zone, fold=_typed(fold, int))

    return build


_BUILDERS: dict[str, Callable[[Any], Any]] = {
    "int": _hexadecimal,
    "tuple": lambda content: tuple(_typed(content, list)),
    "dict": _dict,
    "set": _set,
    "frozenset": lambda content: frozenset(_set(content)),
    "bytes": lambda content: bytes.fromhex(content),
    "bytearray": lambda content: bytearray.fromhex(content),
    "complex": _complex,
    "range": lambda content: range(*_each(content, int)),
    "slice": lambda content: slice(*_typed(content, list)),
    "ellipsis": lambda content: ...,
    "not implemented": lambda content: NotImplemented,
    "keys": lambda content: _dict([content, content]).keys(),
    "values": lambda content: dict(enumerate(_typed(content, list))).values(),
    "items": lambda content: _dict(content).items(),
    "type": lambda content: BUILTIN_TYPES[content],
    "counter": _counter,
    "ordered dict": _ordered,
    "defaultdict": _default,
    "deque": _deque,
    "decimal": _decimal,
    "fraction": lambda content: _library("fractions", "Fraction")(*_each(content, int)),
    "date": _moment("date", 3),
    "time": _moment("time", 4),
    "datetime": _moment("datetime", 7),
    "timedelta": _moment("timedelta", 3),
}
