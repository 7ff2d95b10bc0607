"""Honest answers that look odd: right all the same, and none of them may be rejected."""

from __future__ import annotations

from zoo.honest_style import STYLE, TEXT
from zoo.questions import Entry

_PLAIN = "def total(numbers):\n    return sum(numbers)\n"

TALKATIVE = (
    Entry("prints", "noise at load and in each call", "total", """
print("loading")
def total(numbers):
    print("adding", numbers, "PASSED? FAILED?", end="\\r\\n")
    return sum(numbers)
"""),
    Entry("prints oddly", "NUL, lone surrogates escaped, terminal escapes, bytes that are no UTF-8", "total", r"""
import sys
def total(numbers):
    print("\0 \x1b[2J \u202e Ω 😀", "\ud800".encode("utf-8", "surrogatepass"), file=sys.stderr)
    sys.stdout.buffer.write(b"\xff\xfe\x80\n")
    return sum(numbers)
"""),
    Entry("prints five megabytes", "more output than is kept", "total", """
print("x" * 5_000_000)
def total(numbers):
    return sum(numbers)
"""),
    Entry("prints JSON", "lines that look like somebody's report, for its own debugging", "total", """
import json
def total(numbers):
    print(json.dumps({"ready": True, "end": "failed", "numbers": numbers}))
    return sum(numbers)
"""),
    Entry("logs", "the logging module, to standard error", "total", """
import logging
logging.basicConfig(level=logging.DEBUG)
def total(numbers):
    logging.getLogger(__name__).debug("adding %s", numbers)
    return sum(numbers)
"""),
    Entry("warns", "a warning in each call, a deprecated escape at load", "total", r"""
import warnings
pattern = "\d"
def total(numbers):
    warnings.warn("slow", DeprecationWarning)
    return sum(numbers)
"""),
    Entry("closes standard output", "prints nothing any more, and says so by force", "total", """
import sys
sys.stdout.close()
sys.stderr = None
def total(numbers):
    return sum(numbers)
"""),
    Entry("captures its own output", "standard output replaced while it runs", "greet", """
import contextlib, io
def greet(name):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print("Hello, ", name, "!", sep="", end="")
    return out.getvalue()
"""),
    Entry("says goodbye", "an atexit function that prints", "total", "import atexit\natexit.register(print, 'bye')\n" + _PLAIN),
)  # fmt: skip

CONCURRENT = (
    Entry("a thread", "the sum is made in another thread", "total", """
import threading
def total(numbers):
    found = []
    worker = threading.Thread(target=lambda: found.append(sum(numbers)))
    worker.start()
    worker.join()
    return found[0]
"""),
    Entry("a thread that stays", "a daemon thread goes on for ever beside it", "total", """
import threading, time
def forever():
    while True:
        time.sleep(0.01)
threading.Thread(target=forever, daemon=True).start()
def total(numbers):
    return sum(numbers)
"""),
    Entry("a pool", "threads from concurrent.futures", "squares", """
from concurrent.futures import ThreadPoolExecutor
def squares(number):
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda part: [i * i for i in part], [range(k * number // 4, (k + 1) * number // 4) for k in range(4)])
    return [square for part in parts for square in part]
"""),
    Entry("asyncio", "an event loop of its own in each call", "total", """
import asyncio
async def add(numbers):
    await asyncio.sleep(0)
    return sum(numbers)
def total(numbers):
    return asyncio.run(add(numbers))
"""),
    Entry("a callback from a thread", "calls the test's functions from another thread", "apply", """
import queue, threading
def apply(functions, value):
    out = queue.Queue()
    def work(value):
        for function in functions:
            value = function(value)
        out.put(value)
    threading.Thread(target=work, args=(value,)).start()
    return out.get(timeout=5)
"""),
    Entry("a child process", "starts Python for the sum", "halve", """
import subprocess, sys
def halve(number):
    done = subprocess.run([sys.executable, "-S", "-c", f"print({number!r} / 2)"], capture_output=True, text=True, check=True)
    return float(done.stdout)
"""),
    Entry("a fork", "adds in a forked child and reads it from a pipe", "halve", """
import os
def halve(number):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, repr(number / 2).encode())
        os._exit(0)
    os.wait()
    return float(os.read(reader, 100))
"""),
    Entry("a signal handler", "an alarm of its own, for its own purposes", "total", """
import signal, time
rung = []
signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
def total(numbers):
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    while not rung:
        time.sleep(0.001)
    return sum(numbers)
"""),
)  # fmt: skip

SUBCLASSES = (
    Entry("Counter", "a Counter where a dict is expected", "count", "from collections import Counter\ndef count(text): return Counter(text.split())"),
    Entry("defaultdict", "a defaultdict of int", "count", """
from collections import defaultdict
def count(text):
    found = defaultdict(int)
    for word in text.split():
        found[word] += 1
    return found
"""),
    Entry("defaultdict of lambda", "its factory cannot cross", "count", """
from collections import defaultdict
def count(text):
    found = defaultdict(lambda: 0)
    for word in text.split():
        found[word] += 1
    return found
"""),
    Entry("OrderedDict", "ordered and moved about", "count", """
from collections import OrderedDict
def count(text):
    found = OrderedDict()
    for word in text.split():
        found[word] = found.pop(word, 0) + 1
    return found
"""),
    Entry("a dict of its own", "a subclass with __missing__ and a slot", "count", """
class Tally(dict):
    __slots__ = ("text",)
    def __missing__(self, word):
        return 0
def count(text):
    found = Tally()
    found.text = text
    for word in text.split():
        found[word] += 1
    return found
"""),
    Entry("namedtuple", "a point with names", "middle", """
from collections import namedtuple
Point = namedtuple("Point", "x y")
def middle(a, b):
    return Point((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
"""),
    Entry("typing.NamedTuple", "with a method and a default", "middle", """
from typing import NamedTuple
class Point(NamedTuple):
    x: float
    y: float = 0.0
    def between(self, other):
        return Point((self.x + other.x) / 2, (self.y + other.y) / 2)
def middle(a, b):
    return Point(*a).between(Point(*b))
"""),
    Entry("IntEnum", "levels as an enumeration", "level", """
import enum
class Level(enum.IntEnum):
    LOW = 1
    MIDDLE = enum.auto()
    HIGH = enum.auto()
def level(name):
    return Level[name.upper()]
"""),
    Entry("StrEnum keys", "words that are members of a string enumeration", "longest", """
import enum
def longest(words):
    if not words:
        return None
    kind = enum.StrEnum("Word", {word: word for word in words})
    return max(kind, key=len)
"""),
    Entry("a str of its own", "with its own repr and equality, honestly used", "greet", """
class Text(str):
    def __repr__(self): return "Text"
    def __eq__(self, other): return str.__eq__(self, other)
    __hash__ = str.__hash__
def greet(name):
    return Text("Hello, ") + name + Text("!") if name else Text("Hello, !")
"""),
    Entry("an int of its own", "units that do arithmetic", "total", """
class Euro(int):
    def __add__(self, other): return Euro(int(self) + other)
    __radd__ = __add__
    def __str__(self): return f"{int(self)} EUR"
def total(numbers):
    return sum(map(Euro, numbers), Euro(0))
"""),
    Entry("a list of its own", "UserList's cousin, with an odd iterator for people", "order", """
class Sorted(list):
    def __iter__(self): return iter(list.__getitem__(self, slice(None)))
    def __str__(self): return "sorted"
def order(numbers):
    return Sorted(sorted(numbers))
"""),
    Entry("booleans as numbers", "1 and 0 instead of True and False", "is_even", "def is_even(number): return 1 - number % 2"),
    Entry("bytearray", "a bytearray where bytes are expected", "pack", """
def pack(numbers):
    made = bytearray()
    for number in numbers:
        made.append(number)
    return made
"""),
    Entry("frozenset", "a frozenset of frozensets for a set of them", "groups", """
def groups(words):
    return frozenset(frozenset(w for w in words if sorted(w) == sorted(word)) for word in words)
"""),
    Entry("dict keys", "a view of a dict's keys instead of a set", "groups", """
def groups(words):
    found = {}
    for word in words:
        found.setdefault("".join(sorted(word)), set()).add(word)
    return dict.fromkeys(map(frozenset, found.values())).keys()
"""),
)  # fmt: skip

LAZY = (
    Entry("generator", "yields", "evens", "def evens(number):\n    for i in range(number):\n        yield 2 * i"),
    Entry("generator expression", "in brackets", "evens", "def evens(number): return (2 * i for i in range(number))"),
    Entry("range", "a range is enough", "evens", "def evens(number): return range(0, 2 * number, 2)"),
    Entry("iterator class", "with __iter__ and __next__ by hand", "evens", """
class Evens:
    def __init__(self, number): self.left, self.value = number, -2
    def __iter__(self): return self
    def __next__(self):
        if not self.left: raise StopIteration
        self.left -= 1
        self.value += 2
        return self.value
evens = Evens
"""),
    Entry("iterable class", "only __getitem__ and IndexError, as iterables used to be", "evens", """
class evens:
    def __init__(self, number): self.number = number
    def __getitem__(self, index):
        if index >= self.number: raise IndexError(index)
        return 2 * index
"""),
    Entry("itertools", "an endless count, cut", "evens", "from itertools import count, islice\ndef evens(number): return islice(count(0, 2), number)"),
    Entry("map", "a map object", "evens", "def evens(number): return map((2).__mul__, range(number))"),
    Entry("deque", "a deque with a limit", "evens", "from collections import deque\ndef evens(number): return deque(range(0, 2 * number, 2), maxlen=1000)"),
    Entry("yield from", "generators inside generators", "evens", """
def evens(number):
    if number:
        yield from evens(number - 1)
        yield 2 * (number - 1)
"""),
    Entry("StopIteration inside", "ends a helper's loop by hand, and catches it", "longest", """
def longest(words):
    best, them = None, iter(words)
    while True:
        try:
            word = next(them)
        except StopIteration:
            return best
        if best is None or len(word) > len(best):
            best = word
"""),
)  # fmt: skip

NUMBERS = (
    Entry("big integers", "thousands of digits, made the slow way", "power", """
def power(base, exponent):
    made = 1
    for _ in range(exponent):
        made *= base
    return made
"""),
    Entry("digits as text", "lifts the limit on long numbers in text", "power", """
import sys
sys.set_int_max_str_digits(0)
def power(base, exponent):
    return int(str(base**exponent))
"""),
    Entry("limits", "infinities, NaN and minus zero computed", "limits", """
def limits():
    high = 1e308 * 10
    return (high, -high, high - high, -1 / high)
"""),
    Entry("complex", "through cmath", "turn", "import cmath\ndef turn(number): return complex(-complex(number).imag, complex(number).real) if number else 0j"),
    Entry("Decimal", "a Decimal where a float is expected", "halve", """
from decimal import Decimal, getcontext
getcontext().prec = 50
def halve(number):
    return float(Decimal(str(number)) / 2)
"""),
    Entry("Fraction", "a Fraction where a number is expected", "halve", "from fractions import Fraction\ndef halve(number): return Fraction(number) / 2"),
    Entry("statistics", "the mean of a number and nothing", "halve", "import statistics\ndef halve(number): return statistics.mean([number, 0])"),
    Entry("math", "fsum and floor", "total", "import math\ndef total(numbers): return math.floor(math.fsum(numbers))"),
    Entry("datetime", "adds days to a date to add numbers", "total", """
from datetime import date, timedelta
def total(numbers):
    start = day = date(2000, 1, 1)
    for number in numbers:
        day += timedelta(days=number)
    return (day - start).days
"""),
    Entry("struct and array", "bytes through packed memory", "pack", """
import array, struct
def pack(numbers):
    return struct.pack(f"{len(numbers)}B", *memoryview(array.array("B", numbers)))
"""),
    Entry("many", "a hundred thousand items through numpy's absence", "squares", """
from itertools import accumulate
def squares(number):
    return list(accumulate(range(1, 2 * number, 2), initial=0))[:number]
"""),
)  # fmt: skip

HONEST = (*TALKATIVE, *CONCURRENT, *SUBCLASSES, *LAZY, *NUMBERS, *STYLE, *TEXT)
