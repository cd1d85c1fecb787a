"""What a run found, in rows that can be held beside those of other seeds: what a row is about, and its numbers.

An experiment says them itself (`numbers(folder)` in its module). A meta loop that does not has a row for each meta-iteration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import experiments
from .interval import Unit, percent
from .measures import SPLITS, measures
from .runs import read_config, read_metrics

Label = str | int | float


class Row(NamedTuple):
    """labels: what it is about, the same whatever the seed (method, meta-iteration). values: what was measured.

    Words tell curves apart; of the numbers among the labels that move, the last is the axis along which a curve goes. The
    first three values that move are those that are drawn. What is not a finite number (None, NaN) counts as not there.
    """

    labels: dict[str, Label]
    values: dict[str, Any]


def of_run(folder: Path) -> list[Row] | None:
    """The rows of a run that has come to its end; [] where it has written no line, None where its experiment says none.

    Raises UsageError where `folder` is no run, DataError where it is damaged, and, of a run that has not come to its end, what
    the experiment raises.
    """
    name, lines = read_config(folder)["experiment"], read_metrics(folder)
    numbers = getattr(experiments.load(name), "numbers", None) if name in experiments.names() else None
    if not lines:
        return []
    if numbers is not None:
        found = numbers(folder)
    elif any("meta_iteration" in line for line in lines):
        found = [of_meta_iteration(line) for line in lines if "meta_iteration" in line]
    else:
        return None
    return [Row(labels, finite(values)) for labels, values in found]


def of_meta_iteration(line: dict[str, Any]) -> Row:
    """The row of one line of a meta loop: hyper loss, loss and error of every split, agreement with the exact hypergradient
    where it was taken, seconds of all stages."""
    values = {"hyper_loss": line["hyper_loss"], **of_metrics(line["metrics"])}
    for kind, both in line.get("agreement", {}).items():
        values |= {f"{kind}_{what}": both["total"][what] for what in ("cosine", "signs", "norm_ratio")}
    values["seconds"] = sum(cost["seconds"] for cost in line.get("cost", {}).values())
    return Row({"meta_iteration": line["meta_iteration"]}, values)


def of_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{split: {loss, error, …, examples}} → {split_loss, split_error, …, split_examples}, the splits in their order.

    The examples say how fine an error rate can be (`unit_of`); they come last, as nobody looks at them first.
    """
    there = [split for split in SPLITS if split in metrics]
    values = {f"{split}_{what}": metrics[split][what] for split in there for what in measures(metrics[split])}
    return values | {f"{split}_examples": metrics[split]["examples"] for split in there if "examples" in metrics[split]}


def unit_of(name: str, examples: Mapping[str, float] | None = None) -> Unit:
    """What a number of this name is, as a table shows it: errors in percent, all else as it was measured.

    examples: {split: how many it has}, for the resolution of its error; without them an error may be any number from 0 to 100.
    """
    if name.endswith("_error"):
        split = next((one for one in SPLITS if f"{one}_error" in name), "")
        n = (examples or {}).get(split)
        unit = percent(int(n)) if n else Unit(2, 0.0, 0.0, 100.0)
        return unit.difference if name.startswith("minus_") else unit
    if name.endswith("_cosine") or name == "cosine":
        return Unit(low=-1.0, high=1.0)
    return Unit(low=0.0, high=1.0) if name.endswith("_signs") or name in SHARES else Unit()


SHARES = ("diverged", "failed", "arrived")  # truths, whose means over seeds are shares


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are finite numbers, as floats."""
    return {name: float(x) for name, x in values.items() if x is not None and math.isfinite(x)}


def means(found: Sequence[Row]) -> list[Row]:
    """Rows of the same labels as one, for a run that holds several seeds: of each value the mean over those that have it, of
    a truth the share."""
    same: dict[tuple[tuple[str, Label], ...], list[dict[str, Any]]] = {}
    for labels, values in found:
        same.setdefault(tuple(labels.items()), []).append(values)
    out = []
    for labels, ones in same.items():
        names = dict.fromkeys(name for one in ones for name in one)
        mean = {name: [float(one[name]) for one in ones if one.get(name) is not None] for name in names}
        out.append(Row(dict(labels), {name: sum(xs) / len(xs) for name, xs in mean.items() if xs}))
    return out


# -- rows as curves -----------------------------------------------------------------------------------------------------


def axis(found: Sequence[Mapping[str, Label]]) -> str | None:
    """Of labels: the last number that takes more than one value; None where none does."""
    moving = [key for key in moving_keys(found) if all(not isinstance(one.get(key), str) for one in found)]
    return moving[-1] if moving else None


def moving_keys(found: Sequence[Mapping[str, Label]]) -> list[str]:
    """The labels that take more than one value, in the order in which they come."""
    keys = dict.fromkeys(key for one in found for key in one)
    return [key for key in keys if len({one[key] for one in found if key in one}) > 1]


def series(labels: Mapping[str, Label], found: Sequence[Mapping[str, Label]]) -> dict[str, Label]:
    """The labels that say which curve a row belongs to: those that move, but for the axis; where none does, its words."""
    along, moving = axis(found), moving_keys(found)
    apart = [key for key in moving if key != along]
    return {key: x for key, x in labels.items() if (key in apart if apart else isinstance(x, str) and key != along)}
