"""The figures of one run or of several, side by side, as Matplotlib draws them: for paper, and where no script runs.

`interactive.py` has the same functions for the screen. Each takes the runs (`View`), one or more; colour tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..figures import BLACK, BLUE, GREY, MEANING, PURPLE, REPRESENTATION, RUNS, STAGES, STYLE
from ..measures import ERROR, LOSS, SPLITS, scale, second, unit
from ..runs import arrays
from .view import Spread, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Views = Sequence[View]
DASHES = ("-", "--", ":", "-.")


def look(one: View) -> dict[str, Any]:
    """Colour and line of a run, the same in every figure."""
    return {"color": RUNS[one.place % len(RUNS)], "linestyle": DASHES[one.place // len(RUNS) % len(DASHES)]}


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))


# -- losses and errors --------------------------------------------------------------------------------------------------


def metrics(views: Views) -> Figure:
    """Loss in nats (with the hyper loss) and error in percent over the meta-iterations, every split.

    One run: two panels, a line for each split. Several: a column for each split, a line for each run.
    """
    from matplotlib.figure import Figure

    if not views[0].alone:
        return metrics_of_several(views)
    (one,) = views
    other = second(one.lines)
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, *right = np.ravel(figure.subplots(1, 1 if other is None else 2))
    sparse = {"markevery": max(1, len(one.k) // 15)}
    for split in one.splits:
        style = {**STYLE[split], **sparse}
        left.plot(one.k, measured(one, split, LOSS), label=split, **style)
        for axes in right:
            axes.plot(one.k, measured(one, split, other), label=split, **style)
    f = [line["hyper_loss"] for line in one.lines]
    left.plot(one.k, f, color=PURPLE, linestyle=":", marker="x", label="hyper loss f", **sparse)
    left.set(title="Loss", ylabel=unit_of_loss(other))
    for axes in right:
        axes.set(title=other.capitalize(), ylabel=unit(other))
    for axes in (left, *right):
        from_zero(axes)
        meta_axis(axes, one.k)
    legend_below(figure, left, 5)
    return figure


def measured(one: View, split: str, what: str) -> list[float]:
    """What was measured on a split in each meta-iteration, as it is shown; NaN where it was not."""
    found = (line["metrics"][split].get(what) for line in one.lines)
    return [np.nan if value is None else scale(what) * value for value in found]


def unit_of_loss(other: str | None) -> str:
    """A classifier's loss is a cross-entropy."""
    return "cross-entropy (nats per example)" if other == ERROR else "loss"


def metrics_of_several(views: Views) -> Figure:
    from matplotlib.figure import Figure

    splits = [split for split in SPLITS if any(split in one.splits for one in views)]
    other = second([line for one in views for line in one.lines])
    figure = Figure(figsize=(9.5, 5.4 if other else 3.2), layout="constrained")
    losses, *more = figure.subplots(1 if other is None else 2, len(splits) + 1, sharex=True, squeeze=False)
    errors = more[0] if more else []
    k = [index for one in views for index in one.k]
    for one in views:
        style = {
            **look(one),
            "marker": "o",
            "markersize": 3,
            "markevery": max(1, len(one.k) // 15),
            "label": label(one),
        }
        for row, what in ((losses, LOSS), (errors, other)):
            for axes, split in zip(row, splits, strict=False):
                if split in one.splits:
                    axes.plot(one.k, measured(one, split, what), **style)
        losses[-1].plot(one.k, [line["hyper_loss"] for line in one.lines], **style)
    for axes, title in zip(losses, [*splits, "hyper loss f"], strict=True):
        axes.set_title(title)
    losses[0].set_ylabel(unit_of_loss(other))
    if other is not None:
        errors[0].set_ylabel(unit(other))
    for axes in (*losses, *errors[:-1]):
        from_zero(axes)
    for axes in (losses[-1], *errors[:-1]) if other else losses:  # the lowest of each column
        meta_axis(axes, k)
        axes.set_xlabel("meta-iteration")
        axes.tick_params(labelbottom=True)
    if other is not None:
        errors[-1].set_visible(False)
    legend_below(figure, losses[-1], 2)
    return figure


def label(one: View) -> str:
    """What a legend calls a run; a dollar would begin a formula."""
    return one.label.replace("$", r"\$")


def from_zero(axes: Axes) -> None:
    """The y axis from 0 (or from what is below it) to a little above the highest value."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines] or [np.zeros(1)])
    low, high = min(float(np.nanmin(values)), 0.0), float(np.nanmax(values))
    axes.set_ylim(1.05 * low, 1.05 * high or 1.0)


def meta_axis(axes: Axes, k: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("meta-iteration (updates made before training)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlim(min(k) - 0.3, max(k) + 0.3)


def training(views: Views) -> Figure:
    """Elementary loss of every step, smoothed; of one run its meta-iterations from the first to the last, of several the last."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    axes = figure.subplots()
    if views[0].alone:
        losses = views[0].losses
        for k in spaced(list(losses), 6):
            colour = BLACK if k == max(losses) else colormaps["Blues"](0.35 + 0.6 * k / max(max(losses), 1))
            axes.plot(*smoothed(losses[k]), color=colour, linewidth=1.3, label=f"meta-iteration {k}")
    else:
        for one in views:
            if one.losses:
                k = max(one.losses)
                axes.plot(
                    *smoothed(one.losses[k]), **look(one), linewidth=1.3, label=f"{label(one)} (meta-iteration {k})"
                )
    axes.set(xlabel="elementary step", ylabel="elementary loss, penalties included", title="Training")
    axes.margins(x=0.01)
    if span([line.get_ydata() for line in axes.lines]) > 30:
        axes.set_yscale("log")
    legend_below(figure, axes, 3 if views[0].alone else 2)
    return figure


WINDOWS = 50  # a curve of T steps is averaged over T / WINDOWS of them


def smoothed(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(steps, means of windows of T / 50 steps): minibatch losses jump more than they fall."""
    width = max(1, len(losses) // WINDOWS)
    kept = len(losses) // width * width
    return np.arange(kept).reshape(-1, width).mean(axis=1), losses[:kept].reshape(-1, width).mean(axis=1)


def spaced(items: list[int], most: int) -> list[int]:
    """The first, the last, and some between them."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]


def span(curves: Sequence[Any]) -> float:
    """Largest over smallest value, where all are positive; else 1: what decides for a logarithmic axis."""
    values = np.concatenate([np.asarray(one, dtype=np.float64).ravel() for one in curves] or [np.ones(1)])
    return float(values.max() / values.min()) if values.size and values.min() > 0 else 1.0


# -- hypergradients -----------------------------------------------------------------------------------------------------


def norms(views: Views) -> Figure:
    """Norm of the hypergradient, a panel for each kind; the exact one dashed where it was taken."""
    from matplotlib.figure import Figure

    kinds = kinds_of(views)
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    row = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(row, kinds, strict=True):
        for one in views:
            style = look(one)
            ours = [(line["meta_iteration"], line["norm"][kind]) for line in one.lines if kind in line.get("norm", {})]
            exact = [(line["meta_iteration"], line["agreement"][kind]["total"]["reference_norm"])
                     for line in one.compared if kind in line["agreement"]]  # fmt: skip
            if ours:
                method = next(line["method"] for line in one.lines if "method" in line)
                said = method if views[0].alone else label(one)
                axes.plot(*zip(*ours, strict=True), color=style["color"], marker="o", label=said)
            if exact:
                said = "exact" if views[0].alone else f"{one.letter}: exact"
                axes.plot(*zip(*exact, strict=True), color=style["color"] if not views[0].alone else GREY, linestyle="--",
                          label=said)  # fmt: skip
        axes.set_title(kind.replace("_", " "))
        drawn = [line.get_ydata() for line in axes.lines]
        if span(drawn) > 10:
            axes.set_yscale("log")
        meta_axis(axes, [index for one in views for index in one.k])
        axes.set_xlabel("meta-iteration")
    row[0].set_ylabel("norm of the hypergradient")
    legend_below(figure, row[0], 2)
    return figure


def kinds_of(views: Views) -> list[str]:
    return list(dict.fromkeys(kind for one in views for line in one.lines for kind in line.get("norm", {})))


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def hyperparameters(kind: str, role: str, views: Views) -> Figure:
    """One small panel per tensor: how its hyperparameters spread over the meta-iterations.

    One run: median, middle half and 5–95 %. Several: each one's median and its middle half.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = tensors_of(kind, role, views)
    n = len(names)
    columns = min(n, 8 if n > 24 else 6 if n > 8 else 4)
    rows = -(-n // columns)
    width, height = (9.5, max(3.2, 1.35 * rows + 0.9)) if n > 1 else (5.5, 3.6)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for i, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        sizes = []
        for one in views:
            spread = one.spreads.get(kind, {}).get(role, {}).get(name)
            if spread is not None:
                fan(axes, spread, None if views[0].alone else one)
                sizes.append(f"{spread[0].size:,}")
        title = name.rpartition("/")[0] or MEANING.get(name, name)
        axes.set_title(f"{title}\n{' | '.join(dict.fromkeys(sizes))}", fontsize=6.5, fontweight="normal",
                       linespacing=1.1, pad=2)  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.tick_params(labelsize=7, length=2, labelbottom=i + columns >= n)
        axes.margins(x=0)
    for axes in list(grid.flat)[n:]:
        axes.set_visible(False)
    figure.supylabel(REPRESENTATION.get(kind, kind), fontsize=9)
    words = "meta-iteration; above each panel the tensor and how many hyperparameters it has"
    figure.supxlabel(words if n > 1 else "meta-iteration", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3 if views[0].alone else 2, fontsize=8)
    return figure


def tensors_of(kind: str, role: str, views: Views) -> list[str]:
    return list(dict.fromkeys(name for one in views for name in one.spreads.get(kind, {}).get(role, {})))


def fan(axes: Axes, spread: Spread, run: View | None) -> None:
    """Quantiles against the meta-iteration; in one run's own colours, or in those of `run`, one of several."""
    low, first, middle, third, high = np.array([np.quantile(u, QUANTILES) for u in spread]).T
    k = np.arange(len(spread))
    if run is None:
        axes.fill_between(k, low, high, color=BLUE, alpha=0.18, linewidth=0, label="5–95 %")
        axes.fill_between(k, first, third, color=BLUE, alpha=0.38, linewidth=0, label="25–75 %")
        axes.plot(k, middle, color=BLACK, linewidth=1.2, label="median")
    else:
        axes.fill_between(k, first, third, color=look(run)["color"], alpha=0.15, linewidth=0)
        axes.plot(k, middle, **look(run), linewidth=1.2, label=f"{label(run)}: median and middle half")


def learned_images(one: View, most: int = 10) -> Figure:
    """The first images at the first and at the last state, all on one scale of grey (or colour)."""
    from matplotlib.figure import Figure

    rows = [arrays.load_state(path)[0]["training_input"]["x"][:most] for path in (one.states[0], one.states[-1])]
    low, high = min(x.min() for x in rows), max(x.max() for x in rows)
    n, _, _, channels = rows[0].shape
    figure = Figure(figsize=(9.5, 19.0 / most + 0.2), layout="constrained")
    grid = figure.subplots(2, n, squeeze=False)
    for line, images in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            grey = (image - low) / ((high - low) or 1.0)
            axes.imshow(
                grey if channels == 3 else grey[..., 0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest"
            )
            axes.set_axis_off()
    return figure


# -- cost ---------------------------------------------------------------------------------------------------------------


def cost(views: Views) -> Figure:
    """Seconds and gradient evaluations, stage by stage, and memory; of one run by meta-iteration, of several run by run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    seconds, evaluations, memory = figure.subplots(1, 3)
    at, names, bars = stages_of(views)
    for axes, key in ((seconds, "seconds"), (evaluations, "gradients")):
        bottom = np.zeros(len(at))
        for stage, colour in STAGES.items():
            height = np.array(bars[key].get(stage, bottom * 0))
            if height.any():
                axes.bar(at, height, bottom=bottom, color=colour, width=0.8, label=stage)
                bottom = bottom + height
    seconds.set(title="Time", ylabel="seconds")
    evaluations.set(title="Work", ylabel="gradient evaluations (with HVP: 2)")
    memory.set(title="Memory", ylabel="MiB")
    for key, marker, colour in (("host", "o", BLACK), ("device", "s", PURPLE), ("trajectory", "^", BLUE)):
        values = np.array(bars["memory"][key]) / 2**20
        if values.any():
            memory.plot(at, np.where(values > 0, values, np.nan), marker=marker, color=colour, label=MEMORY[key],
                        linestyle="-" if views[0].alone else "none")  # fmt: skip
    memory.set_ylim(bottom=0)
    for axes in (seconds, evaluations, memory):
        axes.grid(False, axis="x")
        if views[0].alone:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
            axes.set_xlabel("meta-iteration")
        else:
            axes.set_xticks(at, names)
            axes.set_xlabel("run")
    seconds.legend(fontsize=8)
    if memory.lines:
        memory.legend(fontsize=8)
    return figure


MEMORY = {"host": "process, highest so far", "device": "device, highest so far", "trajectory": "stored trajectory"}


def stages_of(views: Views) -> tuple[list[int], list[str], dict[str, dict[str, list[float]]]]:
    """(positions, their names, {seconds | gradients | memory: {stage or place: a number for each position}}).

    Positions: the meta-iterations of one run, or the runs. A gradient with Hessian-vector product counts as two gradients.
    """
    if views[0].alone:
        groups = [[line] for line in views[0].lines]
        at, names = views[0].k, [str(k) for k in views[0].k]
    else:
        groups, at, names = [one.lines for one in views], list(range(len(views))), [one.letter for one in views]
    stages = list(dict.fromkeys(stage for lines in groups for line in lines for stage in line["cost"]))
    costs = [[line["cost"] for line in lines] for lines in groups]

    def total(stage: str, *keys: str) -> list[float]:
        weight = {"hvps": 2}
        return [sum(weight.get(key, 1) * one.get(stage, {}).get(key, 0) for one in group for key in keys)
                for group in costs]  # fmt: skip

    def most(key: str) -> list[float]:
        return [max((line.get("memory", {}).get(key) or 0 for line in lines), default=0) for lines in groups]

    stored = [max((one["train"]["trajectory_bytes"] for one in group), default=0) for group in costs]
    return at, names, {
        "seconds": {stage: total(stage, "seconds") for stage in stages},
        "gradients": {stage: total(stage, "gradients", "hvps") for stage in stages},
        "memory": {"host": most("host"), "device": most("device"), "trajectory": stored},
    }  # fmt: skip
