"""A tanh network on 5,000 images of MNIST: rates and penalties that move while it trains, against tuned schedules.

    hypertrail run adaptive-mnist --data-dir FOLDER
    hypertrail run adaptive-mnist --data-dir FOLDER --repeats 1 --rates 0.3 --penalties 1e-4       (a minute)

784-50-50-10, batches of 50 in a fixed order. Who runs, and how it is judged: as in adaptive-digits.

Hardware: one of two CPU cores, MNIST files at hand: about 10 minutes of processor time for five seeds.
Measured: seeds 0 to 3 (--seeds 4), float32, error in % (±: 95 % interval over seeds; − tuned: paired), starts chosen on select:

                                  α, λ        train  valid  select  test         − tuned
    constant rate                 .3, 1e-3    .04    6.66   6.71    5.96 ± .63   +.83 ± .55    loses
    step schedule                 1, 1e-3     .18    6.40   6.39    5.76 ± .24   +.63 ± .20    loses
    cosine (tuned)                1, 1e-3     .00    5.45   5.76    5.13 ± .15
    cosine, valid trained on      1, 1e-3     .01    .01    5.14    4.51 ± .34   −.62 ± .19    helps
    adaptive 131-4, as published  .1, 1e-4    .00    5.83   7.23    6.71 ± .46   +1.58 ± .32   loses
      its start chosen            1, 1e-3     .09    4.79   5.92    5.42 ± .73   +.29 ± .68    ties
      look-ahead                  .1, 1e-4    .00    5.74   7.26    6.73 ± .29   +1.60 ± .20   loses
    adaptive 100-5                .1, 1e-4    .00    5.30   7.47    6.69 ± .50   +1.55 ± .40   loses
    only rates move               .1, 1e-3    .00    6.20   6.85    6.29 ± .43   +1.16 ± .36   loses
    only L2 moves, cosine of α    1, 1e-4     .00    5.04   6.88    6.21 ± .45   +1.08 ± .48   loses

So the adaptive method, as published, loses against a tuned cosine, and against a tuned constant rate too (+.75 ± .58). In 53
moves it does not get away from a poor start; from the cosine's own start it ties with it. It overfits the valid split (test is
.6 to 1.4 points worse), and these images are worth more in the training set. (Only L2 moves: λ starts at 1e-4 alone, where the
cosine is worse as well. Look-ahead and restore do not differ. The best schedule lies at the edge of the grid.)
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
