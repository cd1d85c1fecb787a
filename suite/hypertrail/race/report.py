"""What a race shows: who is best and by how much, what it costs, and the figures. Read from the run folder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import figures
from ..edges import SIGNS
from ..interval import Unit, percent, verdict, with_half
from ..rows import Row, of_metrics
from ..sections import Section
from . import drawing
from .race import Result, Runner, read, remarks


def show(folder: Path) -> list[Section]:
    """Three tables and the figures."""
    result = read(folder)
    sections = [standings(result), losses(result), prices(result)]
    pictures: dict[str, Path] = {}
    if result.runners:
        with figures.style():
            for caption, name, figure in drawing.every(result):
                pictures[caption] = figures.save(folder, name, figure)
        sections.append(Section("While they train", pictures=pictures))
    return sections


def standings(result: Result) -> Section:
    n = len(result.seeds)
    text = (
        f"Errors in percent after {result.budget:,} gradient evaluations (a Hessian-vector product counts as two), mean over "
        f"{n} seed{'s' if n > 1 else ''}; ±: half of the 95 % interval. Starts are chosen on select, never on test. − valid: "
        "test less valid, how far the valid split is overfitted. − tuned: test less that of the tuned schedule, the best "
        "baseline on select, paired seed by seed; 'ties': its interval holds 0. No half width is less than one example. At the "
        "edge: the grid of starts may be too small to hold its best point."
    )
    if result.failed:
        text += f" Not finite with some seed, and out: {', '.join(result.failed)}."
    if result.blown_up:
        text += f" Finite, but blown up with some seed: {', '.join(result.blown_up)}."
    return Section("Who is best: error", text, columns("error, %"), ranks(result, "error", 100, 2))


def losses(result: Result) -> Section:
    text = "The same arms, chosen by the same errors, in cross-entropy (thousandths of a nat per example)."
    return Section("Who is best: loss", text, columns("loss, ‰ nat"), ranks(result, "loss", 1000, 1))


def columns(what: str) -> list[str]:
    return [what, "start", "train", "valid", "select", "test", "− valid", "− tuned", ""]


def ranks(result: Result, key: str, scale: float, digits: int) -> list[list[str]]:
    rows = []
    for one in result.runners:
        start = " ".join(f"{SIGNS.get(kind, kind)} {value:g}" for kind, value in one.first["start"].items())
        unit = percent(one.examples("test"), digits) if key == "error" else Unit(digits)
        at = {split: scale * one.at_end(split, key) for split in ("train", "valid", "select", "test")}
        row = [one.family, start, *(f"{at[split].mean():.{digits}f}" for split in ("train", "valid", "select"))]
        row += [with_half(at["test"], unit), f"{(at['test'] - at['valid']).mean():+.{digits}f}"]
        if result.tuned is None or one is result.tuned:
            row += ["", judged("tuned" if result.tuned else "", one)]
        else:
            difference = at["test"] - scale * result.tuned.at_end("test", key)
            row += [with_half(difference, unit.difference), judged(verdict(difference, unit.difference), one)]
        rows.append(row)
    return rows


def judged(word: str, runner: Runner) -> str:
    """A verdict, and beside it what weakens it."""
    return "; ".join([word, *remarks(runner)] if word else remarks(runner))


def prices(result: Result) -> Section:
    rows = []
    for one in result.runners:
        record = one.first
        steps = record["block"]["steps"][0]
        plain = result.plain_seconds * steps
        rows.append(
            [one.family, str(steps), f"{record['price'] / steps:.2f}", f"{record['steps']:,}", milli(one.seconds),
             milli(plain), milli(one.seconds - plain), f"{one.seconds / plain:.2f}"]
        )  # fmt: skip
    clock = drawing.CLOCKS[result.clock]
    text = (
        f"ms: {clock}, median over blocks and seeds without the first, which compiles; plain: so many steps of plain "
        "training at a constant rate in the same run, with the same arrays of hyperparameters; method: what is left (of a "
        "schedule: that each of its blocks is started from outside)."
    )
    head = ["", "steps a block", "gradients a step", "steps in all", "ms a block", "plain", "method", "ratio"]
    return Section("What it costs", text, head, rows)


def milli(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def numbers(folder: Path) -> list[Row]:
    """A row for each family and measurement of the arm that runs for it, means over the seeds of the race; the last also with
    how far it is from the tuned schedule on test. A family whose every arm failed has none.

    A race is one run, however many seeds it holds: what an interval over several races says, it says of such means.
    """
    result = read(folder)
    rows = []
    for one in result.runners:
        mine = []
        for points in zip(*(record["points"] for record in one.records), strict=False):
            metrics = [of_metrics(point["metrics"]) for point in points]
            means = {name: float(np.mean([values[name] for values in metrics])) for name in reversed(metrics[0])}
            mine.append(Row({"family": one.family, "gradients": points[0]["gradients"]}, means))
        if result.tuned is not None and one is not result.tuned:
            difference = one.at_end("test") - result.tuned.at_end("test")
            mine[-1].values["minus_tuned_test_error"] = float(difference.mean())
        mine[-1].values["seconds_per_block"] = one.seconds
        rows += mine
    return rows
