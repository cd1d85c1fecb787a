"""Two runs side by side as a figure: how far they are apart at every step, and in every meta-iteration."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import figures
from ..figures import BLACK, BLUE, GREEN, GREY, ORANGE, RUNS
from .compare import ADJOINT, LOSS, VELOCITY, WEIGHTS, Pair, Steps
from .static import meta_axis, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = 1e-17  # where 0 is drawn


def save(folder: Path, found: Sequence[Pair], epsilon: float, why: str) -> list[Path]:
    """compare.png and compare.pdf. why: why there are no weights to draw, or ''."""
    with figures.into(folder, "png", "pdf"), figures.style():
        figures.save(folder, "compare", draw(found, epsilon, why))
    return [folder / "compare.png", folder / "compare.pdf"]


def draw(found: Sequence[Pair], epsilon: float, why: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 7.2), layout="constrained")
    (losses, weights), (metrics, gradients) = figure.subplots(2, 2)
    for axes in (losses, weights, metrics, gradients):
        axes.axhline(epsilon, color=GREY, linestyle="--", linewidth=1, label=f"allowed: {epsilon:.0e}")
    steps(losses, "Elementary loss", LOSS, found, "the runs did not both keep their losses")
    walks(weights, found, why)
    by_meta_iteration(metrics, found)
    hypergradients(gradients, found)
    for axes in (losses, weights, metrics, gradients):
        axes.set_yscale("log")
        axes.set_ylabel("relative difference" if axes is not gradients else "difference")
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, FLOOR / 2), min(max(top, 3 * epsilon), 3.0))
        axes.legend(fontsize=7, frameon=True, facecolor="white", edgecolor="none", framealpha=0.85)
    words = "0 is drawn at the lower edge, 1e-17" if any(drawn_at_floor(axes) for axes in figure.axes) else ""
    figure.supxlabel(words, fontsize=8, color="#555555")
    return figure


def above_floor(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.maximum(np.asarray(values, dtype=np.float64), FLOOR)


MOST = 1000  # points of a curve; of a longer one the largest of each window is drawn


def worst(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first steps of the windows, largest differences in them): nothing that stands out is lost."""
    starts = np.arange(0, len(differences), -(-len(differences) // MOST))
    return starts, above_floor(np.maximum.reduceat(differences, starts))


def drawn_at_floor(axes: Axes) -> bool:
    return any((np.asarray(line.get_ydata(), dtype=np.float64) <= FLOOR).any() for line in axes.lines)


def steps(axes: Axes, title: str, what: str, found: Sequence[Pair], missing: str) -> None:
    from matplotlib import colormaps

    axes.set_title(title)
    kept: dict[int, Steps] = {pair.index: one for pair in found for one in pair.steps if one.what == what}
    if not kept:
        return say(axes, missing)
    for k in spaced(list(kept), 5):
        colour = colormaps["Blues"](0.35 + 0.6 * k / max(max(kept), 1))
        axes.plot(*worst(kept[k].difference), color=colour, linewidth=1, label=f"meta-iteration {k}")
    axes.set_xlabel("elementary step")


def walks(axes: Axes, found: Sequence[Pair], why: str) -> None:
    """Weights, velocities and the adjoint's norm of the meta-iteration whose trajectories were kept, or of the last one."""
    here = [pair for pair in found if any(one.what == WEIGHTS for one in pair.steps)]
    back = [pair for pair in found if any(one.what == ADJOINT for one in pair.steps)]
    pair = (here or back or [None])[-1]
    title = "Weights" if here else "On the way back"
    axes.set_title(title if pair is None else f"{title} in meta-iteration {pair.index}")
    axes.set_xlabel("step")
    if pair is not None:
        for one in pair.steps:
            if one.what in (WEIGHTS, VELOCITY, ADJOINT):
                colour = {WEIGHTS: BLUE, VELOCITY: GREEN, ADJOINT: ORANGE}[one.what]
                axes.plot(*worst(one.difference), color=colour, linewidth=1, label=one.what)
    if why and not here:
        say(axes, f"weights: {why}")


def by_meta_iteration(axes: Axes, found: Sequence[Pair]) -> None:
    axes.set_title("Metrics and hyperparameters")
    k = [pair.index for pair in found]
    names = [name for name in found[0].metrics if not name.endswith("error")]
    for i, name in enumerate(names):
        axes.plot(
            k, above_floor([pair.metrics[name][2] for pair in found]), color=RUNS[i % len(RUNS)], marker="o", label=name
        )
    for kind in found[0].hyper:
        axes.plot(k, above_floor([pair.hyper.get(kind, np.nan) for pair in found]), color=BLACK, linestyle=":", marker="x",
                  label=f"hyperparameters of {kind}")  # fmt: skip
    meta_axis(axes, k)


def hypergradients(axes: Axes, found: Sequence[Pair]) -> None:
    axes.set_title("Hypergradients")
    having = [pair for pair in found if pair.agreement]
    if not having:
        return say(axes, "the runs have none of the same hyperparameters")
    k = [pair.index for pair in having]
    for i, kind in enumerate(having[0].agreement):
        of = [pair.agreement[kind].total for pair in having if kind in pair.agreement]
        colour = RUNS[i % len(RUNS)]
        for label, linestyle, marker, values in (
            ("relative error", "-", "o", [one.difference for one in of]),
            ("1 − cosine", "--", "s", [np.nan if one.cosine is None else 1 - one.cosine for one in of]),
            ("unequal signs", ":", "^", [1 - one.signs for one in of]),
        ):
            axes.plot(
                k, above_floor(values), color=colour, linestyle=linestyle, marker=marker, label=f"{kind}: {label}"
            )
    meta_axis(axes, k)


def say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.35, textwrap.fill(words, 44), transform=axes.transAxes, ha="center", va="center", fontsize=8,
              color="#555555")  # fmt: skip
