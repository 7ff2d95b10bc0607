"""Runs inside the jail: carries out the steps of a build and hands back what they made.

Request, JSON on standard input: `steps`, a list of commands, and `outputs`, the folder whose files are wanted.
Report on descriptor 3: `{"ready": true}` before anything else runs, then for each step its exit status, as JSON lines;
`missing` names a tool that is not there. After a last step that succeeded comes a line `{"files": [[path, size], ...]}`
and then the bytes of these files: those that were not there before the first step.
"""

import json
import os
import stat
import sys

_CHUNK = 1 << 20


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    os.set_inheritable(3, False)
    _say({"ready": True})
    os.makedirs(request["outputs"], exist_ok=True)
    before = {path for path, _ in _files(request["outputs"], "")}
    for argv in request["steps"]:
        try:
            child = os.posix_spawnp(argv[0], argv, os.environ)
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
            # Without a slash it is a tool; with one it may be what an earlier step should have made.
            _say({"code": 127, "missing": "" if "/" in argv[0] else argv[0]})
            sys.exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _say({"code": code})
        if code:
            sys.exit(1)
    found = sorted(file for file in _files(request["outputs"], "") if file[0] not in before)
    _say({"files": found})
    for path, size in found:
        _copy(os.path.join(request["outputs"], path), size)


def _say(record: object) -> None:
    _write(json.dumps(record).encode() + b"\n")


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(3, view) :]


def _files(folder: str, prefix: str) -> list[tuple[str, int]]:
    """Names and sizes of the regular files below a folder. Links are not followed."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                found += _files(entry.path, f"{prefix}{entry.name}/")
            elif stat.S_ISREG(status.st_mode):
                found.append((prefix + entry.name, status.st_size))
    return found


def _copy(path: str, size: int) -> None:
    """Exactly `size` bytes: a file that something still writes to must not shift those after it."""
    with open(path, "rb") as source:
        while size > 0:
            block = source.read(min(size, _CHUNK)) or bytes(min(size, _CHUNK))
            _write(block)
            size -= len(block)


if __name__ == "__main__":
    main()
