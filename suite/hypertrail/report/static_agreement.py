"""Agreement of a method's hypergradient with the exact one, as Matplotlib draws it; the rest of the figures is in `static.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..figures import BLUE, GREY
from .static import Views, label, legend_below, look, meta_axis
from .view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("cosine", "Cosine", "cosine of the angle to the exact one", 1.0, "1: same direction"),
    ("signs", "Equal signs", "coordinates with the exact sign (%)", 50.0, "50 %: as good as chance"),
    ("norm_ratio", "Length", "norm / exact norm", 1.0, "1: same length"),
)


def agreement(views: Views) -> Figure:
    """A row of three panels per kind: cosine, equal signs and norm ratio; of one run also how the tensors spread."""
    from matplotlib.figure import Figure

    views = [one for one in views if one.compared]
    kinds = list(dict.fromkeys(kind for one in views for kind in one.compared[0]["agreement"]))
    figure = Figure(figsize=(9.5, 0.4 + 3.1 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 3, squeeze=False)
    for row, kind in zip(grid, kinds, strict=True):
        for axes, panel in zip(row, PANELS, strict=True):
            agreement_panel(axes, panel, kind, views)
            if len(kinds) > 1:
                axes.set_title(f"{panel[1]}: {kind.replace('_', ' ')}")
    legend_below(figure, grid[0][0], 2)
    return figure


def agreement_panel(axes: Axes, panel: tuple[str, str, str, float, str], kind: str, views: Views) -> None:
    key, title, words, reference, meaning = panel
    scale = 100.0 if key == "signs" else 1.0
    axes.axhline(reference, color=GREY, linewidth=1, linestyle="--")
    drawn: list[float] = []
    for one in views:
        found = [
            (line["meta_iteration"], line["agreement"][kind]) for line in one.compared if kind in line["agreement"]
        ]
        if not found:
            continue
        k = [index for index, _ in found]
        total = [number(both["total"][key]) * scale for _, both in found]
        tensors = np.array([[number(x[key]) * scale for x in both["layers"].values()] for _, both in found])
        if views[0].alone and tensors.shape[1] > 1:
            low, high = (quantile_of_numbers(tensors, q) for q in (0.1, 0.9))
            axes.fill_between(k, low, high, color=BLUE, alpha=0.18, linewidth=0, label="10–90 % of the tensors")
            drawn += [*tensors.ravel()]
        said = "all coordinates" if views[0].alone else label(one)
        axes.plot(k, total, **look(one), marker="o", label=said)
        drawn += total
    axes.set_title(title)
    axes.set_ylabel(words)
    if key == "norm_ratio":
        ratio_axis(axes, drawn)
    limits = {"cosine": (-1.05, 1.05), "signs": (-3, 103)}.get(key)
    if limits:
        axes.set_ylim(*limits)
    below = key == "cosine"  # above it stands the title
    axes.annotate(meaning, (0.98, reference), xycoords=axes.get_yaxis_transform(), ha="right",
                  va="top" if below else "bottom", xytext=(0, -3 if below else 2),
                  textcoords="offset points", fontsize=8, color="#555555")  # fmt: skip
    meta_axis(axes, [line["meta_iteration"] for one in views for line in one.compared])
    axes.set_xlabel("meta-iteration")


def ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis around 1, with plain numbers, that holds the middle of the values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = [v for v in values if np.isfinite(v) and v > 0] or [1.0]
    low, high = np.quantile(known, [0.05, 0.95])
    axes.set_yscale("log")
    axes.set_ylim(min(low / 1.5, 0.4), max(high * 1.5, 2.5))
    wide = axes.get_ylim()[1] / axes.get_ylim()[0] > 1e3
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def agreement_layers(one: View) -> Figure:
    """Three maps, tensor by meta-iteration: cosine, equal signs, norm ratio. Input side at the top."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    many, names = tensors_compared(one)
    k = [line["meta_iteration"] for line in one.compared]
    figure = Figure(figsize=(9.5, 1.3 + 0.19 * len(names)), layout="constrained")
    row = figure.subplots(1, 3, sharey=True)
    norms = {"cosine": Normalize(-1, 1), "signs": Normalize(0, 100), "norm_ratio": LogNorm(1e-2, 1e2)}
    for axes, (key, title, words, _, _) in zip(row, PANELS, strict=True):
        table = agreement_map(one, names, key)
        if key == "norm_ratio":
            table = np.maximum(table, 1e-30)
        image = axes.imshow(table, aspect="auto", cmap="PuOr_r", norm=norms[key], interpolation="nearest",
                            extent=(k[0] - 0.5, k[-1] + 0.5, len(names) - 0.5, -0.5))  # fmt: skip
        axes.set_title(title)
        axes.grid(False)
        meta_axis(axes, k)
        axes.set_xlim(k[0] - 0.5, k[-1] + 0.5)
        axes.set_xlabel("meta-iteration")
        inch = 1 / figure.get_figheight()
        figure.colorbar(image, ax=axes, orientation="horizontal", label=words, fraction=0.12 * inch, pad=0.15 * inch,
                        aspect=20, extend="both" if key == "norm_ratio" else "neither")  # fmt: skip
    row[0].set_yticks(range(len(names)), [name if len(many) == 1 else f"{kind} {name}" for kind, name in names])
    row[0].tick_params(axis="y", labelsize=7, length=0)
    return figure


def tensors_compared(one: View) -> tuple[list[str], list[tuple[str, str]]]:
    """The kinds that have several tensors, and (kind, tensor) of all of these."""
    first = one.compared[0]["agreement"]
    many = [kind for kind, both in first.items() if len(both["layers"]) > 1]
    return many, [(kind, name) for kind in many for name in first[kind]["layers"]]


def agreement_map(one: View, names: Sequence[tuple[str, str]], key: str) -> np.ndarray:
    """(tensors, meta-iterations): cosine, equal signs in percent or norm ratio; NaN where it has no value."""
    scale = 100.0 if key == "signs" else 1.0
    return np.array(
        [
            [number(line["agreement"][kind]["layers"][name][key]) * scale for line in one.compared]
            for kind, name in names
        ]
    )


def quantile_of_numbers(table: np.ndarray, q: float) -> np.ndarray:
    """(rows,): the quantile of the numbers in each row, NaN left out; NaN where a row has none."""
    rows = [row[np.isfinite(row)] for row in table]
    return np.array([np.quantile(row, q) if row.size else np.nan for row in rows])


def number(value: float | None) -> float:
    return math.nan if value is None else value


# -- hyperparameters ----------------------------------------------------------------------------------------------------
