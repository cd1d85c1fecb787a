"""A training set of ten images that is learned: what should a network see for 20 steps to recognise all digits after?

    hypertrail run learned-data-mnist --data-dir FOLDER

Maclaurin, Duvenaud, Adams (2015), with the settings of their code: softmax regression trained for 20 steps on ten images, one for
each digit, all ten in every step; α 1, γ .9; 10,000 images of MNIST (pixels in [0, 1]) as valid split. The 7,840 pixels
are the hyperparameters. They begin blank and move by plain gradient descent with step 1 along the exact hypergradient, 40 times.

Not as there: every training starts from the same weights. The train row of the tables is about the ten learned images.

Hardware: two CPU cores: half a minute (15 seconds of work), MNIST files at hand.
Measured: seed 0, float32, after 40 updates of ten images, each then looking like its digit in grey and white:

    loss   valid 2.313 → .409, select 2.314 → .435, test 2.313 → .406
    error  valid 85.2 → 11.0 %, select 85.1 → 11.4 %, test 84.6 → 10.6 %

The paper's number: recorded by their code, validation loss 2.37 → .655, test loss .733.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp

import numpy as np

from ..hyperparameters import TrainingInput
from ..outer import GradientDescent, Rule
from ..problem import Dynamics, Problem
from ._common import Common


@dataclass(frozen=True)
class Config(Common):
    """Settings of learned-data-mnist."""

    method: str = "exact"
    """How the hypergradient is taken: exact, or an approximation of it."""
    meta_iterations: int = 40
    """How many times the images move."""
    images: int = 10
    """Learned images; the i-th one has the label i mod 10."""
    steps: int = 20
    """T, elementary steps of one training run."""
    learning_rate: float = 1.0
    """α of the damped momentum: SGD with learning rate α (1 − γ)."""
    momentum: float = 0.9
    """γ."""
    init_scale: float = exp(-4)
    """Standard deviation of the first weights and biases."""
    outer_rate: float = 1.0
    """Step of plain gradient descent on the pixels."""
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
    splits = make_splits(load("mnist", c.data_dir), c.images, c.valid, c.select, c.test, c.seed, standardise=False)
    blank = replace(
        splits.train, x=np.zeros_like(splits.train.x), y=(np.arange(c.images) % 10).astype(splits.train.y.dtype)
    )
    return Problem(
        network=softmax_regression((28, 28, 1), 10, c.init_scale),
        splits=replace(splits, train=blank),
        schedule=BatchSchedule(c.images, c.images, c.seed, order="fixed"),
        steps=c.steps,
        hyperparameters=(TrainingInput(init=0.0),),
        dynamics=Dynamics(learning_rate=c.learning_rate, momentum=c.momentum),
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return GradientDescent(config.outer_rate)
