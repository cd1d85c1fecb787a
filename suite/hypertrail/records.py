"""What the engines return. Plain records of NumPy arrays; the trajectory alone may live elsewhere (device, disk)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .hyperparameters import Hyper
from .methods import MEASURED_STEPS, DrMAD, Exact, Forward, Implicit, Method, Truncated

if TYPE_CHECKING:
    from hypertrail_data import MemoryTrajectory, StoredTrajectory

    from .problem import Problem

Params = dict[str, np.ndarray]


@dataclass
class Cost:
    """What something costs, by a rule of the method and not of the engine: the same numbers whoever does the work.

    gradients: of one batch each: one for every elementary step taken (again, where states are recomputed) and one for every
    validation batch. hvps: products of second derivatives with a vector, Hessian-vector and mixed term together, or the tangent
    of a gradient; the gradient at the place of a product comes with it and is not counted beside it. price: both in one
    currency, a product as two gradients (measured: 2 to 2.9). What an engine does beyond this is left out: gradients taken
    apart for dα, or to undo a step to the bit, and the probe of a reversible run. seconds: wall clock, with all of that.
    """

    gradients: int = 0
    hvps: int = 0
    seconds: float = 0.0
    trajectory_bytes: int = 0

    @property
    def price(self) -> int:
        return self.gradients + 2 * self.hvps


@dataclass(frozen=True)
class Metrics:
    """Means over a whole split: the loss (of our problems in nats), the error rate (0 … 1; None for a task that has none), and
    the further metrics of a task by name. examples: how many the split has; batches: of a task, whose examples are not known."""

    loss: float
    error: float | None
    examples: int | None = None
    more: dict[str, float] = field(default_factory=dict)
    batches: int | None = None

    def as_json(self) -> dict[str, float]:
        """{name: number}, the loss first and the number of examples or batches last."""
        error = {} if self.error is None else {"error": self.error}
        counts = {"examples": self.examples, "batches": self.batches}
        known = {name: n for name, n in counts.items() if n is not None}
        return {"loss": self.loss, **error, **self.more, **known}


@dataclass
class Checkpointed:
    """What keep=Checkpoints(n) leaves: the states before the steps `at` (rising from 0), "w/<param>" and "v/<param>" always.

    distances: for each stretch of ℓ steps (the last one ends at T), (min(ℓ, 20),) ‖w_{t+1} − w_at‖ from its own first state.
    """

    at: list[int]
    states: list[dict[str, Any]]
    distances: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for state in self.states for one in state.values())

    def close(self) -> None:
        """Nothing is held open."""


@dataclass
class Undoable:
    """What keep=Reversible() leaves: w_T and v_T as int64 fixed point (value = i / 2^52) and the digits that the divisions by
    γ took away, from which every step can be undone to the bit.

    lost: the engine's own form of those digits; bits: how many bits per number and step they take, measured;
    momentum: the effective γ of each tensor, rounded up to a fraction n/d (by at most 1.5e-5); (T,) where it is per step.
    nbytes: of the arrays that are held.
    """

    w: dict[str, Any]
    v: dict[str, Any]
    lost: Any
    bits: float
    momentum: dict[str, float | np.ndarray]
    nbytes: int

    def close(self) -> None:
        """Nothing is held open."""


@dataclass
class Training:
    """One training run of T elementary steps.

    initial, final: w_0 and w_T (what training moved: z where a weight transform is declared); weights: what the network
    computes with at the end; velocity: v_T; running: batch norm averages; losses: (T,) elementary loss of each step
    before it was taken; distances: (min(T, 20),) ‖w_{t+1} − w_0‖ of the first steps, whose speed completion C4 matches;
    trajectory: what was kept of w_0 … w_{T−1} (keeping.py), or None. inputs: the images (n, …) in the place of those of the
    train split where they are learned, else None. initial is the scaled w_0 where an initial scale is declared.
    """

    initial: Params
    final: Params
    weights: Params
    velocity: Params
    running: Params
    losses: np.ndarray
    distances: np.ndarray
    steps: int
    trajectory: MemoryTrajectory | StoredTrajectory | Checkpointed | Undoable | None
    cost: Cost
    inputs: np.ndarray | None = None


@dataclass
class Hypergradient:
    """The gradient of the hyper loss with respect to the unconstrained hyperparameter arrays (same structure and shapes).

    initial_weights: dw_0; initial_velocity: dv_0; hyper_loss: f(w_T); adjoint_norms: ‖dw‖ before each reverse step,
    last step first; method: its name; diagnostics: method's own numbers (N for a line).
    """

    gradient: Hyper
    initial_weights: Params
    initial_velocity: Params
    hyper_loss: float
    adjoint_norms: np.ndarray
    method: str
    cost: Cost
    diagnostics: dict[str, Any] = field(default_factory=dict)


def hypergradient_cost(
    problem: Problem, training: Training, method: Method, products: int, seconds: float = 0.0
) -> Cost:
    """What a hypergradient costs on top of its training, by the rule of `Cost`.

    products: N, the reverse steps taken; T · m for Forward; for Implicit those of its solve, one that measures the residual
    and one for the mixed term, each over the whole training split.

    | method | gradients | hvps |
    | Exact, Truncated, FloatReversed, DrMAD | validation batches; the steps taken again | N |
    | Forward | T + validation batches | T m |
    | Implicit | validation batches | iterations + 2 |
    """
    looks = problem.valid_batch_count
    if isinstance(method, Forward):
        return Cost(training.steps + looks, products, seconds)
    if isinstance(method, Implicit):
        return Cost(looks, products, seconds)
    return Cost(looks + recomputed(training, method), products, seconds, bytes_read(training, method))


def recomputed(training: Training, method: Method) -> int:
    """How many steps are taken again: those of stretches between checkpoints, or the first ones for a line's sum_of_norms."""
    if isinstance(method, DrMAD) and method.choices.sum_of_norms:
        return min(MEASURED_STEPS, training.steps)
    if not (isinstance(training.trajectory, Checkpointed) and isinstance(method, Exact | Truncated)):
        return 0
    first = max(training.steps - method.steps, 0) if isinstance(method, Truncated) else 0
    return training.steps - max(a for a in training.trajectory.at if a <= first)


def bytes_read(training: Training, method: Method) -> int:
    """Bytes of the states that a reverse pass reads: the trajectory, or two states."""
    reads = isinstance(method, Exact | Truncated) or (isinstance(method, DrMAD) and method.completion == "C6")
    if reads and training.trajectory is not None:
        return training.trajectory.nbytes
    return 2 * sum(one.nbytes for one in training.final.values())
