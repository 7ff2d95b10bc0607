"""Runs one program and its test inside the jail, and reports on descriptor 3 whether the test came to its end.

Payload, JSON: `nonce`, `program` (prefix, answer and suffix), `test` (the test code with its call).
Report, JSON lines on descriptor 3, each with the nonce: `{"ready": true}` before any of the answer runs, and
`{"end": true, "tests": [...], "seconds": s}` after the last statement of the test.

The answer and its test share this process, as in the reference implementation, so an answer that goes looking can find
the nonce in this script's frame. Everything short of that (ending the process, printing, patching builtins) does not pass.
"""

import builtins
import json
import os
import sys
import time
import traceback


def main(payload: bytes) -> None:
    request = json.loads(payload)
    write, now, leave, dumps = os.write, time.monotonic, os._exit, json.dumps
    nonce = request["nonce"]
    flush = sys.stdout.flush
    write(3, (dumps({"nonce": nonce, "ready": True}) + "\n").encode())

    module = type(sys)("program")
    sys.modules["program"] = module
    namespace = vars(builtins)
    original = dict(namespace)
    error = None
    started = now()
    try:
        exec(compile(request["program"], "program.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        # The test gets Python's own builtins back, whatever the answer did to them.
        namespace.clear()
        namespace.update(original)
        module.__dict__["__builtins__"] = builtins
        sys.settrace(None)
        sys.setprofile(None)
        exec(compile(request["test"], "test.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException as caught:
        error = caught
    seconds = now() - started
    namespace.clear()
    namespace.update(original)
    test = {"id": "check", "passed": error is None, "message": describe(error) if error is not None else ""}
    test["memory"] = isinstance(error, MemoryError)
    try:  # noqa: SIM105 (no import just for this)
        flush()
    except BaseException:  # an answer may have closed it
        pass
    report = {"nonce": nonce, "end": True, "tests": [test], "seconds": seconds}
    write(3, (dumps(report) + "\n").encode())
    leave(0)


def describe(error: BaseException) -> str:
    """Exception type, message and where it happened; a hostile `__str__` is not trusted to work."""
    try:
        text = f"{type(error).__name__}: {error}"[:600]
        for frame in traceback.extract_tb(error.__traceback__)[-4:]:
            if frame.filename in ("program.py", "test.py"):
                text += f"\n  {frame.filename}:{frame.lineno} in {frame.name}"
        return text
    except BaseException:
        return "an exception that cannot be printed"
