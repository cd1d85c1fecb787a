"""A small DenseNet on the handwritten digits: one L2 penalty per weight, DrMAD beside the exact hypergradient.

    hypertrail run drmad-digits

The network is the thesis' DenseNet made small (8×8 images, 11,478 penalties), the rest as there: momentum SGD, a learning
rate that drops tenfold, a fixed batch order, the same initial weights in every meta-iteration, log10 of each penalty moved
by the sign of its hypergradient with momentum. The training is short on purpose: over some hundred steps the line is a
fair stand-in for the trajectory, and the report shows by how much it is not, penalty by penalty. As the line walks
with the learning rate of the last step, its hypergradient is too short by about that drop; signs do not care.

Hardware: two CPU cores: 1.3 minutes, 70 s of processor time, most of it compilation (--no-compare-exact: one minute).
Measured: seeds 0 to 4, float32, gpu engine on a processor with two threads, after 8 updates; mean ± half of the 95 % interval:

    method       hyper loss     test loss      test error         after seven updates
    the start    .551 ± .106    .705 ± .133    13.87 ± 3.68 %
    drmad-C4     .184 ± .069    .382 ± .115    6.03 ± 3.09 %      6.03 ± 2.39 %
    exact        .085 ± .026    .213 ± .024    3.85 ± .89 %       4.42 ± .70 %

Both help every seed. Paired by seed, C4 less exact is +2.2 ± 3.4 points of test error: a tie, because C4 scatters from 2.85 to
8.88 % where exact stays within 2.68 to 4.52 %. The train loss falls as well (.660 → .354 and .173): in so short a training the
penalties speed up learning more than they prevent overfitting. Signs make large moves of small differences: the number of
threads, the rounding of a convolution and the minibatches that the line sees each change a single seed by points.

The paper's number: none for this problem.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..hyperparameters import L2
from ..outer import Rule, SignMomentum
from ..problem import Dynamics, Problem
from ._common import Common


@dataclass(frozen=True)
class Config(Common):
    """Settings of drmad-digits."""

    method: str = "drmad-C4"
    """How the hypergradient is taken: exact, or along DrMAD's line as in paper (C0), authors' code (C1), thesis (C4)."""
    compare_exact: bool = True
    """Take the exact hypergradient beside the method's and report how far apart they are; only the method's moves anything."""
    meta_iterations: int = 8
    """How many times the penalties move."""
    depth: int = 10
    """Convolutions plus the dense layer: blocks · layers + blocks + 1."""
    growth: int = 6
    """Feature maps that each layer adds."""
    blocks: int = 3
    """Dense blocks, with pooling between them."""
    dropout: float = 0.2
    """Share of activations dropped after each convolution but the first."""
    steps: int = 100
    """T, elementary steps of one training run."""
    batch: int = 64
    """Examples per step."""
    learning_rate: float = 0.2
    """α of the damped momentum: SGD with learning rate α (1 − γ)."""
    drop: float = 0.75
    """Share of the steps after which α is a tenth of that."""
    momentum: float = 0.9
    """γ."""
    l2: float = 1e-4
    """Where every penalty starts (a value, not its logarithm)."""
    outer_rate: float = 0.6
    """Decades that a penalty moves per meta-iteration once its hypergradient keeps its sign."""
    outer_mass: float = 0.7
    """Momentum of the signs."""
    train: int = 600
    """Training images."""
    valid: int = 300
    """Images of the hyper loss."""
    select: int = 300
    """Images for choices between runs; never optimised."""
    test: int = 597
    """Images that are only reported."""


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import densenet

    c = config
    splits = make_splits(load("digits"), c.train, c.valid, c.select, c.test, c.seed)
    return Problem(
        network=densenet((8, 8, 1), 10, c.depth, c.growth, c.blocks, first_output=2 * c.growth, dropout=c.dropout),
        splits=splits,
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.steps,
        hyperparameters=(L2(level="parameter", init=c.l2),),
        dynamics=Dynamics(learning_rate=c.learning_rate, momentum=c.momentum, schedule=((int(c.drop * c.steps), 0.1),)),
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return SignMomentum(config.outer_rate, config.outer_mass)
