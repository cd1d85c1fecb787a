"""A tanh network on 5,000 images of MNIST: rates and penalties that move while it trains, against tuned schedules.

    hypertrail run adaptive-mnist --data-dir FOLDER
    hypertrail run adaptive-mnist --data-dir FOLDER --repeats 1 --rates 0.3 --penalties 1e-4       (a minute)

784-50-50-10, batches of 50 in a fixed order. Who runs, and how it is judged: as in adaptive-digits.

Hardware: one of two CPU cores, MNIST files at hand.
Measured: not yet.
The thesis has no number for this problem; see adaptive-densenet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import race_report
from ..problem import Dynamics, Problem
from ..runs import Run
from ..sections import Section
from . import _adaptive

if TYPE_CHECKING:
    from ..display import Voice


@dataclass(frozen=True)
class Config(_adaptive.Race):
    """Settings of adaptive-mnist."""

    budget: int = 8_000
    """Gradient evaluations of each arm; a Hessian-vector product counts as two."""
    hidden: tuple[int, ...] = (50, 50)
    """Units of each hidden layer (tanh)."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    train: int = 5_000
    """Training images."""
    valid: int = 2_000
    """Images that the adaptive method looks at."""
    select: int = 2_000
    """Images on which settings are chosen."""
    test: int = 5_000
    """Images that are only reported (of the official test set)."""


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    return Problem(
        network=mlp((28, 28, 1), c.hidden, dropout=c.dropout),
        splits=make_splits(load("mnist", c.data_dir), c.train, c.valid, c.select, c.test, c.seed),
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.budget,
        hyperparameters=_adaptive.declared(),
        dynamics=Dynamics(momentum=c.momentum),
        valid_batch=c.batch,
        seed=c.seed,
        precision=c.precision,
    )


def study(config: Config, run: Run, voice: Voice) -> None:
    _adaptive.compete(config, run, voice, problem, _adaptive.small_families(config))


def show(folder: Path) -> list[Section]:
    return race_report.show(folder)
