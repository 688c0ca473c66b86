"""What a user names in code of their own: `my_file.py:name` or `package.module:name`.

It must not know what it is for. Invariant: whatever is wrong with the file, the module or the name is a `UserError`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from services.contracts.errors import UserError


def load_named(name: str, *, kind: str) -> Any:  # Any: whatever the user's code has there
    """What `name` names.

    Args:
        name: a path of a Python file or a module, a colon, and a name in it.
        kind: what it is to be, for errors, such as "reward".

    Raises:
        UserError: there is no such file, its code does not load, or it has no such name.
    """
    source, _, attribute = name.rpartition(":")
    module = _load_file(Path(source), kind) if source.endswith(".py") else _load_module(source, kind)
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f"{source} has no {attribute!r}, which {kind} {name!r} names")
    return found


def _load_file(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no {kind} file {path} (looked in {Path.cwd()})")
    name = f"user_{kind}_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # As an import would; dataclasses of the file look themselves up there.
    sys.path.insert(0, str(path.parent.resolve()))  # As for a script: its neighbours can be imported.
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"the {kind} file {path} does not load: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str, kind: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"the {kind} module {name} does not load: {type(error).__name__}: {error}") from error
