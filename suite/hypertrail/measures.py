"""What was measured on a split, by name: the loss always, the error rate of a classifier, and whatever metrics a task has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPLITS = ("train", "valid", "select", "test")
LOSS, ERROR = "loss", "error"
COUNTS = ("examples", "batches")  # over how many the means are: of a task, only its batches are known


def measures(found: Mapping[str, Any]) -> list[str]:
    """The names of what was measured on a split: its loss first."""
    return [name for name in found if name not in COUNTS]


def count_of(found: Mapping[str, Any]) -> tuple[str, int]:
    """('examples', 297): over how many of what the means are."""
    name = next(name for name in COUNTS if name in found)
    return name, int(found[name])


def of_lines(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all that was measured on any split in these lines of metrics.jsonl."""
    return list(dict.fromkeys(name for line in lines for found in line["metrics"].values() for name in measures(found)))


def second(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """What a figure shows beside the loss: the first other name; None where there is none."""
    others = [name for name in of_lines(lines) if name != LOSS]
    return others[0] if others else None


def scale(name: str) -> float:
    """By what a number of this name is multiplied to be shown: error rates are shown in percent."""
    return 100.0 if name == ERROR else 1.0


def shown(name: str, value: float | None) -> str:
    """The number as a table shows it."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if name == ERROR else f"{value:.4f}"


def unit(name: str | None) -> str:
    """The label of its axis."""
    return {LOSS: "loss (nats per example)", ERROR: "error (% of examples)"}.get(name or "", name or "")
