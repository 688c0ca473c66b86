"""`ray job submit` with the command that a user types: a run that ends well, one that cannot begin, one that is
stopped."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from services.control import run_folder, run_state
from services.control.ledger_events import Dispatched, RunEnded
from services.transport.ports import free_port
from tests.end_to_end.command import RAY, Running, json_lines, left_behind, started, title, write_config
from tests.end_to_end.faults import LEARNER_TITLE, came, events, freeze, steps_done, violations, workers
from tests.end_to_end.tiny_run import long_run_sections, run_sections
from tests.ray_nodes import START_TIMEOUT_S, TOKEN, Node, let_commands_join, ray_nodes

PACKAGES = Path(sys.prefix) / "job-server"
"""Those of `deploy/requirements-job-server.txt`, for the cluster alone."""
MARK = "TRIREME_TEST_OF_JOBS"
"""A variable that every process of the cluster inherits."""
STOP_WAIT_S = 60
"""How long Ray waits for the end of a job that is to stop, before it kills it."""
GONE_WITHIN_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobServer:
    """The address of a job server, and the one node of its cluster."""

    address: str
    head: Node

    def ask(self, path: str = "", *, token: str = TOKEN) -> Any:  # Any: JSON
        """What it says of its jobs. Raises HTTPError: it refuses to."""
        request = Request(f"{self.address}/api/jobs/{path}", headers={"Authorization": f"Bearer {token}"})
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    """One on loopback, and nothing that was started in its cluster outlives that."""
    assert PACKAGES.is_dir(), f"there is no {PACKAGES}: run `make setup`"
    port = free_port("127.0.0.1")
    variables = {
        MARK: str(port),
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{PACKAGES}",
        "HF_HUB_OFFLINE": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    }
    with ray_nodes(3, dashboard_port=port, **variables) as nodes, pytest.MonkeyPatch.context() as patched:
        let_commands_join(nodes, patched)
        patched.delenv("RAY_ADDRESS")  # Ray's commands go by it, whatever --address says.
        server = JobServer(address=f"http://127.0.0.1:{port}", head=nodes.nodes[0])
        wait_for(server)
        yield server
        members = marked(str(port))
    assert left_behind(members, GONE_WITHIN_S) == []


def wait_for(server: JobServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            server.ask()
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {START_TIMEOUT_S} s for Ray's job server")


def marked(mark: str) -> list[psutil.Process]:
    """The processes of a cluster, also orphans; not those that Ray gave a title, which end with their node."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


@contextmanager
def submitted(server: JobServer, name: str, config: str) -> Iterator[Running]:
    """`ray job submit` with `trireme train`, which shows the job's log and ends with the job."""
    train = (sys.executable, "-m", "services.cli", "train", config, "--cluster.address", "auto")
    submit = ("job", "submit", f"--address={server.address}", f"--submission-id={name}")
    with started(*submit, "--", *train, cwd=Path(config).parent, module=RAY) as running:
        yield running


def parts(server: JobServer, config: str) -> list[psutil.Process]:
    """The processes of a run: its command, what that started, and Ray's actors."""
    family = server.head.family()
    command = [member for member in family if config in title(member)]
    actors = [member for member in family if title(member).startswith((LEARNER_TITLE, "ray::RolloutWorker"))]
    assert command and len(actors) == 2
    return list({*command, *command[0].children(recursive=True), *actors})


def test_a_job_that_ends_well_shows_what_a_terminal_does_and_leaves_a_whole_run(
    server: JobServer, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = {"run": {"dir": str(run)}, "cluster": {"cpus_per_learner_rank": 2}, "train": {"num_steps": 2}}
    config = write_config(tmp_path / "run.yaml", **run_sections(task, **changes))
    with submitted(server, "well", config) as running:
        came(running, run, Dispatched, since=0.0)
        members = parts(server, config)
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert "Job 'well' succeeded" in finished.output
    for shown in ("starting reward service, learner and rollout workers", "step 2/2", f"{run / run_folder.EXPORT} ("):
        assert shown in finished.output
    assert left_behind(members, GONE_WITHIN_S) == []
    assert [row["step"] for row in json_lines(run / "metrics.jsonl")] == [1, 2]
    assert (run / run_folder.EXPORT / "model.safetensors").stat().st_size > 0
    _, state, faults = run_state.newest(run / run_folder.CHECKPOINTS)
    assert (state.step, faults) == (2, [])
    assert violations(run) == {}


def test_a_job_with_a_wrong_key_fails_with_the_words_and_the_exit_code_of_the_command(
    server: JobServer, task: Path, tmp_path: Path
) -> None:
    changes = {"run": {"dir": str(tmp_path / "run")}, "learner": {"algoritm": "ppo"}}
    with submitted(server, "ill", write_config(tmp_path / "run.yaml", **run_sections(task, **changes))) as running:
        finished = running.finish()
    assert finished.code == 1, "Ray's own, whatever the job's is"
    assert "learner.algorithm?" in server.ask("ill/logs")["logs"]
    assert "learner.algorithm?" in finished.output
    assert "Traceback" not in finished.output
    details = server.ask("ill")
    assert (details["status"], details["driver_exit_code"]) == ("FAILED", 2)
    assert not (tmp_path / "run").exists()


def test_a_job_that_is_stopped_finishes_its_step_and_saves_it(server: JobServer, task: Path, tmp_path: Path) -> None:
    """Stopped while it samples: the rewards of that step are still to come."""
    run = tmp_path / "run"
    sections = long_run_sections(task, run={"dir": str(run)}, cluster={"cpus_per_learner_rank": 2})
    config = write_config(tmp_path / "run.yaml", **sections)
    with submitted(server, "stopped", config) as running:
        running.wait_until(lambda: steps_done(run) >= 1, "the first step")
        members = parts(server, config)
        [(worker, pid)] = workers(run).items()
        freeze(running, run, worker, while_it="samples")
        step = steps_done(run)
        stop = ("job", "stop", f"--address={server.address}", "--no-wait", "stopped")
        with started(*stop, cwd=tmp_path, module=RAY) as stopping:
            assert stopping.finish().code == 0
        told = "stopping after this step"
        running.wait_until(lambda: told in server.ask("stopped/logs")["logs"], "the run to be told")
        os.kill(pid, signal.SIGCONT)
        finished = running.finish()
    assert "Job 'stopped' was stopped" in finished.output
    assert f"go on with: trireme train {config} --cluster.address auto --resume" in finished.output
    assert left_behind(members, GONE_WITHIN_S) == []
    assert [(event.how, event.exit_code) for event in events(run, RunEnded)] == [("interrupted", 130)]
    _, state, faults = run_state.newest(run / run_folder.CHECKPOINTS)
    assert (state.step, steps_done(run), faults) == (step + 1, step + 1, [])
    assert violations(run) == {}


def test_nobody_submits_without_the_token(server: JobServer) -> None:
    with pytest.raises(HTTPError) as refused:
        server.ask(token="decaf0" * 8)
    assert refused.value.code == 403
