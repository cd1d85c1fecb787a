"""A Problem as a task: the same training and the same hypergradients as by the engine's own programs for problems.

Where the arithmetic is the same they are equal to the bit; where batch norm is differentiated in another order, to 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import hypertrail as h
import hypertrail_gpu as gpu
from hypertrail_gpu.client import task_of

from ..conftest import make  # noqa: F401 – a fixture

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dropout, every level of sharing": ("mlp", "everything", {}),
    "convolutions, penalties": ("lenet", "penalties", {}),
    "batch norm, schedules": ("densenet", "per-step", {}),
    "heavy ball": ("mlp", "penalties", {"dynamics": h.Dynamics("heavy-ball", 0.1, 0.8)}),
    "adam": ("mlp", "penalties", {"dynamics": h.Dynamics("adam", 0.01, 0.9)}),
    "the beginning": ("mlp", "penalties", {"hyperparameters": (h.InitialScale(), h.InitialWeight("unit"))}),
    "examples": ("mlp", "penalties", {"hyperparameters": (h.ExampleWeight(), h.TrainingInput())}),
}
METHODS = ("exact", "truncated-3", "drmad-C1", "drmad-C2", "drmad-C4", "float-reversed")


@pytest.mark.parametrize("case", CASES)
def test_a_problem_as_a_task_has_the_numbers_of_the_problem(case: str, make: Callable) -> None:  # noqa: F811
    network, declared, changes = CASES[case]
    problem = make(network, declared, steps=8, **changes)
    training = gpu.train(problem, problem.initial_hyper(), "memory")
    task = task_of(problem)
    trail = h.train(task)
    np.testing.assert_array_equal(trail.losses, training.losses)
    for name, one in training.final.items():
        np.testing.assert_array_equal(np.asarray(trail.end.w[name]), one)
    for name, one in training.running.items():
        np.testing.assert_array_equal(np.asarray(trail.end.carried[name]), one)
    compared = 0
    for name in METHODS:
        method = h.methods.parse_method(name)
        try:
            old = gpu.hypergradient(problem, problem.initial_hyper(), training, method)
        except h.UsageError:
            continue
        new = h.hypergradient(trail, method)
        assert new.value == old.hyper_loss
        assert close(new.hyper, old.gradient), name
        compared += 1
    assert compared >= 2


def close(tree: Any, gradient: Any) -> bool:
    """Equal to 1e-12 of the norm of a kind."""
    for kind, arrays in gradient.items():
        size = np.sqrt(sum(float(np.sum(one**2)) for one in arrays.values()))
        gap = np.sqrt(sum(float(np.sum((np.asarray(tree[kind][key]) - one) ** 2)) for key, one in arrays.items()))
        if not gap <= 1e-12 * size:
            return False
    return True


def test_a_problem_compiles_nothing_a_second_time(make: Callable) -> None:  # noqa: F811
    task = task_of(make("mlp", "penalties", steps=8))
    h.hypergradient(task)
    programs = dict(task.programs)
    h.hypergradient(task, hyper=jax.tree.map(lambda u: u + 0.5, task.hyper))
    assert programs.keys() == task.programs.keys()
