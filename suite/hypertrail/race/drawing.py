"""The figures of a race: error against gradients and seconds, all splits, the gap of valid, overhead, hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import figures
from ..measures import SPLITS
from .arm_records import Record
from .race import Result, Runner

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLOCKS = {"processor": "processor time", "seconds": "wall clock"}
SCHEDULES = [(figures.BLACK, style) for style in ("-", "--", ":", "-.")]
COLOURS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.PURPLE, "#56B4E9", "#E69F00", "#B2182B")
METHODS = [(colour, style) for style in ("-", "--") for colour in COLOURS]
PANELS = 12  # tensors that are drawn one by one; of a deeper network so many, evenly from input to output


def every(result: Result) -> Iterator[tuple[str, str, Figure]]:
    """(caption, file name, figure) of all of them, in reading order."""
    yield "Error on the test split against gradient evaluations and against seconds", "race-error", errors(result)
    yield "Error of every split while training, at each family's chosen start", "race-splits", splits(result)
    yield "How far the valid split is overfitted: test less valid", "race-gap", gaps(result)
    yield "Time of a step: plain training, and what the method adds", "race-overhead", overhead(result)
    for runner in result.runners:
        for kind in runner.first["hyper"]:
            if moved(runner.first, kind):
                caption = f"{runner.family}: {kind.replace('_', ' ')} of each layer (seed {runner.first['seed']})"
                yield caption, f"race-{kind}-{slug(runner.family)}", layers(runner.first, kind)


def errors(result: Result) -> Figure:
    """Test error, mean over seeds: on the left for the same gradients, on the right for the same time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for runner, look in looks(result):
        x, y = curve(runner, "test")
        left.plot(x, 100 * y.mean(axis=0), **look)
        right.plot(runner.seconds / runner.first["price"] * x, 100 * y.mean(axis=0), **look)
    left.set(title="For the same gradients", xlabel="gradient evaluations", ylabel="test error (%)", yscale="log")
    right.set(title="For the same time", xlabel=f"seconds ({CLOCKS[result.clock]}, without compilation)")
    percent_axis(
        left, np.concatenate([100 * after_start(curve(one, "test")[1].mean(axis=0)) for one in result.runners])
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def splits(result: Result) -> Figure:
    """A panel for each family: error of every split, mean over seeds."""
    from matplotlib.figure import Figure

    n = len(result.runners)
    columns = min(3, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(9.5, 0.6 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    shown: list[np.ndarray] = []  # what the axis must hold
    for i, (axes, runner) in enumerate(zip(grid.flat, result.runners, strict=False)):
        axes.tick_params(labelbottom=i + columns >= n)
        for split in (s for s in SPLITS if s in runner.first["points"][0]["metrics"]):
            x, y = curve(runner, split)
            mean = 100 * y.mean(axis=0)
            shown.append(after_start(mean))
            look = {key: figures.STYLE[split][key] for key in ("color", "linestyle")}
            axes.plot(x, mean, label=split, linewidth=1.3, **look)
        axes.set_title(runner.family, fontsize=8.5)
    for axes in list(grid.flat)[n:]:
        axes.set_visible(False)
    grid[0][0].set_ylim(0, 1.1 * np.quantile(np.concatenate(shown), 0.98))
    figure.supxlabel("gradient evaluations", fontsize=9)
    figure.supylabel("error (%)", fontsize=9)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


def gaps(result: Result) -> Figure:
    """Test less valid, mean over seeds, in error and in loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    row = figure.subplots(1, 2)
    for axes, key, scale in zip(row, ("error", "loss"), (100, 1), strict=True):
        axes.axhline(0, color=figures.GREY, linewidth=0.8)
        for runner, look in looks(result):
            x, test = curve(runner, "test", key)
            _, valid = curve(runner, "valid", key)
            axes.plot(x, scale * (test - valid).mean(axis=0), **look)
        axes.set(title=f"test − valid, {key}", xlabel="gradient evaluations")
        axes.set_ylabel("error (percentage points)" if key == "error" else "loss (nats)")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def overhead(result: Result) -> Figure:
    """A bar for each family: milliseconds of a step, the plain part and the rest."""
    from matplotlib.figure import Figure

    names = [one.family for one in result.runners]
    figure = Figure(figsize=(8, 1.1 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    plain = 1000 * result.plain_seconds
    whole = np.array([1000 * one.seconds / one.first["block"]["steps"][0] for one in result.runners])
    places = np.arange(len(names))
    axes.barh(places, np.minimum(whole, plain), color=figures.GREY, label="plain training")
    axes.barh(places, np.maximum(whole - plain, 0), left=plain, color=figures.ORANGE, label="method")
    for place, one in zip(places, whole, strict=True):
        axes.annotate(f"{one / plain:.2f} ×", (one, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(right=1.12 * max(plain, whole.max()))
    axes.set_xlabel(f"milliseconds of a step ({CLOCKS[result.clock]})")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    return figure


def layers(record: Record, kind: str) -> Figure:
    """One small panel per tensor: median, mean, middle half and 5–95 % of its hyperparameters against gradient evaluations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    tensors = record["hyper"][kind]
    names = list(tensors)
    if len(names) > PANELS:
        weights = [name for name in names if name.endswith("/W")] or names
        names = [weights[i] for i in np.unique(np.linspace(0, len(weights) - 1, PANELS).round().astype(int))]
    n, x = len(names), np.array([point["gradients"] for point in record["points"]])
    columns = min(n, 4)
    rows = -(-n // columns)
    figure = Figure(figsize=(9.5, max(3.0, 1.7 * rows + 0.8)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for i, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        mean, low, first, middle, third, high = np.array(tensors[name][: len(x)]).T
        axes.fill_between(x, low, high, color=figures.BLUE, alpha=0.18, linewidth=0, label="5–95 %")
        axes.fill_between(x, first, third, color=figures.BLUE, alpha=0.38, linewidth=0, label="25–75 %")
        axes.plot(x, middle, color=figures.BLACK, linewidth=1.2, label="median")
        axes.plot(x, mean, color=figures.ORANGE, linewidth=1.0, linestyle="--", label="mean")
        axes.set_title(name, fontsize=8, fontweight="normal")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.tick_params(labelsize=7, labelbottom=i + columns >= n)
        axes.margins(x=0)
    for axes in list(grid.flat)[n:]:
        axes.set_visible(False)
    figure.supylabel(figures.REPRESENTATION.get(kind, kind), fontsize=9)
    figure.supxlabel("gradient evaluations", fontsize=9)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


# -- pieces -------------------------------------------------------------------------------------------------------------


def curve(runner: Runner, split: str, key: str = "error") -> tuple[np.ndarray, np.ndarray]:
    """(gradients (n,), values (seeds, n)) at the measurements."""
    values = [[point["metrics"][split][key] for point in record["points"]] for record in runner.records]
    return np.array([point["gradients"] for point in runner.first["points"]]), np.array(values)


def after_start(values: np.ndarray) -> np.ndarray:
    """A curve without its start, which is drawn but may leave the picture: nine tenths of ten classes are wrong there. All of a
    curve that has no more than two points."""
    return values[1:] if len(values) > 2 else values


def looks(result: Result) -> list[tuple[Runner, dict[str, Any]]]:
    """Every runner with its line: the schedules black, the tuned one thick, the methods in colours."""
    schedules, methods = iter(SCHEDULES * 9), iter(METHODS * 9)
    out = []
    for one in result.runners:
        tuned = one is result.tuned
        colour, style = next(schedules if one.first["method"]["name"] == "plain" else methods)
        label = one.family + (" (tuned)" if tuned else "")
        out.append((one, {"color": colour, "linestyle": style, "linewidth": 2.6 if tuned else 1.4, "label": label}))
    return out


def moved(record: Record, kind: str) -> bool:
    """Whether the method has moved this kind; what a schedule moves is the same for all."""
    scheduled = kind == "learning_rate" and record["schedule"] != "constant"
    tracks = record["hyper"][kind].values()
    return record["method"]["name"] != "plain" and not scheduled and any(one[-1] != one[0] for one in tracks)


def percent_axis(axes: Axes, values: np.ndarray) -> None:
    """Plain numbers on a logarithmic axis of percent, around what is there."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_ylim(max(values.min() / 1.15, 1e-3), min(values.max() * 1.1, 100))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def slug(words: str) -> str:
    """A family's label as part of a file name."""
    kept = "".join(one if one.isascii() and one.isalnum() else "-" for one in words.lower())
    return "-".join(part for part in kept.split("-") if part)
