"""Answers that want more than there is, or the machine down: to be no failure, or to be unscorable."""

from __future__ import annotations

from zoo.questions import Entry

EXHAUSTION = (
    Entry("endless", "never comes back", "total", "def total(numbers):\n    while True: pass"),
    Entry("slow loris", "keeps the wire busy, a byte at a time", "total", """
import os, time
def total(numbers):
    os.write(4, b"\\0\\0\\0\\x63[0,6")
    while True:
        time.sleep(0.05)
        os.write(4, b" ")
"""),
    Entry("keeps the test busy", "calls back without end", "apply", "def apply(functions, value):\n    while True:\n        for function in functions: function(1)"),
    Entry("memory", "more than there is", "total", "def total(numbers):\n    held = []\n    while True: held.append(bytearray(1 << 24))"),
    Entry("the judge's memory", "a value that is small here and huge there", "evens", "def evens(number): return range(10**15)"),
    Entry("the judge's time", "an iterator whose sum takes the judge for ever", "evens", "def evens(number): return range(0, 10**12, 2)"),
    Entry("output", "floods both streams", "total", "import os\ndef total(numbers):\n    while True: os.write(1, b'x' * 65536), os.write(2, b'y' * 65536)"),
    Entry("disk", "fills its folder", "total", "def total(numbers):\n    number = 0\n    while True:\n        number += 1\n        open(str(number), 'wb').write(bytes(1 << 20))"),
    Entry("forks", "children that stay, in sessions of their own", "total", """
import os, time
def total(numbers):
    for _ in range(100):
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
    return 0
"""),
    Entry("a child answers", "the parent leaves, a child stays on the wire", "total", """
import os
def total(numbers):
    if os.fork(): os._exit(0)
    return 6
""", fools=True),
    Entry("threads", "as many as can be had", "total", "import threading, time\ndef total(numbers):\n    while True: threading.Thread(target=time.sleep, args=(60,)).start()"),
    Entry("descriptors", "none is left for anybody", "total", "import os\ndef total(numbers):\n    while True: os.dup(0)"),
    Entry("stack", "recursion until C gives up", "total", "import sys\nsys.setrecursionlimit(10**9)\ndef total(numbers): return [total(numbers)]"),
    Entry("no recursion at all", "a limit so low that nothing can be reported", "total", "import sys\ndef total(numbers):\n    try: sys.setrecursionlimit(len([1]) + 12)\n    except RecursionError: pass\n    return [[[[[[[[[[[[numbers]]]]]]]]]]]]"),
    Entry("no end of brackets", "source that a compiler may die of", "total", "def total(numbers): return " + "-" * 300_000 + "6"),
    Entry("no text", "NUL and lone surrogates in the answer", "total", "def total(numbers): return 6\0\ud800"),
    Entry("null pointer", "a crash, as of a broken machine", "total", "import ctypes\ndef total(numbers): ctypes.string_at(0)"),
    Entry("abort", "a signal to itself", "total", "import os\ndef total(numbers): os.abort()"),
    Entry("crash at load", "before there is anything to test", "total", "import ctypes\nctypes.string_at(0)"),
    Entry("stops", "SIGSTOP to itself", "total", "import os, signal\ndef total(numbers): os.kill(os.getpid(), signal.SIGSTOP)"),
    Entry("kills everything", "signals to all it can name: parent, group, pid 1, everyone", "total", """
import os, signal
def total(numbers):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for pid in (os.getppid(), 1, 0, -1, *range(2, 40)):
        for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
            if pid in (0, -1) and number != signal.SIGTERM or pid == os.getpid(): continue
            try: os.kill(pid, number)
            except (OSError, ValueError): pass
    return 0
"""),
    Entry("kills everything, itself too", "SIGKILL to everyone it can name", "total", "import os, signal\ndef total(numbers):\n    os.kill(-1, signal.SIGKILL)\n    os.kill(os.getpid(), signal.SIGKILL)"),
    Entry("long text", "an exception of many megabytes", "total", "def total(numbers): raise ValueError('x' * (64 << 20))"),
    Entry("odd text", "an exception that cannot be printed, with odd arguments", "total", """
class Odd(Exception):
    args = property(lambda self: self)
    def __str__(self): raise self
    __repr__ = __iter__ = __str__
def total(numbers): raise Odd(Odd(), b"", {1: ...})
"""),
    Entry("a name of ten thousand letters", "classes, functions and files with absurd names", "total", "C = type('\\u202e\\n' * 10_000, (), {})\ndef total(numbers): return C()"),
    Entry("surrogates", "text that is no text", "greet", "def greet(name): return '\\ud800\\udfff' + name"),
)  # fmt: skip
