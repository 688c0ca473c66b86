"""The sandbox in a process with fewer rights: it works without any, and says what is missing where it cannot."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
import asyncio, os, sys
if user := int(sys.argv[3]):  # Not subprocess's own `user`: that forks, and a fork of a process with gRPC may abort.
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
from services.processes.inside import kernel, seccomp
from services.processes.sandbox import Sandbox, SandboxLimits
from services.contracts.errors import UserError

def refuse_namespaces():
    instruction = seccomp._instruction
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.install_filter(b"".join([
        instruction(seccomp.LOAD, seccomp.NUMBER),
        instruction(seccomp.JUMP_EQUAL, {"x86_64": 272, "aarch64": 97}[sys.argv[2]], otherwise=1),
        instruction(seccomp.RETURN, seccomp.ERRNO | seccomp.EPERM),
        instruction(seccomp.RETURN, seccomp.ALLOW),
    ]))

async def main():
    sandbox = Sandbox(SandboxLimits())
    await sandbox.start()
    ended = await sandbox.run_script("import os; print(os.getuid(), os.getpid(), os.listdir('/tmp'))", "", wall_s=30.0)
    print(ended.output.decode())
    await sandbox.close()

if sys.argv[1] == "locked":
    refuse_namespaces()
try:
    asyncio.run(main())
except UserError as error:
    print("refused:", error)
"""


def probe(how: str, *, interpreter: str = sys.executable, user: int = 0) -> str:
    """What a server in a process of its own sees, as `user` (0: as the user of this one)."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    command = [interpreter, "-c", PROBE, how, os.uname().machine, str(user)]
    environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, check=False, cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root runs every other test as such")
def test_it_works_for_a_user_without_rights() -> None:
    interpreter = shutil.which("python3.11", path="/usr/bin:/usr/local/bin")
    if interpreter is None or not os.access(ROOT, os.X_OK):
        pytest.skip("no interpreter that another user may run")
    assert probe("open", interpreter=interpreter, user=65534) == "65534 1 []\n\n"


def test_where_namespaces_are_not_permitted_it_says_what_is_missing() -> None:
    refusal = probe("locked")
    assert refusal.startswith("refused: programs cannot be run safely here: PermissionError: [Errno 1] unshare")
    assert "user.max_user_namespaces" in refusal and "seccomp profile" in refusal
