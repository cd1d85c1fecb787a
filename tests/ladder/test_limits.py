"""Where digits or learning rates run out: both engines refuse by name what used to return noise or zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hypertrail import (
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    FloatReversed,
    LearningRate,
    Momentum,
    Problem,
    Reversible,
    UsageError,
    VerificationFailure,
    load,
)
from hypertrail.hyperparameters import L2
from hypertrail_data import BatchSchedule, make_splits
from hypertrail_data import load as data
from hypertrail_nets import mlp


@pytest.fixture(params=["cpu", "gpu"])
def engine(request) -> Any:
    return load(request.param)


@pytest.fixture(scope="module")
def make() -> Any:
    splits = make_splits(data("digits"), 40, 20, 0, 5, seed=1)
    network = mlp((8, 8, 1), (3,))

    def make(*declared: Any, **changes: Any) -> Problem:
        fields = {
            "network": network,
            "splits": splits,
            "schedule": BatchSchedule(40, 10, seed=1),
            "steps": 60,
            "hyperparameters": declared or (L2("layer"),),
            "dynamics": Dynamics("damped", 0.3, 0.5),
            "precision": "float64",
        }
        return Problem(**{**fields, **changes})

    return make


def logit(gamma: Any) -> np.ndarray:
    return np.log(gamma) - np.log1p(-np.asarray(gamma))


@pytest.mark.parametrize("method", [FloatReversed(), DrMAD("C5", tail=60)], ids=lambda one: one.name)
def test_momenta_that_moved_are_looked_at_before_the_pass(make, engine, method):
    """At the declared .9 the digits last for 60 steps; at the .5 that the run really had they do not."""
    problem = make(Momentum("network", 0.9))
    hyper = problem.initial_hyper()
    result = engine.hypergradient(problem, hyper, engine.train(problem, hyper), method)
    exact = engine.hypergradient(problem, hyper, engine.train(problem, hyper, "memory"), Exact())
    a, b = (float(one.gradient["momentum"]["network"]) for one in (result, exact))
    assert a == pytest.approx(b, rel=1e-6)
    hyper = {"momentum": {"network": logit(0.5)}}
    with pytest.raises(UsageError, match=r"53 bits are lost after (52|53) at this momentum"):
        engine.hypergradient(problem, hyper, engine.train(problem, hyper), method)


def test_the_negative_control_still_dies_when_asked_to(make, engine):
    problem = make(Momentum("network", 0.5), steps=100)
    hyper = problem.initial_hyper()
    exact = engine.hypergradient(problem, hyper, engine.train(problem, hyper, "memory"), Exact())
    result = engine.hypergradient(problem, hyper, engine.train(problem, hyper), FloatReversed(beyond=True))
    assert result.diagnostics["drift"] > 1e6
    a, b = (float(one.gradient["momentum"]["network"]) for one in (result, exact))
    assert abs(a - b) > 1e6 * abs(b)


@pytest.mark.parametrize("method", [FloatReversed(), DrMAD("C5", tail=52)], ids=lambda one: one.name)
def test_a_pass_that_does_not_arrive_is_refused(make, engine, method):
    """Within the bound, but its last digits only: the way back ends away from w_0 and v_0 = 0."""
    problem = make(dynamics=Dynamics("damped", 0.3, 0.5), steps=52)
    hyper = problem.initial_hyper()
    with pytest.raises(
        VerificationFailure, match=r"undid every step in float64 and arrived .* away from w_0 and v_0 = 0"
    ):
        engine.hypergradient(problem, hyper, engine.train(problem, hyper), method)


@pytest.mark.parametrize(("method", "keep"), [(DrMAD("C4"), "ends"), (DrMAD("C6"), Checkpoints(3))], ids=["C4", "C6"])
def test_a_schedule_that_ends_at_0(make, engine, method, keep):
    """It used to return 0 for every hyperparameter."""
    problem = make(L2("layer"), LearningRate(init=0.3), dynamics=Dynamics("damped", 0.3, 0.5, ((59, 0.0),)))
    hyper = problem.initial_hyper()
    with pytest.raises(UsageError, match=f"completion {method.completion} walks steps .* makes that 0"):
        engine.hypergradient(problem, hyper, engine.train(problem, hyper, keep), method)


@pytest.mark.parametrize("declared", [Momentum(), Momentum("layer"), Momentum("layer", per_step=True)])
def test_reversible_runs_look_at_the_momentum_that_is_there(make, engine, declared):
    """Declared well inside, but the arrays of this run hold a momentum below 2^-16, at one step of one tensor."""
    problem = make(declared)
    arrays = problem.initial_hyper()["momentum"]
    name = list(arrays)[-1]
    moved = np.array(arrays[name])
    moved[(7,) if declared.per_step else ()] = logit(2.0**-17)
    hyper = {"momentum": arrays | {name: moved}}
    with pytest.raises(UsageError, match=r"exact reversal needs a momentum between 2\^-16 .* got 7.62939e-06"):
        engine.train(problem, hyper, Reversible())


def test_reversible_runs_refuse_bounds_that_let_it_leave(make, engine):
    problem = make(Momentum(bounds=(1e-6, 0.99)))
    with pytest.raises(UsageError, match=r"bounds \[1e-06, 0.99\] let it leave them"):
        engine.train(problem, problem.initial_hyper(), Reversible())
