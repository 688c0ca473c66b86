"""Builds the jail around a process: namespaces, a root of its own, limits, and no privileges.

It must not know what runs in it. Invariants: each step works or raises, so that a jail is never weaker than this; what
is left when `confine` returns is a process without capabilities that sees a read-only root, an empty `/tmp`, no process
but itself and no network, and that cannot start another process.

The same steps serve root and everybody else. Root may make namespaces as it is and becomes nobody in them; others (and
a root without CAP_SYS_ADMIN, as in most containers, once it is nobody) make them inside a user namespace.
"""

import itertools
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from . import kernel

NOBODY = 65534
STAGE = "/proc"
"""Where the new root is put together: a folder that is everywhere, and from which nothing is taken."""
FOLDER = "/tmp"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
LINKS = ("/lib", "/lib64", "/lib32")
SHARED = ("/usr/share/zoneinfo",)
MAX_FILES, MAX_THREADS, MAX_INODES = 64, 32, 1024
MAX_DESCRIPTOR = (1 << 31) - 1
STACK_BYTES = 8 << 20
WORSE_PRIORITY = 10
MOST_KILLABLE = 1000


class Limits(NamedTuple):
    """What a program may use."""

    cpu_s: int
    """Computing time, in seconds."""
    memory_bytes: int
    """Address space, in bytes."""
    file_bytes: int
    """Size of a file and of all files together, in bytes."""


def isolate() -> bool:
    """Move this process into namespaces of its own; its next child will be alone in a process namespace.

    Returns:
        Whether that took no user namespace: this process is root still.
    """
    spaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    Path("/proc/self/oom_score_adj").write_text(str(MOST_KILLABLE))
    os.nice(WORSE_PRIORITY)
    try:
        kernel.unshare(spaces)
    except PermissionError:
        if os.geteuid() == 0:
            become_nobody()
        user, group = os.geteuid(), os.getegid()
        kernel.unshare(spaces | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
        return False
    return True


def build_root(visible: Iterable[str], file_bytes: int) -> None:
    """Give this process a root in which only `visible` paths exist, read-only, and an empty /tmp of `file_bytes`."""
    socket.sethostname("sandbox")
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("none", STAGE, "tmpfs", kernel.MS_NOSUID, "size=64k,mode=755")
    # The program's folder comes first, as something that is shown may lie below it.
    own = f"{STAGE}{FOLDER}"
    Path(own).mkdir()
    options = f"size={file_bytes},nr_inodes={MAX_INODES},mode=1777"
    kernel.mount("none", own, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    for path in (*visible, *DEVICES):
        _show(path)
    for link in map(Path, LINKS):
        if link.is_symlink():
            Path(f"{STAGE}{link}").symlink_to(link.readlink())
    kernel.make_read_only(STAGE)
    kernel.make_writable(own)
    os.chdir(STAGE)
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir(FOLDER)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, also where that has ended already.

    To be called once this process has become whom it stays: the kernel forgets the wish when a process becomes another
    user.

    Args:
        parent: a pidfd of the parent, which unlike its number means the same in every process namespace.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):
        raise ProcessLookupError("the process that started this one has ended")


def confine(limits: Limits, *, was_root: bool, parent: int, keep: Iterable[int], program: bytes) -> None:
    """Take from this process everything but its computing: called in the first process of the new namespace.

    Args:
        was_root: what `isolate` returned.
        parent: a pidfd of the process that started this one, and with which it ends.
        keep: file descriptors that stay open.
        program: the filter of its system calls.
    """
    os.setsid()
    if was_root:
        become_nobody()
        kernel.unshare(kernel.CLONE_NEWUSER)  # So that its threads are counted apart from those of its like.
    end_with(parent)
    _limit(limits)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    _close_all_but(keep)
    os.environ.clear()
    kernel.install_filter(program)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # Else its own /proc/self/uid_map would not be its to write.


def libraries() -> list[str]:
    """Folders that a Python program needs to see: the standard library, and those of the libraries loaded here."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [Path(line.split(maxsplit=5)[-1]).parent for line in lines if ".so" in line]
    wanted = {path.resolve() for path in (*mapped, *map(Path, sys.path), *map(Path, SHARED)) if path.is_dir()}
    return sorted(str(path) for path in wanted if wanted.isdisjoint(path.parents))


def _show(path: str) -> None:
    """Make a path of the old root visible in the new one."""
    target = Path(f"{STAGE}{path}")
    if Path(path).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    kernel.mount(path, str(target), None, kernel.MS_BIND | kernel.MS_REC)


def _limit(limits: Limits) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_NPROC, MAX_THREADS),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _close_all_but(keep: Iterable[int]) -> None:
    bounds = [-1, *sorted(keep), MAX_DESCRIPTOR]
    for low, high in itertools.pairwise(bounds):
        os.closerange(low + 1, high)
