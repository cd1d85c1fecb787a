"""Is the hypergradient of a task the derivative of what its training does? Differences of short trainings tell.

Some models lie to every automatic derivative, and then every exact method agrees with every other, and all are wrong: a
`stop_gradient` in the loss (Flax NNX's BatchNorm has one in front of its running statistics), a straight-through estimator, a
`custom_vjp` that is no derivative, a hyperparameter that the loss reads from elsewhere. Differences do not ask for a derivative.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from hypertrail.differences import measured
from hypertrail.errors import VerificationFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.task import Task
from hypertrail_data import generator

from . import replay, trail
from .batches import fed
from .beginning import beginning
from .judging import means, validation
from .tuned import TunedTask

Tree = Any

STEPS = 10  # of the trainings that are compared: a step shows a wrong derivative as well as a thousand, without chaos
STEP, LEVELS = 0.05, 4  # of the differences, in the units of what is moved
# Where a slope differs, it is looked at again: a bend as sharp as that of Adam's root with a small ε is stepped over.
FINER = (STEP / 8, STEP / 64)
AGREES = 0.02  # relative, besides the error of the differences
ROUNDINGS = 4  # units in the last place of f that a training is off by: differences that agree may all be rounded
TELLS = 0.2  # where the error of the differences is larger than this share, they tell nothing


@dataclass(frozen=True)
class Compared:
    """One kind of hyperparameters, along one direction of ±1.

    hypergradient: the slope by the exact hypergradient; differences: the slope by differences of trainings, NaN where none was
    finite; error: of the differences, estimated; size: of the hypergradient, ‖h‖.
    """

    kind: str
    hypergradient: float
    differences: float
    error: float
    size: float

    @property
    def unit(self) -> float:
        return max(abs(self.hypergradient), abs(self.differences), self.size) or 1.0

    @property
    def gap(self) -> float:
        """Relative."""
        return abs(self.hypergradient - self.differences) / self.unit

    @property
    def allowed(self) -> float:
        """Relative."""
        return AGREES + 3 * self.error / self.unit

    @property
    def verdict(self) -> str:
        """'agree', 'differ', or 'not told' where rounding or a kink hides the slope."""
        if not self.error <= TELLS * self.unit:
            return "not told"
        return "agree" if self.gap <= self.allowed else "differ"

    def __str__(self) -> str:
        slopes = f"hypergradient {self.hypergradient:.4g}, differences {self.differences:.4g} ± {self.error:.1g}"
        idle = (
            "" if self.size or self.differences else "; the hyper loss after these steps does not depend on it at all"
        )
        return f"{self.kind}: {slopes}: {self.verdict}{idle}"


def compare(tuned: TunedTask, hyper: Hyper | None = None, steps: int = STEPS, seed: int = 0) -> list[Compared]:
    """The exact hypergradient of the first steps of training, kind by kind, beside differences of such trainings.

    hyper: where; None: where tuning begins. Cost for each kind: at most 8 trainings of `steps` steps with
    the hyper loss, and 16 more where the slopes differ.
    """
    with tuned.precision():
        return list(compared(tuned, hyper, steps, seed))


def compared(tuned: TunedTask, hyper: Hyper | None, steps: int, seed: int) -> Iterator[Compared]:
    hyper = tuned.initial_hyper() if hyper is None else hyper
    steps = min(steps, tuned.steps)
    short = Short(tuned.task, tuned.steps, steps)
    result = trail.hypergradient(*short.exact(tuned.as_tree(hyper)))
    rng = generator(seed, "hyper", 0)
    for kind, arrays in tuned.as_hyper(result.hyper).items():
        signs = {key: rng.choice([-1.0, 1.0], size=h.shape) for key, h in arrays.items()}
        slope = sum(float(np.sum(np.asarray(h, np.float64) * signs[key])) for key, h in arrays.items())
        size = float(np.sqrt(sum(float(np.sum(np.asarray(h, np.float64) ** 2)) for h in arrays.values())))

        def f(epsilon: float, kind: str = kind, signs: dict[str, np.ndarray] = signs) -> float:
            moved = {key: (u + epsilon * signs[key]).astype(u.dtype) for key, u in hyper[kind].items()}
            return short.hyper_loss(tuned.as_tree({**hyper, kind: moved}))

        enough = AGREES / 4 * max(abs(slope), size)
        looks = []
        for step in (STEP, *FINER):
            value, error = measured(f, step, LEVELS, enough)
            rounding = ROUNDINGS * float(jnp.finfo(tuned.dtype).eps) * abs(result.value) / step
            looks.append(Compared(kind, slope, value, max(error, rounding), size))
            if looks[-1].verdict != "differ":
                break
        yield looks[-1] if looks[-1].verdict == "agree" else looks[0]


def exact(tuned: TunedTask, steps: int = STEPS) -> Hyper:
    """The exact hypergradient of the first steps of training, where tuning begins."""
    with tuned.precision():
        short = Short(tuned.task, tuned.steps, min(steps, tuned.steps))
        return tuned.as_hyper(trail.hypergradient(*short.exact(tuned.start)).hyper)


def check(tuned: TunedTask) -> list[str]:
    """What `compare` found where tuning begins, in words. VerificationFailure where a slope differs from that of differences."""
    comparisons = compare(tuned)
    wrong = [str(comparison) for comparison in comparisons if comparison.verdict == "differ"]
    if wrong:
        raise VerificationFailure(
            f"the automatic derivative of this task is not that of its training ({'; '.join(wrong)}): look for stop_gradient, "
            "custom_vjp, rounding or a hyperparameter that is read from elsewhere, or go on with --no-check (check=False)"
        )
    return [f"differences of the first steps: {comparison}" for comparison in comparisons]


class Short:
    """The first steps of a task's training, by the programs of the whole training."""

    def __init__(self, task: Task, whole: int, steps: int) -> None:
        self.task, self.whole = task, whole
        self.batches = copy.copy(fed(task, "batches"))
        self.batches.steps = steps

    def train(self, hyper: Tree, keep: str) -> trail.Trail:
        begun = beginning(self.task, hyper, self.whole)
        return trail.train_from(self.task, begun, self.batches, replay.making(keep), whole=self.whole)

    def exact(self, hyper: Tree) -> tuple[trail.Trail, Any]:
        trained = self.train(hyper, "memory")
        return trained, replay.way(trained, replay.Exact())

    def hyper_loss(self, hyper: Tree) -> float:
        trained = self.train(hyper, "memory")
        return means(trained, validation(self.task))["loss"]
