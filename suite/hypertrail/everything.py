"""Every way back × every hyperparameter × every dynamics that the package accepts, on one tiny network in float64.

    hypertrail verify everything

A network of 64-5-10 units, 12 steps. What is exact must equal the exact hypergradient from states in memory, which must equal
finite differences; every method must give the same in both engines; what cannot work must be refused, with the reason,
before anything is computed. One line each, exit code 4 when one fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import diagnostics
from .checks import at_least
from .engines import Engine, compilation_cache, load, starting
from .errors import UsageError, VerificationFailure
from .hyperparameters import (
    L1,
    L2,
    ExampleWeight,
    Hyper,
    Hyperparameter,
    InitialScale,
    InitialWeight,
    LearningRate,
    Momentum,
    Noise,
    TrainingInput,
    WeightTransform,
)
from .keeping import Checkpoints, Keep, Last, Reversible
from .methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated
from .problem import DYNAMICS, Dynamics, Problem
from .records import Training
from .refusals import refuse_plan
from .terminal import say
from .tolerances import tolerance
from .verify import Check, finite_differences

STEPS, TAIL = 12, 5
MOMENTUM = 0.625  # a fraction that fixed point holds: exact reversal rounds nothing, and undoing in floats loses little

# Declared together where the same methods accept them; every kind is in one of them (tests/suite/test_everything.py).
FAMILIES: dict[str, tuple[Hyperparameter, ...]] = {
    "penalties": (L2("layer", 1e-2), L1("network", 1e-3), WeightTransform("layer", 0.1)),
    "penalties of each parameter": (L2("parameter", 1e-2), L1("unit", 1e-3), WeightTransform("input", 0.1)),
    "the beginning": (InitialScale("layer", 1.2), L2("network", 1e-2)),
    "the weights at the beginning": (InitialWeight("unit"), InitialScale("layer", 0.9), Momentum("network", MOMENTUM)),
    "data": (ExampleWeight(init=0.4), L2("network", 1e-2)),
    "linear weights of the data": (ExampleWeight(init=0.4, representation="linear"), L2("network", 1e-2)),
    "images": (TrainingInput(),),
    "noise": (Noise("layer", 0.2), L2("network", 1e-2)),
    "rates": (LearningRate("layer", 0.2), Momentum("network", MOMENTUM)),
    "rates of each step": (LearningRate("network", 0.2, per_step=True), Momentum("layer", MOMENTUM, per_step=True)),
    "rates of each parameter": (LearningRate("parameter", 0.2), L2("unit", 1e-2)),
}


@dataclass(frozen=True)
class Way:
    """A method and what it is fed with. exact: it must equal Exact from states in memory."""

    method: Method
    keep: Keep = "ends"
    exact: bool = False

    @property
    def name(self) -> str:
        more = f"-{self.method.steps}" if isinstance(self.method, Truncated) else ""
        if isinstance(self.method, DrMAD) and self.method.tail is not None:
            more = f" with a tail of {self.method.tail}"
        return f"{self.method.name}{more} ({place(self.keep)})"


def place(keep: Keep) -> str:
    return "disk" if isinstance(keep, Path) else keep if isinstance(keep, str) else type(keep).__name__.lower()


def ways(folder: Path) -> list[Way]:
    implicit = [Implicit(solver, 20_000, 1e-13, damping=3.0) for solver in ("cg", "neumann", "dense")]
    return [
        Way(Exact(), "memory", exact=True),
        Way(Exact(), "host", exact=True),
        Way(Exact(), folder, exact=True),
        Way(Exact(), Checkpoints(), exact=True),
        Way(Exact(), Reversible(), exact=True),
        Way(Truncated(STEPS), "memory", exact=True),
        Way(Truncated(TAIL), Last(TAIL)),
        Way(Truncated(TAIL), Checkpoints()),
        Way(FloatReversed(), exact=True),  # so few steps lose only a few digits
        *(Way(DrMAD(f"C{n}")) for n in range(5)),
        Way(DrMAD("C1", first_batches=True)),
        Way(DrMAD("C5", tail=TAIL)),
        Way(DrMAD("C5", tail=STEPS), exact=True),
        Way(DrMAD("C6"), Checkpoints(3)),
        Way(DrMAD("C6"), Checkpoints(STEPS), exact=True),
        Way(Forward(), exact=True),
        *(Way(one) for one in implicit),
    ]


@dataclass(frozen=True)
class Refused:
    """A combination that was turned down before anything was computed, and why."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"no   {self.what}: {self.reason}"


def problem(dynamics: str, family: str, seed: int = 0) -> Problem:
    """The tiny problem: 24 digits in batches of 6, dropout on, learning rate halved on the way."""
    from hypertrail_data import BatchSchedule, make_splits
    from hypertrail_data import load as data
    from hypertrail_nets import mlp

    rate = 0.02 if dynamics == "adam" else 0.2
    return Problem(
        network=mlp((8, 8, 1), (5,), dropout=0.2, noise=family == "noise"),
        splits=make_splits(data("digits"), 24, 20, 0, 5, seed),
        schedule=BatchSchedule(24, 6, seed),
        steps=STEPS,
        hyperparameters=FAMILIES[family],
        # Adam's ε is large: at 1e-8 the slopes near g = 0 are too steep for finite differences.
        dynamics=Dynamics(dynamics, rate, MOMENTUM, schedule=((STEPS - 3, 0.5),), epsilon=1e-4),
        l2=1e-3,
        seed=seed,
        precision="float64",
    )


def walk(dynamics: str, family: str, engines: tuple[Engine, Engine], seed: int) -> Iterator[Check | Refused]:
    """All ways back of one problem. Cost: some 30 trainings of 12 steps in each engine, and the compilation of them all."""
    one = problem(dynamics, family, seed)
    hyper = one.initial_hyper()
    first, second = engines
    truth: Hyper = {}
    runs: dict[tuple[str, str], Training] = {}
    between, same = (tolerance(what, one.precision).epsilon for what in ("engines", "ways back"))
    with tempfile.TemporaryDirectory(prefix="hypertrail-") as folder:
        for way in ways(Path(folder)):
            what = f"{dynamics}, {family}, {way.name}"
            found: dict[str, Hyper] = {}
            try:
                refuse_plan(one, way.method, way.keep)
            except UsageError as reason:
                yield Refused(what, str(reason))
                continue
            for engine in engines:
                try:
                    found[engine.name] = gradient(one, hyper, engine, way, runs)
                except UsageError as reason:
                    yield Refused(f"{what}, engine {engine.name}", str(reason))
            if not truth:
                truth = found[first.name]
                for check in finite_differences(one, first, truth, 1):
                    yield Check(f"{dynamics}, {family}: {check.what}", check.difference, check.epsilon)
            elif way.exact:
                for name, ours in found.items():
                    yield Check(f"{what}, {name} against states in memory", difference(ours, truth), same)
            if len(found) == 2:
                gap = difference(found[first.name], found[second.name])
                yield Check(f"{what}, {first.name} against {second.name}", gap, between)
    for run in runs.values():
        if run.trajectory is not None:
            run.trajectory.close()


def gradient(one: Problem, hyper: Hyper, engine: Engine, way: Way, runs: dict[tuple[str, str], Training]) -> Hyper:
    keep = way.keep / engine.name if isinstance(way.keep, Path) else way.keep
    key = engine.name, str(keep)
    if key not in runs:
        runs[key] = engine.train(one, hyper, keep)
    return engine.hypergradient(one, hyper, runs[key], way.method).gradient


def difference(a: Hyper, b: Hyper) -> float:
    """The largest relative difference over the kinds."""
    return max(both.total.difference for both in diagnostics.agreement(a, b).values())


@dataclass(frozen=True)
class Options:
    """Settings of `hypertrail verify everything`."""

    engine: Literal["gpu", "cpu"] = "gpu"
    """The engine whose exact hypergradient is the measure of all others; the other one is checked against it."""
    dynamics: Literal[("all", *DYNAMICS)] = "all"  # type: ignore[valid-type]
    """One kind of dynamics, or all."""
    family: Literal[("all", *FAMILIES)] = "all"  # type: ignore[valid-type]
    """One group of hyperparameters, or all."""
    seed: int = 0
    """For split, first weights, batches, dropout and the directions of the finite differences."""
    compilation_cache: bool = True
    """Load what an earlier run has compiled from a folder in HYPERTRAIL_CACHE, and keep there what is compiled now."""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)


def main(options: Any) -> int:
    """Prints a line per combination; raises VerificationFailure when one fails."""
    engines = load(options.engine), load("cpu" if options.engine == "gpu" else "gpu")
    for engine in engines:
        with starting(engine):
            engine.describe()
    counted = {"ok": 0, "refused": 0}
    failed = []
    with compilation_cache(options.compilation_cache, *engines):
        for dynamics in DYNAMICS if options.dynamics == "all" else (options.dynamics,):
            for family in FAMILIES if options.family == "all" else (options.family,):
                for result in walk(dynamics, family, engines, options.seed):
                    say(result)
                    if isinstance(result, Refused):
                        counted["refused"] += 1
                    elif result.passed:
                        counted["ok"] += 1
                    else:
                        failed.append(result)
    say(f"{counted['ok']} checks passed, {len(failed)} failed, {counted['refused']} combinations refused")
    if failed:
        raise VerificationFailure(f"{len(failed)} of the checks failed, the first: {failed[0].what}")
    return 0
