"""The system calls that Python 3.11 has no functions for, through the C library.

It must not know what they are used for. Invariant: a call that the kernel refuses raises an OSError that names it.
"""

import contextlib
import ctypes
import functools
import os

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x4_0000
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SECCOMP_MODE_FILTER = 2

SYS_MOUNT_SETATTR = 442  # On every architecture.
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 0x1, 0x2

LINUX_CAPABILITY_VERSION_3 = 0x2008_0522


def unshare(flags: int) -> None:
    _call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    name = None if kind is None else kind.encode()
    _call("mount", source.encode(), target.encode(), name, ctypes.c_ulong(flags), options.encode())


def unmount(target: str) -> None:
    """Detach a mount; it goes once nobody uses it."""
    _call("umount2", target.encode(), ctypes.c_int(MNT_DETACH))


def make_read_only(target: str) -> None:
    """Make the mount at `target` and all below it read-only, and set-user-ID bits in them void."""
    _set_attributes(target, AT_RECURSIVE, add=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)


def make_writable(target: str) -> None:
    """Undo `make_read_only` for the mount at `target`, and not for what is mounted below it."""
    _set_attributes(target, 0, remove=MOUNT_ATTR_RDONLY)


def pivot_root(new_root: str, put_old: str) -> None:
    _call("pivot_root", new_root.encode(), put_old.encode())


def prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _call("prctl", ctypes.c_int(option), *map(ctypes.c_ulong, padded), name=f"prctl({option})")


def drop_capabilities() -> None:
    """Give up every capability, and the right to regain one."""
    with contextlib.suppress(OSError):  # The first number that is no capability any more.
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(none))


def install_filter(program: bytes) -> None:
    """Have the kernel run a seccomp program before each system call of this process from now on."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    filter_program = Program(len(program) // 8, program)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))


def _set_attributes(target: str, flags: int, *, add: int = 0, remove: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    _call(
        "syscall",
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        target.encode(),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        name="mount_setattr",
    )


def _call(function: str, *arguments: object, name: str = "") -> None:
    if getattr(_library(), function)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name or function}: {os.strerror(number)}")


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
