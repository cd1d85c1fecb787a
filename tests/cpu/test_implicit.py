"""Implicit differentiation on a strictly convex problem, against finite differences of the exactly minimised problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L2,
    Dynamics,
    Implicit,
    LearningRate,
    Momentum,
    NumericalFailure,
    UsageError,
    WeightTransform,
)
from hypertrail.errors import NotSolved
from hypertrail_cpu.implicit import conjugate_gradients, flattened, unflat
from hypertrail_cpu.losses import elementary_gradient, hyper_loss, second_order
from hypertrail_nets import softmax_regression

SOLVED = 1e-11  # how far Newton's method goes down with ‖∇L‖


@pytest.fixture(scope="module")
def convex(make):
    """Softmax regression with a penalty on every weight and few pixels: 3 × 3 of each digit, 100 parameters."""

    def convex(*declared):
        problem = make("tanh")
        splits = problem.splits
        small = {
            name: replace(getattr(splits, name), x=getattr(splits, name).x[:, 1:7:2, 1:7:2])
            for name in ("train", "valid", "select", "test")
        }
        return problem.with_(
            network=softmax_regression((3, 3, 1)), splits=replace(splits, **small), hyperparameters=declared
        )

    return convex


def inverse_hessian(problem, values, w):
    """Of the loss of the whole training split. The pseudo-inverse: no penalty holds the biases, and the loss does not see a
    constant added to all of them."""
    x, y = problem.splits.train.x.astype(np.float64), problem.splits.train.y
    columns = (unflat(e, w) for e in np.eye(len(flattened(w))))
    H = np.stack([flattened(second_order(problem, w, values, x, y, None, u)[0]) for u in columns])
    return np.linalg.pinv(H, rcond=1e-13)


def newton(problem, values, w, inverse=None):
    """argmin L over the whole training split, by Newton's method; with the inverse Hessian of a point nearby, if one is given."""
    x, y = problem.splits.train.x.astype(np.float64), problem.splits.train.y
    for _ in range(50):
        _, g, _ = elementary_gradient(problem, w, values, x, y, None)
        flat = flattened(g)
        if np.linalg.norm(flat) < SOLVED:
            return w
        step = unflat((inverse_hessian(problem, values, w) if inverse is None else inverse) @ flat, w)
        w = {p: w[p] - step[p] for p in w}
    raise AssertionError("Newton's method did not arrive")


def solved(problem, hyper, w=None):
    """A record of a run that ended in the minimum; nothing was trained."""
    values = problem.values(hyper)
    training = cpu.train(problem, hyper)
    w = newton(problem, values, training.final if w is None else w)
    return replace(training, final=w, weights=problem.effective(np, w, values))


def scattered(problem, size=0.2):
    rng = np.random.default_rng(1)
    return {
        kind: {key: u + size * rng.standard_normal(np.shape(u)) for key, u in arrays.items()}
        for kind, arrays in problem.initial_hyper().items()
    }


SOLVERS = (
    Implicit("cg", tolerance=1e-10),
    Implicit("neumann", tolerance=1e-9, iterations=20000, step=1.0),
    Implicit(
        "dense", tolerance=1e-9, damping=1e-9
    ),  # a constant added to all biases changes nothing: H is singular there
)


@pytest.mark.parametrize(
    "declared",
    [(L2("unit", 3e-2),), (L2("network", 3e-2), WeightTransform("input", 0.1))],
    ids=["penalty", "penalty and transform"],
)
def test_against_finite_differences_of_the_minimum(convex, declared):
    """All three solvers. The direct term is in it: with the transform f changes with λ at fixed w too."""
    problem = convex(*declared)
    hyper = scattered(problem)
    training = solved(problem, hyper)
    results = [cpu.hypergradient(problem, hyper, training, method) for method in SOLVERS]
    for result in results:
        assert result.diagnostics["gradient_norm"] < SOLVED
        assert result.diagnostics["residual"] <= 1e-8
        assert result.hyper_loss == pytest.approx(cpu.hyper_loss(problem, training), rel=1e-13)
    inverse = inverse_hessian(problem, problem.values(hyper), training.final)
    rng = np.random.default_rng(2)
    for kind, arrays in hyper.items():
        shapes = {key: one.shape for key, one in results[0].gradient[kind].items()}
        assert shapes == {key: np.shape(u) for key, u in arrays.items()}
        direction = {key: rng.standard_normal(np.shape(u)) for key, u in arrays.items()}
        f, eps = [], 1e-3
        for s in (1, -1, 2, -2):
            moved = hyper | {kind: {key: u + s * eps * direction[key] for key, u in arrays.items()}}
            values = problem.values(moved)
            w = newton(problem, values, training.final, inverse)
            f.append(hyper_loss(problem, problem.effective(np, w, values)))
        slope = (8 * (f[0] - f[1]) - (f[2] - f[3])) / (12 * eps)
        assert abs(slope) > 1e-4
        for result in results:
            found = sum(np.sum(result.gradient[kind][key] * one) for key, one in direction.items())
            assert found == pytest.approx(slope, rel=1e-6), (kind, result.method)


def test_record(convex):
    problem = convex(L2("unit", 3e-2))
    training = solved(problem, problem.initial_hyper())
    result = cpu.hypergradient(problem, problem.initial_hyper(), training, Implicit())
    assert result.method == "implicit-cg"
    assert result.diagnostics["zero"] == []
    assert 1 < result.diagnostics["iterations"] <= 200
    assert result.cost.hvps == result.diagnostics["iterations"] + 2  # the residual computed anew, and the mixed term
    assert result.cost.gradients == 2  # validation batches
    for arrays in (result.initial_weights, result.initial_velocity):  # a minimum does not remember where it was begun
        assert {p: one.shape for p, one in arrays.items()} == {p: one.shape for p, one in training.final.items()}
        assert not any(np.any(one) for one in arrays.values())


def test_loss_is_that_of_the_whole_split_without_dropout(make):
    """In the diagnostics ‖∇L(w_T)‖: finite differences of the deterministic loss over all training examples at once."""
    problem = make("tanh", hyperparameters=(L2("network", 1e-2),), l2=0.0)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    result = cpu.hypergradient(problem, hyper, training, Implicit("cg", damping=5.0))
    values, w = problem.values(hyper), training.final
    x, y = problem.splits.train.x.astype(np.float64), problem.splits.train.y

    def loss(w):
        return problem.valid_loss(cpu.ops.OPS, w, x, y) + sum(1e-2 * np.sum(w[p] ** 2) for p in values["l2"])

    _, g, _ = elementary_gradient(problem, w, values, x, y, None)
    eps = 1e-6
    up, down = (loss({p: w[p] + s * eps * g[p] for p in w}) for s in (1, -1))
    assert np.sqrt((up - down) / (2 * eps)) == pytest.approx(result.diagnostics["gradient_norm"], rel=1e-6)


# -- a solve that did not arrive raises


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_too_few_iterations(convex, solver):
    problem = convex(L2("unit", 3e-2))
    hyper = problem.initial_hyper()
    with pytest.raises(
        NumericalFailure, match=r"relative residual .* after 3 iterations, tolerance 1e-08; give"
    ) as caught:
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Implicit(solver, iterations=3))
    assert caught.value.step == 3
    assert caught.value.exit_code == 3


def test_neumann_step_too_large(convex):
    problem = convex(L2("unit", 3e-2))
    hyper = problem.initial_hyper()
    with pytest.raises(NotSolved, match=r"diverges: relative residual .*its step 100 must be below 2 / the largest"):
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Implicit("neumann", step=100.0))


@pytest.mark.parametrize(
    ("solver", "match"), [("cg", "direction of curvature -"), ("dense", "smallest eigenvalue is -")]
)
def test_negative_curvature(convex, solver, match):
    """A maximum of its own making: damping is refused below 0, so the penalty is made negative."""
    problem = convex(L2("unit", 3e-2))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    real = problem.values

    def negative(*arguments):
        values = real(*arguments)
        return values | {"l2": {p: -one - 1.0 for p, one in values["l2"].items()}}

    object.__setattr__(problem, "values", negative)
    with pytest.raises(NotSolved, match=match):
        cpu.hypergradient(problem, hyper, training, Implicit(solver))


def test_curvature_that_appears_late():
    """Conjugate gradients go on as long as the directions they meet curve upwards, and stop at the first that does not."""
    H = np.diag([1.0, 2.0, 3.0, -0.1])
    with pytest.raises(NotSolved, match="at iteration"):
        conjugate_gradients(lambda d: H @ d, np.ones(4), Implicit().at("float64"))
    p, k, residual = conjugate_gradients(lambda d: H @ d, np.array([1.0, 1.0, 1.0, 0.0]), Implicit().at("float64"))
    np.testing.assert_allclose(p, [1, 1 / 2, 1 / 3, 0], rtol=1e-12)
    assert (k, residual < 1e-12) == (3, True)


def test_zero_right_hand_side_needs_no_iteration():
    p, k, residual = conjugate_gradients(lambda d: d, np.zeros(3), Implicit().at("float64"))
    assert (p.tolist(), k, residual) == ([0, 0, 0], 0, 0.0)


def test_what_implicit_cannot_do_is_refused(make):
    problem = make("tanh", hyperparameters=(L2(), LearningRate(), Momentum()))
    hyper = problem.initial_hyper()
    with pytest.raises(UsageError, match="no gradient for learning_rate and momentum"):
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Implicit())
    problem = make("tanh", dynamics=Dynamics("damped", 0.1, 0.5))
    hyper = problem.initial_hyper()
    with pytest.raises(UsageError, match="of 974 parameters, allowed are 973; use implicit-cg"):
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Implicit("dense", most=973))
