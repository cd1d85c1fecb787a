"""A small tanh network on the handwritten digits: rates and penalties that move while it trains, against tuned schedules.

    hypertrail run adaptive-digits
    hypertrail run adaptive-digits --seeds 1 --budget 3000 --rates 0.3 --penalties 1e-4        (half a minute)

The adaptive method of the thesis (per-parameter ln α and log10 λ by the signs of K reversed steps, s_r .1, s_λ .01, M = 10, α .1
at the start, bounds α 1e-5 … 1 and λ 1e-7 … 1e-2, output layer averaged over classes) against a constant rate, a step schedule
(a tenth at half, a hundredth at three quarters) and a cosine, each with α and λ chosen from a grid of six on the select
split. Equal gradient evaluations, five seeds, judged on test. Controls: a cosine that is trained on train and
valid together, which the adaptive method only looks at; the adaptive method with its start chosen from the same grid; with only
the rates moving; with only L2 moving, under a cosine of α. The network: 64-64-64-10, tanh, dropout .2,
batches of 32 in a fixed order, damped momentum γ .9 (α .1 is SGD with learning rate .01).

Hardware: one of two CPU cores.
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
    """Settings of adaptive-digits."""

    batch: int = 32
    """Examples per step, and of a validation batch."""
    budget: int = 15_000
    """Gradient evaluations of each arm; a Hessian-vector product counts as two."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer (tanh)."""
    dropout: float = 0.2
    """Share of hidden units dropped in training."""
    train: int = 600
    """Training images."""
    valid: int = 400
    """Images that the adaptive method looks at."""
    select: int = 300
    """Images on which settings are chosen."""
    test: int = 497
    """Images that are only reported."""


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    return Problem(
        network=mlp((8, 8, 1), c.hidden, dropout=c.dropout),
        splits=make_splits(load("digits"), c.train, c.valid, c.select, c.test, c.seed),
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
