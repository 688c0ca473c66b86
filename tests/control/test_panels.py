"""What stands above a picture of a run."""

from services.control.panels import Panel, Series


def labels(count: int) -> list[str]:
    lines = [Series(label=f"line {number}", colour="#000000", steps=[1], values=[0.5]) for number in range(count)]
    return [text for _, text in Panel(title="Lines", unit="number", series=lines).legend()]


def test_few_lines_are_named_with_their_last_values_and_many_without() -> None:
    assert labels(2) == ["line 0 0.500", "line 1 0.500"]
    assert labels(5) == ["line 0", "line 1", "line 2", "line 3", "line 4"]
