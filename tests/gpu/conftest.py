"""Skips the folder where there is no GPU, and prints what the checks measured.

Invariant: a check that ran here ran on a GPU, with the build of vLLM for GPUs. The one exception is asked for:
`pytest tests/gpu --rehearse` runs the checks on a CPU, to find their own mistakes before a GPU is rented.
"""

from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tests.gpu.engine_process import EngineProcess
from tests.gpu.variants import Variant

Measure = Callable[[str, float], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rehearse", action="store_true", help="run the checks of tests/gpu on a CPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every check of this folder, and skip it where it could not be what it says."""
    reason = None if config.getoption("--rehearse", default=False) else why_not_here()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(reason is not None, reason=reason or ""))


def why_not_here() -> str | None:
    """What is missing to run on a GPU, or None."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    if "vllm" not in {distribution.name for distribution in metadata.distributions()}:
        return "needs vLLM for GPUs (pip install 'trireme-rlhf[gpu]'), and it is not installed"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The numbers that the checks measured, one line each."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    measured = [(report, name, value) for report in reports for name, value in report.user_properties]
    if measured:
        terminalreporter.section("measured")
    for report, name, value in measured:
        terminalreporter.write_line(f"{value:>10.3g}  {name}  ({report.nodeid.rpartition('::')[2]})")


@pytest.fixture
def measure(record_property: Callable[[str, object], None]) -> Measure:
    """Adds a number, by a name with its unit, to the table at the end."""
    return record_property


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """A rollout worker of the variant that the test is parametrised with; it ends before the next starts."""
    variant: Variant = request.param
    process = EngineProcess(variant, variant.write(tmp_path_factory.mktemp("model")))
    try:
        process.start()
        yield process
    finally:
        process.close()
