"""The figures of a run, as PNG files drawn from what its folder holds. Matplotlib is imported when the first one is drawn.

Colours are Okabe and Ito's, told apart by every kind of colour vision; splits also differ in marker and line style.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays
from .engines import SPLITS
from .runs import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, BLACK, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A", "#AA4499"
STYLE = {
    "train": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "valid": {"color": ORANGE, "marker": "s", "linestyle": "-"},
    "select": {"color": GREEN, "marker": "^", "linestyle": "--"},
    "test": {"color": BLACK, "marker": "D", "linestyle": "-"},
}
REPRESENTATION = {
    "l2": "log₁₀ λ of the L2 penalty",
    "l1": "ln λ of the L1 penalty",
    "learning_rate": "ln α (learning rate)",
    "momentum": "logit γ (momentum)",
    "transform": "t (weight = z · eᵗ)",
    "initial_scale": "ln σ (scale of w₀)",
    "example_weight": "logit of the example's weight",
    "training_input": "pixel, as the network sees it",
    "noise": "ln σ (noise in training)",
}
MEANING = {"W": "weights", "b": "biases", "scale": "scales", "bias": "biases", "network": "the whole network",
           "train": "training examples", "x": "training images", "std": "noise layers"}  # fmt: skip
DPI = 150
TEXT = {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
        "axes.axisbelow": True, "legend.frameon": False, "lines.markersize": 4, "lines.linewidth": 1.6}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """What is drawn inside looks like all our figures. An experiment draws its own so: `with style(): save(folder, …)`."""
    import matplotlib

    with matplotlib.rc_context(TEXT):
        yield


def save(folder: Path, name: str, figure: Figure) -> Path:
    """Write a figure to figures/NAME.png of a run folder, the same bytes for the same picture; returns the file."""
    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})
    return path


def draw_all(folder: Path, lines: Sequence[dict[str, Any]] | None = None) -> dict[str, Path]:
    """Every figure that a meta loop has data for → {caption: file}, in reading order; written to figures/."""
    lines = read_metrics(folder) if lines is None else lines
    out: dict[str, Path] = {}
    if not lines:
        return out

    def keep(caption: str, name: str, figure: Figure) -> None:
        out[caption] = save(folder, name, figure)

    with style():
        keep("Loss and error of every split after each training run", "metrics", metrics(lines))
        if any("agreement" in line for line in lines):
            caption = "Agreement of the hypergradient with the exact one"
            keep(caption, "agreement", agreement(lines))
            if max(len(one["layers"]) for one in first_agreement(lines).values()) > 1:
                keep(f"{caption}, tensor by tensor", "agreement-layers", agreement_layers(lines))
        for kind, groups in hyper_groups(folder).items():
            for role, tensors in groups.items():
                caption = f"Hyperparameters of kind {kind}, {MEANING.get(role, role)}: how they spread"
                keep(caption, f"hyper-{kind}-{role}", hyperparameters(kind, tensors))
        images = learned_images(folder)
        if images is not None:
            caption = "Learned training images (the first of them), at the start above and at the end below"
            keep(caption, "learned-images", images)
    return out


# -- losses and errors --------------------------------------------------------------------------------------------------


def metrics(lines: Sequence[dict[str, Any]]) -> Figure:
    """Two panels over the meta-iterations: loss in nats (with the hyper loss) and error in percent, all splits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    k = [line["meta_iteration"] for line in lines]
    sparse = {"markevery": max(1, len(k) // 15)}
    for split in (s for s in SPLITS if s in lines[0]["metrics"]):
        look = {**STYLE[split], **sparse}
        left.plot(k, [line["metrics"][split]["loss"] for line in lines], label=split, **look)
        right.plot(k, [100 * line["metrics"][split]["error"] for line in lines], label=split, **look)
    f = [line["hyper_loss"] for line in lines]
    left.plot(k, f, color=PURPLE, linestyle=":", marker="x", label="hyper loss f", **sparse)
    left.set(title="Loss", ylabel="cross-entropy (nats per example)")
    right.set(title="Error", ylabel="error (% of examples)")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        meta_axis(axes, k)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def meta_axis(axes: Axes, k: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("meta-iteration (updates made before training)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlim(min(k) - 0.3, max(k) + 0.3)


# -- agreement ----------------------------------------------------------------------------------------------------------


def first_agreement(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next(line["agreement"] for line in lines if "agreement" in line)


PANELS = (
    ("cosine", "Cosine", "cosine of the angle to the exact one", 1.0, "1: same direction"),
    ("signs", "Equal signs", "coordinates with the exact sign (%)", 50.0, "50 %: as good as chance"),
    ("norm_ratio", "Length", "norm / exact norm", 1.0, "1: same length"),
)


def agreement(lines: Sequence[dict[str, Any]]) -> Figure:
    """A row of three panels per kind: cosine, equal signs and norm ratio; all coordinates, and how the tensors spread."""
    from matplotlib.figure import Figure

    compared = [line for line in lines if "agreement" in line]
    kinds = list(compared[0]["agreement"])
    k = [line["meta_iteration"] for line in compared]
    figure = Figure(figsize=(9.5, 0.4 + 3.1 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 3, squeeze=False)
    for row, kind in zip(grid, kinds, strict=True):
        for axes, (key, title, label, reference, words) in zip(row, PANELS, strict=True):
            scale = 100.0 if key == "signs" else 1.0
            total = [number(line["agreement"][kind]["total"][key]) * scale for line in compared]
            layers = [
                [number(one[key]) * scale for one in line["agreement"][kind]["layers"].values()] for line in compared
            ]
            axes.axhline(reference, color=GREY, linewidth=1, linestyle="--")
            if len(layers[0]) > 1:
                low, high = (np.nanquantile(np.array(layers), q, axis=1) for q in (0.1, 0.9))
                axes.fill_between(k, low, high, color=BLUE, alpha=0.18, linewidth=0, label="10–90 % of the tensors")
            axes.plot(k, total, color=BLUE, marker="o", label="all coordinates")
            axes.set_title(title if len(kinds) == 1 else f"{title}: {kind.replace('_', ' ')}")
            axes.set_ylabel(label)
            if key == "norm_ratio":
                ratio_axis(axes, [*total, *np.ravel(layers)])
            limits = {"cosine": (-1.05, 1.05), "signs": (-3, 103)}.get(key)
            if limits:
                axes.set_ylim(*limits)
            below = key == "cosine"  # above it stands the title
            axes.annotate(words, (0.98, reference), xycoords=axes.get_yaxis_transform(), ha="right",
                          va="top" if below else "bottom", xytext=(0, -3 if below else 2),
                          textcoords="offset points", fontsize=8, color="#555555")  # fmt: skip
            meta_axis(axes, k)
            axes.set_xlabel("meta-iteration")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


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


def agreement_layers(lines: Sequence[dict[str, Any]]) -> Figure:
    """Three maps, tensor by meta-iteration: cosine, equal signs, norm ratio. Input side at the top."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    compared = [line for line in lines if "agreement" in line]
    many = [kind for kind, one in compared[0]["agreement"].items() if len(one["layers"]) > 1]
    names = [(kind, name) for kind in many for name in compared[0]["agreement"][kind]["layers"]]
    k = [line["meta_iteration"] for line in compared]
    figure = Figure(figsize=(9.5, 1.3 + 0.19 * len(names)), layout="constrained")
    row = figure.subplots(1, 3, sharey=True)
    norms = {"cosine": Normalize(-1, 1), "signs": Normalize(0, 100), "norm_ratio": LogNorm(1e-2, 1e2)}
    for axes, (key, title, label, _, _) in zip(row, PANELS, strict=True):
        scale = 100.0 if key == "signs" else 1.0
        table = np.array(
            [
                [number(line["agreement"][kind]["layers"][name][key]) * scale for line in compared]
                for kind, name in names
            ]
        )
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
        figure.colorbar(image, ax=axes, orientation="horizontal", label=label, fraction=0.12 * inch, pad=0.15 * inch,
                        aspect=20, extend="both" if key == "norm_ratio" else "neither")  # fmt: skip
    row[0].set_yticks(range(len(names)), [name if len(many) == 1 else f"{kind} {name}" for kind, name in names])
    row[0].tick_params(axis="y", labelsize=7, length=0)
    return figure


def number(value: float | None) -> float:
    return math.nan if value is None else value


# -- hyperparameters ----------------------------------------------------------------------------------------------------

Spread = list[np.ndarray]  # the unconstrained values of one tensor, flat, one array for each state of the run


def hyper_groups(folder: Path) -> dict[str, dict[str, dict[str, Spread]]]:
    """kind → role of the tensor (W, scale, …) → tensor → its values at each state, tensors in the network's order."""
    groups: dict[str, dict[str, dict[str, Spread]]] = {}
    for path in sorted((folder / "states").glob("[0-9]*.npz")):
        hyper, _ = arrays.load_state(path)
        for kind, tensors in hyper.items():
            for name, u in tensors.items():
                role = name.rpartition("/")[2]
                groups.setdefault(kind, {}).setdefault(role, {}).setdefault(name, []).append(np.ravel(u))
    return groups


def hyperparameters(kind: str, tensors: dict[str, Spread]) -> Figure:
    """One small panel per tensor: median, middle half and 5–95 % of its hyperparameters over the meta-iterations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n = len(tensors)
    columns = min(n, 8 if n > 24 else 6 if n > 8 else 4)
    rows = -(-n // columns)
    width, height = (9.5, max(3.2, 1.35 * rows + 0.9)) if n > 1 else (5.5, 3.6)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    k = np.arange(len(next(iter(tensors.values()))))
    for i, (axes, (name, spread)) in enumerate(zip(grid.flat, tensors.items(), strict=False)):
        low, first, middle, third, high = np.array([np.quantile(u, [0.05, 0.25, 0.5, 0.75, 0.95]) for u in spread]).T
        axes.fill_between(k, low, high, color=BLUE, alpha=0.18, linewidth=0, label="5–95 %")
        axes.fill_between(k, first, third, color=BLUE, alpha=0.38, linewidth=0, label="25–75 %")
        axes.plot(k, middle, color=BLACK, linewidth=1.2, label="median")
        title = name.rpartition("/")[0] or MEANING.get(name, name)
        axes.set_title(f"{title}\n{spread[0].size:,}", fontsize=6.5, fontweight="normal", linespacing=1.1, pad=2)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.tick_params(labelsize=7, length=2, labelbottom=i + columns >= n)
        axes.margins(x=0)
    for axes in list(grid.flat)[n:]:
        axes.set_visible(False)
    figure.supylabel(REPRESENTATION.get(kind, kind), fontsize=9)
    words = "meta-iteration; above each panel the tensor and how many hyperparameters it has"
    figure.supxlabel(words if n > 1 else "meta-iteration", fontsize=9)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return figure


def learned_images(folder: Path, most: int = 10) -> Figure | None:
    """The first images at the first and at the last state, all on one scale of grey (or colour); None where none are learned."""
    from matplotlib.figure import Figure

    states = sorted((folder / "states").glob("[0-9]*.npz"))
    pairs = [arrays.load_state(path)[0].get("training_input") for path in (states[0], states[-1])] if states else [None]
    if pairs[0] is None:
        return None
    rows = [one["x"][:most] for one in pairs if one is not None]
    low, high = min(one.min() for one in rows), max(one.max() for one in rows)
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
