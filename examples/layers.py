"""A network made of the project's own layers, two convolutions side by side: a penalty per unit, rates and scales per layer.

    hypertrail run examples/layers.py
    hypertrail launch examples/layers.py --cluster local --seeds 0:3
    hypertrail verify examples/layers.py
    python examples/layers.py

Networks of `hypertrail_nets` are a `Problem`, not a task: declared kinds of hyperparameters, a data set with its splits,
and both engines, so `--engine cpu` and `hypertrail verify` compare with derivatives by hand. A 3×3 and a 5×5 convolution of
the handwritten digits are joined, normalised, pooled and dropped out. Tuned are one L2 penalty for each unit, and one
learning rate and one initial scale for each array of weights.

Hardware: two CPU cores: 0.5 minutes (23 s of processor time, most of it compilation).
Measured: seeds 0 to 2, float32, after 8 updates; mean ± half of the 95 % interval:

                valid loss       test loss        test error
    the start   .387 ± .147      .365 ± .096      8.50 ± 2.93 %
    tuned       .198 ± .128      .164 ± .044      5.33 ± 1.86 %
    paired      -.189 ± .033     -.202 ± .066     -3.17 ± 2.01 points

The rates double and the scales of the convolutions halve: most of it is faster training (train loss .286 to .051). There is
an edge: with `--outer-rate 0.2 --meta-iterations 10` the test error of seed 0 falls to 4.8 % and is 32 % after the last
update.
"""

from __future__ import annotations

from dataclasses import dataclass

import hypertrail as h
from hypertrail.experiments._common import Common
from hypertrail.outer import Adam, Rule
from hypertrail.tuning import tune
from hypertrail_data import BatchSchedule, load, make_splits
from hypertrail_nets import Layer
from hypertrail_nets.layers import (
    AveragePool,
    BatchNorm,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    Input,
    Nonlinearity,
    ScaleBias,
    number_streams,
)


@dataclass(frozen=True)
class Config(Common):
    """Settings of the network and of its tuning."""

    method: str = "exact"
    """How the hypergradient is taken: exact, truncated-K, drmad-C4, …"""
    meta_iterations: int = 8
    """How many times the hyperparameters move."""
    maps: int = 8
    """Feature maps of each of the two convolutions."""
    hidden: int = 32
    """Units of the hidden dense layer."""
    dropout: float = 0.2
    """Share of the feature maps' numbers that are dropped in training."""
    steps: int = 100
    """T, elementary steps of one training run."""
    batch: int = 32
    """Images per step."""
    learning_rate: float = 0.1
    """Where the rate of every layer starts."""
    l2: float = 1e-4
    """Where every penalty starts."""
    outer_rate: float = 0.1
    """Step of the outer Adam: decades of a penalty, e-folds of a rate or a scale."""
    train: int = 300
    """Images to train on."""
    valid: int = 400
    """Images of the hyper loss."""
    test: int = 1000
    """Images that are only reported."""


def network(c: Config) -> Layer:
    """Two convolutions of the image, 3×3 and 5×5, are joined, normalised and pooled; two dense layers follow."""
    image = Input((8, 8, 1))
    both = Concatenate((Conv2D(image, c.maps, 3, "fine"), Conv2D(image, c.maps, 5, "coarse")), "both")
    layer = Nonlinearity(ScaleBias(BatchNorm(both, "norm"), "affine"), "tanh", "tanh1")
    layer = Dropout(AveragePool(layer, 2, "pool"), c.dropout, "dropout")
    layer = Nonlinearity(Dense(layer, c.hidden, "hidden"), "tanh", "tanh2")
    return number_streams(Dense(layer, 10, "logits"))


def problem(config: Config) -> h.Problem:
    c = config
    return h.Problem(
        network=network(c),
        splits=make_splits(load("digits"), c.train, c.valid, 0, c.test, c.seed),
        schedule=BatchSchedule(c.train, c.batch, c.seed),
        steps=c.steps,
        hyperparameters=(
            h.L2(level="unit", init=c.l2),
            h.LearningRate(level="layer", init=c.learning_rate),
            h.InitialScale(level="layer"),
        ),
        dynamics=h.Dynamics(momentum=0.9),
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return Adam(config.outer_rate)


if __name__ == "__main__":
    config = Config()
    records = list(tune(problem(config), h.load("gpu"), h.Exact(), rule(config), config.meta_iterations))
    for split in ("valid", "test"):
        first, last = records[0].metrics[split], records[-1].metrics[split]
        print(f"{split}: loss {first.loss:.4g} → {last.loss:.4g}, error {first.error:.2%} → {last.error:.2%}")
