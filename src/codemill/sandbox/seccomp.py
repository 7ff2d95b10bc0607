"""The system call filter, as a classic BPF program for seccomp(2).

The filter lets everything pass but a list: interfaces that reach other processes, the kernel's configuration, the mount
table or the network, and calls newer than the list itself. Numbers are those of the kernel's unistd.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from codemill.core.errors import IsolationError

# struct seccomp_data: u32 nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both machines are little endian, so the
# low half of an argument comes first.
_NR, _ARCH, _ARGS = 0, 4, 16
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# The launcher replaces this by the program's own process id, known only after the fork. No process has such an id.
OWN_PID = struct.pack("<I", 0x7FFFFFF7)

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 469  # file_setattr, Linux 6.17; what comes later is unknown here and does not exist for the job

# name: (x86_64, aarch64); None where the machine has no such call
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the mount table and the root
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # namespaces
    "unshare": (272, 97),
    "setns": (308, 268),
    # large kernel interfaces with a history of holes
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "lookup_dcookie": (212, 18),
    # the machine
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    # sockets; socketpair is looked at below
    "socket": (41, 198),
    # memory that belongs to no process, so that no count of the tree's memory would find it
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    # looked at by argument, or refused only without namespaces
    "clone": (56, 220),
    "clone3": (435, 435),
    "socketpair": (53, 199),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "inotify_add_watch": (254, 27),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}

_FORKING = ("unshare", "setns", "mount", "umount2", "clone")
_NOT_IMPLEMENTED = ("memfd_create", "memfd_secret", "shmget", "msgget", "semget")  # callers have a fallback for ENOSYS
_BY_ARGUMENT = tuple(_NUMBERS)[tuple(_NUMBERS).index("clone") :]
_METADATA = tuple(_NUMBERS)[tuple(_NUMBERS).index("chmod") :]

_NAMESPACE_FLAGS = 0x7E020000 | 0x00000080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} and NEWTIME
_AF_UNIX = 1
_DATAGRAM_BIT = 2  # of SOCK_DGRAM and SOCK_RAW, not of SOCK_STREAM and SOCK_SEQPACKET
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_SET_OWNER_IOCTLS = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP
_SET_OWNER_FCNTLS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_FILE_FLAG_IOCTLS = (0x40086602, 0x401C5820)  # FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR


@dataclass(frozen=True, slots=True)
class _Test:
    """Refuse a call if this holds for the low half of argument `index`."""

    index: int
    operation: int
    values: tuple[int, ...]
    negate: bool = False


def supported(machine: str) -> bool:
    return machine in _AUDIT_ARCH


def numbers(machine: str, names: Iterable[str]) -> dict[str, int]:
    """The numbers of some of the calls that the filter refuses; empty for a machine it does not know."""
    if not supported(machine):
        return {}
    known = _numbers_of(machine)
    return {name: known[name] for name in names}


def _numbers_of(machine: str) -> dict[str, int]:
    column = ("x86_64", "aarch64").index(machine)
    return {name: number for name, pair in _NUMBERS.items() if (number := pair[column]) is not None}


def build(
    machine: str,
    *,
    own_mounts: bool,
    signals_scoped: bool,
    one_group: bool,
    part: Literal["all", "first", "rest"] = "all",
) -> bytes:
    """The filter for `os.uname().machine`, an array of struct sock_filter.

    Without a mount namespace (`own_mounts` false) changing a file's mode, owner, times or attributes does nothing and
    reports success: Landlock does not cover them, and the host's files are still in reach. Without a pid namespace or
    Landlock's scope for signals (`signals_scoped` false) a process may signal the program's first process only.
    `one_group` keeps all processes in the program's group, so that they can be killed in one stroke: for where nothing
    but their count from outside bounds them.

    Loading a filter costs the kernel a walk through it for every call there is. A warm interpreter therefore loads the
    `first` part once, for itself and all that it forks, and each fork only the `rest`: what makes and enters namespaces.
    """
    if not supported(machine):
        names = ", ".join(sorted(_AUDIT_ARCH))
        raise IsolationError(f"sandbox: no system call filter for machine {machine!r}; run codemill on one of {names}")
    known = _numbers_of(machine)
    chosen = {name: n for name, n in known.items() if part == "all" or (name in _FORKING) == (part == "rest")}
    program = _Assembler(chosen)
    program.check_machine(_AUDIT_ARCH[machine])
    program.refuse_newer_than(_NEWEST, errno.ENOSYS)
    for name in _NUMBERS:
        if name not in _BY_ARGUMENT:
            program.refuse(name, errno.ENOSYS if name in _NOT_IMPLEMENTED else errno.EPERM)
    program.refuse("clone3", errno.ENOSYS)  # its flags lie behind a pointer; C libraries fall back to clone
    program.refuse_if("clone", _Test(0, _ANY_BIT, (_NAMESPACE_FLAGS,)))
    program.refuse_if("socketpair", _Test(0, _EQUAL, (_AF_UNIX,), negate=True))
    # One of a datagram pair can be pointed at any other socket that has a name.
    program.refuse_if("socketpair", _Test(1, _ANY_BIT, (_DATAGRAM_BIT,)))
    for name in ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
        program.refuse_if(name, _Test(0, _EQUAL, (0,), negate=True))
    for name, one_process in (("setpriority", 0), ("ioprio_set", 1)):
        program.refuse_if(name, _Test(0, _EQUAL, (one_process,), negate=True))
        program.refuse_if(name, _Test(1, _EQUAL, (0,), negate=True))
    ioctls: tuple[int, ...] = _TERMINAL_INJECTION
    if not own_mounts:
        for name in _METADATA:
            program.refuse(name, 0)
        program.refuse("inotify_add_watch", errno.EPERM)
        ioctls += _FILE_FLAG_IOCTLS
    if not signals_scoped:
        (own,) = struct.unpack("<I", OWN_PID)
        for name in ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
            program.refuse_if(name, _Test(0, _EQUAL, (own,), negate=True))
        program.refuse("pidfd_send_signal", errno.EPERM)
        program.refuse_if("fcntl", _Test(1, _EQUAL, _SET_OWNER_FCNTLS))
        ioctls += _SET_OWNER_IOCTLS
    if one_group:
        program.refuse("setsid", errno.EPERM)
        program.refuse("setpgid", errno.EPERM)
    program.refuse_if("ioctl", _Test(1, _EQUAL, ioctls))
    return program.finish()


class _Assembler:
    """Emits instructions. Between two rules the accumulator always holds the call's number."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self._numbers = numbers
        self._code: list[bytes] = []

    def _emit(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self._code.append(struct.pack("<HBBI", code, if_true, if_false, value))

    def check_machine(self, arch: int) -> None:
        self._emit(_LOAD, _ARCH)
        self._emit(_EQUAL, arch, 1, 0)
        self._emit(_RETURN, _KILL_PROCESS)
        self._emit(_LOAD, _NR)

    def refuse_newer_than(self, number: int, error: int) -> None:
        """Unknown calls, among them x86_64's second (x32) numbering, whose numbers have bit 30 set."""
        self._emit(_GREATER, number, 0, 1)
        self._emit(_RETURN, _ERRNO | error)

    def refuse(self, name: str, error: int) -> None:
        number = self._numbers.get(name)
        if number is not None:
            self._emit(_EQUAL, number, 0, 1)
            self._emit(_RETURN, _ERRNO | error)

    def refuse_if(self, name: str, test: _Test) -> None:
        number = self._numbers.get(name)
        if number is None:
            return
        count = len(test.values)
        self._emit(_EQUAL, number, 0, count + 3)  # another call: past the reload
        self._emit(_LOAD, _ARGS + 8 * test.index)
        for left, value in zip(range(count, 0, -1), test.values, strict=True):
            if test.negate:
                assert count == 1
                self._emit(test.operation, value, 1, 0)
            else:
                self._emit(test.operation, value, left - 1, 0 if left > 1 else 1)
        self._emit(_RETURN, _ERRNO | errno.EPERM)
        self._emit(_LOAD, _NR)

    def finish(self) -> bytes:
        self._emit(_RETURN, _ALLOW)
        return b"".join(self._code)
