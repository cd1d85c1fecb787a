"""Which pixels matter for which digit: one L2 penalty for each of the 7,840 weights of a softmax regression.

    hypertrail run ard-mnist --data-dir FOLDER

Automatic relevance determination as in Maclaurin, Duvenaud, Adams (2015), with the settings of their code: 10,000 images of
MNIST (pixels in [0, 1]) for training and 10,000 for validation, one pass of 50 steps of 200 in a fixed order, α 1, γ .9, initial
scale e⁻⁴, ln L2 = ln .01 + 1 everywhere, and 50 updates ln L2 −= 1000 h along the exact hypergradient.

Here the penalty is held as u = log10 L2 = ln L2 / ln 10. Then df/du = ln 10 · df/d ln L2, and a step s in ln L2 is
Δu = −(s / ln 10) · (df/du / ln 10): the same path takes plain gradient descent in u with step s / (ln 10)² = 188.6.

Not as there: biases carry no penalty; there is no hyper-penalty on the penalties (theirs, .01 Σ L2², holds the largest down),
but a bound at --largest.

Hardware: two CPU cores: 12 seconds, MNIST files at hand.
Measured: seed 0, float32, after 50 updates (no penalty comes near its bounds; the lowest falls to .0004, the highest to .17):

    loss   valid .691 → .395, select .688 → .404, test .661 → .380
    error  valid 15.79 → 10.63 %, select 15.57 → 11.23 %, test 14.26 → 10.06 %

Penalties fall by more than a decade along the strokes of a digit and where no stroke of it may be (the hole of the 0), rise
a little between the two, and stay put at the rim, where pixels are black. Four tenths move by less than 2 %.
The paper's number: none, a picture of the penalties, digit by digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import figures
from ..hyperparameters import L2, LN10
from ..outer import GradientDescent, Rule
from ..problem import Dynamics, Problem
from ..runs import arrays
from ..sections import Section
from ._common import Common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(Common):
    """Settings of ard-mnist."""

    method: str = "exact"
    """How the hypergradient is taken: exact, or an approximation of it."""
    meta_iterations: int = 50
    """How many times the penalties move."""
    steps: int = 50
    """T, elementary steps of one training run."""
    batch: int = 200
    """Examples per step."""
    learning_rate: float = 1.0
    """α of the damped momentum: SGD with learning rate α (1 − γ)."""
    momentum: float = 0.9
    """γ."""
    init_scale: float = exp(-4)
    """Standard deviation of the first weights and biases."""
    l2: float = 0.01 * exp(1)
    """Where every penalty starts (a value, not its logarithm)."""
    largest: float = 10.0
    """No penalty goes above (a value); from about 19 on the training itself would diverge."""
    outer_rate: float = 1000.0
    """Step of plain gradient descent in ln L2, the paper's logarithm."""
    train: int = 10_000
    """Training images."""
    valid: int = 10_000
    """Images of the hyper loss."""
    select: int = 10_000
    """Images for choices between runs; never optimised."""
    test: int = 10_000
    """Images that are only reported (of the official test set)."""


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import softmax_regression

    c = config
    splits = make_splits(load("mnist", c.data_dir), c.train, c.valid, c.select, c.test, c.seed, standardise=False)
    return Problem(
        network=softmax_regression((28, 28, 1), 10, c.init_scale),
        splits=splits,
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.steps,
        hyperparameters=(L2(level="parameter", init=c.l2, bounds=(1e-9, c.largest)),),
        dynamics=Dynamics(learning_rate=c.learning_rate, momentum=c.momentum),
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return GradientDescent(config.outer_rate / LN10**2)


# -- its own part of the report -----------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    paths = sorted((folder / "states").glob("[0-9]*.npz"))
    first, last = (arrays.load_state(path)[0]["l2"]["logits/W"] for path in (paths[0], paths[-1]))
    moved = last - first  # decades
    rows = [
        [str(digit), f"{10 ** np.median(one):.3g}", f"{10**one.min():.3g}", f"{10**one.max():.3g}",
         f"{100 * (np.abs(change) < np.log10(1.02)).mean():.1f} %"]
        for digit, (one, change) in enumerate(zip(last.T, moved.T, strict=True))
    ]  # fmt: skip
    columns = ("digit", "median L2", "smallest", "largest", "moved by less than 2 %")
    words = (
        "Where a pixel is black in every image, no penalty on its weights changes the hyper loss: there they stay put."
    )
    with figures.style():
        picture = figures.save(folder, "penalties", draw(moved))
    caption = f"The penalties of each digit's weights after {int(paths[-1].stem)} updates"
    return [Section("Penalties, digit by digit", words, columns, rows, {caption: picture})]


def draw(moved: np.ndarray) -> Figure:
    """One image per digit: by how many decades each weight's penalty moved; (784, 10)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    grid = figure.subplots(2, 5)
    limit = max(float(np.quantile(np.abs(moved), 0.995)), 1e-6)
    for digit, axes in enumerate(grid.flat):
        square = moved[:, digit].reshape(28, 28)
        image = axes.imshow(square, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(str(digit))
        axes.set_axis_off()
    figure.colorbar(
        image, ax=grid, label="decades moved: orange is more penalty, violet is less", extend="both", shrink=0.9
    )
    return figure
