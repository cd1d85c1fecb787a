"""The thesis' DenseNet-40-12 on CIFAR-10: 1,010,664 L2 penalties, one per weight, tuned along DrMAD's line.

    hypertrail run drmad-densenet --data-dir FOLDER                              (a GPU; hours)
    hypertrail run drmad-densenet --data-dir FOLDER --steps 5 --meta-iterations 1 --train 640 --valid 128   (a taste on a CPU)

Depth 40, growth 12, 3 blocks, first output 16: 1,019,722 parameters. Batch 64 in a fixed order, dropout .2, no
augmentation, 45,000 / 5,000 / 10,000 images, the same initial weights in every meta-iteration, E0 · 1.4ᵏ epochs (at most
300) in meta-iteration k.

Learning rate: the thesis writes SGD with learning rate .1 (.01 from epoch 30) and momentum .9. In the damped form used here
v is an average of gradients, so the same trajectory needs α = .1 / (1 − γ) = 1: `sgd_rate` is the thesis' number and
the problem is built with α = sgd_rate / (1 − γ). The printed γ is .9 in one place and .95 in another; .9 is the default.

--as-published takes the hypergradient as their GPU script does: minibatches 0 … N − 1, N from the sum of the tensors' norms,
no adjoint for what is not regularized. Its Hessian, block by block, and its error rates with dropout on are not repeated.

Hardware: one GPU for the whole; a taste of 5 steps on two CPU cores: 3.5 minutes, nearly all of it compilation.
Measured: not yet on a GPU.
The paper's number: test error 12.45, 12.10, 12.69, 12.43, 12.62, 13.26, 12.70, 12.96 % over eight meta-iterations, then NaN
(baseline 11.4 %); those errors were taken with dropout switched on, ours with it off.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..hyperparameters import L2
from ..outer import Rule, SignMomentum
from ..problem import Dynamics, Problem
from ._common import Common


@dataclass(frozen=True)
class Config(Common):
    """Settings of drmad-densenet."""

    meta_iterations: int = 8
    """How many times the penalties move."""
    depth: int = 40
    """Convolutions plus the dense layer: blocks · layers + blocks + 1."""
    growth: int = 12
    """Feature maps that each layer adds."""
    blocks: int = 3
    """Dense blocks, with pooling between them."""
    first_output: int = 16
    """Feature maps of the first convolution."""
    dropout: float = 0.2
    """Share of activations dropped after each convolution but the first."""
    epochs: float = 30.0
    """E0: meta-iteration k trains for min(E0 · 1.4ᵏ, 300) epochs, the closing training for as many as the last."""
    steps: int | None = None
    """T of every meta-iteration, in place of the epochs; for a short look."""
    batch: int = 64
    """Examples per step."""
    sgd_rate: float = 0.1
    """Learning rate in the thesis' convention; the damped dynamics get α = sgd-rate / (1 − momentum)."""
    momentum: float = 0.9
    """γ."""
    drop_epoch: int = 30
    """From this epoch on the learning rate is a tenth."""
    l2: float = 1e-4
    """Where every penalty starts (a value, not its logarithm)."""
    outer_rate: float = 1 / 3
    """Decades that a penalty moves per meta-iteration once its hypergradient keeps its sign."""
    outer_mass: float = 0.7
    """Momentum of the signs."""
    train: int = 45_000
    """Training images."""
    valid: int = 5_000
    """Images of the hyper loss."""
    valid_batch: int = 500
    """The hyper loss is the mean over validation batches of this size, each normalised by its own statistics."""
    select: int = 0
    """Images for choices between runs; the thesis has none."""
    test: int = 10_000
    """Images that are only reported (of the official test set)."""
    as_published: bool = False
    """Take the hypergradient as the thesis' GPU script does, in place of drmad-C4; another method that is asked for stays."""

    def __post_init__(self) -> None:
        if self.as_published and self.method == Common.method:
            object.__setattr__(self, "method", PUBLISHED)
        super().__post_init__()


PUBLISHED = "drmad-C4-first:sum_of_norms:regularized_only"


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import densenet

    c = config
    splits = make_splits(load("cifar10", c.data_dir), c.train, c.valid, c.select, c.test, c.seed)
    schedule = BatchSchedule(c.train, c.batch, c.seed, order="fixed")
    drop = c.drop_epoch * schedule.steps_per_epoch
    return Problem(
        network=densenet((32, 32, 3), 10, c.depth, c.growth, c.blocks, c.first_output, c.dropout),
        splits=splits,
        schedule=schedule,
        steps=c.steps or epochs_to_steps(c.epochs, schedule.steps_per_epoch),
        hyperparameters=(L2(level="parameter", init=c.l2),),
        dynamics=Dynamics(learning_rate=c.sgd_rate / (1 - c.momentum), momentum=c.momentum, schedule=((drop, 0.1),)),
        valid_batch=min(c.valid_batch, c.valid),
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return SignMomentum(config.outer_rate, config.outer_mass)


def steps(config: Config, problem: Problem, k: int) -> int:
    """T of meta-iteration k: min(E0 · 1.4ᵏ, 300) epochs; the closing training is as long as the last tuned one."""
    last = max(config.meta_iterations - 1, 0)
    epochs = min(config.epochs * 1.4 ** min(k, last), 300.0)
    return config.steps or epochs_to_steps(epochs, problem.schedule.steps_per_epoch)


def epochs_to_steps(epochs: float, steps_per_epoch: int) -> int:
    return max(1, round(epochs * steps_per_epoch))
