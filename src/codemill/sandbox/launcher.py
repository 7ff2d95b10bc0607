"""Runs inside the child process, before the program: takes every right away, then becomes the program.

The supervisor sends this file compiled, with a plan made by `codemill.sandbox.plan`, so it uses the standard library's
cheapest modules only and decides nothing itself. Three processes take part:

    launcher   started by the supervisor; makes the namespaces, then waits until the tree is gone
    init       first process of the pid namespace; reaps, reports, and its end kills every process of the tree
    program    takes the locks on and executes the job's argv

Without namespaces launcher and init are one process, which adopts orphans and kills the tree by itself. Lines on the
status descriptor tell the supervisor how far things are; `error STEP TEXT` means that the program was not started.
"""

# ruff: noqa: SIM105 - contextlib would be the most expensive import of all

from __future__ import annotations

import _signal
import ctypes
import errno
import fcntl
import os
import resource
import stat
import struct

TYPE_CHECKING = False  # the typing module costs more than all the others together
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Plan = dict[str, Any]

_PR_SET_PDEATHSIG, _PR_SET_SECUREBITS, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 28, 24, 36
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_CAPABILITY_HEADER, _NO_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0), bytes(24)
_SECURE_NO_ROOT = 0x2F  # no-root and no-setuid-fixup and their locks, and the lock of keep-caps

_NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # user, pid, net, ipc, uts
_NEW_MOUNTS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _AT_EMPTY_PATH = -100, 0x8000, 0x1000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # one number on every machine, like those of Landlock
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_CLOSE_RANGE = 436
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446

_INSIDE_ID = 1000
FIRST_OWN_USER = 1_900_000_000  # with the launcher's process id added: a user that no other job has
WORK = "/codemill"  # the program's working folder, inside its private one
_UNTIL_FILLED = "size=1024t,nr_inodes=1t,mode=700"  # limits can be changed later, "no limit" cannot
_DEEPEST = 256  # folders in a folder that is copied: each keeps two descriptors open
_INODE_BYTES = 4096  # a private folder gets one inode for so many bytes

_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A step that could not be done; the program must not start."""

    def __init__(self, step: str, text: str) -> None:
        super().__init__(text)
        self.step = step


def _check(step: str, result: int) -> int:
    if result < 0:
        raise Failed(step, os.strerror(ctypes.get_errno()))
    return result


def _syscall(step: str, number: int, *arguments: Any) -> int:
    return _check(step, _libc.syscall(ctypes.c_long(number), *arguments))


def _prctl(option: int, *arguments: int) -> int:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = _libc.prctl(option, *words)
    return result


def tell(plan: Plan, line: str) -> None:
    try:
        os.write(plan["status"], line.replace("\n", " ").encode("utf-8", "replace") + b"\n")
    except BrokenPipeError:
        pass  # the supervisor is gone, and the death signal is on its way


def main(plan: Plan) -> NoReturn:
    try:
        _prepare(plan)
        if plan["namespaces"]:
            _watch_first_process(plan)
        else:
            _init(plan)
    except Failed as error:
        tell(plan, f"error {error.step} {error}")
    except OSError as error:
        tell(plan, f"error start {error}")
    os._exit(0)


def _prepare(plan: Plan) -> None:
    os.umask(0o077)
    if plan.get("group") is not None:
        try:
            os.write(plan["group"], b"0")  # this process, and so all that it starts
        except OSError as error:
            raise Failed("memory group", str(error)) from None
        os.close(plan["group"])
    if os.geteuid() == 0:
        try:
            os.setgroups([])
        except OSError:
            pass  # a container may forbid it; the groups are then part of what the witness tries
    if plan["owner"] == 0:
        plan["owner"] = FIRST_OWN_USER + os.getpid()
    if plan["namespaces"]:
        _enter_namespaces(plan)
    else:
        _check("processes", _prctl(_PR_SET_CHILD_SUBREAPER, 1))
    # Changing credentials clears the death signal, so it comes after the namespaces.
    # With mounts of its own everything goes when the processes do; else the launcher has to clean up.
    if not plan["mounts"]:
        _signal.signal(_signal.SIGTERM, lambda *_: _stop(plan))
    _check("processes", _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL if plan["mounts"] else _signal.SIGTERM))
    if os.getppid() != plan["supervisor"]:
        os._exit(0)  # it died before the signal was ordered


def _enter_namespaces(plan: Plan) -> None:
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_NAMESPACES | (_NEW_MOUNTS if plan["mounts"] else 0)
    if plan["owner"] is not None:
        _enter_with_two_users(plan["owner"], flags, user, group)
        plan["owner"] = _INSIDE_ID
        return
    _check("namespaces", _libc.unshare(flags))
    try:
        _write_file("/proc/self/setgroups", "deny")
        _write_file("/proc/self/uid_map", f"{_INSIDE_ID} {user} 1")
        _write_file("/proc/self/gid_map", f"{_INSIDE_ID} {group} 1")
    except OSError as error:
        raise Failed("namespaces", str(error)) from None


def _enter_with_two_users(owner: int, flags: int, user: int, group: int) -> None:
    """As root: inside, 0 stays root for setting up, and the program gets a user that owns nothing outside.

    Only a process that stayed outside may write such a map.
    """
    launcher = os.getpid()
    go, ready = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(ready)
            if os.read(go, 1):
                _write_file(f"/proc/{launcher}/uid_map", f"0 {user} 1\n{_INSIDE_ID} {owner} 1")
                _write_file(f"/proc/{launcher}/gid_map", f"0 {group} 1\n{_INSIDE_ID} {owner} 1")
                os._exit(0)
        except OSError:
            pass
        os._exit(1)
    os.close(go)
    entered = _libc.unshare(flags) == 0
    text = os.strerror(ctypes.get_errno())
    if entered:
        os.write(ready, b"x")
    os.close(ready)
    mapped = os.waitpid(helper, 0)[1] == 0
    if not entered:
        raise Failed("namespaces", text)
    if not mapped:
        raise Failed("users", "the map of users cannot be written")


def _write_file(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _watch_first_process(plan: Plan) -> NoReturn:
    """Fork init and outlast it: the kernel lets init be reaped only when its whole namespace is empty."""
    alive, kept = os.pipe()
    child = plan["init"] = os.fork()
    if child == 0:
        os.close(kept)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        _check("processes", _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL))
        os.set_blocking(alive, False)
        try:
            os.read(alive, 1)
            os._exit(0)  # end of file: the launcher died before the signal was ordered
        except BlockingIOError:
            os.close(alive)
        _init(plan)
        os._exit(0)
    tell(plan, f"init {child}")
    _close_standard_descriptors(plan)
    os.close(plan["status"])
    if "stopped" in plan:
        _send(child, _signal.SIGKILL)
    os.waitpid(child, 0)
    if not plan["mounts"] and not plan["kept"]:
        remove_tree(plan["box"])
    os._exit(0)


def _close_standard_descriptors(plan: Plan) -> None:
    """Only the program may hold the pipes, else their end is never seen."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    for name in ("result", "control"):
        if plan.get(name) is not None:
            os.close(plan[name])


# The first process -----------------------------------------------------------------------------------------------


def _init(plan: Plan) -> None:
    try:
        if plan["namespaces"]:
            _offer_to_memory_killer()
        serve = plan.get("serve")
        if serve and plan["namespaces"]:  # there is no /proc in the private root
            plan["own_pids"] = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        folder = _build_root(plan) if plan["mounts"] else plan["box"]
        if not plan["mounts"] and not plan["kept"]:
            os.mkdir(folder + WORK, 0o700)
            _stage(plan, folder + WORK)
        if plan["owner"] is not None and not plan["kept"]:
            give(folder, plan["owner"])
        if serve:
            serve(plan, folder)
        program = plan["program"] = os.fork()
        if program == 0:
            _become_program(plan, folder)
        _close_standard_descriptors(plan)
        if "stopped" in plan:
            kill_descendants(plan)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # in the namespace's first process: ignored
        _reap(plan, program)
    except Failed as error:
        tell(plan, f"error {error.step} {error}")
    finally:
        if not plan["namespaces"]:
            kill_descendants(plan)
            if not plan["kept"]:
                remove_tree(plan["box"])


def _reap(plan: Plan, program: int) -> None:
    """Collect every child until the program itself has ended, and report it with the tree's use so far."""
    seconds, peak = 0.0, 0
    while True:
        try:
            child, status, usage = os.wait4(-1, 0)
            seconds += usage.ru_utime + usage.ru_stime
            peak = max(peak, usage.ru_maxrss * 1024)
        except ChildProcessError:  # the kill ordered by the supervisor has collected it
            child, status = program, _signal.SIGKILL
        if child == program and not os.WIFSTOPPED(status):
            tell(plan, f"ended {status} {seconds} {peak}")
            return


def _descendants() -> list[int]:
    """Process ids below this one, from the parent each process names."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as handle:
                    parent = int(handle.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), ())
        found += below
        queue += below
    return found


def _stop(plan: Plan) -> None:
    """The supervisor's order, or its death, where cleaning up is left to the launcher."""
    plan["stopped"] = True  # seen after the fork, should the order come before it
    if not plan["namespaces"]:
        kill_descendants(plan)
    elif plan.get("init"):
        _send(plan["init"], _signal.SIGKILL)


def kill_descendants(plan: Plan) -> None:
    """Kill the tree by its session's group and by its user, which the kernel does in one stroke, then what is left.

    That may fork faster than it is looked at, so it is frozen first, until nothing new shows up.
    """
    if plan.get("program"):
        _send(-plan["program"], _signal.SIGKILL)
    if plan["owner"] is not None:
        _kill_user(plan["owner"])
    while True:
        frozen: set[int] = set()
        while True:
            fresh = [pid for pid in _descendants() if pid not in frozen]
            if not fresh:
                break
            for pid in fresh:
                _send(pid, _signal.SIGSTOP)
            frozen.update(fresh)
        if not frozen:
            return
        for pid in frozen:
            _send(pid, _signal.SIGKILL)
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def _kill_user(user: int) -> None:
    killer = os.fork()
    if killer == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, _signal.SIGKILL)  # everything that this user may signal, but for the caller
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


# The private folder ----------------------------------------------------------------------------------------------


def _stage(plan: Plan, work: str) -> list[int]:
    """Copy the workspace's regular files, then write the job's own over them. Returns bytes and count of entries."""
    total = [0, 0]
    try:
        target = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if plan["workspace_fd"] is not None:
            _copy_folder(plan["workspace_fd"], target, total, 0)
        for name, data in plan["files"].items():
            _write_staged(work + "/" + name, data, total)
        os.close(target)
    except OSError as error:
        raise Failed("files", str(error)) from None
    tell(plan, f"staged {total[0]} {total[1]}")
    return total


def _copy_folder(source: int, target: int, total: list[int], depth: int) -> None:
    _check_depth(depth)
    with os.scandir(source) as listing:
        entries = list(listing)
    for entry in entries:
        total[1] += 1
        if entry.is_dir(follow_symlinks=False):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(entry.name, flags, dir_fd=source)
            os.mkdir(entry.name, 0o700, dir_fd=target)
            copy = os.open(entry.name, flags, dir_fd=target)
            _copy_folder(below, copy, total, depth + 1)
            os.close(below)
            os.close(copy)
        elif entry.is_file(follow_symlinks=False):
            total[0] += _copy_file(entry.name, source, target)


def _check_depth(depth: int) -> None:
    if depth > _DEEPEST:
        raise Failed("files", f"more than {_DEEPEST} folders deep")


def _copy_file(name: str, source: int, target: int) -> int:
    # Not blocking and not following: the entry may have been swapped for a pipe or a link since it was listed.
    original = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    status, size = os.fstat(original), 0
    if stat.S_ISREG(status.st_mode):
        mode = 0o600 | (status.st_mode & 0o100)
        copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=target)
        while block := os.read(original, 1 << 20):
            size += _write_all(copy, block)
        os.close(copy)
    os.close(original)
    return size


def _write_staged(path: str, data: bytes, total: list[int]) -> None:
    _check_depth(path.count("/"))
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    total[0] += _write_all(descriptor, data)
    total[1] += 1
    os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def give(path: str, owner: int) -> None:
    """Make the program's user the owner of its folder. Trees that are mounted there are not touched."""
    pending = [path]
    while pending:
        path = pending.pop()
        try:
            os.chown(path, owner, owner, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EROFS:
                continue
            raise Failed("files", str(error)) from None
        if stat.S_ISDIR(os.lstat(path).st_mode):
            with os.scandir(path) as entries:
                pending += [entry.path for entry in entries]


def empty_tree(path: str) -> None:
    """Remove what is in a folder, and what was put onto the folder itself, without following links. Used when no job runs.

    However deep it is, nothing recurses and no name grows long: a folder in a folder is moved to the top before it is
    looked into.
    """
    os.chmod(path, 0o700)
    for name in os.listxattr(path):
        os.removexattr(path, name)
    top, moved = path + "/" + os.urandom(8).hex(), 0
    while names := os.listdir(path):
        for name in names:
            here = path + "/" + name
            try:
                if not _is_folder(here):
                    os.unlink(here)
                    continue
                for below in os.listdir(here):
                    if _is_folder(here + "/" + below):
                        moved += 1
                        os.rename(here + "/" + below, top + str(moved))
                    else:
                        os.unlink(here + "/" + below)
                os.rmdir(here)
            except FileNotFoundError:
                pass  # the launcher and the supervisor may both be at it


def remove_tree(path: str) -> None:
    try:
        if _is_folder(path):
            empty_tree(path)
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _is_folder(path: str) -> bool:
    """Whether it is one; its owner may have taken away his own rights to look into it and to move it."""
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
        os.chmod(path, 0o700)
    return stat.S_ISDIR(mode)


# The root of the file system as the program sees it --------------------------------------------------------------


def _build_root(plan: Plan) -> str:
    """A new root that holds the readable trees, read-only, and the private folder as `/tmp`: a new one of bounded size,
    or one that is kept, which the supervisor watches."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    trees = [(path, _clone_tree(path)) for path in plan["trees"]]
    kept = _clone_tree(plan["box"], _ATTR_NOSUID | _ATTR_NODEV) if plan["kept"] else None
    base = plan["mountpoint"]
    os.umask(0o022)  # the folders above the trees are for everyone
    _mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    try:
        box = base + "/tmp"
        os.mkdir(box)
        if kept is not None:
            _attach(kept, box)
        else:
            _mount("tmpfs", box, "tmpfs", _MS_NOSUID | _MS_NODEV, _UNTIL_FILLED)
            os.mkdir(box + WORK, 0o700)
            size, entries = _stage(plan, box + WORK)
        for path, tree in trees:
            _attach(tree, base + plan.get("moved", {}).get(path, path))
        _add_links(plan, base)
        if kept is None:
            size_options = _size_options(plan["disk_bytes"], size, entries)
            _mount(None, box, None, _MS_REMOUNT | _MS_NOSUID | _MS_NODEV, size_options)
        os.chdir(base)
    except OSError as error:
        raise Failed("mounts", str(error)) from None
    _syscall("mounts", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _check("mounts", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    os.umask(0o077)
    _set_attributes(_AT_FDCWD, b"/", 0, _ATTR_RDONLY | _ATTR_NOSUID)
    return "/tmp"


def _size_options(disk_bytes: int, staged: int = 0, entries: int = 0) -> str:
    """Staged files occupy whole pages."""
    limit = disk_bytes + staged + _INODE_BYTES * (entries + 8)
    return f"size={limit},nr_inodes={disk_bytes // _INODE_BYTES + entries + 1024}"


def mount_private(folder: str, disk_bytes: int) -> None:
    """A new, empty file system in place of the one that was the private folder."""
    _check("mounts", _libc.umount2(os.fsencode(folder), _MNT_DETACH))
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, _size_options(disk_bytes) + ",mode=700")


def unshare(step: str, flags: int) -> None:
    _check(step, _libc.unshare(flags))


def enter_namespace(descriptor: int, flags: int) -> None:
    _check("namespaces", _libc.setns(descriptor, flags))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    words = [os.fsencode(word) if word is not None else None for word in (source, target, kind, options)]
    _check("mounts", _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def _clone_tree(path: str, attributes: int = _ATTR_RDONLY | _ATTR_NOSUID) -> int:
    """A copy of the mounts below a path, not attached anywhere. A device that is mounted by itself can still be written
    to where it is read-only."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    tree = _syscall("mounts", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags))
    _set_attributes(tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes)
    return tree


def _set_attributes(descriptor: int, path: bytes, flags: int, attributes: int) -> None:
    words = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall("mounts", _MOUNT_SETATTR, descriptor, path, ctypes.c_uint(flags), words, ctypes.c_size_t(32))


def _attach(tree: int, target: str) -> None:
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _syscall("mounts", _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), flags)
    os.close(tree)


def _add_links(plan: Plan, base: str) -> None:
    for path, target in plan["links"].items():
        if not os.path.lexists(base + path):
            try:
                os.makedirs(os.path.dirname(base + path), 0o755, exist_ok=True)
                os.symlink(target, base + path)
            except OSError as error:
                if error.errno != errno.EROFS:  # inside a readable tree, which is complete as it is
                    raise
    for path, text in plan["texts"].items():
        if os.path.lexists(base + path):
            continue
        os.makedirs(os.path.dirname(base + path), 0o755, exist_ok=True)
        with open(base + path, "wb") as handle:
            os.fchmod(handle.fileno(), 0o644)
            handle.write(text.encode())


# The program -----------------------------------------------------------------------------------------------------


def _become_program(plan: Plan, folder: str) -> NoReturn:
    """Never returns. The status descriptor closes itself when the program starts."""
    try:
        os.setsid()
        os.chdir(folder + WORK)
        _arrange_descriptors(plan)
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGTERM, _signal.SIGINT):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        if not plan["namespaces"]:
            _offer_to_memory_killer()
        _drop_privileges(plan["owner"])
        if not plan["namespaces"]:
            _check("processes", _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL))  # cleared by a change of user
        set_limits(plan["limits"], counted_alone=plan["namespaces"])
        if plan["landlock"] is not None:
            landlock_restrict(landlock_rules(plan["landlock"], folder))
        if plan["seccomp"] is not None:
            filter_calls(plan["seccomp"], plan["own_pid"])
        tell(plan, "exec")
        environment = {key: value.replace("{box}", folder) for key, value in plan["fixed_env"].items()}
        _execute(plan["argv"], {**environment, **plan["env"]})
    except Failed as error:
        tell(plan, f"error {error.step} {error}")
    except OSError as error:
        tell(plan, f"error exec {error.strerror}")
    except BaseException as error:
        tell(plan, f"error start {type(error).__name__}: {error}")
    os._exit(125)


def become_user(user: int) -> None:
    try:
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise Failed("users", str(error)) from None


def _arrange_descriptors(plan: Plan) -> None:
    """0, 1, 2, the result channel as 3 where asked for, the status line as 4 until the program starts; no other."""
    status = fcntl.fcntl(plan["status"], fcntl.F_DUPFD_CLOEXEC, 5)
    if plan["result"] is not None:
        result = fcntl.fcntl(plan["result"], fcntl.F_DUPFD_CLOEXEC, 5)
        os.dup2(result, 3)
    else:
        os.closerange(3, 4)
    plan["status"] = os.dup2(status, 4, False)
    close_from(5)


def close_from(first: int) -> None:
    if (
        _libc.syscall(ctypes.c_long(_CLOSE_RANGE), ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(0))
        < 0
    ):
        os.closerange(first, 1024)  # the launcher was started with the few descriptors that the plan names


def _execute(argv: list[str], environment: dict[str, str]) -> None:
    """Raises the error of the last place looked at, "no such file" only if it was found nowhere."""
    problem: OSError = FileNotFoundError(errno.ENOENT, "no such program inside the sandbox")
    folders = [""] if "/" in argv[0] else [folder + "/" for folder in environment.get("PATH", "").split(":")]
    for folder in folders:
        try:
            os.execve(folder + argv[0], argv, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = error
    raise problem


def _offer_to_memory_killer() -> None:
    """If the machine runs out of memory, this process and what it starts should go first."""
    try:
        _write_file("/proc/self/oom_score_adj", "1000")
    except OSError:
        pass  # a courtesy to the machine, not isolation


def set_limits(limits: Any, *, counted_alone: bool) -> None:
    for name, soft, hard in limits:
        number = getattr(resource, name)
        if name == "RLIMIT_NPROC" and not counted_alone:
            # The kernel counts everything this user runs on the machine.
            running = _tasks_of_user(os.getuid())
            soft, hard = soft + running, hard + running
        ceiling = resource.getrlimit(number)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:
            raise Failed("limits", f"{name}: {error}") from None


def _tasks_of_user(user: int) -> int:
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat("/proc/" + name).st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def _drop_privileges(user: int | None) -> None:
    """No capability in any set. Steps that need a capability fail where there was none; the last two always work."""
    drop_bounding_set()
    if user is not None:
        become_user(user)
    drop_capabilities()
    forbid_new_privileges()


def drop_bounding_set() -> None:
    """Nothing that is executed from here on can have a capability; those held stay."""
    capability = 0
    while capability < 64 and (_prctl(_PR_CAPBSET_DROP, capability) == 0 or ctypes.get_errno() != errno.EINVAL):
        capability += 1
    _prctl(_PR_SET_SECUREBITS, _SECURE_NO_ROOT)


def drop_capabilities() -> None:
    """Of all sets: what is not permitted is not ambient either."""
    _check("privileges", _libc.capset(_CAPABILITY_HEADER, _NO_CAPABILITIES))


def current_processor() -> int:
    number: int = _libc.sched_getcpu()
    return number


def resolve_symbols() -> None:
    """Look up the C functions that a forked process will call, so that it need not."""
    for name in ("capset", "prctl", "syscall", "setns", "unshare"):
        getattr(_libc, name)


def forbid_new_privileges() -> None:
    _check("privileges", _prctl(_PR_SET_NO_NEW_PRIVS, 1))


def landlock_rules(landlock: dict[str, Any], private: str | None) -> int:
    """A rule set as a descriptor: the readable places, and the private folder if there is one."""
    attributes = struct.pack("=QQQ", *landlock["handled"])[: landlock["size"]]
    length = ctypes.c_size_t(len(attributes))
    ruleset = _syscall("landlock", _LANDLOCK_CREATE, attributes, length, ctypes.c_uint(0))
    places = list(landlock["rules"])
    if private is not None:
        places.append((private, landlock["private"]))
    for path, access in places:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Failed("landlock", f"{path}: {error.strerror}") from None
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= landlock["file_access"]
        rule = struct.pack("=Qi", access, place)
        _syscall("landlock", _LANDLOCK_ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(place)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    _syscall("landlock", _LANDLOCK_RESTRICT, ruleset, ctypes.c_uint(0))
    os.close(ruleset)


def filter_calls(program: bytes, own_pid: bytes) -> None:
    load_filter(filter_header(program.replace(own_pid, struct.pack("<I", os.getpid()))))


def filter_header(program: bytes) -> tuple[Any, Any]:
    """The kernel's description of a filter, and the filter, which must live as long."""
    buffer = ctypes.create_string_buffer(program, len(program))
    return ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))), buffer


def load_filter(header: tuple[Any, Any]) -> None:
    _check("seccomp", _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header[0])))
