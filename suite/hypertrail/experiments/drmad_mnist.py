"""DrMAD's experiment 1: a tanh network on MNIST, one weight transform per input unit, moved by signs.

    hypertrail run drmad-mnist --data-dir FOLDER

Fu, Luo, Feng, Low, Chua (IJCAI 2016), section 4, with the settings of their code: 784-50-50-50-10, 2000 steps of 50
examples, 15,000 / 5,000 / 5,000 images, α .05, γ .95, initial scale e⁻³, penalty e⁻⁴ on z in w = z · eᵗ, t = .2 at the
start and t −= .07 sign(h), 20 meta-iterations (30 for the exact method). The paper prints γ = .1 for what the code calls
γ = .95. The transform reaches the weights; the biases are used as they are. Images are scaled to [0, 1].

Their program differs in six further points, which --as-published repeats: the penalty reaches the biases too; the mean image of
the 60,000 official training images is subtracted; training, validation and test images all come from these 60,000; every
batch is drawn with replacement, the same batches in each update; and each update has a new split of the same 20,000 images and
new first weights. Where they derive a random state from a seed, this package draws from its own streams, so single runs differ.

Hardware: two CPU cores: 1.5 minutes with or without the comparison with the exact hypergradient, MNIST files at hand.
Measured without --as-published: seeds 0 to 4, float32, mean ± half of the 95 % interval; at the start hyper loss .535 ± .024,
test error 12.57 ± .63 %; after 20 updates:

    method           hyper loss     test error      less that of exact, paired
    drmad-C1-first   .274 ± .024    7.43 ± .77 %    +1.50 ± .61 points: loses
    drmad-C1         .296 ± .032    8.06 ± 1.09 %   +2.13 ± 1.01 points: loses
    exact            .210 ± .014    5.93 ± .41 %

Seed 0: hyper loss and test error, cosine with the exact hypergradient at the first, sixth, eleventh and last update, ratio of
norms at the first and last:

    drmad-C1-first   .294, 7.16 %   .63, .40, −.04, .22   .85, 1750
    drmad-C1         .332, 8.76 %   .62, .32, .13, .13    .94, 601
    drmad-C1-even    .310, 7.80 %   .63, .18, −.09, .18   .96, 8370

drmad-C1-first has the authors' batches, the first tenth of the run's; drmad-C1 draws as many from the whole run, drmad-C1-even
spreads them evenly over it. The first ones end at the lower hyper loss (paired −.022 ± .013); in test error the two tie.
Measured with --as-published: seed 0, float32, hyper loss .532 → .296, test error 12.46 → 8.12 % after 20 updates.

The paper's number: "at least 45 times faster and consumes 100 times less memory" than exact reversal with Python integers.
The thesis, on this network: cosine about .98 (C4) where T is 200, about .09 where T is 20,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..hyperparameters import WeightTransform
from ..outer import Rule, Sign
from ..problem import Dynamics, Problem
from ._common import Common

if TYPE_CHECKING:
    from hypertrail_data import Dataset, Splits


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
    """Images that are only reported (of the official test set; --as-published: of the training images)."""
    as_published: bool = False
    """Do as the authors' program does: penalty on the biases, mean image subtracted, batches drawn with replacement, test images
    from the training set, and a new split and new first weights at every update."""


def problem(config: Config) -> Problem:
    """The problem; as_published: that of the first meta-iteration."""
    from hypertrail_data import BatchSchedule, derived_seed, load, make_splits
    from hypertrail_nets import mlp

    c = config
    dataset = load("mnist", c.data_dir)
    if c.as_published:
        splits = published_splits(dataset, c, 0)
    else:
        splits = make_splits(dataset, c.train, c.valid, c.select, c.test, c.seed, standardise=False)
    made = Problem(
        network=mlp((28, 28, 1), c.hidden, 10, "tanh", init_scale=c.init_scale),
        splits=splits,
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="replacement" if c.as_published else "fixed"),
        steps=c.steps,
        hyperparameters=(WeightTransform(level="input", init=c.transform),),
        dynamics=Dynamics(learning_rate=c.learning_rate, momentum=c.momentum),
        l2=c.l2,
        l2_on="all" if c.as_published else "regularizable",
        seed=c.seed,
        precision=c.precision,
    )
    return made.with_(seed=derived_seed(c.seed, "updates", 0)) if c.as_published else made


def problem_for(config: Config, problem: Problem, k: int) -> Problem:
    """The problem of meta-iteration k; as_published: with a split and first weights of its own, and the same batches."""
    if not config.as_published:
        return problem
    from hypertrail_data import derived_seed, load

    splits = published_splits(load("mnist", config.data_dir), config, k)
    return problem.with_(splits=splits, seed=derived_seed(config.seed, "updates", k))


def published_splits(dataset: Dataset, config: Config, k: int) -> Splits:
    """Their splits of meta-iteration k: pixels in [0, 1] minus the mean image of all official training images; a pool of
    train + valid + select of these images, divided anew for each k, and test images from the rest of them, always the same.
    """
    from hypertrail_data import generator, used
    from hypertrail_data.splits import Split, Splits

    c = config
    official = len(dataset) - dataset.official_test
    if c.train + c.valid + c.select + c.test > official:
        raise UsageError(
            f"train {c.train} + valid {c.valid} + select {c.select} + test {c.test}: as published, all come from the "
            f"{official} official training images; ask for fewer"
        )
    pixels = dataset.x[:official].astype(np.float32) / np.float32(dataset.scale)
    mean = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    order = generator(c.seed, "split").permutation(official)
    pool, rest = np.split(order, [c.train + c.valid + c.select])
    divided = generator(c.seed, "split", k).permutation(pool)

    def take(rows: np.ndarray) -> Split:
        return Split(pixels[rows] - mean, dataset.y[rows].astype(np.int32), rows.astype(np.int64))

    train, valid, select = np.split(divided, [c.train, c.train + c.valid])
    splits = Splits(
        train=take(train),
        valid=take(valid),
        select=take(select),
        test=take(rest[: c.test]),
        mean=mean,
        std=np.ones(1, np.float32),
        classes=dataset.classes,
        name=dataset.name,
        notes=dataset.notes,
    )
    used.announce(f"{dataset.name}: as published, seed {c.seed}, meta-iteration {k}", splits)
    return splits


def rule(config: Config) -> Rule:
    return Sign(config.outer_rate)
