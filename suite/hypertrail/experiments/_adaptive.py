"""What the three adaptive experiments share: who runs against whom, and the settings of the race."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from .. import engines
from ..checks import at_least, positive
from ..hyperparameters import L2, Hyperparameter, LearningRate
from ..online import Adaptive, Online, Plain
from ..problem import Dynamics, Problem
from ..race import race
from ..race.arms import Arm
from ..runs import Run
from ._common import Study, built

if TYPE_CHECKING:
    from ..display import Voice

PUBLISHED = (("l2", 0.01), ("learning_rate", 0.1))  # s_λ in decades, s_r in ln α: the thesis' pair for n about 120
BASELINES = {"constant": "constant rate", "step": "step schedule", "cosine": "cosine schedule"}
# What a schedule can do with the images that the adaptive method only looks at.
TRAINED_ON_VALID = "cosine, valid trained on"


@dataclass(frozen=True)
class Race(Study):
    """Settings of a race between the adaptive method and schedules."""

    repeats: int = 5
    """How many seeds, from `seed` on; each has its own splits, first weights and batches."""
    budget: int = 10_000
    """Gradient evaluations of each arm; a Hessian-vector product counts as two."""
    every: int = 10
    """Blocks between two measurements of all splits."""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Where α starts: the grid of the schedules, and of the adaptive method where its start is chosen too."""
    penalties: tuple[float, ...] = (1e-4, 1e-3)
    """Where every L2 penalty starts: the other side of that grid."""
    momentum: float = 0.9
    """γ of the damped momentum."""
    batch: int = 50
    """Examples per step, and of a validation batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("repeats", "budget", "every"):
            at_least(name, getattr(self, name), 1)
        for name in ("rates", "penalties"):
            at_least(name, len(getattr(self, name)), 1)
            for one in getattr(self, name):
                positive(name, one)


@dataclass(frozen=True)
class Small(Race):
    """Settings of a race on a small tanh network; the defaults are those of the digits."""

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
    """Images that are only reported: the same ones with every seed, or of the official test set."""


def small_problem(config: Small, data: str, shape: tuple[int, int, int], test_seed: int | None = None) -> Problem:
    """The network on these data. test_seed: of test images that are the same for every seed (`make_splits`)."""
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    return Problem(
        network=mlp(shape, c.hidden, dropout=c.dropout),
        splits=make_splits(load(data, c.data_dir), c.train, c.valid, c.select, c.test, c.seed, test_seed=test_seed),
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.budget,
        hyperparameters=declared(),
        dynamics=Dynamics(momentum=c.momentum),
        valid_batch=c.batch,
        seed=c.seed,
        precision=c.precision,
    )


def declared() -> tuple[Hyperparameter, ...]:
    """Per-parameter L2 and learning rates with the thesis' start and bounds."""
    return L2("parameter", 1e-4, bounds=(1e-7, 1e-2)), LearningRate("parameter", 0.1, bounds=(1e-5, 1.0))


def start(rate: float, penalty: float) -> tuple[tuple[str, float], ...]:
    return ("learning_rate", rate), ("l2", penalty)


def one(name: str, method: Online, rate: float = 0.1, penalty: float = 1e-4, schedule: str = "constant") -> Arm:
    """An arm and where it starts; the default is the published start of the adaptive method."""
    return Arm(f"{name}-a{rate:g}-l{penalty:g}", method, start(rate, penalty), schedule)


def grid(config: Race, name: str, method: Online, schedule: str = "constant") -> list[Arm]:
    """One arm for each start."""
    return [one(name, method, *at, schedule) for at in product(config.rates, config.penalties)]


def schedules(config: Race, block: int) -> dict[str, list[Arm]]:
    """The baselines, in blocks of the same length, so that they are looked at as often."""
    return {label: grid(config, name, Plain(block), name) for name, label in BASELINES.items()}


def trained_on_valid(config: Race, block: int) -> list[Arm]:
    return grid(config, "cosine-with-valid", Plain(block), "cosine")


def adaptive(steps: int, last: int, **settings: Any) -> Adaptive:
    """The adaptive method with n, K, M = 10 and the published steps, where nothing else is said."""
    return Adaptive(**{"steps": steps, "last": last, "validation_batches": 10, "moves": PUBLISHED, **settings})


def small_families(config: Race) -> dict[str, list[Arm]]:
    """Who runs where a run takes seconds: schedules, the published setting, its start chosen as theirs, its parts alone."""
    both, alone = adaptive(131, 4), dict(PUBLISHED)
    only_l2 = adaptive(131, 4, moves=(("l2", alone["l2"]), ("learning_rate", 0.0)))
    only_rates = adaptive(131, 4, moves=(("l2", 0.0), ("learning_rate", alone["learning_rate"])))
    return {
        **schedules(config, 131),
        TRAINED_ON_VALID: trained_on_valid(config, 131),
        "adaptive 131-4": [one("adaptive", both)],
        "adaptive 131-4, start chosen": grid(config, "adaptive", both),
        "adaptive 131-4, look-ahead": [one("look-ahead", adaptive(131, 4, mode="look-ahead"))],
        "adaptive 100-5": [one("adaptive-100-5", adaptive(100, 5))],
        "only rates move": [one("only-rates", only_rates, penalty=penalty) for penalty in config.penalties],
        "only L2 moves, cosine rates": [one("only-l2", only_l2, rate, schedule="cosine") for rate in config.rates],
    }


def compete(
    config: Any,
    run: Run,
    voice: Voice,
    problem: Callable[[Any], Problem],
    families: dict[str, list[Arm]],
) -> None:
    """The race of these families, an arm that stands in two of them once."""
    arms = {arm.name: arm for one in families.values() for arm in one}
    race.run(
        run,
        voice,
        engines.load(config.engine),
        lambda seed: built(problem, replace(config, seed=seed)),
        list(arms.values()),
        {label: [arm.name for arm in one] for label, one in families.items()},
        [label for label in BASELINES.values() if label in families],
        range(config.seed, config.seed + config.repeats),
        config.budget,
        config.every,
        [arm.name for arm in families.get(TRAINED_ON_VALID, ())],
    )
