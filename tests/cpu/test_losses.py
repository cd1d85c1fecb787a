"""Gradient, full Hessian-vector product and mixed derivatives of the elementary loss; gradient of the hyper loss."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail import L2, LearningRate
from hypertrail_cpu.losses import elementary_gradient, hyper_gradient, hyper_loss, second_order
from hypertrail_cpu.training import batch, seen

EPS = 1e-6  # central differences; a larger one carries some rectifier of the relu nets across its kink
STEP = 2  # some batch and some masks
KINDS = ("l2", "l1", "transform")


@pytest.fixture(params=["tanh", "relu", "densenet"])
def scene(request, make, scatter):
    """A problem with everything declared, at a point that is not special in any of its coordinates."""
    problem = make(request.param, "fine")
    rng = np.random.default_rng(0)
    w = scatter(problem.initial_weights(), rng, 0.05)
    values = problem.values(scatter(problem.initial_hyper(), rng, 0.3))
    return problem, w, values, batch(problem, STEP), scatter({n: 0.0 * one for n, one in w.items()}, rng, 1.0)


def inner(a, b) -> float:
    return float(sum(np.sum(a[name] * b[name]) for name in a))


def moved(a, direction, size):
    return {name: one + size * direction[name] if name in direction else one for name, one in a.items()}


def difference(f, a, direction) -> float:
    return (f(moved(a, direction, EPS)) - f(moved(a, direction, -EPS))) / (2 * EPS)


def test_gradient(scene):
    problem, w, values, (x, y), u = scene
    _, g, _ = elementary_gradient(problem, w, values, x, y, STEP)
    expected = difference(lambda w: elementary_gradient(problem, w, values, x, y, STEP)[0], w, u)
    assert inner(g, u) == pytest.approx(expected, rel=1e-6)


def test_loss_is_the_data_loss_plus_the_penalties(scene):
    problem, w, values, (x, y), _ = scene
    loss, _, _ = elementary_gradient(problem, w, values, x, y, STEP)
    bare, _, _ = elementary_gradient(problem, w, {"transform": values["transform"]}, x, y, STEP)
    penalties = sum(np.sum(l2 * w[name] ** 2) for name, l2 in values["l2"].items())
    penalties += sum(np.sum(l1 * np.abs(w[name])) for name, l1 in values["l1"].items())
    assert loss - bare == pytest.approx(penalties, rel=1e-10)
    assert penalties > 0.01


def test_l1_has_slope_zero_at_zero(make):
    problem = make("tanh", "penalties")
    values = problem.values(problem.initial_hyper())
    w = {name: np.zeros_like(one) for name, one in problem.initial_weights().items()}
    _, g, _ = elementary_gradient(problem, w, values, *batch(problem, 0), 0)
    np.testing.assert_array_equal(
        g["dense1/W"], 0.0
    )  # with all weights 0 nothing reaches the first layer but the penalty


def test_full_hessian_vector_product(scene):
    """In every tensor: finite differences of the gradient along u."""
    problem, w, values, (x, y), u = scene
    Hu, _ = second_order(problem, w, values, x, y, STEP, u)
    up, down = (elementary_gradient(problem, moved(w, u, s * EPS), values, x, y, STEP)[1] for s in (1, -1))
    for name in w:
        expected = (up[name] - down[name]) / (2 * EPS)
        np.testing.assert_allclose(Hu[name], expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max() + 1e-9)


def test_block_diagonal_product_is_another_one(scene):
    problem, w, values, (x, y), u = scene
    Hu, _ = second_order(problem, w, values, x, y, STEP, u)
    zero = {name: np.zeros_like(one) for name, one in u.items()}
    block = {name: second_order(problem, w, values, x, y, STEP, zero | {name: u[name]})[0][name] for name in w}
    gap = {name: Hu[name] - block[name] for name in w}
    assert inner(gap, gap) > 0.01 * inner(Hu, Hu)


@pytest.mark.parametrize("network", ["tanh", "densenet"])
def test_mixed_derivatives_of_examples(make, scatter, network):
    """A row for each example of the batch: ⟨mixed, direction⟩ against the change of ⟨g, u⟩ when the rows move."""
    problem = make(network, "examples")
    rng = np.random.default_rng(0)
    w = scatter(problem.initial_weights(), rng, 0.05)
    u = scatter({n: 0.0 * one for n, one in w.items()}, rng, 1.0)
    values = seen(problem, problem.values(scatter(problem.initial_hyper(), rng, 0.3)), STEP)
    x, y = batch(problem, STEP)
    _, mixed = second_order(problem, w, values, x, y, STEP, u)
    for kind, key, shape in (("example_weight", "train", (12,)), ("training_input", "x", (12, 8, 8, 1))):
        assert {name: one.shape for name, one in mixed[kind].items()} == {key: shape}
        direction = {key: rng.standard_normal(shape)}

        def pairing(changed, kind=kind):
            return inner(elementary_gradient(problem, w, values | {kind: changed}, x, y, STEP)[1], u)

        assert inner(mixed[kind], direction) == pytest.approx(difference(pairing, values[kind], direction), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_derivatives(scene, kind):
    """⟨mixed, direction⟩ against the change of ⟨g, u⟩ when the values of that kind move."""
    problem, w, values, (x, y), u = scene
    _, mixed = second_order(problem, w, values, x, y, STEP, u)
    assert {name: one.shape for name, one in mixed[kind].items()} == {name: w[name].shape for name in values[kind]}
    rng = np.random.default_rng(1)
    direction = {name: rng.standard_normal(np.shape(one)) for name, one in values[kind].items()}

    def pairing(changed):
        return inner(elementary_gradient(problem, w, values | {kind: changed}, x, y, STEP)[1], u)

    assert inner(mixed[kind], direction) == pytest.approx(difference(pairing, values[kind], direction), rel=1e-6)


def test_mixed_holds_declared_kinds_only(make):
    problem = make("tanh", l2=0.01, hyperparameters=make("tanh", "layered").hyperparameters)
    w, values = problem.initial_weights(), problem.values(problem.initial_hyper())
    assert "l2" in values  # a fixed penalty is in the loss, yet nobody asks for its derivative
    _, mixed = second_order(problem, w, values, *batch(problem, 0), 0, w)
    assert set(mixed) == {"transform"}


def test_fixed_penalty_counts(make):
    declared = make("tanh", hyperparameters=(L2("network", 0.01),))
    fixed = make("tanh", hyperparameters=(LearningRate(),), l2=0.01)
    w = declared.initial_weights()
    x, y = batch(declared, 0)
    a = second_order(declared, w, declared.values(declared.initial_hyper()), x, y, 0, w)[0]
    b = second_order(fixed, w, fixed.values(fixed.initial_hyper()), x, y, 0, w)[0]
    for name in w:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12)


def test_hyper_gradient_and_direct_term(scene):
    problem, w, values, _, u = scene
    f, dw, direct = hyper_gradient(problem, w, values)

    def at(w, t):
        return hyper_loss(problem, problem.effective(np, w, {"transform": t}))

    t = values["transform"]
    assert f == pytest.approx(at(w, t), rel=1e-13)
    assert inner(dw, u) == pytest.approx(difference(lambda w: at(w, t), w, u), rel=1e-6)
    rng = np.random.default_rng(2)
    direction = {name: rng.standard_normal(np.shape(one)) for name, one in t.items()}
    expected = difference(lambda t: at(w, t), t, direction)
    assert inner(direct["transform"], direction) == pytest.approx(expected, rel=1e-6)


def test_batch_statistics_are_those_of_the_batch(make):
    problem = make("densenet", steps=1)
    x, y = batch(problem, 0)
    w = problem.initial_weights()
    _, _, statistics = elementary_gradient(problem, w, problem.values(problem.initial_hyper()), x, y, 0)
    assert set(statistics) == set(problem.initial_running())
    assert all(type(one) is np.ndarray for one in statistics.values())  # values, not autograd's boxes
    from hypertrail_cpu.ops import conv2d

    maps = conv2d(x, w["first.conv/W"], 1, "same").reshape(-1, 4)
    np.testing.assert_allclose(statistics["block1.norm0/mean"], maps.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(statistics["block1.norm0/variance"], maps.var(axis=0), rtol=1e-12)
