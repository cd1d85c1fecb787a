"""What every engine offers, and how one is found: by name, so that importing hypertrail imports neither JAX nor autograd.

    engine = load("gpu")
    training = engine.train(problem, hyper, keep="memory")
    result = engine.hypergradient(problem, hyper, training, Exact())
    engine.evaluate(problem, training, "test")

Both engines give the same names the same meaning; in float64 their numbers agree to 1e-9 relative.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

from .adapting import Block, State
from .errors import UsageError
from .hyperparameters import Hyper
from .keeping import Keep
from .methods import Method
from .online import Online
from .problem import Problem
from .records import Hypergradient, Metrics, Training
from .runs.midway import Midway

ENGINES = {"cpu": "hypertrail_cpu", "gpu": "hypertrail_gpu"}

Progress = Callable[[int, int], None]  # (steps done, steps in all), called between chunks of steps


class Engine(Protocol):
    name: str

    def train(
        self,
        problem: Problem,
        hyper: Hyper,
        keep: Keep = "ends",
        progress: Progress | None = None,
        midway: Midway | None = None,
    ) -> Training:
        """T elementary steps. Cost: T gradients. Raises NumericalFailure (quantity, step) on a loss that is not finite.

        midway: where a training that was stopped goes on, to the same bits (keep 'ends' or a Path only).
        """

    def hypergradient(
        self,
        problem: Problem,
        hyper: Hyper,
        training: Training,
        method: Method,
        progress: Progress | None = None,
    ) -> Hypergradient:
        """Gradient of the hyper loss at w_T with respect to every unconstrained hyperparameter array.

        Raises UsageError for a combination that cannot work (see refusals.py), NumericalFailure on a non-finite adjoint.
        """

    def adapt(
        self,
        problem: Problem,
        hyper: Hyper,
        method: Online,
        state: State | None = None,
        blocks: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Block]:
        """Train while an online method moves the hyperparameters, block by block (adapting.py). state: where to go on from.

        Raises UsageError at once for a combination that cannot work, NumericalFailure in the block where something diverges.
        """

    def hyper_loss(self, problem: Problem, training: Training) -> float:
        """f(w_T). Cost: one forward pass over the validation batches."""

    def evaluate(self, problem: Problem, training: Training, split: str) -> Metrics:
        """Loss (nats) and error rate on a whole split, deterministic forward with running averages."""

    # An engine that can share its batches over several devices has a module `devices` too: see processes.py. One that compiles
    # has `compilation_cache`, with `using(wanted)`. One whose bits depend on the threads of the processor has `threads`: see
    # threads.py.

    def describe(self) -> dict[str, Any]:
        """Versions and devices, for env.json."""

    def device_memory(self) -> int | None:
        """Most bytes of its own memory that a device has held at once so far; None where it has none, or does not tell."""


def load(name: str) -> Engine:
    """The engine called 'cpu' or 'gpu'. UsageError for another name or for a missing dependency (which it names)."""
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}, expected one of {', '.join(ENGINES)}")
    try:
        return cast(Engine, importlib.import_module(ENGINES[name]))
    except ModuleNotFoundError as missing:
        raise UsageError(f"engine {name!r} needs the module {missing.name!r}; install hypertrail again") from missing
    except Exception as problem:  # JAX reads its variables when it is imported
        raise cannot_start(name, problem) from problem


@contextlib.contextmanager
def starting(engine: Engine) -> Iterator[None]:
    """A with-block in which an engine looks for its devices. What its libraries say of devices that are not there becomes a
    UsageError in one line, with the variables that decide about them."""
    try:
        yield
    except Exception as problem:
        if hasattr(problem, "exit_code"):
            raise
        raise cannot_start(engine.name, problem) from problem


def cannot_start(name: str, problem: Exception) -> UsageError:
    given = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(("JAX_", "XLA_", "CUDA_"))]
    reason = " ".join(str(problem).split())[:300] or "its library gives no reason"
    hint = f"correct or unset what decides about it: {', '.join(given)}" if given else "see the installation of JAX"
    return UsageError(f"the {name} engine cannot start ({type(problem).__name__}: {reason}); {hint}")


def compilation_cache(wanted: bool, *engines: Engine) -> contextlib.AbstractContextManager[Any]:
    """A with-block in which the one of these engines that compiles keeps its programs in a folder, or, not `wanted`, does not."""
    for engine in engines:
        if hasattr(engine, "compilation_cache"):
            kept: contextlib.AbstractContextManager[Any] = engine.compilation_cache.using(wanted)
            return kept
    return contextlib.nullcontext()
