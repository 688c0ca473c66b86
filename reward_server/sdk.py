"""`serve`: everything a reward author has to call.

It must not know gRPC. What serving needs is imported when something is served, so that importing a reward stays fast.
Invariant: `serve` returns after a clean shutdown and raises `UserError` for whatever the author can mend.
"""

import asyncio
from typing import Any

from pydantic import ValidationError

from reward_server.function import RewardFunction, ScoreBatch, ScoreSample
from services.contracts.errors import UserError


def serve(score: ScoreSample | ScoreBatch | RewardFunction, *, batched: bool = False, **settings: Any) -> None:
    """Serve a reward until SIGTERM or Ctrl-C.

    Args:
        score: takes a `RewardSample` and returns a number, a `Reward` or a `Failure`; or a `RewardFunction`, which also
            says the reward's name, version and range. Plain functions run in threads, several at once.
        batched: whether `score` takes a sequence of samples and returns a sequence.
        settings: fields of `RewardServerConfig`, such as `port` (0 takes a free one), `host`, `timeout_s`,
            `tls_certificate`, `tls_key`, `token_file`.

    Raises:
        UserError: a setting is wrong, the port is taken, or this is called while a server loads the file.
    """
    from reward_server.config import RewardServerConfig, faults_in_words
    from reward_server.logs import set_up_logs
    from reward_server.scorer import FunctionScorer
    from reward_server.server import serve_until_signal
    from services.transport.tracing import set_up_tracing

    if _in_event_loop():
        raise UserError('serve() blocks, so it cannot run here; put it under `if __name__ == "__main__":`')
    try:
        config = RewardServerConfig(**settings)
    except ValidationError as error:
        raise UserError(f"serve() was given wrong settings: {faults_in_words(error)}") from None
    set_up_logs(config)
    set_up_tracing("trireme-reward")
    function = score if isinstance(score, RewardFunction) else RewardFunction(score, batched=batched)
    if function.isolate:
        raise UserError(
            "serve() runs a reward in its own process, and this one has isolate: true; put it into a file and start it "
            "by name, trireme reward serve FILE.py:NAME, which can end its process and start another"
        )
    serve_until_signal(
        lambda: FunctionScorer(function, timeout_s=config.timeout_s, num_threads=config.num_threads), config
    )


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
