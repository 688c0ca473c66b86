"""What a reward server writes while it runs: text for people, or one JSON object a line for programs.

It must not know gRPC. Invariant: in JSON, a line that one call gave rise to carries the call's request id, trace
and span; a line about a batch, which may be of many calls, carries none.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

from reward_server.config import RewardServerConfig

CURRENT_CALL: ContextVar[Callable[[], Mapping[str, str]]] = ContextVar("current_call", default=dict)
"""Tells the ids of the call that is being answered, which few calls need: request_id, and trace_id and span_id where
the caller sent them."""

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logs(config: RewardServerConfig) -> None:
    """Write to standard error as configured, unless the process has set up its logs itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(handlers=[handler], level=config.log_level.upper())


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, the call's ids, and `facts`, where the line was given some."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **CURRENT_CALL.get()(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
