"""The judge of a repository's tests: runs them, with the answered function forwarding its calls to another process.

The judge's copy of the repository has everything but the answer: in the answered function's place stands a stub with the
same signature and docstring, so whoever imports it, by whatever name, finds the stub; in place of a method's class stands the
class of the answer's process. That process has the answer and no tests. What crosses is what crosses in a call test
(`remote`), and besides: changes of list, dict and the like made in place, arguments that come back as themselves, functions
and classes that both sides can import, by name, and the repository's own exceptions.

Payload, marshalled: `files` (contents by path), `request` (see `run_tests`, with `nonce`), `shared` (paths of the program files
that the answer's process has as well). Report as in `run_tests`; its last record also has `over` and `fault`: `over` as in
`remote.Connection`, or `unfit` where a test uses a value that cannot cross; `fault` is what went wrong on our own side before
anything of the answer was needed.
"""

from __future__ import annotations

import _thread
import builtins
import json
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FunctionType
    from typing import Any, NoReturn

    from codemill.tasks.inside import remote, run_tests, wire
else:
    import remote
    import run_tests
    import wire

OURS = ("wire", "remote", "judge", "candidate", "rehearse", "run_tests", "suite_judge", "suite_candidate")
_FUNCTIONS = (type(lambda: None), type(len))
MUTABLE = {"list", "dict", "set", "bytearray", "deque", "Counter", "OrderedDict", "defaultdict"}
_NOT_RAISED = {"unittest", "doctest", "bdb", "pdb"}  # whose exceptions mean something to a test runner
_ARGUMENTS, _KEYWORDS = 4, 8  # of `co_flags`: `*args`, `**kwargs`


def main(payload: bytes) -> None:
    given = marshal.loads(payload)
    request = given["request"]
    reporter = run_tests.Reporter(request["nonce"])
    reporter.send(ready=True)
    folder = os.getcwd()
    request["paths"] = settle(given["files"])
    try:
        pytest = run_tests.enter(request, folder)
    except BaseException as error:
        reporter.end("", [], over="", fault=f"the tests cannot be started: {type(error).__name__}: {error}")
        return
    answer = Answer(wire.Channel(4), folder, given["shared"])
    explain = Explainer(folder)
    tools = run_tests.Tools(request, reporter, folder, NoGuard())
    tools.explain = explain
    problem, broken = answer.load(explain), []
    if not problem:
        stub = Stub(answer)
        names = {"stub": stub.found, "answer": stub.call, "class": answer.subject}
        vars(builtins).update({f"__codemill_{name}__": function for name, function in names.items()})
        broken = run_tests.run_suite(pytest, request, tools)
    problem = problem or answer.problem
    reporter.end(problem, broken, over=answer.over, fault="")
    os._exit(0)  # threads of the tests are not waited for


def settle(files: dict[str, bytes]) -> list[str]:
    """Write a repository into the working folder and look like a Python that was started in it. Returns the folders of its
    environment."""
    for path, data in files.items():
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            os.makedirs(folder)
        with open(path, "wb") as file:
            file.write(data)
    box = os.path.dirname(os.getcwd())
    os.environ.update(HOME=box, TMPDIR=box)
    sys.argv = [""]
    for name in OURS:  # a repository may have modules of these names
        sys.modules.pop(name, None)
    return list(json.loads(os.environ.pop("CODEMILL_READABLE")))


class NoGuard:
    """Nothing of the answer is in this process, so nothing here has to be watched."""

    problem = ""

    def look(self, final: bool = False) -> None: ...

    def look_at_code(self) -> None: ...

    def look_at_plugin(self, plugin: object) -> None: ...


class Explainer(run_tests.Explainer):
    """With the answer's own trace (a claim: only shown) in place of the stub's line."""

    def __call__(self, error: BaseException) -> str:
        text = super().__call__(error)
        lines = [line for line in text.split("\n") if "return __codemill_answer__(" not in line]
        trace = vars(error).get(remote.TRACE_KEY) if hasattr(error, "__dict__") else None
        lines += [f"  {line}" for line in trace.split("\n") if line] if isinstance(trace, str) else []
        return "\n".join(lines)[: run_tests.MESSAGE_CHARACTERS]


class Answer(remote.Connection):
    """The process of the answer."""

    def __init__(self, channel: wire.Channel, folder: str, shared: frozenset[str]) -> None:
        super().__init__(channel)
        self._prefix, self._shared = folder + os.sep, shared
        self._turn = _thread.RLock()  # a test's threads take turns
        self._given: list[list[Any]] = []  # the arguments of the calls that are under way
        self._originals: dict[int, Any] = {}  # what the answer knows by number
        self._names: dict[tuple[str, str], Any] = {}  # what it was told the name of
        self._own: set[type] = set()  # exception classes that are not made up
        self._function: Any = None
        self._codec.resolve(
            argument=lambda place: self._given[-1][place],
            yours=lambda number: self._originals[number],
            name=lambda content: self._names[tuple(content)],
        )

    def load(self, explain: Explainer) -> str:
        """Wait until the answer's file is imported over there; why it could not be, or ''."""
        try:
            self.meet()
            self._function = self.reply()
        except BaseException as error:
            return self.problem or explain(error)
        return "" if isinstance(self._function, remote.Remote) else "what bears the function's name cannot be called"

    def subject(self) -> Any:
        """What the answer's process has under the name asked for: a function, or the class of a method."""
        return self._function

    def forward(self, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Call the answer's function. What it changed in its arguments is changed in these as well."""
        given = [*arguments, *keywords.values()]
        number = object.__getattribute__(self._function, "_codemill_number")
        with self._turn:
            self._given.append(given)
            try:
                match self.request("forward", number, tuple(arguments), keywords):
                    case [value, list(changes)] if all(_is_change(change, len(given)) for change in changes):
                        for place, content in changes:
                            update(given[place], content)
                        return value
            finally:
                self._given.pop()
        self._end("garbage", "the answer does not keep to the protocol: no value of a call")

    def request(self, operation: str, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        with self._turn:
            return super().request(operation, number, arguments, keywords)

    def _packed(self, value: Any) -> Any:
        try:
            return super()._packed(value)
        except wire.Unsendable as error:
            self._unfit(error)

    def _send(self, message: list[Any]) -> None:
        try:
            super()._send(message)
        except wire.Unsendable as error:
            self._unfit(error)

    def compare(self, left: remote.Remote, right: remote.Remote) -> NoReturn:
        # By identity they would always differ, and tests that expect it would tell nothing.
        self._unfit(f"{left._codemill_name} and {right._codemill_name} are compared, and only values can be")

    def _unfit(self, error: object) -> NoReturn:
        # Not for the tests to see: one that expects a TypeError would take this for the answer's.
        self._end("unfit", f"the tests cannot be run apart from the answer: {error}")

    # What crosses ------------------------------------------------------------------------------------------------

    def _refer(self, value: Any) -> Any:
        if isinstance(value, _FUNCTIONS) or (isinstance(value, type) and value not in self._exceptions):
            name = self._name(value)
            if name:
                self._names[name] = value
                return {"name": list(name)}
        if isinstance(value, Exception):  # a context manager of the answer is told how its block ended
            return {"error": self._described(value)}
        return super()._refer(value)

    def _name(self, value: Any) -> tuple[str, str] | None:
        """Module and qualified name by which the answer's process can import the same, if it can."""
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if type(module) is not str or type(name) is not str or not self._is_shared(module):
            return None
        found: Any = sys.modules[module]
        for part in name.split("."):
            found = getattr(found, part, None)
        return (module, name) if found is value else None

    def _is_shared(self, module: str) -> bool:
        """Whether a loaded module is the same over there: the repository's program, its environment, the standard library."""
        loaded = sys.modules.get(module)
        if loaded is None or module == "__main__":
            return False
        file = getattr(loaded, "__file__", None)
        if not isinstance(file, str):
            return module in sys.builtin_module_names
        return not file.startswith(self._prefix) or file[len(self._prefix) :] in self._shared

    def _callback(self, value: Any, function: Callable[..., Any]) -> int:
        number = super()._callback(value, function)
        self._originals[number] = value
        return number

    def _exception_class(self, content: Any) -> Any:
        number, name, base, module = content
        if number not in self._objects:
            own = self._own_exception(module, name, wire.BUILTIN_TYPES[base])
            if own is not None:
                self._objects[number] = own
                self._exceptions[own] = number
                self._own.add(own)
        return super()._exception_class([number, str(name).rpartition(".")[2], base])

    def _own_exception(self, module: Any, name: Any, base: type) -> type | None:
        """The exception class of that name, if the repository or the standard library has it here as well."""
        if type(module) is not str or type(name) is not str or module not in sys.modules:
            return None
        top = module.partition(".")[0]
        inside = str(getattr(sys.modules[module], "__file__", "")).startswith(self._prefix)
        if not inside and (top not in sys.stdlib_module_names or top in _NOT_RAISED):
            return None
        found: Any = sys.modules[module]
        for part in name.split("."):
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        if isinstance(found, type) and issubclass(found, Exception) and wire.builtin_base(found) is base:
            return found
        return None

    def _exception(
        self, kind: type[BaseException], arguments: list[Any], text: str, trace: str, state: Any = None
    ) -> BaseException:
        if kind is SystemExit:  # a test may expect it, and the runner survives it
            return SystemExit(*arguments)
        if kind not in self._own:
            return super()._exception(kind, arguments, text, trace)
        # As a copy is made: the class's own `__init__` may want other arguments than `args` holds.
        error = kind.__new__(kind, *arguments)
        error.args = tuple(arguments)
        if type(state) is dict:
            vars(error).update({key: value for key, value in state.items() if type(key) is str})
        vars(error)[remote.TRACE_KEY] = trace
        return error


def _is_change(change: Any, count: int) -> bool:
    """Whether it is an argument's place and its new contents."""
    return type(change) is tuple and len(change) == 2 and type(change[0]) is int and 0 <= change[0] < count


def update(value: Any, content: Any) -> None:
    """Make a container what the answer made of its copy, the containers inside it as far as they are still the same."""
    kind = type(value)
    if kind is not type(content) or kind.__name__ not in MUTABLE:
        return
    if kind is list:
        kept = [_updated(old, new) for old, new in zip(value, content, strict=False)]
        value[:] = kept + content[len(kept) :]
    elif isinstance(value, dict):
        made = {key: _updated(value[key], new) if key in value else new for key, new in content.items()}
        dict.clear(value)
        dict.update(value, made)
    elif kind is bytearray:
        value[:] = content
    elif content != value:
        value.clear()
        value.extend(content) if hasattr(value, "extend") else value.update(content)


def _updated(old: Any, new: Any) -> Any:
    if type(old) is type(new) and type(old).__name__ in MUTABLE:
        update(old, new)
        return old
    return new


class Stub:
    """Stands behind the stub's text: gets its parameters by name, and hands on those that are not its defaults."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def found(self, function: FunctionType) -> FunctionType:
        """The stub's innermost decorator."""
        code = function.__code__
        count, names = code.co_argcount, code.co_varnames
        end = count + code.co_kwonlyargcount
        defaults = function.__defaults__ or ()
        self._defaults = dict(zip(names[count - len(defaults) : count], defaults, strict=True))
        self._defaults |= function.__kwdefaults__ or {}
        self._only_positional = names[: code.co_posonlyargcount]
        self._positional, self._named = names[:count], names[count:end]
        self._rest = names[end] if code.co_flags & _ARGUMENTS else None
        self._named_rest = names[end + (self._rest is not None)] if code.co_flags & _KEYWORDS else None
        return function

    def call(self, given: dict[str, Any]) -> Any:
        """A default is left out, so that it is the answer's own over there: it may be an object that cannot cross."""
        changed = {name for name, value in given.items() if self._defaults.get(name, self._defaults) is not value}
        rest = given[self._rest] if self._rest is not None else ()
        needed = set(self._positional) if rest else changed
        by_place = [place for place, name in enumerate(self._only_positional) if name in needed]
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        for place, name in enumerate(self._positional):
            if name in needed or (by_place and place <= by_place[-1]):
                if len(arguments) == place:
                    arguments.append(given[name])
                else:  # one before it is left out
                    keywords[name] = given[name]
        arguments += rest
        keywords.update((name, given[name]) for name in self._named if name in changed)
        if self._named_rest is not None:
            keywords.update(given[self._named_rest])
        return self._answer.forward(arguments, keywords)
