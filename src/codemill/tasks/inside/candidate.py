"""The answer's side of a call test: runs the program, then does what the judge asks, one request at a time.

Nothing here is believed by the judge: the program shares this process and can do with it what it likes. The payload is
the program's text and the names under test; tests and expected values never come here, inputs come one call at a time.

Requests from the judge, on descriptor 4: `[operation, number, [arguments], [keywords], [values]]`, where `number` is an object
of this side. Replies: `[0, value]` or `[1, class, [arguments], text, trace]`. In between this side may ask for a call
of one of the judge's functions: `[2, number, [arguments], [keywords], [values]]`. The reply is `[0, value]`, or
`[1, class, [arguments], text, number]` for the judge's exception of that number: if it comes out of the program, this
side replies `[4, number]`. The first message is `[3]`, before anything of the program runs, the second a reply with the
names under test.
"""

from __future__ import annotations

import _thread
import builtins
import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from codemill.tasks.inside import wire
else:
    import wire

PROGRAM = "program.py"
_MAX_OBJECTS = 100_000
_TEXT_CHARACTERS = 2000
_FRAMES = 6
_WIRE_DEPTH = 1000
_JUDGES = "number of the judge's exception"  # in the instance's own dictionary: no attribute can collide


def main(payload: bytes) -> None:
    request = json.loads(payload)
    candidate = Candidate(wire.Channel(4), request["program"])
    candidate.send([3])
    try:
        namespace = candidate.load()
        found = {name: namespace[name] for name in request["names"] if name in namespace}
    except BaseException as error:
        candidate.fail(error)
    else:
        candidate.begin(found)
    candidate.serve()


class Candidate:
    """The program's objects that the judge knows by number, and the judge's functions that the program may call."""

    def __init__(self, channel: wire.Channel, program: str) -> None:
        self._channel, self._program = channel, program
        self._flush = sys.stdout.flush
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id; the objects are kept, so that no other can get the same
        self._functions: dict[int, Callable[..., Any]] = {}
        self._namespace: dict[str, Any] = {}
        self._asking = _thread.RLock()  # threads of the program take turns
        self._get_depth, self._set_depth = sys.getrecursionlimit, sys.setrecursionlimit
        self._depth = self._get_depth()
        resolvers = {
            "remote": lambda number: self._objects[number],
            "function": self._function,
            "iterator": lambda number: Iterator(self._function(number)),
            "builtin": lambda name: getattr(builtins, name),
        }
        # Instances of a class that the test has hold of keep their identity and their methods.
        self._codec = wire.Codec(self._refer, resolvers, lambda kind: id(kind) in self._numbers)

    def load(self) -> dict[str, Any]:
        """Run the program in a module of its own."""
        module = sys.modules["program"] = type(sys)("program")
        self._namespace = module.__dict__
        exec(compile(self._program, PROGRAM, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        return module.__dict__

    # Messages ----------------------------------------------------------------------------------------------------

    def send(self, message: list[Any]) -> None:
        try:  # noqa: SIM105 (no import just for this)
            self._flush()  # what the program has printed shows even if it is killed in the next call
        except BaseException:  # it may have closed its output
            pass
        self._channel.send(self._codec.dumps(message))

    def reply(self, value: Any) -> None:
        try:
            self.send([0, self._codec.pack(value)])
        except wire.Closed:
            raise
        except Exception as error:  # it cannot cross, or changes while it is looked at
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        if _JUDGES in vars(error):
            self.send([4, vars(error)[_JUDGES]])
            return
        try:
            text = str(error)[:_TEXT_CHARACTERS]
        except BaseException:
            text = "an exception that cannot be printed"
        packed = [self._codec.pack(type(error)), self._codec.pack_arguments(error)]
        self.send([1, *packed, text, self._trace(error), *self._state(error)])

    def _trace(self, error: BaseException) -> str:
        return trimmed_trace(error.__traceback__, PROGRAM, self._program)

    def _state(self, error: BaseException) -> list[Any]:
        """What else the judge is told of an exception."""
        return []

    def begin(self, found: dict[str, Any]) -> None:
        """The first reply: the names under test."""
        self._widen_depth()
        self.reply(found)

    def serve(self) -> None:
        """Do what the judge asks until it is gone."""
        try:
            while True:
                message = self._codec.loads(self._channel.receive())
                self._do(message)
        except wire.Closed:
            return

    def _do(self, message: list[Any]) -> None:
        try:
            operation, number, arguments, *keywords = message
            if operation == "contents":
                self.send([0, self._codec.contents(self._objects[number])])
                return
            self._limit_depth(self._depth)
            named = dict(zip(*keywords, strict=True)) if keywords else {}
            value = self._perform(operation, number, arguments, named)
        except BaseException as error:
            self._widen_depth()
            self.fail(error)
        else:
            self._widen_depth()
            self.reply(value)

    def _perform(self, operation: str, number: int, arguments: list[Any], named: dict[str, Any]) -> Any:
        if operation == "call":
            return self._objects[number](*arguments, **named)
        if operation == "global":
            return self._namespace[arguments[0]]
        return OPERATIONS[operation](self._objects[number], *arguments)

    def _widen_depth(self) -> None:
        """A program may lower the recursion limit for itself; the wire needs its usual depth."""
        self._depth = self._get_depth()
        if self._depth < _WIRE_DEPTH:
            self._limit_depth(_WIRE_DEPTH)

    def _limit_depth(self, depth: int) -> None:
        try:
            if depth != self._get_depth():
                self._set_depth(depth)
        except RecursionError:  # lower than where we are
            pass

    def ask(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call one of the judge's functions; while it runs, it may call back."""
        pack = self._codec.pack
        message = [2, number, [pack(argument) for argument in arguments]]
        if keywords:
            message += [list(keywords), [pack(value) for value in keywords.values()]]
        with self._asking:
            self.send(message)
            while True:
                answer = self._codec.loads(self._channel.receive())
                if answer[0] == 0:
                    return answer[1]
                if answer[0] == 1:
                    raise judges_exception(answer[1:])
                self._do(answer)

    # Objects -----------------------------------------------------------------------------------------------------

    def _refer(self, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self._objects)
            if number >= _MAX_OBJECTS:
                raise wire.Unsendable(f"more than {_MAX_OBJECTS:,} objects of the answer in the test's hands")
            self._objects.append(value)
            self._numbers[id(value)] = number
        kind = kind_of(value)
        if kind == "exception":
            return {"exception": [number, value.__name__, wire.builtin_base(value).__name__]}
        name = value.__name__ if kind == "module" else type(value).__name__
        return {"object": [number, kind, str(name)]}

    def _function(self, number: int) -> Callable[..., Any]:
        if number not in self._functions:

            def function(*arguments: Any, **keywords: Any) -> Any:
                return self.ask(number, arguments, keywords)

            self._functions[number] = function
        return self._functions[number]


def judges_exception(content: list[Any]) -> BaseException:
    """From class, arguments, text and number."""
    kind, arguments, text, number = content
    error = wire.exception(kind, arguments, text)
    vars(error)[_JUDGES] = number
    return error


class Iterator:
    """An iterator of the judge, fetched item by item."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        return self._function()


def kind_of(value: Any) -> str:
    """What the judge makes of an object that is no value."""
    kind = type(value)
    if isinstance(value, type):
        return "exception" if issubclass(value, BaseException) else "class"
    if kind is type(sys):
        return "module"
    if kind is _GENERATOR:
        return "generator"
    if hasattr(kind, "__next__"):
        return "iterator"
    if wire.is_value(kind):
        return "value"
    return "function" if callable(value) else "object"


def trimmed_trace(trace: TracebackType | None, path: str, program: str) -> str:
    """The innermost frames of the program that lies at `path`, as lines for people."""
    frames: list[tuple[int, str]] = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            frames.append((trace.tb_lineno, trace.tb_frame.f_code.co_name))
        trace = trace.tb_next
    lines = program.split("\n")
    shown = [
        f"{path}:{line} in {name}: {lines[line - 1].strip()[:160] if line <= len(lines) else ''}"
        for line, name in frames[-_FRAMES:]
    ]
    return "\n".join(shown)


def _delete_item(value: Any, key: Any) -> None:
    del value[key]


def _set_item(value: Any, key: Any, item: Any) -> None:
    value[key] = item


_GENERATOR = type(_ for _ in ())

OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "len": len,
    "iter": iter,
    "next": next,
    "throw": lambda generator, error: generator.throw(error),
    "getitem": lambda value, key: value[key],
    "setitem": _set_item,
    "delitem": _delete_item,
    "contains": lambda value, item: item in value,
    "str": str,
    "repr": repr,
    "isinstance": lambda kind, value: isinstance(value, kind),
}
