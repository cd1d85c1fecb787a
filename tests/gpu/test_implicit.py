"""Implicit differentiation on a strictly convex problem, against finite differences of the minimised problem itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hypertrail_gpu as gpu
from hypertrail import L2, Implicit, LearningRate, UsageError
from hypertrail.errors import NotSolved
from hypertrail_gpu.compiled import compiled, precision
from hypertrail_gpu.implicit import full_loss
from hypertrail_nets import softmax_regression


@pytest.fixture(scope="module")
def convex(make):
    """Softmax regression whose every parameter has a penalty of its own: L is strictly convex in the weights.
    3 × 3 pixels of each digit, 100 parameters: the dense Hessians and their pseudo-inverses are small."""
    problem = make("mlp", "penalties")
    few = {
        name: dataclasses.replace(getattr(problem.splits, name), x=getattr(problem.splits, name).x[:, 1:7:2, 1:7:2])
        for name in ("train", "valid", "select", "test")
    }
    return problem.with_(
        network=softmax_regression((3, 3, 1)),
        splits=dataclasses.replace(problem.splits, **few),
        hyperparameters=(L2("unit", 2e-2),),
    )


STEPS: dict[Any, Any] = {}


def newton_step(programs: Any, restore: Any) -> Any:
    """(x, values) → the next x and ‖∇L(x)‖; compiled once for a problem."""

    def newton(x: Any, values: Any) -> Any:
        def loss(x: Any) -> Any:
            return full_loss(programs, restore(x), values, programs.train_data)

        g, H = jax.grad(loss)(x), jax.hessian(loss)(x)
        # Adding one number to all biases changes nothing: the pseudo-inverse leaves that direction alone.
        return x - jnp.linalg.pinv(H, rcond=1e-12, hermitian=True) @ g, jnp.linalg.norm(g)

    return STEPS.setdefault(programs, jax.jit(newton))


def minimise(problem: Any, hyper: Any) -> Any:
    """w* by Newton's method to ‖∇L‖ < 1e-12, as a Training whose final state it is. The biases are held by a tiny damping."""
    with precision(problem):
        programs = compiled(problem)
        values = programs.values(hyper)
        flat, restore = ravel_pytree(jax.tree.map(jnp.zeros_like, problem.initial_weights()))
        newton = newton_step(programs, restore)
        for _ in range(60):
            flat, size = newton(flat, values)
            if size < 1e-12:
                break
        assert size < 1e-12
        w = jax.tree.map(np.asarray, restore(flat))
    return dataclasses.replace(gpu.train(problem, hyper), final=w, weights=w)


def test_equals_finite_differences_of_the_minimum(convex):
    hyper = convex.initial_hyper()
    there = minimise(convex, hyper)
    rng = np.random.default_rng(0)
    signs = {name: rng.choice([-1.0, 1.0], u.shape) for name, u in hyper["l2"].items()}

    def f(e: float) -> float:
        moved = {"l2": {name: u + e * signs[name] for name, u in hyper["l2"].items()}}
        return gpu.hyper_loss(convex, minimise(convex, moved))

    h = 1e-3
    numerical = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    for method in (Implicit("cg"), Implicit("neumann", iterations=40000, step=0.3, tolerance=1e-9)):
        result = gpu.hypergradient(convex, hyper, there, method)
        assert result.diagnostics["gradient_norm"] < 1e-11
        analytical = sum(float(np.sum(s * result.gradient["l2"][name])) for name, s in signs.items())
        assert analytical == pytest.approx(numerical, rel=1e-6), method


def test_solvers_agree(convex, relative):
    """The dense solve needs the damping, because the biases leave one direction flat; the others must agree with it then."""
    hyper = convex.initial_hyper()
    training = minimise(convex, hyper)
    a, b, c = (
        gpu.hypergradient(
            convex, hyper, training, Implicit(solver, iterations=40000, step=0.3, tolerance=1e-10, damping=1e-2)
        )
        for solver in ("cg", "neumann", "dense")
    )
    assert relative(a.gradient, c.gradient) < 1e-7
    assert relative(b.gradient, c.gradient) < 1e-7


def test_a_solve_that_did_not_converge_raises(convex):
    hyper = convex.initial_hyper()
    training = gpu.train(convex, hyper)
    with pytest.raises(
        NotSolved, match=r"^implicit-cg did not converge: .* after 3 iterations, tolerance 1e-08; "
    ) as caught:
        gpu.hypergradient(convex, hyper, training, Implicit("cg", iterations=3))
    assert (caught.value.quantity, caught.value.step, caught.value.exit_code) == ("implicit solve", 3, 3)
    assert "not finite" not in str(caught.value)
    with pytest.raises(NotSolved, match="a smaller step"):
        gpu.hypergradient(convex, hyper, training, Implicit("neumann", iterations=200, step=50.0))


@pytest.mark.parametrize("solver", ["cg", "dense"])
def test_negative_curvature_raises(make, solver):
    """At the random start of a network with hidden units the Hessian has negative eigenvalues."""
    problem = make("mlp", "penalties", hyperparameters=(L2("layer", 1e-9),), steps=1)
    hyper = problem.initial_hyper()
    with pytest.raises(NotSolved, match=r"not positive definite .* minimum: train longer"):
        gpu.hypergradient(problem, hyper, gpu.train(problem, hyper), Implicit(solver))


def test_learning_rates_and_large_dense_solves_are_refused(make, convex):
    problem = make("mlp", "penalties", hyperparameters=(LearningRate("network", 0.1),))
    training = gpu.train(problem, problem.initial_hyper())
    with pytest.raises(UsageError, match="no gradient for learning_rate"):
        gpu.hypergradient(problem, problem.initial_hyper(), training, Implicit())
    with pytest.raises(UsageError, match="of 100 parameters, allowed are 50; use implicit-cg"):
        gpu.hypergradient(
            convex, convex.initial_hyper(), gpu.train(convex, convex.initial_hyper()), Implicit("dense", most=50)
        )
