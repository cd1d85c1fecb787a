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
from pathlib import Path
from typing import Any, Protocol

from .errors import UsageError
from .hyperparameters import Hyper
from .methods import DrMAD, Method
from .problem import Problem
from .records import Hypergradient, Metrics, Training

ENGINES = {"cpu": "hypertrail_cpu", "gpu": "hypertrail_gpu"}
SPLITS = ("train", "valid", "select", "test")

Keep = (
    str | Path
)  # "ends": w_0 and w_T; "memory": every state, in RAM or on the device; a Path: every state, in HDF5 there
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
    """Raise UsageError, with the reason, for a combination that cannot work; before anything is computed."""
    dynamics = [h for h in problem.hyperparameters if h.kind in ("learning_rate", "momentum")]
    if method.name == "exact":
        if training.trajectory is None:
            raise UsageError("method exact needs the trajectory: train with keep='memory' or keep=<folder>")
        if len(training.trajectory) != training.steps:
            have = len(training.trajectory)
            raise UsageError(f"the trajectory holds {have} of {training.steps} states; train again with it kept")
    if isinstance(method, DrMAD) and method.completion == "C0":
        if dynamics:
            kinds = " and ".join(h.kind for h in dynamics)
            raise UsageError(
                f"completion C0 has neither learning rate nor velocity, so no gradient for {kinds}; use C1"
            )
        if problem.dynamics.kind != "damped":
            raise UsageError("completion C0 is algorithm 2 of DrMAD, written for the damped dynamics; use C1 or C4")
    if isinstance(method, DrMAD) and method.completion == "C4" and any(h.per_step for h in dynamics):
        raise UsageError("completion C4 walks with one learning rate, a per-step one has no gradient in it; use C1")
