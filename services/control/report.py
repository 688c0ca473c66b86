"""The report of a run: `curves.png`, and `report.html`, one file that needs no other and no network.

It must not know how a run was made, only what it left in its folder. Invariant: text that a model wrote is shown as
text; nothing in it can become markup, run, or reach out of the page.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from services.control.catalogue import written
from services.control.gold_panels import gold_panels
from services.control.metrics import SAMPLES_FILE
from services.control.panels import COLOURS, Panel, comparison_panels, run_panels
from services.control.reward_model_facts import judgement
from services.control.run_facts import early_and_late, headlines, median_phases, pieces, statistics, subtitle
from services.control.run_record import RunRecord, read_run
from services.control.suite_facts import suite_facts
from services.control.visible_text import shortened, visible

CURVES_FILE = "curves.png"
REPORT_FILE = "report.html"

_TEMPLATE = Path(__file__).with_name("report.html")
_LONGEST_TEXT = 4000
"""Characters of a prompt, completion or reference that are shown."""


def write_report(folder: Path) -> Path:
    """Write `curves.png` and `report.html` into a run's folder and return where the report lies.

    Raises:
        UserError: there is no such folder, no finished step in it, or a file of it is damaged.
    """
    run = read_run(folder)
    page = _page(
        title=run.name,
        subtitle=subtitle(run),
        panels=run_panels(run),
        picture=folder / CURVES_FILE,
        run=run,
        headlines=headlines(run),
        judgement=judgement(run),
        suites=suite_facts(run),
        phases=median_phases(run.rows),
        gold=_drawn(gold_panels(run)),
        alarms=run.alarms,
        samples=early_and_late(run.samples),
        statistics=statistics(run.rows),
    )
    return _write(page, folder / REPORT_FILE)


def write_comparison(folders: Sequence[Path], report: Path) -> Path:
    """Write one report of several runs to `report`, its picture beside it; return where the report lies.

    Raises:
        UserError: as `write_report`, for any of the folders.
    """
    runs = _distinct([read_run(folder) for folder in folders], folders)
    page = _page(
        title=f"{len(runs)} runs",
        subtitle=" · ".join(run.name for run in runs),
        panels=comparison_panels(runs),
        picture=report.with_suffix(".png"),
        comparison=[(run.name, {line.label: line for line in headlines(run)}) for run in runs],
    )
    return _write(page, report)


def _distinct(runs: Sequence[RunRecord], folders: Sequence[Path]) -> list[RunRecord]:
    """The runs, those that share a name called by their folders."""
    count = Counter(run.name for run in runs)
    return [
        replace(run, name=str(folder)) if count[run.name] > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def _page(*, title: str, panels: Sequence[Panel], picture: Path, subtitle: str, **sections: object) -> str:
    """Draw the panels and fill the template; a section that is not given is left out."""
    # Drawing takes matplotlib, which costs every command half a second if it is imported with this file.
    from services.control.curves import PAGE_COLOURS, draw_page

    draw_page(panels, picture, title=visible(title), subtitle=visible(subtitle))
    environment = Environment(
        autoescape=True, finalize=_printed, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "pieces": pieces,
        "written": written,
        "shortened": partial(shortened, longest=_LONGEST_TEXT, rest_is_in=SAMPLES_FILE),
    }
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    empty = dict.fromkeys(
        ("run", "headlines", "judgement", "suites", "comparison", "gold", "alarms", "phases", "samples", "statistics")
    )
    return template.render(
        empty | sections,
        title=title,
        subtitle=subtitle,
        colours=COLOURS,
        page_colour=lambda colour: PAGE_COLOURS.get(colour, "var(--grid)"),
        panels=_drawn(panels),
    )


def _drawn(panels: Sequence[Panel]) -> list[tuple[Panel, Markup]]:
    """Each panel with its drawing, which holds numbers and names of the code's own, no text of a run."""
    from services.control.curves import draw_svg

    return [(panel, Markup(draw_svg(panel))) for panel in panels]


def _write(page: str, report: Path) -> Path:
    report.write_text(page, encoding="utf-8", errors="replace")
    return report


def _printed(value: object) -> object:
    """Whatever the template writes: text of any origin made visible, everything else as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
