"""What every engine offers, and how one is found: by name, so that importing hypertrail imports neither JAX nor autograd.

    engine = load("gpu")
    training = engine.train(problem, hyper, keep="memory")
    result = engine.hypergradient(problem, hyper, training, Exact())
    engine.evaluate(problem, training, "test")

Both engines give the same names the same meaning; in float64 their numbers agree to 1e-9 relative.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from .errors import UsageError
from .hyperparameters import Hyper, Hyperparameter, count
from .keeping import Keep
from .methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated
from .problem import Problem
from .records import Checkpointed, Hypergradient, Metrics, Training, Undoable

ENGINES = {"cpu": "hypertrail_cpu", "gpu": "hypertrail_gpu"}
SPLITS = ("train", "valid", "select", "test")

Progress = Callable[[int, int], None]  # (steps done, steps in all), called between chunks of steps


class Engine(Protocol):
    name: str

    def train(self, problem: Problem, hyper: Hyper, keep: Keep = "ends", progress: Progress | None = None) -> Training:
        """T elementary steps. Cost: T gradients. Raises NumericalFailure (quantity, step) on a loss that is not finite."""

    def hypergradient(
        self,
        problem: Problem,
        hyper: Hyper,
        training: Training,
        method: Method,
        progress: Progress | None = None,
    ) -> Hypergradient:
        """Gradient of the hyper loss at w_T with respect to every unconstrained hyperparameter array.

        Raises UsageError for a combination that cannot work (see `refuse`), NumericalFailure on a non-finite adjoint.
        """

    def hyper_loss(self, problem: Problem, training: Training) -> float:
        """f(w_T). Cost: one forward pass over the validation batches."""

    def evaluate(self, problem: Problem, training: Training, split: str) -> Metrics:
        """Loss (nats) and error rate on a whole split, deterministic forward with running averages."""

    def describe(self) -> dict[str, Any]:
        """Versions and devices, for env.json."""


def load(name: str) -> Engine:
    """The engine called 'cpu' or 'gpu'. UsageError for another name or for a missing dependency (which it names)."""
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}, expected one of {', '.join(ENGINES)}")
    try:
        return importlib.import_module(ENGINES[name])  # type: ignore[return-value]
    except ModuleNotFoundError as missing:
        raise UsageError(f"engine {name!r} needs the module {missing.name!r}; install hypertrail again") from missing


def refuse(problem: Problem, training: Training, method: Method) -> None:
    """Raise UsageError, with the reason and the way out, for a combination that cannot work; before anything is computed."""
    if training.steps != problem.steps:
        raise UsageError(
            f"the training run took {training.steps} steps, the problem has {problem.steps}; train this problem"
        )
    rates = [h for h in problem.hyperparameters if h.kind in ("learning_rate", "momentum")]
    if isinstance(method, Exact | Truncated):
        refuse_states(training, method)
    if isinstance(method, FloatReversed) or (isinstance(method, DrMAD) and method.completion == "C5"):
        refuse_undoing(problem, method)
    if isinstance(method, DrMAD):
        refuse_line(problem, training, method, rates)
    if isinstance(method, Forward):
        m = count(problem.initial_hyper())
        if m > method.most:
            raise UsageError(
                f"forward mode carries one state per hyperparameter, {m} are too many; share them or use exact"
            )
    if isinstance(method, Implicit) and rates:
        kinds = " and ".join(h.kind for h in rates)
        raise UsageError(
            f"implicit differentiation sees only the minimum, not how it was reached: no gradient for {kinds}"
        )


def refuse_states(training: Training, method: Exact | Truncated) -> None:
    kept = training.trajectory
    if kept is None:
        raise UsageError(
            f"method {method.name} needs the trajectory: train with keep='memory', a folder or Checkpoints()"
        )
    needed = training.steps if isinstance(method, Exact) else min(method.steps, training.steps)
    if isinstance(kept, Checkpointed | Undoable):
        return
    if len(kept) < needed or kept.stop != training.steps:
        raise UsageError(
            f"the trajectory holds {len(kept)} of the {needed} states that {method.name} needs; keep them all"
        )


def refuse_undoing(problem: Problem, method: Method) -> None:
    """Undoing v ← γ v − (1−γ) g divides by γ."""
    if problem.dynamics.kind != "damped":
        raise UsageError(
            f"{method.name} undoes steps of the damped dynamics, not of {problem.dynamics.kind}; use exact"
        )
    if problem.declared("momentum") is None and problem.dynamics.momentum == 0:
        raise UsageError(f"{method.name} cannot undo a step with momentum 0, which forgets the velocity; use exact")


def refuse_line(problem: Problem, training: Training, method: DrMAD, rates: list[Hyperparameter]) -> None:
    c = method.completion
    if c == "C0" and rates:
        kinds = " and ".join(h.kind for h in rates)
        raise UsageError(f"completion C0 has neither learning rate nor velocity, so no gradient for {kinds}; use C1")
    if c == "C0" and problem.dynamics.kind != "damped":
        raise UsageError("completion C0 is algorithm 2 of DrMAD, written for the damped dynamics; use C1 or C4")
    if c in ("C3", "C4", "C5", "C6") and any(h.per_step for h in rates):
        raise UsageError(
            f"completion {c} walks a stretch with one learning rate, a per-step one has no gradient in it; use C1"
        )
    if c == "C6" and not isinstance(training.trajectory, Checkpointed):
        raise UsageError("completion C6 walks between kept states: train with keep=Checkpoints(n)")
