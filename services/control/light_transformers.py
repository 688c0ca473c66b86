"""transformers without torch, for a command's own process: it reads configurations and tokenizers, and no models.

torch, and what transformers imports once there is torch, take longer than all else that a command does before its
first process starts. It must not know what is read. Invariant: unless `allow` was called, nothing is kept from anybody;
after it, this process has transformers without models for good, and torch for whoever imports that itself.
"""

import importlib
import logging
import os
import sys
from typing import Any

_COMMANDS: set[int] = set()
"""This process, where it is a command's own."""


def allow() -> None:
    """This process is a command's own: no model is ever loaded in it."""
    _COMMANDS.add(os.getpid())


def transformers() -> Any:  # Any: transformers is untyped
    """The package."""
    if os.getpid() not in _COMMANDS or {"torch", "transformers"} & sys.modules.keys():
        return importlib.import_module("transformers")
    logging.getLogger("transformers").addFilter(_advises_no_torch)
    hidden: Any = None  # What Python takes for a package that is not installed.
    sys.modules["torch"] = hidden
    try:
        package = importlib.import_module("transformers")
        package.AutoConfig, package.AutoTokenizer  # noqa: B018  # They import what they need when they are named.
    finally:
        del sys.modules["torch"]
    return package


def _advises_no_torch(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("PyTorch was not found")
