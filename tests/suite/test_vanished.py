"""Declared values that are positive, and 0 in the precision of the computation: refused or named before they mislead."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail import L2, Dynamics, Exact, LearningRate, Plain, UsageError, WeightTransform, outer
from hypertrail.race.arms import Arm
from hypertrail.tuning import tune
from hypertrail.vanished import vanished

RATE = LearningRate(init=0.1, bounds=(1e-60, 1.0))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hyperparameters": (LearningRate(init=1e-50, bounds=(1e-60, 1.0)),)}, "learning_rate: init 1e-50 is 0 in"),
        ({"hyperparameters": (L2(init=1e-39, bounds=(1e-60, 1.0)),)}, "l2: init 1e-39 is 0 in float32"),
        (
            {"dynamics": Dynamics(learning_rate=1e-50), "hyperparameters": (L2(),)},
            "learning rate 1e-50 is 0 in float32",
        ),
        ({"dynamics": Dynamics("adam", epsilon=1e-50)}, "epsilon 1e-50 is 0 in float32"),
        ({"dynamics": Dynamics(momentum=1e-50)}, "momentum 1e-50 is 0 in float32"),
        ({"l2": 1e-50, "hyperparameters": (LearningRate(),)}, "l2 1e-50 is 0 in float32"),
        ({"dynamics": Dynamics(schedule=((3, 1e-45),))}, "learning rate from step 3 on 3e-46 is 0 in float32"),
    ],
    ids=str,
)
def test_what_is_0_after_the_cast_is_refused_by_name(make_problem, changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        make_problem(precision="float32", **changes)
    make_problem(precision="float64", **changes)


def test_zeros_that_are_meant_are_no_loss(make_problem):
    kinds = (WeightTransform(), L2())
    make_problem(precision="float32", hyperparameters=kinds, dynamics=Dynamics(momentum=0.0, schedule=((3, 0.0),)))


def test_the_start_of_an_arm_is_checked_as_well(make_problem):
    problem = make_problem(precision="float32", hyperparameters=(RATE, L2()))
    with pytest.raises(
        UsageError, match="arm a: learning_rate of network: 1 of 1 values are 0 in float32 at the start"
    ):
        Arm("a", Plain(5), (("learning_rate", 1e-50),)).first_hyper(problem)


def test_what_has_moved_to_0_is_named(make_problem, engine, rule):
    problem = make_problem(precision="float32", hyperparameters=(L2(), RATE))
    hyper = problem.initial_hyper()
    assert list(vanished(problem.hyperparameters, hyper, problem.dtype)) == []
    hyper["l2"]["dense1/W"][0, :2] = -60.0
    assert list(vanished(problem.hyperparameters, hyper, problem.dtype)) == [
        "l2 of dense1/W: 2 of 320 values are 0 in float32"
    ]
    hyper["l2"]["dense1/W"][0, :2] = -np.inf
    assert list(vanished(problem.hyperparameters, hyper, problem.dtype)) == [], "log 0 is a 0 that is meant"
    engine.error = 0.0
    moved = [record.warnings for record in tune(problem, engine, Exact(), outer.Sign(120.0), 1)]
    assert moved == [(), ("learning_rate of network: 1 of 1 values are 0 in float32",)]
