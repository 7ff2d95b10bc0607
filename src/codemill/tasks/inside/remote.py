"""The answer as the judge sees it: remote functions, iterators and objects, known by number.

Calls and attributes ask the answer's process. What decides a test never does: `==`, `!=`, `hash` and `bool` go by
identity, `<` and arithmetic do not exist, so that no answer returns something equal to everything, and none is shown
the value it is compared with. Exceptions of the answer are raised here as the builtin class nearest to theirs; what is no
`Exception` there (SystemExit, KeyboardInterrupt) ends the run.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from codemill.tasks.inside import wire
else:
    import wire

_NESTING = 30  # callbacks inside calls inside callbacks
_BUILTIN_FUNCTION = type(len)
_GENERATOR = type(_ for _ in ())
_TEXT_KEY = "what the answer's exception says"  # in the instance's own dictionary: no attribute can collide
TRACE_KEY = "where the answer raised it"


class Ended(BaseException):
    """The answer is gone or breaks the protocol: no test can go on. Not for a test's own `except Exception`."""


class Connection:
    """Asks the answer's process and serves its calls of the test's functions.

    `over` says why no more can be asked: `gone` the process ended or closed the wire, `absent` it did so before it ran
    anything of the answer, `garbage` it sent what is no message, `left` it raised SystemExit or the like; '' while all
    is well. `problem` is the same for people.
    """

    def __init__(self, channel: wire.Channel) -> None:
        self.over = self.problem = ""
        self.quiet = False  # while values are shown for a message, nothing is asked
        self._channel = channel
        self._objects: dict[int, Any] = {}
        self._exceptions: dict[type, int] = {}
        self._callbacks: list[Callable[..., Any]] = []
        self._callback_numbers: dict[int, int] = {}
        self._raised: list[BaseException] = []  # by the test's functions, and on their way through the answer
        self._nesting = 0
        self._codec = wire.Codec(self._refer, {"object": self._object, "exception": self._exception_class})

    def meet(self) -> None:
        """Wait until the other process is there, before it runs anything of the answer."""
        try:
            self._channel.receive()
        except wire.Closed:
            self._end("absent", "the process of the answer did not start")

    def ask(self, operation: str, number: int, *arguments: Any) -> Any:
        return self.request(operation, number, arguments, {})

    def request(self, operation: str, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The value that the answer replies, or the exception it raised."""
        if self.over:
            raise Ended(self.problem)
        if self.quiet:
            raise RuntimeError("nothing is asked now")
        pack = self._packed
        message: list[Any] = [operation, number, [pack(argument) for argument in arguments]]
        if keywords:
            message += [list(keywords), [pack(value) for value in keywords.values()]]
        self._send(message)
        try:
            return self.reply()
        except (StopIteration, StopAsyncIteration) as error:
            if operation in ("next", "throw"):
                raise
            # As inside a generator: out of a call it would end the test's own `map` or loop without a word.
            raise _renamed(error) from None

    def reply(self) -> Any:
        """Wait for the reply to what was asked last, serving calls of the test's functions meanwhile."""
        while True:
            try:
                message = self._codec.loads(self._channel.receive())
            except wire.Closed:
                self._end("gone", "the process of the answer ended")
            except wire.WireError as error:
                self._end("garbage", f"the answer does not keep to the protocol: {error}")
            match message:
                case [int(0), value]:
                    return value
                case [int(1), type() as kind, list(arguments), str(text), str(trace), *rest] if issubclass(
                    kind, BaseException
                ):
                    raise self._exception(kind, arguments, text, trace, *rest)
                case [int(4), int(number)] if 0 <= number < len(self._raised):
                    raise self._raised[number]
                case [int(2), int(number), list(arguments), *keywords] if 0 <= number < len(self._callbacks):
                    self._serve(self._callbacks[number], arguments, keywords)
                case _:
                    self._end("garbage", "the answer does not keep to the protocol: neither a reply nor a call")

    def _packed(self, value: Any) -> Any:
        return self._codec.pack(value)

    def _send(self, message: list[Any]) -> None:
        try:
            self._channel.send(self._codec.dumps(message))
        except wire.Closed:
            self._end("gone", "the process of the answer ended")

    def _end(self, over: str, problem: str) -> NoReturn:
        self.over, self.problem = over, problem
        raise Ended(problem)

    def compare(self, left: Remote, right: Remote) -> None:
        """Called when two objects of the answer are compared."""

    # Calls of the test's functions ---------------------------------------------------------------------------------

    def _serve(self, function: Callable[..., Any], arguments: list[Any], keywords: list[Any]) -> None:
        self._nesting += 1
        try:
            if self._nesting > _NESTING:
                raise RecursionError(f"the answer and the test call each other more than {_NESTING} levels deep")
            named = dict(zip(*keywords, strict=True)) if keywords else {}
            reply = [0, self._packed(function(*arguments, **named))]
        except Exception as error:
            reply = [1, *self._described(error)]
        finally:
            self._nesting -= 1
        self._send(reply)

    def _described(self, error: BaseException) -> list[Any]:
        """An exception of the test for the answer: class, arguments, text, and the number by which it comes back."""
        self._raised.append(error)
        kind = self._codec.pack(wire.builtin_base(type(error)))
        if isinstance(error, AssertionError):  # says what was expected
            return [kind, [], "", len(self._raised) - 1]
        return [kind, self._codec.pack_arguments(error), shown(error, str), len(self._raised) - 1]

    def _refer(self, value: Any) -> Any:
        """How an object that is no value crosses to the answer: its own go back to it, the test's can only be called."""
        kind = type(value)
        if isinstance(value, Remote):
            return {"remote": object.__getattribute__(value, "_codemill_number")}
        if isinstance(value, type) and value in self._exceptions:
            return {"remote": self._exceptions[value]}
        name = getattr(value, "__name__", "")
        if kind is _BUILTIN_FUNCTION and vars(builtins).get(name) is value:
            return {"builtin": name}
        if hasattr(kind, "__next__"):
            return {"iterator": self._callback(value, value.__next__)}
        if callable(value):
            return {"function": self._callback(value, value)}
        raise wire.Unsendable(
            f"an object of class {kind.__name__} cannot cross to the answer: only builtin values and functions do"
        )

    def _callback(self, value: Any, function: Callable[..., Any]) -> int:
        known = self._callback_numbers.get(id(value))
        if known is not None:
            return known
        number = self._callback_numbers[id(value)] = len(self._callbacks)
        self._callbacks.append(function)  # keeps `value` alive as well, so that its id stays its own
        return number

    # Objects of the answer -----------------------------------------------------------------------------------------

    def _object(self, content: Any) -> Any:
        number, kind, name = content
        if type(number) is not int or type(name) is not str:
            raise wire.WireError("an object without number or name")
        if number not in self._objects:
            self._objects[number] = _KINDS[kind](self, number, kind, name)
        return self._objects[number]

    def _exception_class(self, content: Any) -> Any:
        number, name, base = content
        if type(number) is not int or not issubclass(wire.BUILTIN_TYPES[base], BaseException):
            raise wire.WireError("an exception class without number or base")
        if number not in self._objects:
            made = type(name, (wire.BUILTIN_TYPES[base],), {"__str__": lambda error: vars(error).get(_TEXT_KEY, "")})
            self._objects[number] = made
            self._exceptions[made] = number
        return self._objects[number]

    def _exception(self, kind: type[BaseException], arguments: list[Any], text: str, trace: str) -> BaseException:
        if not issubclass(kind, Exception):
            self._end("left", f"the answer raised {kind.__name__}: {text}".rstrip(": "))
        error: BaseException = wire.exception(kind, arguments, text)
        vars(error)[_TEXT_KEY] = text
        vars(error)[TRACE_KEY] = trace
        return error


# In every class below, because a class without a docstring gets None for one.
_DOC = property(lambda self: _ask(self, "getattr", "__doc__"))


class Remote:
    # An object of the answer. (No docstring: `__doc__` is the answer's.)
    __slots__ = ("_codemill_connection", "_codemill_kind", "_codemill_made", "_codemill_name", "_codemill_number")

    def __init__(self, connection: Connection, number: int, kind: str, name: str) -> None:
        put = object.__setattr__
        put(self, "_codemill_connection", connection)
        put(self, "_codemill_number", number)
        put(self, "_codemill_kind", kind)
        put(self, "_codemill_name", name)
        put(self, "_codemill_made", False)

    __doc__ = _DOC

    def __eq__(self, other: object) -> bool:
        if self is not other and isinstance(other, Remote):
            self._codemill_connection.compare(self, other)
        return self is other

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delattr", name)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return _ask(self, "len")

    def __iter__(self) -> Any:
        return _ask(self, "iter")

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "delitem", key)

    def __contains__(self, item: Any) -> bool:
        # An answer's function could return what contains everything; what the test made itself, of a class under
        # test, has `in` as one of its methods.
        if not self._codemill_made:
            raise TypeError(f"{shown(self)} cannot be searched")
        return _ask(self, "contains", item)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and _ask(self, "isinstance", value) is True

    def __str__(self) -> str:
        return _text(self, "str")

    def __repr__(self) -> str:
        return _text(self, "repr")


class RemoteFunction(Remote):
    __slots__ = ()
    __doc__ = _DOC

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        value = self._codemill_connection.request("call", self._codemill_number, arguments, keywords)
        if self._codemill_kind == "class" and isinstance(value, Remote):
            object.__setattr__(value, "_codemill_made", True)
        return value


class RemoteIterator(Remote):
    __slots__ = ()
    __doc__ = _DOC

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return _ask(self, "next")


class RemoteGenerator(RemoteIterator):
    __slots__ = ()
    __doc__ = _DOC
    __class__ = property(lambda self: _GENERATOR)  # what `isinstance` asks as well

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        """As a generator's; a traceback cannot cross."""
        error = kind if value is None else value
        return _ask(self, "throw", error() if isinstance(error, type) else error)


def _renamed(error: Exception) -> RuntimeError:
    """A `RuntimeError` that names the exception and keeps the answer's trace."""
    made = RuntimeError(f"the answer raised {type(error).__name__}")
    vars(made).update(vars(error))
    return made


def _by_contents(name: str) -> Callable[..., Any]:
    """An operator on the builtin value that the object holds at the moment, here and not at the answer's."""

    def method(self: Remote, *operands: Any) -> Any:
        others = [contents(operand) for operand in operands]
        return getattr(contents(self), name, lambda *_: NotImplemented)(*others)

    return method


class RemoteValue(Remote):
    # An instance of a class under test that is made from a builtin one.
    __slots__ = ()
    __doc__ = _DOC

    def __bool__(self) -> bool:
        return bool(contents(self))

    def __hash__(self) -> int:
        return hash(contents(self))

    __eq__, __ne__, __lt__, __le__, __gt__, __ge__ = map(
        _by_contents, ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
    )
    __add__, __radd__, __sub__, __rsub__ = map(_by_contents, ("__add__", "__radd__", "__sub__", "__rsub__"))


def contents(value: Any) -> Any:
    """The builtin value that a `RemoteValue` holds; anything else is itself."""
    if type(value) is not RemoteValue:
        return value
    found = _ask(value, "contents")
    if isinstance(found, Remote):  # its operators would ask the answer, and show it the operand
        raise TypeError(f"an object of class {value._codemill_name} holds no builtin value")
    return found


_KINDS: dict[str, type[Remote]] = {
    "value": RemoteValue,
    "function": RemoteFunction,
    "class": RemoteFunction,
    "iterator": RemoteIterator,
    "generator": RemoteGenerator,
    "module": Remote,
    "object": Remote,
}


def _ask(remote: Remote, operation: str, *arguments: Any) -> Any:
    return remote._codemill_connection.ask(operation, remote._codemill_number, *arguments)


def _text(remote: Remote, operation: str) -> str:
    if remote._codemill_connection.quiet:
        return f"<an object of class {remote._codemill_name}, not a builtin value>"
    return _ask(remote, operation)


def shown(value: Any, text: Callable[[Any], str] = repr, limit: int = 400) -> str:
    """A value for people, cut in the middle; never an exception, however odd the value."""
    try:
        whole = text(value)
    except Exception as error:
        return f"<a {type(value).__name__} that cannot be shown: {type(error).__name__}>"
    return whole if len(whole) <= limit else f"{whole[: limit // 2]} ... {whole[-limit // 2 :]}"
