"""The answer's side of a repository's tests: imports the answer's file, then does what the judge asks (`suite_judge`).

The repository is here without its tests and without the output that its docstrings' examples expect. Nothing here is
believed by the judge: the answer shares this process and can do with it what it likes. Messages are those of `candidate`;
besides, the operation `forward` calls the answer's function and replies `[value, [(place, contents), ...]]`, where the
pairs are the arguments that were changed in place.

Payload, marshalled: `files` (contents by path), `roots` for the import path, `module` to import, `qualname` of
the function in it, `captured` (whether the function is to be taken before its decorators are put on: it has
`@__codemill_answer__` below them then), `path` of the answer's file.
"""

from __future__ import annotations

import builtins
import importlib
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from codemill.tasks.inside import candidate, suite_judge, wire
else:
    import candidate
    import suite_judge
    import wire


def main(payload: bytes) -> None:
    given = marshal.loads(payload)
    paths = suite_judge.settle(given["files"])
    folder = os.getcwd()
    roots = [folder if root == "." else os.path.join(folder, root) for root in given["roots"]]
    sys.path[:0] = roots
    sys.path += paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *paths])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    side = SuiteCandidate(wire.Channel(4), given, os.path.join(folder, given["path"]))
    side.send([3])
    try:
        function = side.find()
    except BaseException as error:
        side.fail(error)
    else:
        side.begin(function)
    side.serve()


class SuiteCandidate(candidate.Candidate):
    """The answer's function, and what it and the judge have handed each other."""

    def __init__(self, channel: wire.Channel, given: dict[str, Any], file: str) -> None:
        super().__init__(channel, "")
        self._given, self._file = given, file
        self._judges: dict[int, tuple[Any, str, Any]] = {}  # by id: objects that the judge knows otherwise
        self._captured: Any = None
        self._codec.resolve(
            function=self._callback, iterator=self._iterator, name=self._named, error=candidate.judges_exception
        )

    def find(self) -> Any:
        """Import the answer's file and find its function."""
        vars(builtins)["__codemill_answer__"] = self._capture
        module: Any = importlib.import_module(self._given["module"])
        if self._given["captured"]:
            if self._captured is None:
                raise AttributeError(f"{self._given['qualname']} was not defined")
            return self._captured
        found = module
        for part in self._given["qualname"].split("."):
            found = getattr(found, part)
        return found

    def _capture(self, function: Any) -> Any:
        self._captured = function
        return function

    def begin(self, function: Any) -> None:
        self._widen_depth()
        self.send([0, self._refer(function)])

    def _perform(self, operation: str, number: int, arguments: list[Any], named: dict[str, Any]) -> Any:
        if operation != "forward":
            return super()._perform(operation, number, arguments, named)
        given = [*arguments, *named.values()]
        pack = self._codec.pack
        before = {
            place: pack(value) for place, value in enumerate(given) if type(value).__name__ in suite_judge.MUTABLE
        }
        value = self._objects[number](*arguments, **named)
        changes = []
        for place, packed in before.items():
            if pack(given[place]) != packed:
                changes.append((place, given[place]))
        if type(value) not in _PLAIN:
            for place, argument in enumerate(given):
                if value is argument:
                    value = _Argument(place)
        return [value, changes]

    def _trace(self, error: BaseException) -> str:
        try:
            with open(self._file, encoding="utf-8", newline="") as file:
                program = file.read()
        except Exception:  # it may have been removed
            program = ""
        trace = candidate.trimmed_trace(error.__traceback__, self._file, program)
        return trace.replace(self._file, self._given["path"])

    def _state(self, error: BaseException) -> list[Any]:
        """An exception's attributes, those that cross."""
        state = {}
        try:
            for key, value in vars(error).items():
                try:
                    self._codec.pack(value)
                    state[key] = value
                except Exception:
                    continue
            return [self._codec.pack(state)]
        except Exception:
            return []

    # What crosses ------------------------------------------------------------------------------------------------

    def _refer(self, value: Any) -> Any:
        known = self._judges.get(id(value))
        if known is not None:
            return {known[1]: known[2]}
        if type(value) is _Argument:
            return {"argument": value.place}
        reference = super()._refer(value)
        if "exception" in reference:
            number, _, base = reference["exception"]
            return {"exception": [number, str(value.__qualname__), base, str(value.__module__)]}
        return reference

    def _callback(self, number: int) -> Callable[..., Any]:
        return self._keep(self._function(number), "yours", number)

    def _iterator(self, number: int) -> Any:
        return self._keep(candidate.Iterator(self._function(number)), "yours", number)

    def _named(self, content: list[str]) -> Any:
        module, name = content
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return self._keep(found, "name", content)

    def _keep(self, value: Any, tag: str, content: Any) -> Any:
        self._judges[id(value)] = (value, tag, content)
        return value


class _Argument:
    """Stands for an argument of the call that is returned."""

    def __init__(self, place: int) -> None:
        self.place = place


_PLAIN = frozenset({type(None), bool, int, float, str})
