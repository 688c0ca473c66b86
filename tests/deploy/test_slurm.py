"""The Slurm script, run by bash with stand-ins for Slurm, Ray and the run: what it starts, passes on and ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

SCRIPT = ROOT / "deploy/slurm/train.sbatch"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
TIMEOUT_S = 30

# Each stand-in writes a line `NAME|token|arguments` to $CALLS.
STAND_INS = {
    "scontrol": 'printf "n1\\nn2\\n"',
    "srun": 'while [[ "$1" == -* ]]; do [[ "$1" == --nodelist=* ]] && export NODE="${1#*=}"; shift; done; exec "$@"',
    "ray": 'echo "ray@${NODE:-}|$RAY_AUTH_MODE:$RAY_AUTH_TOKEN|$*" >>"$CALLS"\n'
    '[[ "$1" != start ]] && exit "${HEALTH:-0}"\n'
    '[[ -n "${RAY_FAILS:-}" ]] && exit 1\n'
    'echo "$$" >>"$CALLS.pids"; exec sleep 60',
    "trireme": 'echo "trireme|$RAY_AUTH_MODE:$RAY_AUTH_TOKEN|$*" >>"$CALLS"\n'
    '[[ -z "${UNTIL_STOPPED:-}" ]] && exit 3\n'
    'exec "$PYTHON" -c "$UNTIL_STOPPED"',
    # Asked through `- NODES`, it is to say whether all of them have joined.
    "python3": '[[ "$1" == - ]] || exec "$PYTHON" "$@"\n(($(wc -l <"$CALLS.pids") >= $2))',
}
UNTIL_STOPPED = (
    "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); print('up', flush=True); "
    "time.sleep(60)"
)


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    given = {
        "TRIREME_BIN": str(folder),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_ON_NODE": "4",
        "CALLS": str(folder / "calls"),
        "PYTHON": sys.executable,
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(folder: Path, program: str) -> list[list[str]]:
    """Token and arguments of each call."""
    lines = [line.split("|") for line in (folder / "calls").read_text().splitlines()]
    return [rest for name, *rest in lines if name == program]


def assert_ray_has_ended(folder: Path) -> None:
    for pid in map(int, (folder / "calls.pids").read_text().split()):
        assert not Path(f"/proc/{pid}").exists(), f"Ray's process {pid} was left behind"


def test_ray_runs_on_every_node_with_a_token_that_no_argument_shows(tmp_path: Path) -> None:
    script = start(tmp_path, "run.yaml", "--learner.lr", "1e-6")
    _, errors = script.communicate(timeout=TIMEOUT_S)
    assert script.returncode == 3, errors  # The run's own exit code.
    ((head_token, head),) = calls(tmp_path, "ray@n1")
    ((worker_token, worker),) = calls(tmp_path, "ray@n2")
    ((run_token, run),) = calls(tmp_path, "trireme")
    assert head == "start --head --port=20077 --include-dashboard=false --block --num-cpus=4 --disable-usage-stats"
    assert worker == "start --address=n1:20077 --block --num-cpus=4 --disable-usage-stats"
    assert run == "train run.yaml --learner.lr 1e-6 --cluster.address n1:20077"
    assert head_token == worker_token == run_token
    mode, _, token = run_token.partition(":")
    assert mode == "token"
    assert len(token) == 64
    assert token not in head + worker + run
    assert_ray_has_ended(tmp_path)


def test_before_the_time_limit_the_run_is_asked_to_stop_and_waited_for(tmp_path: Path) -> None:
    script = start(tmp_path, "run.yaml", UNTIL_STOPPED=UNTIL_STOPPED)
    assert script.stdout is not None
    assert script.stdout.readline() == "up\n"
    script.send_signal(signal.SIGTERM)
    assert script.wait(TIMEOUT_S) == 130
    assert_ray_has_ended(tmp_path)


def test_a_ray_that_does_not_start_ends_the_job(tmp_path: Path) -> None:
    script = start(tmp_path, "run.yaml", RAY_FAILS="1", HEALTH="1")
    _, errors = script.communicate(timeout=TIMEOUT_S)
    assert script.returncode == 1
    assert "Ray ended on one of: n1 n2" in errors
    assert calls(tmp_path, "trireme") == []


def test_a_ray_that_never_answers_is_given_up_on(tmp_path: Path) -> None:
    started = time.monotonic()
    script = start(tmp_path, "run.yaml", HEALTH="1", TRIREME_RAY_START_TIMEOUT_S="1")
    _, errors = script.communicate(timeout=TIMEOUT_S)
    assert script.returncode == 1
    assert "waited 1 s (TRIREME_RAY_START_TIMEOUT_S) for Ray's head on n1" in errors
    assert time.monotonic() - started < TIMEOUT_S
    assert_ray_has_ended(tmp_path)


def test_without_a_configuration_nothing_starts(tmp_path: Path) -> None:
    script = start(tmp_path)
    _, errors = script.communicate(timeout=TIMEOUT_S)
    assert script.returncode == 2
    assert errors.startswith("usage: ")
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("command", [["bash", "-n"], [str(SHELLCHECK)]], ids=["bash", "shellcheck"])
def test_the_script_is_clean(command: list[str]) -> None:
    checked = subprocess.run([*command, str(SCRIPT)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
