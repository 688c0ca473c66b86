"""A live run in a process of its own, to be frozen or killed: `python -m tests.control.fake_run FOLDER`."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.control.control_server import open_control_server
from services.control.control_settings import ControlConfig
from services.transport.control_file import CONTROL_FILE
from tests.fakes import FakeRunControl
from tests.readme_tree import ROOT

LIFE_S = 60.0


@contextmanager
def live_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once it answers; killed at the end of the block."""
    with subprocess.Popen([sys.executable, "-m", __name__, str(folder)], cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 20.0
            while not (folder / CONTROL_FILE).exists():
                assert process.poll() is None and time.monotonic() < deadline, "the run does not answer"
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


async def main(folder: Path) -> None:
    async with open_control_server(FakeRunControl(), ControlConfig(), folder):
        await asyncio.sleep(LIFE_S)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
