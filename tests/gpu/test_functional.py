"""The machinery on plain functions: any pytree, any update, any hyperparameters; equal to jax.grad of the unrolled loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail import UsageError
from hypertrail_gpu import functional

STEPS = 9


@pytest.fixture
def case():
    """Nested weights (dict, tuple, list), hyperparameters in the loss AND in the update, a Nesterov-like update."""

    def loss(w, hyper, batch, t):
        x, y = batch
        h = jnp.tanh(x @ w["hidden"][0] + w["hidden"][1]) * jnp.exp(hyper["gain"])
        penalty = sum(jnp.sum(jnp.exp(hyper["l2"]) * leaf**2) for leaf in jax.tree.leaves(w))
        return jnp.mean((h @ w["out"][0] - y) ** 2) * (1 + 0.1 * t) + penalty, {"h": h.mean()}

    def update(w, v, g, hyper, t):
        mu, eta = jax.nn.sigmoid(hyper["logit"]), jnp.exp(hyper["rate"])
        v = jax.tree.map(lambda v, g: mu * v + g, v, g)
        return jax.tree.map(lambda w, v, g: w - eta * (g + mu * v), w, v, g), v

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w0 = {"hidden": (jnp.array(rng.normal(size=(5, 4))), jnp.zeros(4)), "out": [jnp.array(rng.normal(size=(4, 2)))]}
        hyper = {"gain": jnp.array(0.1), "l2": jnp.array(-3.0), "logit": jnp.array(0.5), "rate": jnp.array(-2.0)}
        batches = jnp.array(rng.normal(size=(STEPS, 7, 5))), jnp.array(rng.normal(size=(STEPS, 7, 2)))
        v0 = jax.tree.map(jnp.zeros_like, w0)
    return functional.Inner(loss, update, has_aux=True), w0, v0, hyper, batches


def hyper_loss(w, hyper):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(w)) + hyper["gain"] ** 2


def test_equals_autodiff_through_the_unrolled_loop(case):
    inner, w0, v0, hyper, batches = case

    def unrolled(hyper, w, v):
        for t in range(STEPS):
            batch = jax.tree.map(lambda a, t=t: a[t], batches)
            g = jax.grad(lambda w, batch=batch, t=t: inner.loss(w, hyper, batch, t)[0])(w)
            w, v = inner.update(w, v, g, hyper, t)
        return hyper_loss(w, hyper)

    with jax.enable_x64(True):
        run = functional.train(inner, w0, v0, hyper, batches)
        result = functional.hypergradient(inner, hyper_loss, run, hyper, batches)
        value, expected = jax.value_and_grad(unrolled, (0, 1, 2))(hyper, w0, v0)
    assert float(result.value) == pytest.approx(float(value), rel=1e-12)
    assert run.losses.shape == (STEPS,)
    for ours, theirs in zip(jax.tree.leaves(result[1:]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_loss_without_aux(case):
    inner, w0, v0, hyper, batches = case
    plain = functional.Inner(lambda *a: inner.loss(*a)[0], inner.update)
    with jax.enable_x64(True):
        a = functional.hypergradient(inner, hyper_loss, functional.train(inner, w0, v0, hyper, batches), hyper, batches)
        b = functional.hypergradient(plain, hyper_loss, functional.train(plain, w0, v0, hyper, batches), hyper, batches)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.optimised
def test_states_computed_again_are_the_same(case):
    """A state every third step: a third of the states is kept, and the hypergradient does not notice."""
    inner, w0, v0, hyper, batches = case
    with jax.enable_x64(True):
        every = functional.train(inner, w0, v0, hyper, batches)
        third = functional.train(inner, w0, v0, hyper, batches, every=3)
        assert jax.tree.map(jnp.shape, third.w_path) == jax.tree.map(lambda a: (STEPS // 3, *a.shape), w0)
        for ours, all_of_them in zip(jax.tree.leaves(third[3:]), jax.tree.leaves(every[3:]), strict=True):
            np.testing.assert_allclose(ours, all_of_them[::3], rtol=1e-14)
        a, b = (functional.hypergradient(inner, hyper_loss, run, hyper, batches) for run in (every, third))
        np.testing.assert_allclose(every.losses, third.losses, rtol=1e-14)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)
    with pytest.raises(UsageError, match="every 2 steps, expected a divisor of the 9 steps"):
        functional.train(inner, w0, v0, hyper, batches, every=2)


def test_slopes_tell_a_right_hypergradient_from_a_wrong_one(case):
    inner, w0, v0, hyper, batches = case
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), (w0, v0, hyper, batches))  # what most models come in
    right = functional.slopes(inner, hyper_loss, *single)
    assert right.hypergradient == pytest.approx(right.differences, rel=1e-8)

    signs = np.random.default_rng(0).choice(
        [-1.0, 1.0], size=4
    )  # gain, l2, logit, rate: one number each, in this order
    with jax.enable_x64(True):
        w0, v0, hyper, batches = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), single)
        run = functional.train(inner, w0, v0, hyper, batches)
        h = functional.hypergradient(inner, hyper_loss, run, hyper, batches).hyper
    assert right.hypergradient == pytest.approx(float(np.stack(jax.tree.leaves(h)) @ signs), rel=1e-12)

    def deaf(w, hyper):  # to a part of λ that the differences do see
        return hyper_loss(w, jax.lax.stop_gradient(hyper))

    wrong = functional.slopes(inner, deaf, *single)
    assert wrong.differences == pytest.approx(right.differences, rel=1e-8)
    assert abs(wrong.hypergradient - right.hypergradient) == pytest.approx(2 * 0.1, rel=1e-6)  # d gain² / d gain


def test_what_is_not_floating_point_keeps_its_dtype():
    rows, key = np.arange(3, dtype=np.int32), jax.random.key(1)
    assert functional.doubled(rows) is rows
    assert functional.doubled(key) is key
    with jax.enable_x64(True):
        assert functional.doubled(np.float32(1.5)).dtype == jnp.float64
