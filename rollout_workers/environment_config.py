"""The section `rollout.environment`: who answers the policy between its turns.

It must not load the environment: a configuration is read where its code need not be.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from services.contracts.settings import Section


class EnvironmentConfig(Section):
    """Who answers the policy between its turns, and how long the two may go on."""

    name: str
    """calculator, python (runs programs in a sandbox), or a function of your own: my_environment.py:respond."""
    options: Mapping[str, Any] = Field(default_factory=dict)  # Any: the environment's own settings
    """Further arguments of that function, by their names."""
    max_turns: int = Field(default=8, ge=2)
    """Most turns of the policy in one completion; max_completion_tokens bounds the tokens of all, answers included."""
    role: Literal["tool", "user"] = "tool"
    """Who the answers come from, in the chat template of a chat; plain text has no roles."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Longest wait for one answer, in seconds."""
    max_attempts: int = Field(default=3, ge=1)
    """Tries for an answer that does not come in time or ends in an exception; then the run stops, to be resumed."""
    max_calls: int = Field(default=64, ge=1)
    """Calls that one worker makes at the same time, each in a thread of its own."""
