"""Declared hyperparameters: the leaves of `Task.hyper` that say what their numbers are.

    hyper = {
        "rate": Log(0.1, bounds=(1e-5, 1.0), steps=Bins(16)),        # a schedule of 16 pieces
        "decay": Log(1e-4, over=Shared("layer")),                    # one penalty for each array of weights
        "source": Linear(np.full(3, 1 / 3), projection=Simplex()),   # how three sources are mixed
    }

A hyperparameter has two forms. The functions of the task are given its VALUE, such as a learning rate of 0.1. What the outer
optimiser moves, and what a hypergradient is taken with respect to, is the unconstrained array u that the value is made of:

| declared | value | for |
|---|---|---|
| Log(init) | exp(u) | what is positive: learning rates, penalties, scales |
| Logit(init) | 1 / (1 + exp(−u)) | what lies between 0 and 1: momenta, weights of examples, rates of dropout |
| Linear(init) | u | numbers that may be 0, with bounds or a projection |
| Free(init), or a plain array | u | anything without bounds |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import UsageError
from ..projections import Projection
from .schedules import Schedule
from .sharing import Shared

Array = Any
INFINITE = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Leaf:
    """One declared hyperparameter.

    init: the value that tuning begins with, a number or an array. bounds: (lowest, highest) VALUE; what is moved beyond them is
    put back on them after each move.
    steps: None, or how the value depends on the step: `EachStep()`, `Bins(n)` or `Spline(n)`. The value that the functions are
    given then has an axis of T steps in front, so that they write `hyper["rate"][t]`.
    over: None, or how one value is shared by many weights, see `Shared`. The value is then a tree like that of the weights,
    whose arrays broadcast against them.
    per_example: the array has one row for each training example, along its first axis. The loss is given the rows of its batch.
    Raises UsageError for a value, bounds or a combination that cannot be.
    """

    init: Any
    bounds: tuple[float, float] = INFINITE
    steps: Schedule | None = None
    over: Shared | None = None
    per_example: bool = False

    domain: ClassVar[tuple[float, float]] = INFINITE  # the open interval in which a value has a finite u

    def __post_init__(self) -> None:
        name, (low, high) = type(self).__name__, self.domain
        init = np.asarray(self.init, np.float64)
        if not (np.all(init > low) and np.all(init < high)):
            raise UsageError(f"{name}: init {shown(init)}, expected finite numbers {described(low, high)}")
        if not self.bounds[0] < self.bounds[1]:
            raise UsageError(f"{name}: bounds {self.bounds}, expected (lowest, highest)")
        if self.bounds != INFINITE and not (low <= self.bounds[0] and self.bounds[1] <= high):
            raise UsageError(f"{name}: bounds {self.bounds}, expected numbers {described(low, high)}")
        if not (np.all(init >= self.bounds[0]) and np.all(init <= self.bounds[1])):
            raise UsageError(f"{name}: init {shown(init)} lies outside its bounds {self.bounds}")
        if self.per_example and (self.over is not None or self.steps is not None):
            raise UsageError(f"{name}: per_example goes with neither over nor steps")
        if self.per_example and init.ndim < 1:
            raise UsageError(
                f"{name}: per_example needs an init with one row for each training example, found one number"
            )
        if self.over is not None and init.ndim:
            raise UsageError(f"{name}: with over, init is one number; found an array of shape {list(init.shape)}")

    def free(self, value: Any) -> np.ndarray:
        """u of a value, float64."""
        return np.asarray(value, np.float64)

    def value(self, u: Array, xp: Any = np) -> Array:
        """The value of u. xp: numpy or jax.numpy."""
        return u

    def project(self, u: np.ndarray) -> np.ndarray:
        """The nearest u that this declaration allows, in the shape and dtype of u."""
        with np.errstate(all="ignore"):
            low, high = (self.free(np.clip(bound, *self.domain)) for bound in self.bounds)
        clipped: np.ndarray = np.clip(u, low, high).astype(np.asarray(u).dtype)
        return clipped


@dataclass(frozen=True, eq=False)
class Log(Leaf):
    """A positive value, moved by its logarithm: value = exp(u). A move of 0.1 in u changes the value by 10 %."""

    domain: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def free(self, value: Any) -> np.ndarray:
        return np.log(np.asarray(value, np.float64))

    def value(self, u: Array, xp: Any = np) -> Array:
        return xp.exp(u)


@dataclass(frozen=True, eq=False)
class Logit(Leaf):
    """A value between 0 and 1, moved by its log-odds: value = 1 / (1 + exp(−u))."""

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def free(self, value: Any) -> np.ndarray:
        value = np.asarray(value, np.float64)
        return np.log(value) - np.log1p(-value)

    def value(self, u: Array, xp: Any = np) -> Array:
        return 1.0 / (1.0 + xp.exp(-u))


@dataclass(frozen=True, eq=False)
class Linear(Leaf):
    """A value that is moved as it is, within bounds or on a set: `Box()`, `BudgetSum(limit)`, `Simplex(total)`.

    projection: in the place of bounds. It acts on all numbers of an array together; the first array is projected too.
    """

    projection: Projection | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection is not None and self.bounds != INFINITE:
            raise UsageError("Linear: bounds and a projection, expected one of them")

    def project(self, u: np.ndarray) -> np.ndarray:
        if self.projection is None:
            return super().project(u)
        return self.projection.project(np.asarray(u, np.float64)).astype(np.asarray(u).dtype)


@dataclass(frozen=True, eq=False)
class Free(Leaf):
    """A value that is moved as it is, without bounds. A plain array in `Task.hyper` is one."""


def shown(array: np.ndarray) -> str:
    return f"{array:g}" if array.ndim == 0 else f"{array.min():g} … {array.max():g}"


def described(low: float, high: float) -> str:
    if low == -math.inf:
        return "without NaN"
    return "above 0" if high == math.inf else f"between {low:g} and {high:g}"
