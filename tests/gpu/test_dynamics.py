"""The rules against optax, which is another derivation of two of them, and every way back that Adam has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypertrail_gpu as gpu
from hypertrail import L2, Checkpoints, Dynamics, Exact, Forward, Last, LearningRate, Momentum, Truncated
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


@pytest.fixture(scope="module")
def case(make):
    declared = (L2("layer", 1e-2), LearningRate("layer", 0.02), Momentum("layer", 0.8))
    problem = make(
        "mlp", hyperparameters=declared, dynamics=Dynamics("adam", schedule=((4, 0.5),), second_momentum=0.9)
    )
    hyper = problem.initial_hyper()
    training = gpu.train(problem, hyper, "memory")
    return problem, hyper, training, gpu.hypergradient(problem, hyper, training, Exact())


@pytest.mark.parametrize("keep", ["host", Checkpoints()], ids=str)
def test_exact_providers_agree_under_adam(case, relative, keep):
    problem, hyper, _, exact = case
    result = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, keep), Exact())
    assert relative(result.gradient, exact.gradient) < 1e-12
    assert relative(result.initial_velocity, exact.initial_velocity) < 1e-12
    assert all(one.shape == (2, *exact.initial_weights[name].shape) for name, one in result.initial_velocity.items())


def test_forward_mode_equals_reverse_mode_under_adam(case, relative):
    problem, hyper, training, exact = case
    result = gpu.hypergradient(problem, hyper, training, Forward())
    for kind in hyper:
        assert relative(result.gradient[kind], exact.gradient[kind]) < 1e-12, kind


def test_truncated_and_disk_under_adam(case, relative, tmp_path):
    """The moments are stored as v/<parameter>, two to a weight, and read back."""
    problem, hyper, training, exact = case
    a = gpu.hypergradient(problem, hyper, training, Truncated(3))
    b = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, Last(3)), Truncated(3))
    assert relative(a.gradient, b.gradient) < 1e-12
    disk = gpu.train(problem, hyper, tmp_path / "trajectory")
    with disk.trajectory as kept:
        w, v = kept.read(2)["w/dense1/W"], kept.read(2)["v/dense1/W"]
        assert v.shape == (2, *w.shape)
        assert relative(gpu.hypergradient(problem, hyper, disk, Exact()).gradient, exact.gradient) == 0.0
    assert training.cost.trajectory_bytes == 3 * problem.steps * 8 * sum(p.size for p in problem.params)
