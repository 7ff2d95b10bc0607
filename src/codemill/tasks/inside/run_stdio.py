"""Runs one Python program in a fork of a warm interpreter, as if it had been started with its input.

Payload: the length of the program in four bytes, the program, then what it finds on standard input. Nothing is reported
here: the judge looks at what the program prints and how it ends.
"""

from __future__ import annotations

import atexit
import io
import linecache
import os
import sys
import threading
import traceback
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "main.py"


def main(payload: bytes) -> None:
    size = int.from_bytes(payload[:4], "little")
    program, data = payload[4 : 4 + size], payload[4 + size :]
    _set_input(data)
    module = _fresh_main()
    try:
        program.decode()  # where a file would be refused, bytes are not
        exec(compile(program, NAME, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except SystemExit as leaving:
        _finish()
        if leaving.code is not None and not isinstance(leaving.code, int):
            print(leaving.code, file=sys.stderr)
        raise
    except BaseException as error:
        _show(error, program)
        _finish()
        raise SystemExit(1) from None
    _finish()


def _set_input(data: bytes) -> None:
    """A pipe that holds it all, or where that is too small a file without a name."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        written = os.write(writing, data) if data else 0
    except BlockingIOError:
        written = 0
    os.close(writing)
    if written < len(data):
        os.close(reading)
        reading = os.open(".stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(".stdin")
        while data:
            data = data[os.write(reading, data) :]
        os.lseek(reading, 0, os.SEEK_SET)
    os.dup2(reading, 0)
    os.close(reading)


def _fresh_main() -> types.ModuleType:
    """The state of an interpreter that has just started with a script. The streams are made anew: those of the warm
    one remember properties of what it had there."""
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=NAME, __builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = module
    sys.modules.pop(__name__, None)
    sys.argv = [NAME]
    sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w")  # type: ignore[misc]
    return module


def _stream(descriptor: int, mode: str) -> Any:
    return io.open(descriptor, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: UP020


def _show(error: BaseException, program: bytes) -> None:
    """The traceback as an interpreter prints it, without the frames of this script."""
    lines = program.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[NAME] = (len(program), None, lines, NAME)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != NAME:
        trace = trace.tb_next
    if sys.excepthook is sys.__excepthook__:
        traceback.print_exception(type(error), error, trace)  # that one would look for the lines in a file
    else:
        sys.excepthook(type(error), error.with_traceback(trace), trace)


def _finish() -> None:
    """What an interpreter does at its end: wait for threads, then run what was registered for it."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:  # noqa: SIM105 (no import just for this)
        sys.stdout.flush()
    except ValueError:  # the program closed it
        pass
