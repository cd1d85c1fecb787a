"""The choices of the original programs, each a switch: off, nothing changes to the bit; on, both engines do the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import hypertrail_cpu as cpu
import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import L2, Dynamics, Exact, LearningRate, Momentum, Problem
from hypertrail.tolerances import tolerance
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
