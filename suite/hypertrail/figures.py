"""How figures look and where they are saved. Matplotlib is imported when the first one is drawn.

Colours are Okabe and Ito's, told apart by every kind of colour vision; splits also differ in marker and line style.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .runs.writing import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, BLACK, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A", "#AA4499"
RUNS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, "#E69F00", "#56B4E9", "#8C564B")  # the first run, the second, …
STYLE = {
    "train": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "valid": {"color": ORANGE, "marker": "s", "linestyle": "-"},
    "select": {"color": GREEN, "marker": "^", "linestyle": "--"},
    "test": {"color": BLACK, "marker": "D", "linestyle": "-"},
}
STAGES = {"train": BLUE, "evaluate": GREY, "hypergradient": ORANGE, "exact": GREEN}
REPRESENTATION = {
    "l2": "log₁₀ λ of the L2 penalty",
    "l1": "ln λ of the L1 penalty",
    "learning_rate": "ln α (learning rate)",
    "momentum": "logit γ (momentum)",
    "transform": "t (weight = z · eᵗ)",
    "initial_scale": "ln σ (scale of w₀)",
    "initial_weight": "u (added to w₀)",
    "example_weight": "the example's weight, or its logit",
    "training_input": "pixel, as the network sees it",
    "noise": "ln σ (noise in training)",
}
MEANING = {"W": "weights", "b": "biases", "scale": "scales", "bias": "biases", "network": "the whole network",
           "train": "training examples", "x": "training images", "std": "noise layers"}  # fmt: skip
DPI = 150
TEXT = {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
        "axes.axisbelow": True, "legend.frameon": False, "lines.markersize": 4, "lines.linewidth": 1.6,
        "pdf.fonttype": 42, "svg.hashsalt": "hypertrail"}  # fmt: skip
# What would make two files of the same picture differ, or say who wrote them, is left out.
METADATA = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}

_place: ContextVar[tuple[Path | None, tuple[str, ...], list[Path]]] = ContextVar("place", default=(None, ("png",), []))


@contextlib.contextmanager
def style() -> Iterator[None]:
    """What is drawn inside looks like all our figures. An experiment draws its own so: `with style(): save(folder, …)`."""
    with without_a_backend():
        import matplotlib.style

    with matplotlib.style.context(["default", TEXT]):
        yield


@contextlib.contextmanager
def without_a_backend() -> Iterator[None]:
    """MPLBACKEND left out: no window is ever opened, and a name that Matplotlib does not know would stop its import."""
    before = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["MPLBACKEND"] = before


@contextlib.contextmanager
def into(folder: Path, *formats: str) -> Iterator[list[Path]]:
    """Every figure that is saved inside goes to `folder`, whichever run it is of, in these formats (png, pdf, svg).

    Gives the list of the files, which grows with each.
    """
    written: list[Path] = []
    before = _place.set((folder, formats, written))
    try:
        yield written
    finally:
        _place.reset(before)


def save(folder: Path, name: str, figure: Figure) -> Path:
    """Write a figure to figures/NAME.png of a run folder, the same bytes for the same picture; returns the file.

    Inside `into` it is written elsewhere, in one or several formats; the file of the first format is returned.
    """
    mark_lone_points(figure)
    place, formats, written = _place.get()
    if place is None:
        place, written = folder / "figures", []
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{name}.{one}" for one in formats]
    for file, one in zip(files, formats, strict=True):
        image = io.BytesIO()
        figure.savefig(image, format=one, dpi=DPI, facecolor="white", metadata=METADATA[one])
        write_atomic(file, image.getvalue())  # a link at its place is replaced, not followed
        written.append(file)
        figure.set_layout_engine("none")  # it stays as it was laid out for the first format: half the time of the next
    return files[0]


def mark_lone_points(figure: Figure) -> None:
    """Give a marker to every point of a line that has no neighbour: without one, a line through a single point draws nothing.

    Lines that have a marker already, and those that are drawn without a line on purpose, stay as they are.
    """
    for axes in figure.axes:
        for line in axes.get_lines():
            lone = lone_points(*(np.asarray(one, float) for one in line.get_data(orig=False)))
            if lone.size and line.get_marker() in ("None", "", None) and line.get_linestyle() != "None":
                line.set_marker("o")
                line.set_markevery(lone.tolist())


def lone_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the finite points before and after which no finite point lies. x, y: (n,)."""
    there = np.isfinite(x) & np.isfinite(y)
    padded = np.concatenate([[False], there, [False]])
    return np.flatnonzero(there & ~padded[:-2] & ~padded[2:])
