"""Loaded into the warm interpreters of `test_warm`: the functions that its calls run."""

import ctypes
import os
import signal
import sys
import time


def echo(payload: bytes) -> None:
    os.write(3, payload)


def nothing(payload: bytes) -> None:
    pass


def ask(payload: bytes) -> None:
    os.write(4, payload)
    os.write(3, os.read(4, 1000))


def answer(payload: bytes) -> None:
    os.write(4, payload + os.read(4, 1000))
    time.sleep(60)


def hold_secret(payload: bytes) -> None:
    """Has it in its memory, prints it and reports it."""
    kept = [payload.decode(), payload * 100, bytearray(payload)]
    print(kept)
    print(kept, file=sys.stderr)
    os.write(3, payload)
    os.read(4, 1)


def look_for(payload: bytes) -> None:
    """Reads all memory near what it can name, page by page; `write` says which pages there are, without a crash."""
    first, second = payload.split(b"|")
    libc = ctypes.CDLL(None)
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    heap = libc.sbrk
    heap.restype = ctypes.c_void_p
    anchors = [id(x) for x in (payload, os, sys.modules, time.sleep, libc)] + [heap(0)]
    seen, found = set(), 0
    for anchor in anchors:
        for page in range((anchor >> 12) - 6000, (anchor >> 12) + 6000):
            if page in seen or page <= 0:
                continue
            seen.add(page)
            if libc.write(theirs, ctypes.c_void_p(page << 12), ctypes.c_size_t(4096)) == 4096:
                text = os.read(ours, 4096)
                at = text.find(first)
                while at >= 0:
                    found += text[at + len(first) : at + len(first) + len(second)] == second
                    at = text.find(first, at + 1)
    os.write(3, f"{found} of {len(seen)}".encode())


def look_for_own(payload: bytes) -> None:
    """Holds what it looks for: the search works."""
    kept = [payload.replace(b"|", b"") * 2, payload.replace(b"|", b"")]
    look_for(payload)
    del kept


def leave_things(payload: bytes) -> None:
    os.makedirs("deep/er")
    with open("deep/er/file", "w") as out:
        out.write("x" * 100_000)
    os.symlink("/etc", "link")
    os.mkdir(os.environ["HOME"] + "/beside")
    os.chmod(".", 0)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)


def look_around(payload: bytes) -> None:
    state = os.stat(".")
    os.write(
        3,
        repr(
            (os.listdir("."), os.listdir(os.environ["HOME"]), oct(state.st_mode), state.st_uid == os.getuid())
        ).encode(),
    )


def crash(payload: bytes) -> None:
    ctypes.string_at(0)


def spin(payload: bytes) -> None:
    while True:
        pass


def flood(payload: bytes) -> None:
    while True:
        os.write(3, bytes(65536))


def print_a_lot(payload: bytes) -> None:
    for number in range(100_000):
        print(number)


def count_children(payload: bytes) -> None:
    os.write(
        3, f"{os.getpid()} {os.getppid()} {sorted(os.listdir('/proc')) if os.path.exists('/proc') else ''}".encode()
    )
