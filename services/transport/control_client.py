"""The operator's side of the control contract: asks a live run for its status, and for changes.

It must not know how a run does what it is asked. Invariants: every call has a deadline and is made once; the token
leaves this machine only behind TLS; what goes wrong is told in words, with the run's address, never with the token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from services.contracts.errors import ControlError, DeadlineExceeded, UserError
from services.contracts.run_status import RunStatus
from services.protos.control.v1 import control_pb2, control_pb2_grpc
from services.transport.addresses import is_loopback, split_address
from services.transport.control_codec import SERVICE_NAME, decode_status
from services.transport.control_file import CONTROL_FILE, find_live
from services.transport.grpc_security import TOKEN_KEY, bearer
from services.transport.key_material import read_authorities

TOKEN_VARIABLE = "TRIREME_CONTROL_TOKEN"
ANSWER_S = 10.0
"""What a checkpoint's answer may take on top of the time for the checkpoint itself, in seconds."""

Status = grpc.StatusCode


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAddress:
    """Where a live run answers, and what it takes to be heard.

    Attributes:
        authority: PEM certificates that the run's own must descend from; None for those of the machine.
        plaintext: whether to speak without TLS.
        token_from: where the token came from, for errors.
    """

    address: str
    token: str = field(repr=False)
    token_from: str
    plaintext: bool
    authority: bytes | None = None


def find_run(run: str, *, token: str | None = None, token_from: str = "", ca_file: Path | None = None) -> RunAddress:
    """The address behind RUN: a run's folder on this machine, or HOST:PORT with its token.

    Raises:
        UserError: when there is no such folder, no live run in it, or the token or the certificate is missing.
    """
    folder = Path(run)
    if folder.is_dir():
        entry = find_live(folder)
        token_from = str(folder / CONTROL_FILE)
        return RunAddress(address=entry.address, token=entry.token, token_from=token_from, plaintext=True)
    if "/" in run or ":" not in run:
        raise UserError(f"there is no folder {run!r}; give the run's folder (run.dir), or the HOST:PORT of a live run")
    host, _ = split_address(run, what="address")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UserError(f"what is in {token_from} is no token; it is one line of letters and digits")
    if not token:
        raise UserError(
            f"{run} asks for a token: put the one in {CONTROL_FILE} in the run's folder into {TOKEN_VARIABLE}, "
            "or into a file for --token-file"
        )
    plaintext = ca_file is None and is_loopback(host)
    authority = None if ca_file is None else read_authorities(ca_file, "--ca-file")
    return RunAddress(address=run, token=token, token_from=token_from, plaintext=plaintext, authority=authority)


class ControlClient:
    """A live run.

    Every call raises `UserError` when the operator is at fault, `DeadlineExceeded` when no answer came within
    `timeout_s`, and `ControlError` when the run cannot be reached or could not do it.
    """

    def __init__(self, run: RunAddress, channel: Any, timeout_s: float) -> None:  # Any: grpc has no types
        self._run = run
        self._stub = control_pb2_grpc.ControlServiceStub(channel)
        self._timeout_s = timeout_s

    def status(self) -> RunStatus:
        """The run as it is now."""
        message = self._call("Status", control_pb2.StatusRequest())
        try:
            return decode_status(message)
        except ValueError as error:
            raise ControlError(f"{self._run.address} runs another version of Trireme: {error}") from error

    def scale(self, num_workers: int) -> None:
        """Have so many rollout workers from now on."""
        self._call("Scale", control_pb2.ScaleRequest(num_workers=num_workers))

    def pause(self) -> None:
        """Have the run admit and train nothing more until `resume`."""
        self._call("Pause", control_pb2.PauseRequest())

    def resume(self) -> None:
        """Have the run go on after `pause`."""
        self._call("Resume", control_pb2.ResumeRequest())

    def checkpoint(self) -> str:
        """Have the newest whole step committed; returns the checkpoint's folder, on the run's machine."""
        request = control_pb2.CheckpointRequest(timeout_s=self._timeout_s)
        return str(self._call("Checkpoint", request, timeout_s=self._timeout_s + ANSWER_S).path)

    def drain(self) -> None:
        """Have the run end after what still makes whole steps."""
        self._call("Drain", control_pb2.DrainRequest())

    def _call(self, method: str, request: object, timeout_s: float | None = None) -> Any:  # Any: any method's reply
        timeout_s = timeout_s or self._timeout_s
        metadata = [(TOKEN_KEY, bearer(self._run.token))]
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _typed(error, method, self._run, timeout_s) from error


@contextmanager
def connect(run: RunAddress, *, timeout_s: float) -> Iterator[ControlClient]:
    """A client for the block. No connection is made before the first call."""
    options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    if run.plaintext:
        channel = grpc.insecure_channel(run.address, options=options)
    else:
        credentials = grpc.ssl_channel_credentials(root_certificates=run.authority)
        channel = grpc.secure_channel(run.address, credentials, options=options)
    with channel:
        yield ControlClient(run, channel, timeout_s)


def _typed(error: Any, method: str, run: RunAddress, timeout_s: float) -> Exception:  # Any: grpc has no types
    code, text = error.code(), error.details() or ""
    match code:
        case Status.INVALID_ARGUMENT:
            return UserError(text)
        case Status.ABORTED:
            return ControlError(text)
        case Status.UNAUTHENTICATED:
            return UserError(f"the run at {run.address} does not know the token in {run.token_from}: another run's?")
        case Status.UNIMPLEMENTED:
            return UserError(f"what answers at {run.address} is no {SERVICE_NAME} with {method}; check the address")
        case Status.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                waited_for=f"the run at {run.address} to answer {method}",
                waited_s=timeout_s,
                advice="it may be frozen or very busy: look at its log, or wait longer with --timeout-s",
            )
        case Status.UNAVAILABLE:
            return ControlError(f"no run can be reached at {run.address}: {_likely_cause(run)} ({text})")
    return ControlError(f"the run at {run.address} failed at {method} with {code.name}: {text}")


def _likely_cause(run: RunAddress) -> str:
    if run.plaintext:
        return "it has ended, or something else listens there, or it speaks TLS and needs --ca-file"
    return "it has ended, or does not speak TLS, or its certificate is not one that --ca-file vouches for"
