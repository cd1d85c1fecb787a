"""What an experiment shows of itself: tables, words and figures, for the closing words on the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import experiments
from .runs import read_config, read_metrics
from .runs.reading import refuse_changed


@dataclass(frozen=True)
class Section:
    """One heading of the report.

    text: plain words, one paragraph. columns, rows: a table of words, the first column on the left. pictures: caption → PNG
    file in the run's figures/.
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)


def own_sections(folder: Path) -> list[Section]:
    """What the experiment of a run folder shows of itself, from the folder alone; its figures are drawn anew.

    Empty where it shows nothing, is not known (any more), or has not written a line yet. UsageError for a folder that is no run,
    DataError for a finished one whose arrays are not as it wrote them.
    """
    name = read_config(folder)["experiment"]
    if name not in experiments.names() or not read_metrics(folder):
        return []
    module = experiments.load(name)
    refuse_changed(folder)
    return list(module.show(folder)) if hasattr(module, "show") else []
