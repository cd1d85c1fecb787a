"""The rules against optax, which is another derivation of two of them, and what Adam keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypertrail_gpu as gpu
from hypertrail import L2, Dynamics, Exact, Last, LearningRate, Momentum, Truncated
from hypertrail.problem import DYNAMICS as KINDS
from hypertrail_gpu.dynamics import DYNAMICS, rule

OPTAX = {
    "heavy-ball": (Dynamics("heavy-ball", 0.3, 0.8), optax.sgd(0.3, momentum=0.8)),
    "nesterov": (Dynamics("nesterov", 0.3, 0.8), optax.sgd(0.3, momentum=0.8, nesterov=True)),
    "adam": (
        Dynamics("adam", 0.3, 0.8, second_momentum=0.95, epsilon=1e-3),
        optax.adam(0.3, b1=0.8, b2=0.95, eps=0, eps_root=1e-3),
    ),
}


def test_every_kind_has_its_rule():
    assert {*DYNAMICS, "adam"} == set(KINDS)


@pytest.mark.parametrize("kind", OPTAX)
def test_rules_are_those_of_optax(kind):
    dynamics, transformation = OPTAX[kind]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w = theirs = jnp.asarray(rng.normal(size=(4, 3)))
        v = jnp.zeros((2, 4, 3) if kind == "adam" else (4, 3))
        state = transformation.init(w)
        for t in range(6):
            g = jnp.asarray(rng.normal(size=(4, 3)))
            w, v = rule(dynamics, t)(w, v, g, dynamics.learning_rate, dynamics.momentum)
            updates, state = transformation.update(g, state, theirs)
            theirs = optax.apply_updates(theirs, updates)
            np.testing.assert_allclose(w, theirs, rtol=1e-12)


def test_moments_are_stored_and_read_back(make, relative, tmp_path):
    """As v/<parameter>, two to a weight; by all that the ladder does not walk: a folder, and the last K states."""
    declared = (L2("layer", 1e-2), LearningRate("layer", 0.02), Momentum("layer", 0.8))
    problem = make("mlp", steps=4, hyperparameters=declared, dynamics=Dynamics("adam", second_momentum=0.9))
    hyper = problem.initial_hyper()
    memory, last, disk = (gpu.train(problem, hyper, keep) for keep in ("memory", Last(3), tmp_path / "trajectory"))
    assert memory.cost.trajectory_bytes == 3 * problem.steps * 8 * sum(p.size for p in problem.params)
    a, b = (gpu.hypergradient(problem, hyper, run, Truncated(3)) for run in (memory, last))
    assert relative(a.gradient, b.gradient) < 1e-12
    with disk.trajectory as kept:
        w, v = kept.read(2)["w/dense1/W"], kept.read(2)["v/dense1/W"]
        assert v.shape == memory.velocity["dense1/W"].shape == (2, *w.shape)
        a, b = (gpu.hypergradient(problem, hyper, run, Exact()) for run in (memory, disk))
        assert relative(b.gradient, a.gradient) == relative(b.initial_velocity, a.initial_velocity) == 0.0
        assert a.initial_velocity["dense1/W"].shape == v.shape
