"""Runs a made-up verdict in the warm interpreter before it is forked for real ones.

A fork that does something for the first time pays for it with page faults: new memory for the compiler, caches of `typing`,
specialised bytecode. What was done before the fork is there already; that halves the cost of a small verdict. Trusted code,
executed once, without anything of an answer.
"""

from __future__ import annotations

import json
import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = '''
from typing import Any, Dict, List, Optional, Tuple, Union
import math, re, collections, itertools, functools, string


def tally(words: List[str], least: int = 1) -> Dict[str, int]:
    """ Count the words.
    >>> tally(["a", "b", "a"])
    {'a': 2, 'b': 1}
    """
    found: Dict[str, int] = {}
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(f"word {i}: {word!r} is not text")
        found[word.strip().lower()] = found.get(word.strip().lower(), 0) + 1
    return {k: v for k, v in sorted(found.items(), key=lambda pair: (-pair[1], pair[0])) if v >= least}


def numbers(values: List[float], point: Optional[Tuple[int, int]] = None) -> Union[float, int]:
    total = 0
    while values and total < 100:
        total += round(abs(values[0]) ** 0.5, 2) + max(values) - min(values) + sum(v for v in values if v % 2 == 0)
        values = values[1:]
    try:
        return total // int(math.floor(total)) if point is None else total
    except ZeroDivisionError:
        return -1


class Stack:
    def __init__(self, items: List[Any]) -> None:
        self.items = list(items)

    def pop(self) -> Any:
        return self.items.pop()


def pieces(text: str) -> List[str]:
    parts = [p for p in re.split(r"[,\\s]+", text) if p]
    seen = set(parts) | {str(i) for i in range(3)}
    return sorted(seen, key=len, reverse=True) + ["".join(reversed(text)), text.upper(), text[::-1], "%d %s" % (1, "x")]
'''
TEST = """
def check(candidate):
    assert candidate(["a", "B", "a"]) == {"a": 2, "b": 1}, "counts"
    assert candidate([]) == {}
    assert candidate(["x"] * 3, least=2) == {"x": 3}
    assert abs(3.0 - 2.9999999) < 1e-6
    for words in (["q"], ["w", "w"]):
        assert candidate(words) == {words[0]: len(words)}
    try:
        candidate([1])
    except ValueError:
        pass

check(tally)
"""
_TIMES = 3  # bytecode is specialised by use


def prime() -> None:
    """Called by the warm interpreter when its modules are loaded."""
    for _ in range(_TIMES):
        _one_process()
    if "judge" in sys.modules:
        for _ in range(_TIMES):
            _across(_judge, _candidate)
            _across(_candidate, _judge)
    for name in ("program", "tests"):
        sys.modules.pop(name, None)


def _one_process() -> None:
    module = sys.modules["program"] = type(sys)("program")
    names = module.__dict__
    exec(compile(json.loads(json.dumps(PROGRAM)), "program.py", "exec", dont_inherit=True), names)  # noqa: S102
    exec(compile(TEST, "test.py", "exec", dont_inherit=True), names)  # noqa: S102
    names["numbers"]([1.5, 2.0, 3.0])
    names["pieces"]("one, two")
    names["Stack"]([1, 2]).pop()
    try:
        exec("assert tally([]) == 1, 'wrong'", names)  # noqa: S102
    except AssertionError as error:
        f"{type(error).__name__}: {error}"


def _across(here: Callable[[], None], there: Callable[[], None]) -> None:
    """One part in this process, which is to remember it, the other in a child; the wire is descriptor 4, as in a run."""
    mine, other = socket.socketpair()
    child = os.fork()
    end = mine if child else other
    kept = [(place, os.dup(place)) for place in (3, 4) if _is_open(place)]
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 3)
    os.dup2(end.fileno(), 4)
    for each in (mine, other):
        each.close()
    os.close(null)
    if child == 0:
        try:
            there()
        finally:
            os._exit(0)
    here()
    for place in (3, 4):
        if _is_open(place):
            os.close(place)
    for place, copy in kept:
        os.dup2(copy, place, inheritable=False)
        os.close(copy)
    os.waitpid(child, 0)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _candidate() -> None:
    import candidate

    candidate.main(json.dumps({"program": PROGRAM, "names": ["tally"]}).encode())


def _judge() -> None:
    import signal

    import judge

    checks = [("==", False, line, line) for line in range(1, 16)]
    request = {
        "setup": compile("", "setup.py", "exec"),
        "test": compile(TEST, judge.TEST, "exec", dont_inherit=True),
        "checks": checks,
        "names": ["tally"],
        "missing": frozenset(),
        "seconds": 5.0,
    }
    run = judge.Run(request)
    report = run.report()
    json.dumps(report)
    run._checks.compare(0, {"a": [1, 2.5]}, {"a": [1, 2.5]})
    run._checks.true(1, True)
    run._answer.over = "left"
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
