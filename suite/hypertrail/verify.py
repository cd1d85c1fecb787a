"""Check the hypergradient of an experiment's very own problem, in float64 and on few steps.

Two checks of the exact hypergradient: against finite differences of the whole training (change every hyperparameter,
train again, look at the hyper loss), and against the other engine, whose adjoint was derived independently. A third one
where the experiment uses an approximate method: that method against the other engine's. One line per check; exit code 4
when one of them is beyond the tolerance table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, make_dataclass
from types import ModuleType
from typing import Annotated, Any

import numpy as np

from . import diagnostics, differences, processes, threads
from .checks import at_least, at_most
from .engines import ENGINES, Engine, compilation_cache, load, starting
from .errors import UsageError, VerificationFailure
from .hyperparameters import Arrays, Hyper
from .methods import Exact, Method, parse_method
from .outer import tree
from .problem import Problem
from .refusals import refuse_plan
from .terminal import say
from .tolerances import tolerance
from .tuning import keep_for

STEPS = 10
# The first step of the differences and how often it may be halved. A larger one steps over kinks: the gradient of a
# network with relu jumps there, so what training makes of the hyperparameters jumps too, and no difference is its slope.
START, LEVELS = 2e-3, 14
MOST_DIRECTIONS = 1000


@dataclass(frozen=True)
class Check:
    """One comparison: what with what, the relative difference found and the one allowed."""

    what: str
    difference: float
    epsilon: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.epsilon

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.what}: relative difference {self.difference:.1e}, allowed {self.epsilon:.0e}"


def verify(problem: Problem, engine: Engine, other: Engine | None, method: Method, directions: int) -> Iterator[Check]:
    """The checks, one after the other; finite differences are measured in units of the norm of the kind's hypergradient.

    UsageError, before the first of them, for a method that cannot go.
    Cost: about 3 T gradients per method and engine, and 2 T for each of the up to 14 levels of a direction and kind.
    """
    keep = keep_for(method, True, "memory")
    for one in (Exact(), method):
        refuse_plan(problem, one, keep)
    hyper = problem.initial_hyper()
    training = engine.train(problem, hyper, keep)
    ours = engine.hypergradient(problem, hyper, training, Exact()).gradient
    yield from finite_differences(problem, engine, ours, directions)
    if other is None:
        return
    epsilon = tolerance("engines", problem.precision).epsilon
    theirs = other.train(problem, hyper, keep)
    for one in dict.fromkeys((Exact(), method)):
        a = engine.hypergradient(problem, hyper, training, one).gradient
        b = other.hypergradient(problem, hyper, theirs, one).gradient
        for kind, both in diagnostics.agreement(a, b).items():
            what = f"{one.name} of {kind}, {engine.name} against {other.name}, {both.total.size:,} coordinates"
            yield Check(what, both.total.difference, epsilon)


def verify_task(problem: Any, engine: Any, method: Method, directions: int) -> Iterator[Check]:
    """The checks of an own task, which the reference engine cannot run: the exact hypergradient of its first steps against
    differences of such trainings, and against automatic differentiation through the unrolled loop."""
    refuse_plan(problem, method, keep_for(method, True, "memory"))
    steps = min(STEPS, problem.steps)
    for n in range(directions):
        for one in engine.compare(problem, steps=steps, seed=n):
            what = f"exact of {one.kind} against differences of {steps} steps, direction {n + 1} of {directions}"
            yield (
                Check(what, one.gap, one.allowed)
                if one.verdict != "not told"
                else Check(f"{what} (not told)", 0.0, 1.0)
            )
    epsilon = tolerance("ways back" if problem.dtype == "float64" else "engines", problem.dtype.name).epsilon
    ours, theirs = engine.exact(problem, steps), engine.unrolled(problem, steps)
    for kind, both in diagnostics.agreement(ours, theirs).items():
        yield Check(f"exact of {kind} against autodiff through {steps} unrolled steps", both.total.difference, epsilon)


def finite_differences(problem: Problem, engine: Engine, ours: Hyper, directions: int) -> Iterator[Check]:
    """The exact hypergradient `ours`, along random signs, against differences of whole trainings of the same engine."""
    hyper = problem.initial_hyper()
    epsilon = tolerance("finite differences", problem.precision).epsilon
    for n in range(directions):
        for kind, direction in random_signs(hyper, problem.seed, n).items():  # kind by kind: a large one hides no other
            slope = sum(float((h * direction[key]).sum()) for key, h in ours[kind].items())
            size = float(np.sqrt(sum(float((h**2).sum()) for h in ours[kind].values())))

            def f(step: float, kind: str = kind, direction: Arrays = direction) -> float:
                moved = {key: u + step * direction[key] for key, u in hyper[kind].items()}
                return engine.hyper_loss(problem, engine.train(problem, {**hyper, kind: moved}))

            measured = derivative(f, START, LEVELS, size * epsilon / 10)
            unit = max(size, abs(measured)) or 1.0
            what = f"exact of {kind}, {engine.name} against finite differences, direction {n + 1} of {directions}"
            yield Check(what, abs(measured - slope) / unit, epsilon)


def derivative(f: Callable[[float], float], step: float, levels: int, enough: float) -> float:
    """df/dx at 0 by `differences.measured`, without the estimate of its error. NaN where no difference was finite: a check
    that is given it fails."""
    return differences.measured(f, step, levels, enough).value


def random_signs(hyper: Hyper, seed: int, n: int) -> Hyper:
    """±1 for every coordinate. The slope along such a direction is on average (root mean square) ‖h‖: the unit of the check."""
    from hypertrail_data import generator

    rng = generator(seed, "hyper", n)
    return tree(lambda u: rng.choice([-1.0, 1.0], size=u.shape), hyper)


# -- the command --------------------------------------------------------------------------------------------------------


def options(module: ModuleType) -> tuple[Any, Any]:
    """(type, default): the experiment's Config, with what verify itself can be asked for, set to float64 and few steps."""
    import tyro

    said = tyro.conf.arg(help="Random sign directions of the finite differences.")
    alone = tyro.conf.arg(help="Check this engine alone, without the other one.")
    extra = [("directions", Annotated[int, said], 3), ("alone", Annotated[bool, alone], False)]
    config = make_dataclass("Verify", extra, bases=(module.Config,), frozen=True)
    return config, short(config)


def short(config: Any) -> Any:
    """The config in float64 with the fewest steps that it accepts: some experiments count in blocks."""
    if "steps" not in config.__dataclass_fields__:
        return config(precision="float64")
    for steps in (STEPS, 2 * STEPS, 20 * STEPS):
        with contextlib.suppress(UsageError):
            return config(precision="float64", steps=steps)
    return config(precision="float64")


def main(module: ModuleType, config: Any, name: str) -> int:
    """`hypertrail verify`: prints a line per check; raises VerificationFailure when one fails."""
    from .cli import build

    at_least("directions", config.directions, 0)
    at_most("directions", config.directions, MOST_DIRECTIONS, "each is up to 28 trainings for every kind")
    method = parse_method(getattr(config, "method", "exact"))
    engine = load(config.engine)
    with threads.fixed(engine, config.threads):
        problem = build(module, config)
        with starting(engine):
            processes.share(engine, config.devices, problem)
    own = hasattr(problem, "task")
    other = None if config.alone or own else load(next(one for one in ENGINES if one != config.engine))
    say(f"{name}: T {problem.steps}, {problem.dtype}, seed {problem.seed}")
    failed = []
    with compilation_cache(config.compilation_cache, *filter(None, (engine, other))):
        checks = (
            verify_task(problem, engine, method, config.directions)
            if own
            else verify(problem, engine, other, method, config.directions)
        )
        for check in checks:
            say(check)
            if not check.passed:
                failed.append(check)
    if failed:
        raise VerificationFailure(
            f"{len(failed)} of the checks failed, the first: {failed[0].what}; do not trust {name}"
        )
    return 0
