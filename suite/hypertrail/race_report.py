"""What a race shows: who is best and by how much, what it costs, and the figures. Read from the run folder alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from . import figures, race_figures
from .race import Result, interval, read, verdict
from .sections import Section

SIGNS = {"learning_rate": "α", "l2": "λ"}


def show(folder: Path) -> list[Section]:
    """Two tables and the figures."""
    result = read(folder)
    sections = [standings(result), prices(result)]
    pictures: dict[str, Path] = {}
    if result.runners:
        with figures.style():
            for caption, name, figure in race_figures.every(result):
                pictures[caption] = figures.save(folder, name, figure)
        sections.append(Section("While they train", pictures=pictures))
    return sections


def standings(result: Result) -> Section:
    rows = []
    for one in result.runners:
        start = " ".join(f"{SIGNS.get(kind, kind)} {value:g}" for kind, value in one.first["start"].items())
        row = [one.family, start]
        row += [f"{100 * one.at_end(split).mean():.2f}" for split in ("train", "valid", "select")]
        row += [with_half(one.at_end("test")), f"{100 * (one.at_end('test') - one.at_end('valid')).mean():+.2f}"]
        if result.tuned is None or one is result.tuned:
            row += ["", "tuned" if result.tuned else ""]
        else:
            difference = one.at_end("test") - result.tuned.at_end("test")
            row += [with_half(difference, "+"), verdict(difference)]
        rows.append(row)
    columns = ["error, %", "start", "train", "valid", "select", "test", "− valid", "− tuned", ""]
    n = len(result.seeds)
    text = (
        f"Errors in percent after {result.budget:,} gradient evaluations (a Hessian-vector product counts as two), mean over "
        f"{n} seed{'s' if n > 1 else ''}; ±: half of the 95 % interval. Starts are chosen on select, never on test. − valid: "
        "test less valid, how far the valid split is overfitted. − tuned: test less that of the tuned schedule, the best "
        "baseline on select, paired seed by seed; 'ties': its interval holds 0."
    )
    if result.failed:
        text += f" Not finite with some seed, and out: {', '.join(result.failed)}."
    return Section("Who is best", text, columns, rows)


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
    columns = ["", "steps a block", "gradients a step", "steps in all", "ms a block", "plain", "method", "ratio"]
    clock = race_figures.CLOCKS[result.clock]
    text = (
        f"ms: {clock}, median over blocks and seeds without the first, which compiles; plain: so many steps of plain "
        "training at a constant rate in the same run, with the same arrays of hyperparameters; method: what is left (of a "
        "schedule: that each of its blocks is started from outside)."
    )
    return Section("What it costs", text, columns, rows)


def with_half(values: np.ndarray, sign: str = "") -> str:
    mean, half = interval(100 * values)
    return f"{mean:{sign}.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def milli(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"
