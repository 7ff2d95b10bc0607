"""The wire: every builtin value comes back as it was, and nothing that a liar sends does anything but fail."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import json
import math
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codemill.tasks.inside import wire


def unsendable(value: object) -> Any:
    raise wire.Unsendable(f"an object of class {type(value).__name__}")


CODEC = wire.Codec(unsendable, {})


def crossed(value: Any) -> Any:
    return CODEC.loads(CODEC.dumps([0, CODEC.pack(value)]))[1]


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and order, NaN and the sign of zero included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b) if a == a else b != b
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items())) and vars_of(a) == vars_of(b)
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(same, a, b)) and vars_of(a) == vars_of(b)
    if isinstance(a, set | frozenset):
        return {(type(x), x) for x in a} == {(type(x), x) for x in b}
    if isinstance(a, decimal.Decimal):
        return str(a) == str(b)
    return bool(a == b)


def vars_of(value: Any) -> Any:
    return getattr(value, "default_factory", None), getattr(value, "maxlen", None)


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
INTEGERS = st.integers(-(1 << 70), 1 << 70)
WIDE = INTEGERS.map(lambda number: number << 13_050)  # beyond what travels in decimal, printable for hypothesis
HASHABLE_SCALARS = st.none() | st.booleans() | INTEGERS | WIDE | TEXT | st.binary(max_size=12)
ZONES = st.none() | st.timedeltas(min_value=datetime.timedelta(hours=-23), max_value=datetime.timedelta(hours=23)).map(
    datetime.timezone
)
SCALARS = (
    HASHABLE_SCALARS
    | st.floats()
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.dates()
    | st.times(timezones=ZONES)
    | st.datetimes(timezones=ZONES)
    | st.timedeltas()
    | st.binary(max_size=12).map(bytearray)
    | st.sampled_from([..., NotImplemented, int, ValueError, range(3), range(9, -4, -2), slice(None, -1, 2), -0.0])
)
HASHABLE = st.recursive(
    HASHABLE_SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
        | st.lists(inner, max_size=3).map(lambda items: collections.deque(items, 7))
        | st.dictionaries(HASHABLE, inner, max_size=3).map(collections.OrderedDict)
        | st.dictionaries(HASHABLE, inner, max_size=3).map(lambda items: collections.defaultdict(list, items))
        | st.dictionaries(HASHABLE, st.integers(), max_size=3).map(collections.Counter)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=400, deadline=None)
@example("\ud83d\ude00")  # a surrogate pair that is not one character
@example("\udead \0 \u2028 \\u0041 {")
@example([1, True, 1.0, None, "{", "["])
@example([[1 << 13_000, -(1 << 13_000)], (10**4299, -(10**4299))])
@example({1: {2: {3: ({4}, frozenset({5}))}}})
@example([])
@example({})
def test_builtin_values_come_back_as_they_were(value: Any) -> None:
    assert same(crossed(value), value)


def test_views_come_back_as_views() -> None:
    source = {"a": 1, (2, 3): [4]}
    assert crossed(source.keys()) == source.keys()
    assert list(crossed(source.values())) == [1, [4]]
    assert dict(crossed(source.items())) == source
    assert type(crossed(source.keys())) is type(source.keys())
    assert list(crossed({}.keys())) == []


class Everything:
    """Overrides all that could make a value look like another."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "anything"

    def __str__(self) -> str:
        return "anything"

    def __iter__(self) -> Iterator[Any]:
        return iter([9])

    def __len__(self) -> int:
        return 99

    def __bool__(self) -> bool:
        return False

    def __getitem__(self, key: Any) -> Any:
        return 9


LIARS = [
    (type("Liar", (Everything, base), {})(*arguments), base(*arguments))
    for base, arguments in [
        (int, (5,)),
        (float, (0.5,)),
        (str, ("abc",)),
        (bytes, (b"abc",)),
        (bytearray, (b"abc",)),
        (complex, (1, -0.0)),
        (list, ([1, 2],)),
        (tuple, ([1, 2],)),
        (set, ([1, 2],)),
        (frozenset, ([1, 2],)),
        (dict, ({1: 2},)),
    ]
]


@pytest.mark.parametrize(("value", "base"), LIARS, ids=lambda v: type(v).__mro__[-2].__name__)
def test_subclasses_cross_as_their_contents(value: Any, base: Any) -> None:
    found = crossed([value])[0]
    assert type(found) is type(base)
    assert same(found, base)


class Colour(enum.IntEnum):
    RED = 1


class Name(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Colour.RED, 1),
        (Name.A, "a"),
        (Point(1, 2), (1, 2)),
        ([Colour.RED, 2], [1, 2]),
        (type("C", (collections.Counter,), {})("aab"), collections.Counter("aab")),
        (collections.defaultdict(lambda: 1, {1: 2}), {1: 2}),  # a factory of the answer's own stays there
    ],
)
def test_usual_subclasses(value: Any, wanted: Any) -> None:
    assert same(crossed(value), wanted)


def test_what_is_too_deep_or_inside_itself_is_refused() -> None:
    deep: Any = []
    for _ in range(wire.DEPTH - 1):
        deep = [deep]
    assert same(crossed(deep), deep)
    with pytest.raises(wire.Unsendable, match="levels deep"):
        CODEC.pack([deep])
    for inner in (dict, tuple):
        nested: Any = 0
        for _ in range(wire.DEPTH // 2 - 1):
            nested = inner({0: nested}.items()) if inner is dict else (nested,)
        assert same(crossed(nested), nested)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(wire.Unsendable):
        CODEC.pack(circle)
    with pytest.raises(wire.Unsendable, match="object of class Everything"):
        CODEC.pack([Everything()])


MALFORMED = [
    b"",
    b"1",
    b'"text"',
    b"{}",
    b"[1] [2]",
    b"[1]x",
    b"[1",
    b'[{"magic":1}]',
    b'[{"tuple":[1],"set":[1]}]',
    b'[{"tuple":1}]',
    b'[{"tuple":"ab"}]',
    b'[{"set":[[1]]}]',
    b'[{"set":[1,true]}]',
    b'[{"dict":[[1]]}]',
    b'[{"dict":[[1],[2,3]]}]',
    b'[{"dict":[[[1]],[2]]}]',
    b'[{"dict":[[1,1.0],[2,3]]}]',
    b'[{"dict":{"a":1}}]',
    b'[{"int":12}]',
    b'[{"int":"12g"}]',
    b'[{"bytes":"xyz"}]',
    b'[{"bytes":7}]',
    b'[{"complex":[1,2]}]',
    b'[{"complex":[1.0]}]',
    b'[{"range":[1,2,0]}]',
    b'[{"range":[1,2,1.5]}]',
    b'[{"slice":"abc"}]',
    b'[{"slice":[1,2,3,4]}]',
    b'[{"type":"eval"}]',
    b'[{"type":"nothing"}]',
    b'[{"type":["int"]}]',
    b'[{"decimal":"one"}]',
    b'[{"decimal":1}]',
    b'[{"fraction":[1,0]}]',
    b'[{"fraction":["1/2",true]}]',
    b'[{"date":[2024,13,1]}]',
    b'[{"date":[2024,1,1,1]}]',
    b'[{"date":"abc"}]',
    b'[{"datetime":[2024,1,1,0,0,0,0]}]',
    b'[{"time":[0,0,0,0,2,null]}]',
    b'[{"time":[0,0,0,0,0,[9,0,0]]}]',
    b'[{"timedelta":[9999999999,0,0]}]',
    b'[{"deque":[1,[2,3]]}]',
    b'[{"deque":["1",[]]}]',
    b'[{"defaultdict":["eval",[],[]]}]',
    b'[{"counter":[[[]],[1]]}]',
    b"[" * 100_000,
    b'[{"tuple":' * 20_000,
    b"[" + b'{"tuple":[' * 250 + b"]}" * 250 + b"]",
    b"[" + b"9" * 5000 + b"]",
    b"[\xff]",
    b'["\x00"]',
    b'["\\ud83"]',
    b"\xef\xbb\xbf[]",
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:40]))
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        CODEC.loads(data)


TAGS = st.sampled_from([*sorted(wire._BUILDERS), "object", "remote", "function", "exception"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["int", "0x1f"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TAGS, inner, max_size=2),
    max_leaves=10,
)


def only_its_own_error(data: bytes) -> None:
    try:
        found = CODEC.loads(data)
    except wire.WireError:
        return
    assert type(found) is list
    repr(found)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_raise_only_wire_error(data: bytes) -> None:
    only_its_own_error(data)


@given(st.lists(JSON, max_size=4))
@settings(max_examples=500, deadline=None)
def test_arbitrary_tagged_json_raises_only_wire_error(message: list[Any]) -> None:
    only_its_own_error(json.dumps(message).encode())


@given(VALUES, st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_messages_raise_only_wire_error(value: Any, data: st.DataObject) -> None:
    body = bytearray(CODEC.dumps([0, CODEC.pack(value)]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                body[place] = data.draw(st.integers(0, 255))
            case 1:
                del body[place : place + data.draw(st.integers(1, 5))]
            case 2:
                body[place:place] = data.draw(
                    st.sampled_from([b"[", b"]", b"{", b"}", b'"', b",", b"NaN", b"1e999", b"-"])
                )
        if not body:
            break
    only_its_own_error(bytes(body))


def test_reading_runs_nothing_and_imports_only_what_values_need() -> None:
    before = set(sys.modules)
    with pytest.raises(wire.WireError):
        CODEC.loads(b'[{"os":"system"}]')
    assert set(sys.modules) == before


@pytest.fixture
def pair() -> Iterator[tuple[wire.Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield wire.Channel(ours.fileno()), theirs


def test_messages_in_any_pieces(pair: tuple[wire.Channel, socket.socket]) -> None:
    channel, other = pair
    bodies = [b"", b"[1]", b"x" * 70_000, b"[2]", os.urandom(200_000), b"y"]
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    cuts = [0, 1, 3, 6, 13, 100_000, len(stream)]

    def write() -> None:
        for start, end in zip(cuts, cuts[1:], strict=False):
            other.sendall(stream[start:end])
        other.close()

    thread = threading.Thread(target=write)
    thread.start()
    assert [channel.receive() for _ in bodies] == bodies
    with pytest.raises(wire.Closed):
        channel.receive()
    thread.join()


def test_a_long_message_is_sent_whole(pair: tuple[wire.Channel, socket.socket]) -> None:
    channel, other = pair
    body = os.urandom(3_000_000)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(wire.Channel(other.fileno()).receive()))
    thread.start()
    channel.send(body)
    thread.join()
    assert received == [body]


def test_lengths_above_the_limit_and_cut_messages(pair: tuple[wire.Channel, socket.socket]) -> None:
    channel, other = pair
    with pytest.raises(wire.Unsendable, match="cannot cross at once"):
        channel.send(b" " * (wire.MESSAGE_BYTES + 1))
    other.sendall((wire.MESSAGE_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(wire.WireError, match="is announced"):
        channel.receive()
    other.sendall(b"\x00\x00\x00\x09[1")
    other.close()
    with pytest.raises((wire.Closed, wire.WireError)):
        wire.Channel(channel._descriptor).receive()
    with pytest.raises(wire.Closed):
        channel.send(b"x")
        channel.send(b"x")
