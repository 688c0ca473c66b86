"""What losing one reward server of two costs the callers: under load it is frozen (SIGSTOP), later killed (SIGKILL).

Both are processes of their own; 8 callers score one sample after the other. No call may fail. With the frozen one
every call must end within three deadlines, and none may wait on it once it is ejected; each must be back on duty after
it thaws, or is started again.

    python -m benchmarks.replica_loss [--output results.json]
"""

import argparse
import asyncio
import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from reward_server.child import RewardServerChild
from reward_server.config import RewardServerConfig, RewardServiceConfig
from services.contracts.errors import TriremeError
from services.contracts.records import Reward, RewardSample
from services.transport.reward_client import RewardClient
from services.transport.reward_settings import RewardClientConfig

NUM_CALLERS = 8
TIMEOUT_S = 0.8
DISTURBED_S = 5 * TIMEOUT_S
"""Longer than any call may take, so that one that hangs is seen to."""
RETURN_TIMEOUT_S = 30.0
CONFIG = RewardClientConfig(timeout_s=TIMEOUT_S, eject_after=2, eject_s=1.0)
REWARD = '''"""Tells which process scored."""
import os
from reward_server import Reward

PID = float(os.getpid())

async def score(sample):
    return Reward(value=0.0, components={"pid": PID})
'''


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    started: float
    seconds: float
    pid: int
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What one fault cost: calls while it lasted, ended or not, and how long until the replica was on duty again.

    A call that had not ended when the fault did counts as long as it had lasted. `longest_later_s` is of the calls that
    began two deadlines or more after the fault.
    """

    fault: str
    num_calls: int
    num_ejections: int
    errors: list[str]
    longest_s: float
    longest_later_s: float
    returned_after_s: float


class Load:
    """Callers that score without a pause."""

    def __init__(self, client: RewardClient) -> None:
        self.calls: list[Call] = []
        self._client = client
        self._began: dict[int, float] = {}
        self._callers = [asyncio.create_task(self._call_on(number)) for number in range(NUM_CALLERS)]

    async def stop(self) -> None:
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float) -> float:
        """Seconds until `condition` held."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() > started + timeout_s:
                raise TimeoutError(f"not within {timeout_s:g} s")
            await asyncio.sleep(0.005)
        return time.monotonic() - started

    def answered_by(self, pid: int, *, since: float) -> bool:
        return any(call.pid == pid and call.started >= since for call in self.calls[-NUM_CALLERS:])

    def since(self, moment: float) -> list[Call]:
        """The calls that had not ended at `moment`, with those that still have not."""
        now = time.monotonic()
        ended = [call for call in self.calls if call.started + call.seconds >= moment]
        return ended + [Call(started=began, seconds=now - began, pid=0, error="") for began in self._began.values()]

    def num_ejections(self) -> int:
        """Since the last time it was asked."""
        return int(self._client.tally.lap()["reward_service/ejections"])

    async def _call_on(self, number: int) -> None:
        while True:
            self._began[number] = started = time.monotonic()
            pid, error = 0, ""
            try:
                (outcome,) = await self._client.score([RewardSample(id=str(number), completion="x")])
                if isinstance(outcome, Reward):
                    pid = int(outcome.components["who_score/pid"])
                else:
                    error = outcome.message
            except TriremeError as failure:
                error = str(failure)
            self.calls.append(Call(started=started, seconds=time.monotonic() - started, pid=pid, error=error))
            del self._began[number]
            await asyncio.sleep(0.005)


async def disturb_replicas(folder: Path) -> tuple[Loss, Loss]:
    """Freeze one replica of two and let it go on, then kill it and start it again."""
    (folder / "who.py").write_text(REWARD)
    replicas = [start(folder, number) for number in range(2)]
    client = RewardClient([replica.address for replica in replicas], CONFIG)
    load = Load(client)
    try:
        for replica in replicas:
            await load.until(lambda pid=replica.pid: load.answered_by(pid, since=0.0), timeout_s=RETURN_TIMEOUT_S)  # type: ignore[misc]
        frozen = await lose(load, "SIGSTOP", replicas[0].pid, lambda: thawed(replicas[0].pid))
        killed = await lose(load, "SIGKILL", replicas[0].pid, lambda: restarted(folder, replicas))
    finally:
        await load.stop()
        await client.close()
        os.kill(replicas[0].pid, signal.SIGCONT)
        for replica in replicas:
            replica.stop()
    return frozen, killed


def start(folder: Path, number: int, port: int = 0) -> RewardServerChild:
    services = [RewardServiceConfig(name=f"{folder}/who.py:score")]
    return RewardServerChild(services, RewardServerConfig(port=port, drain_s=1.0), log=folder / f"{number}.log")


def thawed(pid: int) -> int:
    os.kill(pid, signal.SIGCONT)
    return pid


def restarted(folder: Path, replicas: list[RewardServerChild]) -> int:
    replicas[0].stop()
    replicas[0] = start(folder, 0, port=int(replicas[0].address.rpartition(":")[2]))
    return replicas[0].pid


async def lose(load: Load, fault: str, pid: int, recover: Callable[[], int]) -> Loss:
    load.num_ejections()
    struck = time.monotonic()
    os.kill(pid, signal.Signals[fault])
    await asyncio.sleep(DISTURBED_S)
    during, num_ejections = load.since(struck), load.num_ejections()
    later = [call.seconds for call in during if call.started >= struck + 2 * TIMEOUT_S]
    pid = await asyncio.to_thread(recover)
    recovered = time.monotonic()
    returned_after_s = await load.until(lambda: load.answered_by(pid, since=recovered), timeout_s=RETURN_TIMEOUT_S)
    return Loss(
        fault=fault,
        num_calls=len(during),
        num_ejections=num_ejections,
        errors=[call.error for call in during if call.error],
        longest_s=max(call.seconds for call in during),
        longest_later_s=max(later, default=math.inf),
        returned_after_s=returned_after_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        losses = asyncio.run(disturb_replicas(Path(folder)))
    for loss in losses:
        print(f"{loss.fault}: {len(loss.errors)} of {loss.num_calls} calls failed, with a deadline of {TIMEOUT_S:g} s")
        print(f"  ejected {loss.num_ejections} times")
        print(f"  longest call {loss.longest_s:.2f} s; {loss.longest_later_s:.3f} s once the replica was ejected")
        print(f"  back on duty {loss.returned_after_s:.1f} s after it could be")
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(loss) for loss in losses], indent=2))


if __name__ == "__main__":
    main()
