"""DrMAD's experiment 1: a tanh network on MNIST, one weight transform per input unit, moved by signs.

    hypertrail run drmad-mnist --data-dir FOLDER

Fu, Luo, Feng, Low, Chua (IJCAI 2016), section 4, with the settings of their code: 784-50-50-50-10, 2000 steps of 50
examples, 15,000 / 5,000 / 5,000 images, α .05, γ .95, initial scale e⁻³, penalty e⁻⁴ on z in w = z · eᵗ, t = .2 at the
start and t −= .07 sign(h), 20 meta-iterations (30 for the exact method). The paper prints γ = .1 for what the code calls
γ = .95. The transform reaches the weights; the biases are used as they are. Images are scaled to [0, 1].

Hardware: two CPU cores: 1.5 minutes with or without the comparison with the exact hypergradient, MNIST files at hand.
Measured: seed 0, float32, after 20 updates; at the start test error 12.94 %, hyper loss .552:

    method           hyper loss   test error   cosine with the exact hypergradient (first, sixth, eleventh, last update)
    drmad-C1-first   .294         7.16 %       .63, .40, −.04, .22; norm ratio .85 at first, 1750 at last
    drmad-C1         .310         7.80 %       .63, .18, −.09, .18; norm ratio .96 at first, 8370 at last
    exact            .225         5.72 %

drmad-C1-first has the authors' batches, the first tenth of the run's; drmad-C1 spreads as many over the run. With data this much
alike it matters little.

The paper's number: "at least 45 times faster and consumes 100 times less memory" than exact reversal with Python integers.
The thesis, on this network: cosine about .98 (C4) where T is 200, about .09 where T is 20,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..hyperparameters import WeightTransform
from ..outer import Rule, Sign
from ..problem import Dynamics, Problem
from ._common import Common


@dataclass(frozen=True)
class Config(Common):
    """Settings of drmad-mnist."""

    method: str = "drmad-C1-first"
    """How the hypergradient is taken: exact, or along DrMAD's line as in paper (C0), authors' code (C1-first), thesis (C4)."""
    meta_iterations: int = 20
    """How many times the transforms move (the paper's exact runs: 30)."""
    hidden: tuple[int, ...] = (50, 50, 50)
    """Units of each hidden layer (tanh)."""
    steps: int = 2000
    """T, elementary steps of one training run."""
    batch: int = 50
    """Examples per step."""
    learning_rate: float = 0.05
    """α of the damped momentum: SGD with learning rate α (1 − γ)."""
    momentum: float = 0.95
    """γ."""
    init_scale: float = math.exp(-3)
    """Standard deviation of the first weights and biases."""
    l2: float = math.exp(-4)
    """The fixed penalty on z."""
    transform: float = 0.2
    """t of every input unit at the start."""
    outer_rate: float = 0.07
    """How far each t moves per meta-iteration."""
    train: int = 15_000
    """Training images."""
    valid: int = 5_000
    """Images of the hyper loss."""
    select: int = 0
    """Images for choices between runs; the paper has none."""
    test: int = 5_000
    """Images that are only reported (of the official test set)."""


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    splits = make_splits(load("mnist", c.data_dir), c.train, c.valid, c.select, c.test, c.seed, standardise=False)
    return Problem(
        network=mlp((28, 28, 1), c.hidden, 10, "tanh", init_scale=c.init_scale),
        splits=splits,
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.steps,
        hyperparameters=(WeightTransform(level="input", init=c.transform),),
        dynamics=Dynamics(learning_rate=c.learning_rate, momentum=c.momentum),
        l2=c.l2,
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return Sign(config.outer_rate)
