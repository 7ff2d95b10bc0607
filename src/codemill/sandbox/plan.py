"""From a job and its policy to the plan that the launcher carries out, with the layers this machine has."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from codemill.core.errors import InputError
from codemill.sandbox import seccomp
from codemill.sandbox.job import Job
from codemill.sandbox.policy import MIB, Axis, Policy

# Landlock's rights over files, by the version (ABI) that brought them.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_FIRST, _REFER, _TRUNCATE, _IOCTL_DEV = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
_BIND_AND_CONNECT_TCP = 0b11
_SCOPE_SOCKETS_AND_SIGNALS = 0b11
_SCOPE_ABI = 6

_SYSTEM_TREES = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_TEXTS = {
    "/etc/passwd": "job:x:1000:1000::/tmp:/bin/sh\nroot:x:0:0::/:/bin/false\n",
    "/etc/group": "job:x:1000:\nroot:x:0:\n",
}
_DATA_SLACK = 1024 * MIB  # stacks of threads, code caches and heaps that are writable before they are touched
# `{box}` is the private folder as the program sees it.
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "{box}",
    "TMPDIR": "{box}",
    "USER": "job",
    "LOGNAME": "job",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Numeric libraries and the allocator reserve address space per core, and that is limited.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What the sandbox is built of here. `landlock` is the version of its interface, 0 for none."""

    namespaces: bool = True  # user, pid, net, ipc, uts
    mounts: bool = True  # mount namespace: a root of its own; needs the others
    landlock: int = _SCOPE_ABI
    seccomp: bool = True
    memory_group: bool = True  # a control group for the memory of the tree, where one can be made
    users: bool = True  # as root only: a user of its own for each job, where it can reach the trees it may read

    @property
    def own_mounts(self) -> bool:
        return self.namespaces and self.mounts

    @property
    def signals_scoped(self) -> bool:
        return self.namespaces or self.landlock >= _SCOPE_ABI

    def enforced_by(self, *, own_user: bool, address_space: bool = True) -> dict[Axis, str]:
        """Axis to the names of what enforces it, "nothing" where nothing does. `own_user`: as in the plan;
        `address_space`: as in the policy."""
        counted = own_user or os.geteuid() != 0  # the kernel does not count the processes of root
        landlock = f"Landlock {self.landlock}" if self.landlock else ""
        seccomp_ = "seccomp" if self.seccomp else ""
        names = {
            Axis.FILES: ["mount namespace" if self.own_mounts else "", landlock, seccomp_],
            Axis.NETWORK: [
                "net namespace" if self.namespaces else "",
                seccomp_,
                landlock if self.landlock >= 4 else "",
            ],
            Axis.SYSCALLS: [seccomp_],
            Axis.PRIVILEGES: [
                "user namespace" if self.namespaces else "",
                "own user" if own_user else "",
                "no capabilities, no new privileges",
            ],
            Axis.PROCESSES: [
                "pid namespace" if self.namespaces else "subreaper",
                landlock if self.landlock >= _SCOPE_ABI else "",
                seccomp_ if not self.signals_scoped else "",
                "RLIMIT_NPROC, watcher" if counted else "watcher",
            ],
            Axis.MEMORY: [
                "control group" if self.memory_group else "",
                "RLIMIT_AS, watcher" if address_space else "RLIMIT_DATA, watcher",
            ],
            Axis.TIME: ["wall timer, RLIMIT_CPU, watcher"],
            Axis.OUTPUT: ["capped pipes, RLIMIT_FSIZE", "tmpfs size" if self.own_mounts else "disk watcher"],
        }
        return {axis: ", ".join(filter(None, parts)) or "nothing" for axis, parts in names.items()}


def isolation(
    layers: Layers, breaches: Collection[Axis], *, own_user: bool, address_space: bool = True
) -> dict[str, str]:
    names = layers.enforced_by(own_user=own_user, address_space=address_space)
    return {axis.value: "nothing" if axis in breaches else names[axis] for axis in Axis}


def base_python() -> str:
    """The interpreter itself, outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def python_argv(script: str | Path, *arguments: str) -> tuple[str, ...]:
    """Run a script of the job with the base interpreter: no site packages, no script folder on the path.

    `-I` would say the same but also ignores PYTHONHASHSEED, and a run that cannot be repeated is worth less; the
    environment it guards against is the sandbox's own, fixed one.
    """
    return (base_python(), "-s", "-P", "-S", "-B", str(script), *arguments)


def build_plan(job: Job, policy: Policy, layers: Layers, *, supervisor: int) -> dict[str, Any]:
    """Plain data for the launcher. Descriptors and the private folder (`box`) are filled in by the supervisor."""
    trees, links = _readable(job.readable)
    owned = own_user(layers, trees)
    if job.kept is not None and owned != (job.kept.owner is not None):
        raise InputError(f"{job.kept.path}: a job cannot use this folder as the user that it was made for")
    counted = owned or os.geteuid() != 0
    places = [*trees, *(path for path in _DEVICES if os.path.exists(path))]
    return {
        "supervisor": supervisor,
        "namespaces": layers.namespaces,
        "mounts": layers.own_mounts,
        "mountpoint": _mountpoint() if layers.own_mounts else "",
        "trees": places,
        "links": {**links, "/dev/shm": "/tmp", **({"/proc/self/exe": str(job.self_exe)} if job.self_exe else {})},
        "texts": _TEXTS,
        "disk_bytes": policy.disk_bytes,
        "files": {name: bytes(data) for name, data in job.files.items()},
        "limits": job_limits(policy, others=2 if layers.namespaces and not owned else 0),
        "landlock": _landlock(layers, trees) if layers.landlock else None,
        "seccomp": _filter(layers, counted) if layers.seccomp else None,
        "own_pid": seccomp.OWN_PID,
        "kept": job.kept is not None,
        "argv": [os.fspath(argument) for argument in job.argv],
        "fixed_env": _ENVIRONMENT,
        "env": dict(job.env),
        "owner": (job.kept.owner if job.kept else 0) if owned else None,  # 0: one that no other job has
    }


def own_user(layers: Layers, trees: Iterable[str] | None = None) -> bool:
    """Whether the job can be given a user that owns nothing: only root can, and the trees must be open to others.

    With a root of its own the folders above a tree are the sandbox's, and count for nothing. `trees` None is what
    every job may read.
    """
    trees = _readable(())[0] if trees is None else list(trees)
    if os.geteuid() != 0 or not layers.users:
        return False
    above = set() if layers.own_mounts else {parent for path in trees for parent in Path(path).parents}
    below = {path: 0o5 if os.path.isdir(path) else 0o4 for path in trees}
    needs = {**{str(path): 0o1 for path in above}, **below}
    return all(os.stat(path).st_mode & bits == bits for path, bits in needs.items())


def gives_own_user(layers: Layers, readable: Iterable[Path]) -> bool:
    """The same for what a job asks to be shown; a folder that it shall work in must belong to that user."""
    return own_user(layers, _readable(readable)[0])


def _mountpoint() -> str:
    """Any folder that exists: the new root is put there for a moment, in a mount table of its own."""
    return next(path for path in ("/tmp", "/mnt", "/usr") if os.path.isdir(path))


def _readable(extra: Iterable[Path]) -> tuple[list[str], dict[str, str]]:
    """Real paths of the trees to show, none inside another, and the symbolic links that lead to them."""
    wanted = [os.path.abspath(path) for path in extra]
    for path in wanted:
        if not os.path.exists(path):
            raise InputError(f"{path}: readable path of a sandbox job does not exist")
        if os.path.realpath(path) in ("/", "/tmp", os.path.realpath(tempfile.gettempdir())):
            raise InputError(f"{path}: too wide to be readable for a sandbox job; name the folders that it needs")
    base = [sys.base_prefix, sys.base_exec_prefix, base_python(), *_SYSTEM_TREES, *_SYSTEM_FILES]
    links: dict[str, str] = {}
    real: set[str] = set()
    for path in [*(path for path in base if os.path.exists(path)), *wanted]:
        target = os.path.realpath(path)
        real.add(target)
        if target != path:
            links[path] = target
    trees = [path for path in sorted(real) if not any(path.startswith(other + "/") for other in real)]
    return trees, links


def job_limits(policy: Policy, *, others: int) -> list[tuple[str, int, int]]:
    """(name, soft, hard). The processor limit's soft signal can be ignored, the hard one a second later cannot.

    `others`: processes of ours, the launcher and the first one, that the kernel counts with the job's.
    """
    seconds = max(1, int(-(-policy.cpu_seconds // 1)))
    plain = {
        **_memory_limits(policy),
        "RLIMIT_FSIZE": policy.file_bytes,
        "RLIMIT_NOFILE": policy.descriptors,
        "RLIMIT_NPROC": policy.processes + others,
        "RLIMIT_STACK": 8 * MIB,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 65536,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0,
    }
    return [("RLIMIT_CPU", seconds, seconds + 1), *((name, value, value) for name, value in plain.items())]


def _memory_limits(policy: Policy) -> dict[str, int]:
    """Reserved memory counts as address space but not as data, which is what a process may write to of its own."""
    if policy.address_space:
        return {"RLIMIT_AS": policy.memory_bytes}
    return {"RLIMIT_DATA": policy.memory_bytes + _DATA_SLACK}


def _landlock(layers: Layers, trees: Iterable[str]) -> dict[str, Any]:
    abi = layers.landlock
    shown = (*trees, *(_TEXTS if layers.own_mounts else ()))  # without mounts those names are the host's files
    handled = _FIRST | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    read = EXECUTE | READ_FILE | READ_DIR
    device = READ_FILE | WRITE_FILE | (handled & _TRUNCATE)
    return {
        "handled": (handled, _BIND_AND_CONNECT_TCP, _SCOPE_SOCKETS_AND_SIGNALS),
        "size": 24 if abi >= _SCOPE_ABI else 16 if abi >= 4 else 8,
        "rules": [*((path, read) for path in shown), *((path, device) for path in _DEVICES)],
        "private": handled & ~(_MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV),
        "file_access": EXECUTE | READ_FILE | WRITE_FILE | (handled & _TRUNCATE),
    }


def warm_filters(layers: Layers, plan: dict[str, Any]) -> dict[str, bytes | None]:
    """What a warm interpreter loads itself, and what its calls load, if they do not load all of it."""
    if not layers.seccomp or not layers.own_mounts:  # without mounts the filter would bind the cleaning up too
        return {"own_seccomp": None, "seccomp": plan["seccomp"]}
    return {"own_seccomp": _filter(layers, True, "first"), "seccomp": _filter(layers, True, "rest")}


@cache
def _filter(layers: Layers, counted: bool, part: Literal["all", "first", "rest"] = "all") -> bytes:
    return seccomp.build(
        os.uname().machine,
        own_mounts=layers.own_mounts,
        signals_scoped=layers.signals_scoped,
        one_group=not layers.namespaces and not counted,
        part=part,
    )
