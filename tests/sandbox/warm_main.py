"""Loaded into the warm interpreters of the sandbox tests: executes the code that a test sends."""

import json
import os
import sys


def main(payload: bytes) -> None:
    request = json.loads(payload)
    for name, text in {**request["files"], "main.py": request["code"]}.items():
        if os.path.dirname(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w", encoding="latin-1" if name in request["files"] else "utf-8") as out:
            out.write(text)
    sys.argv = ["main.py", *request["arguments"]]
    module = sys.modules["__main__"] = type(sys)("__main__")
    exec(compile(request["code"], "main.py", "exec", dont_inherit=True), module.__dict__)
