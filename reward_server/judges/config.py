"""Which model judges, how it is asked, and what that may cost.

It must not know HTTP, nor what is asked. Invariants: the API key is never part of a configuration, only where to find
it; nothing travels to another machine in plain text unless the user said so.
"""

import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.transport.addresses import is_loopback


class JudgeConfig(Section):
    """A chat model that judges, and the limits of asking it."""

    base_url: str
    """Where the endpoint is, up to and with the version: https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """The model's name there."""
    api_key_env: str | None = None
    """Environment variable that holds the API key."""
    api_key_file: Path | None = None
    """File that holds the API key and nothing else; read when the judge is opened."""
    allow_plaintext: bool = False
    """Permit http:// to another machine, although what is judged travels there unencrypted; never with a key."""
    output: Literal["json_schema", "text"] = "json_schema"
    """json_schema: the endpoint holds the reply to the verdict's form; text: for endpoints that cannot, the verdict is
    a marked line at the end of a free reply."""
    explain: bool = True
    """Have the judge give its reasons before its verdict; false is cheaper and usually less accurate."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 gives the most repeatable verdicts."""
    parameters: dict[str, Any] = Field(default_factory=dict)  # Any: as the endpoint has them
    """Further fields of each request, as the endpoint names them; null leaves one out that is sent otherwise."""
    max_reply_tokens: int = Field(default=1024, ge=1)
    """Longest reply, in tokens; a reply that is cut at it has no verdict."""
    max_text_characters: int = Field(default=32_000, ge=100)
    """Longest text that is shown to the judge; of a longer one the middle is left out, and the judge is told so."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one request, in seconds."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries of a request that meets an overloaded, failing or silent endpoint."""
    verdict_attempts: int = Field(default=2, ge=1)
    """Questions asked before a judge whose replies cannot be read has failed."""
    max_in_flight: int = Field(default=16, ge=1)
    """Requests under way at the same time."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests that this process starts in a minute; null for no limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Most tokens in a minute, prompt and longest reply counted; null for no limit."""
    max_wait_s: float = Field(default=120.0, gt=0)
    """Longest that a request is held back by these limits, or by the endpoint's own Retry-After, in seconds."""
    cache: Path | None = None
    """File that keeps replies and the sum spent, for any number of processes of this machine; null: in memory only."""
    input_price: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, in the currency of `budget`."""
    output_price: float = Field(default=0.0, ge=0)
    """Price of a million reply tokens, in the currency of `budget`."""
    budget: float | None = Field(default=None, gt=0)
    """Most money spent on this model, over all runs that share `cache`; null for no limit."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError("base_url must be http(s)://HOST[:PORT]/PATH, such as http://127.0.0.1:8000/v1")
        if self.api_key_env and self.api_key_file:
            raise ValueError("give api_key_env or api_key_file, not both")
        self._check_privacy(is_private=url.scheme == "https" or is_loopback(url.hostname))
        owned = {"model", "messages", "response_format", "stream", "n"} & set(self.parameters)
        if owned:
            raise ValueError(f"parameters may not set {', '.join(sorted(owned))}")
        if self.budget is not None and not self.input_price + self.output_price:
            raise ValueError("a budget needs input_price and output_price: what a million tokens cost")
        return self

    def _check_privacy(self, *, is_private: bool) -> None:
        if is_private:
            return
        if self.api_key_env or self.api_key_file:
            raise ValueError("an API key crosses no network in plain text; use https://")
        if not self.allow_plaintext:
            raise ValueError(
                "http:// to another machine is not encrypted; use https://, or set allow_plaintext: true if the "
                "network between is trusted"
            )

    def api_key(self) -> SecretStr | None:
        """The key, read now; None where the endpoint needs none.

        Raises:
            UserError: naming the variable or file that has none.
        """
        if self.api_key_env:
            key, where = os.environ.get(self.api_key_env, ""), f"environment variable {self.api_key_env} (api_key_env)"
        elif self.api_key_file:
            key, where = _read(self.api_key_file), f"file {self.api_key_file} (api_key_file)"
        else:
            return None
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise UserError(f"the {where} holds no API key: one line of printable characters is needed there")
        return SecretStr(key)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the API key file {path} (api_key_file) cannot be read: {error}") from error
