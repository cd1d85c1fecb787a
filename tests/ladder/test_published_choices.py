"""The choices of the original programs, each a switch: off, nothing changes to the bit; on, both engines do the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import hypertrail_cpu as cpu
import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import L2, DrMAD, Dynamics, Exact, ExampleWeight, LearningRate, Momentum, Problem, UsageError
from hypertrail.methods import AsPublished
from hypertrail.tolerances import tolerance
from hypertrail_cpu.losses import hyper_gradient
from hypertrail_gpu import many
from hypertrail_nets import mlp

TOLERANCE = tolerance("engines", "float64").epsilon


def problem_of(*hyperparameters: Any, **changes: Any) -> Problem:
    """A small perceptron on the handwritten digits; T = 24 steps, an epoch of 10."""
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=200, valid=64, select=0, test=20, seed=4)
    fields = {
        "network": mlp((8, 8, 1), (12,), init_scale=0.3),
        "splits": splits,
        "schedule": hypertrail_data.BatchSchedule(200, 20, seed=1),
        "steps": 24,
        "hyperparameters": hyperparameters,
        "dynamics": Dynamics("damped", 0.2, 0.7),
        "seed": 6,
        "precision": "float64",
    }
    return Problem(**(fields | changes))


@cache
def rates() -> Problem:
    return problem_of(L2("layer", 1e-2), LearningRate("layer", 0.2), Momentum("network", 0.7))


@cache
def trained(engine: Any, problem: Problem, keep: Any = "ends") -> Any:
    return engine.train(problem, problem.initial_hyper(), keep)


@cache
def gradient(engine: Any, problem: Problem, method: Any, keep: Any = "ends") -> Any:
    return engine.hypergradient(problem, problem.initial_hyper(), trained(engine, problem, keep), method)


def vector(result: Any) -> np.ndarray:
    """All numbers of a hypergradient, one after the other."""
    return np.concatenate([np.ravel(a) for arrays in result.gradient.values() for a in arrays.values()])


def apart(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖ of two hypergradients."""
    return float(np.linalg.norm(vector(a) - vector(b)) / np.linalg.norm(vector(b)))


def test_a_fixed_penalty_on_all_parameters():
    declared = LearningRate("layer", 0.2)
    weights, everywhere = (problem_of(declared, l2=0.02, l2_on=where) for where in ("regularizable", "all"))
    ours, theirs = (gradient(engine, everywhere, Exact(), "memory") for engine in (gpu, cpu))
    assert apart(ours, theirs) < TOLERANCE
    assert apart(theirs, gradient(cpu, weights, Exact(), "memory")) > 1e-3
    ends = [trained(engine, everywhere, "memory").final for engine in (gpu, cpu)]
    for name, one in ends[0].items():
        np.testing.assert_allclose(one, ends[1][name], rtol=0, atol=1e-12)


# -- lines ----------------------------------------------------------------------------------------------------------------


def published(completion: str, *choices: str, **settings: Any) -> DrMAD:
    return DrMAD(completion, choices=AsPublished(**dict.fromkeys(choices, True)), **settings)


# The method with a switch, and the one that it is a switch of.
SWITCHES = [
    *((DrMAD(c, first_batches=True), DrMAD(c)) for c in ("C1", "C4", "C5")),
    *((DrMAD(c, spread="even"), DrMAD(c)) for c in ("C1", "C4", "C5")),
    (published("C1", "end_velocity"), DrMAD("C1")),
    (published("C1", "line_dalpha"), DrMAD("C1")),
    (published("C2", "inner_rho"), DrMAD("C2")),
    (published("C4", "inner_rho", "end_velocity", "line_dalpha"), DrMAD("C4")),
    (published("C5", "without_last"), DrMAD("C5")),
    (published("C5", "inner_rho", "line_dalpha"), DrMAD("C5")),
    (published("C4", "sum_of_norms", multiplier=0.5), DrMAD("C4", multiplier=0.5)),
    (published("C5", "sum_of_norms", multiplier=0.9), DrMAD("C5", multiplier=0.9)),
    (published("C4", "regularized_only"), DrMAD("C4")),
]


C3_FIRST = DrMAD("C3", first_batches=True)


def sized(method: DrMAD) -> DrMAD:
    """With a short tail and a fifth of the steps, where the completion has them: so that lines are shorter than the run."""
    settings = {"tail": 5} if method.completion == "C5" else {}
    if method.completion in ("C4", "C5") and method.multiplier == 1.0:
        settings["max_steps"] = 7
    return replace(method, **settings)


@pytest.mark.parametrize(("switched", "plain"), SWITCHES, ids=lambda method: method.name)
def test_both_engines_follow_a_switch(switched, plain):
    switched, plain = sized(switched), sized(plain)
    a, b = (gradient(engine, rates(), switched) for engine in (gpu, cpu))
    assert apart(a, b) < TOLERANCE
    assert a.diagnostics["N"] == b.diagnostics["N"]
    assert (a.cost.gradients, a.cost.hvps) == (b.cost.gradients, b.cost.hvps)
    assert apart(b, gradient(cpu, rates(), plain)) > 1e-4  # it does something
    assert a.method == b.method == switched.name


def test_c3_takes_the_first_minibatches_too():
    """T = 205: 200 line steps, so that the rules differ."""
    problem = problem_of(L2("layer", 1e-2), steps=205, dynamics=Dynamics("damped", 0.02, 0.7))
    results = {m: [gradient(engine, problem, m) for engine in (gpu, cpu)] for m in (DrMAD("C3"), C3_FIRST)}
    for a, b in results.values():
        assert apart(a, b) < TOLERANCE
        assert a.diagnostics["N"] == b.diagnostics["N"] == 200
    assert apart(results[C3_FIRST][1], results[DrMAD("C3")][1]) > 1e-4


@pytest.mark.parametrize("engine", [gpu, cpu], ids=["gpu", "cpu"])
@pytest.mark.parametrize("kind", ["damped", "heavy-ball"])
def test_dalpha_of_the_last_line_step_by_hand(engine, kind):
    """C2 with a rate per step, T = 12: at the last line step, which is undone first, dw = ∇f(w_T) and α v = (w_T − w_0) / T for
    damped, minus that for heavy ball, whose dα has a minus, too. So d ln α there is ⟨∇f(w_T), w_T − w_0⟩ / T."""
    problem = problem_of(LearningRate("layer", 0.02, per_step=True), steps=12, dynamics=Dynamics(kind, 0.02, 0.5))
    hyper = problem.initial_hyper()
    result, training = gradient(engine, problem, published("C2", "line_dalpha")), trained(engine, problem)
    final = {name: np.asarray(one) for name, one in training.final.items()}
    _, dw, _ = hyper_gradient(problem, final, problem.values(hyper))
    for name, one in dw.items():
        way = final[name] - training.initial[name]
        d = result.gradient["learning_rate"][name]
        assert d[-1] == pytest.approx(np.sum(one * way) / 12, rel=1e-10)


@pytest.mark.parametrize("engine", [gpu, cpu], ids=["gpu", "cpu"])
def test_nothing_of_a_bias_reaches_the_hypergradient_by_regularized_only(engine):
    """With a learning rate per layer, those of the biases get none; and dw_0 is 0 there."""
    result = gradient(engine, rates(), sized(published("C4", "regularized_only")))
    for name, one in result.initial_weights.items():
        assert np.any(one) == name.endswith("W")
    for name, one in result.gradient["learning_rate"].items():
        assert (one != 0) == name.endswith("W")


@pytest.mark.parametrize("engine", [gpu, cpu], ids=["gpu", "cpu"])
def test_every_example_gets_a_gradient_where_steps_are_drawn(engine):
    """40 examples, 5 minibatches in fixed order, C1 with N = 10 of T = 100 steps: ten steps apart is the same minibatch."""
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=40, valid=64, select=0, test=20, seed=4)
    problem = problem_of(
        ExampleWeight(init=0.5), splits=splits, schedule=hypertrail_data.BatchSchedule(40, 8, seed=1), steps=100
    )
    drawn, even = (gradient(engine, problem, DrMAD("C1", spread=spread)) for spread in ("drawn", "even"))
    seen = [int(np.count_nonzero(one.gradient["example_weight"]["train"])) for one in (drawn, even)]
    assert seen[1] == 8
    assert seen[0] >= 32


@pytest.mark.parametrize(
    ("method", "declared", "dynamics", "message"),
    [
        (
            published("C4", "line_dalpha"),
            (L2(), Momentum("network", 0.7)),
            "damped",
            "learning rate, which is not declared",
        ),
        (published("C4", "end_velocity"), (L2(),), "damped", "only learning rate and momentum need"),
        (published("C1", "end_velocity"), (LearningRate(),), "damped-old", "which damped-old has not"),
        (published("C1", "line_dalpha"), (LearningRate(),), "damped-old", "which damped-old has not"),
    ],
)
def test_choices_without_a_meaning_are_refused(method, declared, dynamics, message):
    problem = problem_of(*declared, dynamics=Dynamics(dynamics, 0.2, 0.7))
    for engine in (gpu, cpu):
        with pytest.raises(UsageError, match=message):
            engine.hypergradient(problem, problem.initial_hyper(), trained(engine, problem), method)


def test_runs_side_by_side_refuse_the_choices():
    problem = rates()
    with pytest.raises(UsageError, match="take it run by run"):
        many.hypergradient(
            [problem], [problem.initial_hyper()], [trained(gpu, problem)], published("C4", "sum_of_norms")
        )
