"""Reference against compiled engine on every way back: the same rules derived twice, in float64."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hypertrail_cpu as cpu
import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import (
    L1,
    L2,
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    FloatReversed,
    Forward,
    Implicit,
    Last,
    LearningRate,
    Momentum,
    NumericalFailure,
    Problem,
    Reversible,
    Truncated,
    UsageError,
)
from hypertrail.tolerances import tolerance
from hypertrail_nets import mlp

TOLERANCE = tolerance("engines", "float64").epsilon


@pytest.fixture(scope="module")
def problem() -> Problem:
    splits = hypertrail_data.make_splits(
        hypertrail_data.load("digits"), train=200, valid=64, select=20, test=70, seed=4
    )
    return Problem(
        mlp((8, 8, 1), (12,), dropout=0.2),
        splits,
        hypertrail_data.BatchSchedule(200, 20, seed=1),
        steps=24,
        hyperparameters=(L2("layer", 1e-2), LearningRate("layer", 0.2), Momentum("network", 0.7)),
        dynamics=Dynamics("damped", 0.2, 0.7, ((15, 0.5),)),
        valid_batch=32,
        seed=6,
        precision="float64",
    )


@cache
def trained(engine: Any, problem: Problem, keep: Any) -> Any:
    return engine.train(problem, problem.initial_hyper(), keep)


def flat(gradient: Any) -> np.ndarray:
    return np.concatenate(
        [np.ravel(one) for _, arrays in sorted(gradient.items()) for _, one in sorted(arrays.items())]
    )


def compare(problem: Problem, keep: Any, method: Any, tolerance: float = TOLERANCE) -> None:
    hyper = problem.initial_hyper()
    a, b = (engine.hypergradient(problem, hyper, trained(engine, problem, keep), method) for engine in (cpu, gpu))
    x, y = flat(a.gradient), flat(b.gradient)
    assert np.linalg.norm(y) > 0
    assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y)
    assert a.diagnostics["N"] == b.diagnostics["N"]
    assert (a.cost.gradients, a.cost.hvps) == (b.cost.gradients, b.cost.hvps)
    assert a.cost.trajectory_bytes == b.cost.trajectory_bytes
    for training in (trained(engine, problem, keep) for engine in (cpu, gpu)):
        assert (training.cost.gradients, training.cost.hvps) == (problem.steps, 0)


CASES = [
    (Checkpoints(), Exact()),
    pytest.param(Checkpoints(5), Exact(), marks=pytest.mark.slow),
    (Checkpoints(), Truncated(7)),
    (Last(9), Truncated(5)),
    ("memory", Truncated(1)),
    ("ends", DrMAD("C2")),
    ("ends", DrMAD("C3")),
    ("ends", DrMAD("C5")),
    ("ends", DrMAD("C5", tail=6)),
    ("ends", DrMAD("C5", tail=21)),
    (Reversible(), DrMAD("C4")),
    (Checkpoints(3), DrMAD("C6")),
    pytest.param(Checkpoints(24), DrMAD("C6"), marks=pytest.mark.slow),
    ("ends", Forward()),
]


@pytest.mark.parametrize(("keep", "method"), CASES, ids=str)
def test_engines_agree(problem, keep, method):
    compare(problem, keep, method)


def test_float_reversal_agrees_while_it_lasts(problem):
    """Both lose log2(1/.7) = .51 bits a step, in different ways: 24 steps cost 12 bits."""
    compare(problem, "ends", FloatReversed(), tolerance=1e-9)


def test_reversible_runs_agree(problem):
    """The integers may differ in their last digits, since the gradients do; the numbers they stand for hardly: where one digit
    differs, what is filled in below it does too, up to n 2^−52 = 1e-11 of v."""
    a, b = (trained(engine, problem, Reversible()) for engine in (cpu, gpu))
    for name, gamma in a.trajectory.momentum.items():
        assert gamma == b.trajectory.momentum[name]
        np.testing.assert_allclose(a.final[name], b.final[name], rtol=1e-9, atol=1e-11)
    hyper = problem.initial_hyper()
    assert (a.cost.gradients, a.cost.hvps) == (b.cost.gradients, b.cost.hvps) == (24, 0), "the probe is no part of it"
    found = [engine.hypergradient(problem, hyper, t, Exact()) for engine, t in ((cpu, a), (gpu, b))]
    assert [(one.cost.gradients, one.cost.hvps) for one in found] == [(2, 24)] * 2
    mine, theirs = (one.gradient for one in found)
    for kind in hyper:
        x, y = flat({kind: mine[kind]}), flat({kind: theirs[kind]})
        assert np.linalg.norm(x - y) <= TOLERANCE * np.linalg.norm(y), kind


OTHERS = {
    "nesterov": Dynamics("nesterov", 0.1, 0.7, ((4, 0.5),)),
    "damped-old": Dynamics("damped-old", 0.3, 0.7, ((4, 0.5),)),
    "adam": Dynamics("adam", 0.02, 0.7, ((4, 0.5),)),
}


@pytest.fixture(scope="module")
def small(problem):
    """small(dynamics): a tiny tanh network, eight steps, a rate and a momentum for each layer."""

    @cache
    def small(dynamics: Dynamics) -> Problem:
        declared = (
            L2("layer", 1e-2),
            LearningRate("layer", dynamics.learning_rate),
            Momentum("layer", dynamics.momentum),
        )
        network = mlp((8, 8, 1), (6,), dropout=0.2)
        return problem.with_(network=network, steps=8, hyperparameters=declared, dynamics=dynamics)

    return small


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind != "adam" else ()) for kind in OTHERS]
)
def test_engines_agree_on_other_dynamics(small, kind):
    """With each other, and each of them on its three exact ways."""
    other = small(OTHERS[kind])
    hyper, ways = other.initial_hyper(), (("memory", Exact()), (Checkpoints(), Exact()), ("memory", Forward()))
    found = [
        [
            flat(engine.hypergradient(other, hyper, trained(engine, other, keep), method).gradient)
            for keep, method in ways
        ]
        for engine in (cpu, gpu)
    ]
    for truth, *others in found:
        for one in others:
            assert np.linalg.norm(one - truth) <= 1e-12 * np.linalg.norm(truth)
    assert np.linalg.norm(found[0][0] - found[1][0]) <= TOLERANCE * np.linalg.norm(found[1][0]) > 0


def test_lines_agree_on_other_dynamics(small):
    """The old velocity recovered from a line; penalties alone on Nesterov's."""
    old = small(OTHERS["damped-old"])
    for method in (DrMAD("C2"), DrMAD("C4", multiplier=0.7)):
        compare(old, "ends", method)
    compare(old, Checkpoints(3), DrMAD("C6"))
    penalties = small(OTHERS["nesterov"]).with_(hyperparameters=(L2("layer", 1e-2),))
    compare(penalties, "ends", DrMAD("C4"))


def test_reversible_runs_with_a_momentum_per_step_agree(small):
    """At sixteenths nothing is rounded; at others both engines round up to the same fraction."""
    other = small(Dynamics("damped", 0.3, 0.5)).with_(
        hyperparameters=(L2("layer", 1e-2), LearningRate("layer", 0.3), Momentum("layer", 0.5, per_step=True))
    )
    rng = np.random.default_rng(3)
    for draw in (rng.integers(1, 16, (other.steps,)) / 16, rng.uniform(0.2, 0.95, (other.steps,))):
        hyper = other.initial_hyper()
        hyper["momentum"] = {name: np.log(draw) - np.log1p(-draw) for name in hyper["momentum"]}
        a, b = (engine.train(other, hyper, Reversible()) for engine in (cpu, gpu))
        for name, gamma in a.trajectory.momentum.items():
            assert gamma.shape == (other.steps,)
            np.testing.assert_array_equal(gamma, b.trajectory.momentum[name])
        mine, theirs = (engine.hypergradient(other, hyper, t, Exact()).gradient for engine, t in ((cpu, a), (gpu, b)))
        for kind in hyper:
            x, y = flat({kind: mine[kind]}), flat({kind: theirs[kind]})
            assert np.linalg.norm(x - y) <= TOLERANCE * np.linalg.norm(y), kind


@pytest.mark.parametrize(("engine", "gamma"), [(cpu, 0.5), (cpu, 0.75), (gpu, 0.75)])
def test_reversal_at_a_momentum_that_is_a_fraction_is_the_stored_run(small, engine, gamma):
    """γ is not rounded, so what differs are the digits that fill v's low end: with 3/4 for .75 at most 2^-50 in a step."""
    problem = small(Dynamics("damped", 0.3, gamma))
    hyper = problem.initial_hyper()
    reversible, stored = (trained(engine, problem, keep) for keep in (Reversible(), "memory"))
    assert set(reversible.trajectory.momentum.values()) == {gamma}
    a, b = (engine.hypergradient(problem, hyper, run, Exact()).gradient for run in (reversible, stored))
    for kind in hyper:
        x, y = flat({kind: a[kind]}), flat({kind: b[kind]})
        assert 0 < np.linalg.norm(x - y) <= 1e-12 * np.linalg.norm(y), kind


def test_single_precision_run_goes_back_through_the_reference(problem):
    """The compiled engine's float32 states, recomputed in float64: near the float64 hypergradient, and not refused."""
    single = problem.with_(precision="float32", hyperparameters=(L2("layer", 1e-2),))
    hyper = single.initial_hyper()
    truth = flat(cpu.hypergradient(single, hyper, cpu.train(single, hyper, "memory"), Exact()).gradient)
    found = flat(cpu.hypergradient(single, hyper, gpu.train(single, hyper, Checkpoints()), Exact()).gradient)
    assert 1e-9 < np.linalg.norm(found - truth) / np.linalg.norm(truth) < 1e-4


@pytest.mark.parametrize("engine", [cpu, gpu])
def test_what_cannot_go_back_is_refused_before_anything_is_computed(problem, engine):
    """Of the training run no more is looked at than how many steps it had."""
    penalties = problem.with_(hyperparameters=(L2("layer", 1e-2),))
    for one, method, match in (
        (problem.with_(steps=4), DrMAD("C4"), "this run has 4; train longer or use C0"),
        (penalties, Implicit("dense", most=9), "of 910 parameters, allowed are 9; use implicit-cg"),
    ):
        training = SimpleNamespace(steps=one.steps)
        with pytest.raises(UsageError, match=match):
            engine.hypergradient(one, one.initial_hyper(), training, method)


@pytest.mark.parametrize("solver", ["cg", pytest.param("neumann", marks=pytest.mark.slow), "dense"])
def test_implicit_solutions_agree(problem, solver):
    """Damped, so that w_T need not be a minimum for the solve to be well posed; the two solves are one linear system."""
    other = problem.with_(hyperparameters=(L2("layer", 1e-2),))
    method = Implicit(solver, iterations=20000, tolerance=1e-12, step=0.05, damping=1.0)
    compare(other, "ends", method, tolerance=1e-8)


@pytest.mark.parametrize(
    ("keep", "method", "expected"),
    [
        ("memory", Exact(), ("adjoint of the weights (‖dw‖)", 21)),
        ("memory", Truncated(2), ("adjoint of the weights (‖dw‖)", 22)),
        ("memory", Truncated(1), ("hypergradient of l1 for network (1 of 1 coordinates)", 23)),
        pytest.param(Checkpoints(2), DrMAD("C6"), None, marks=pytest.mark.slow),
        pytest.param("ends", Forward(), None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_failures_are_named_alike(problem, keep, method, expected):
    """States of a run that went well, walked back with a penalty not its own: L2 of 1e150, or L1 (no curvature) of e^800."""
    other = problem.with_(
        network=mlp((8, 8, 1), (4,)),
        hyperparameters=(L2("network", 1e-2, bounds=(1e-9, 1e300)), L1("network", 1e-3)),
    )
    hyper = other.initial_hyper()
    runs = [(engine, trained(engine, other, keep)) for engine in (cpu, gpu)]
    if method == Truncated(1):
        hyper["l1"]["network"] = np.asarray(800.0)
    else:
        hyper["l2"]["network"] = np.asarray(150.0)
    found = []
    for engine, run in runs:
        with pytest.raises(NumericalFailure) as failure:
            engine.hypergradient(other, hyper, run, method)
        found.append((failure.value.quantity, failure.value.step))
    assert found[0] == found[1] == (expected or found[0])
