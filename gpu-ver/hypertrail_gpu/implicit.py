"""Implicit differentiation: the hypergradient of a minimum, whatever the way to it was.

    dλ = ∂_λ f − (∂²L/∂λ∂w)ᵀ p,   (H + damping) p = ∇f(w_T)

L is taken over the WHOLE training split in one batch, dropout off, batch norm with the statistics of that batch, penalties
included; right only where ∇L(w_T) = 0. Bengio, "Gradient-based optimization of hyperparameters", Neural
Computation 2000; Lorraine, Vicol, Duvenaud, AISTATS 2020, theorem 1 and algorithm 3 (Neumann).
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from hypertrail.errors import NotSolved
from hypertrail.hyperparameters import Hyper
from hypertrail.methods import Implicit
from hypertrail.problem import Problem
from hypertrail.records import Hypergradient, Training, hypergradient_cost

from .compiled import Compiled, compiled, norm, precision
from .functional import add
from .ops import OPS

Tree = Any


def implicit(problem: Problem, hyper: Hyper, training: Training, method: Implicit) -> Hypergradient:
    """Implicit hypergradient at w_T. Cost: one product over the whole training split per iteration (dense: P of them) and two.

    diagnostics: iterations, residual (relative), gradient_norm = ‖∇L(w_T)‖, which should be near 0. dv_0, dw_0: zero, a
    minimum forgets where it came from. Raises NotSolved for a solve that did not converge or met negative curvature.
    """
    started = time.perf_counter()
    with precision(problem):
        programs = compiled(problem)
        hyper = jax.tree.map(lambda u: np.asarray(u, problem.dtype), hyper)
        values = programs.values(hyper)
        w = jax.tree.map(jnp.asarray, training.final)
        f, dw, dvalues = programs.hyper_gradient(w, values, programs.valid_data)
        method = method.at(problem.precision)
        solve = programs.program(f"implicit {method}", lambda: programs.jit(solver(programs, method)))
        p, iterations, residual, curvature, gradient_norm = solve(w, values, dw, programs.train_data)
        judge(method, int(iterations), float(residual), float(curvature))
        mixed = programs.program("implicit mixed term", lambda: programs.jit(products(programs)))(
            w, values, jax.tree.map(jnp.negative, p), programs.train_data
        )[1]
        gradient = programs.pull_back(hyper, add(dvalues, mixed))
        gradient = jax.tree.map(lambda a: np.asarray(a, np.float64), gradient)
        nothing = jax.tree.map(np.zeros_like, training.final)
    return Hypergradient(
        gradient=gradient,
        initial_weights=nothing,
        initial_velocity=problem.initial_velocity(),
        hyper_loss=float(f),
        adjoint_norms=np.empty(0),
        method=method.name,
        cost=hypergradient_cost(problem, training, method, int(iterations) + 2, time.perf_counter() - started),
        diagnostics={
            "N": 0,
            "iterations": int(iterations),
            "residual": float(residual),
            "gradient_norm": float(gradient_norm),
            "zero": [k for k, one in gradient.items() if not any(map(np.any, one.values()))],
        },
    )


def full_loss(programs: Compiled, w: Tree, values: Tree, data: Tree) -> Any:
    """L over the whole training split: dropout off, penalties included."""
    problem, values = programs.problem, programs.complete(values)
    x, y = programs.layout.share(data[:2])
    weights = problem.effective(jnp, w, values)
    return problem.data_loss(OPS, weights, x, y, step=None, values=values) + problem.penalty(jnp, w, values)


def products(programs: Compiled) -> Any:
    """(w, values, u, data) → (H u, (∂²L/∂value∂w)ᵀ u), one forward-over-reverse call."""

    def both(w: Tree, values: Tree, u: Tree, data: Tree) -> tuple[Tree, Tree]:
        def gradients(w: Tree) -> tuple[Tree, Tree]:
            return jax.grad(lambda w, values: full_loss(programs, w, values, data), (0, 1))(w, values)

        return jax.jvp(gradients, (w,), (u,))[1]

    return both


def solver(programs: Compiled, method: Implicit) -> Any:
    """(w, values, b, data) → (p, iterations, relative residual, smallest curvature seen, ‖∇L‖) with (H + damping) p = b."""

    def solve(w: Tree, values: Tree, b: Tree, data: Tree) -> tuple:
        g = jax.grad(lambda w: full_loss(programs, w, values, data))
        flat_b, restore = ravel_pytree(b)
        flat_w, restore_w = ravel_pytree(w)

        def gradient(x: Any) -> Any:
            return ravel_pytree(g(restore_w(x)))[0]

        def H(u: Any) -> Any:
            return jax.jvp(gradient, (flat_w,), (u,))[1] + method.damping * u

        p, iterations, curvature = SOLVERS[method.solver](H, flat_b, method)
        residual = jnp.linalg.norm(H(p) - flat_b) / jnp.linalg.norm(flat_b)
        return restore(p), iterations, residual, curvature, norm(g(w))

    return solve


def conjugate_gradients(H: Any, b: Any, method: Implicit) -> tuple[Any, Any, Any]:
    """Hestenes and Stiefel 1952. Stops at the tolerance, at the iterations, or at a direction of no positive curvature."""

    def going(state: tuple) -> Any:
        _, _, _, rr, k, curvature = state
        return (rr > (method.tolerance * jnp.linalg.norm(b)) ** 2) & (k < method.iterations) & (curvature > 0)

    def iterate(state: tuple) -> tuple:
        x, r, d, rr, k, curvature = state
        Hd = H(d)
        c = jnp.vdot(d, Hd)
        a = jnp.where(c > 0, rr / c, 0.0)
        x, r = x + a * d, r - a * Hd
        new = jnp.vdot(r, r)
        return x, r, r + new / rr * d, new, k + 1, jnp.minimum(curvature, c / jnp.vdot(d, d))

    start = (jnp.zeros_like(b), b, b, jnp.vdot(b, b), 0, jnp.asarray(jnp.inf, b.dtype))
    x, _, _, _, k, curvature = lax.while_loop(going, iterate, start)
    return x, k, curvature


def neumann(H: Any, b: Any, method: Implicit) -> tuple[Any, Any, Any]:
    """p = η Σ_{j ≤ K} (I − ηH)^j b, stopped once a term is below the tolerance (Lorraine et al. 2020, algorithm 3)."""

    def going(state: tuple) -> Any:
        _, term, k = state
        size = jnp.linalg.norm(term)
        return (size > method.tolerance * jnp.linalg.norm(b)) & (k < method.iterations) & jnp.isfinite(size)

    def iterate(state: tuple) -> tuple:
        total, term, k = state
        term = term - method.step * H(term)
        return total + term, term, k + 1

    total, _, k = lax.while_loop(going, iterate, (b, b, 0))
    return method.step * total, k, jnp.asarray(jnp.inf, b.dtype)


def dense(H: Any, b: Any, method: Implicit) -> tuple[Any, Any, Any]:
    """Cholesky of the full Hessian, built column by column. The smallest pivot squared stands for the curvature."""
    matrix = lax.map(H, jnp.eye(b.size, dtype=b.dtype))
    L = jnp.linalg.cholesky((matrix + matrix.T) / 2)
    p = jax.scipy.linalg.cho_solve((L, True), b)
    smallest = jnp.min(jnp.diag(L)) ** 2
    return p, jnp.asarray(b.size), jnp.where(jnp.isfinite(smallest), smallest, -1.0)


# (H, b, method) → (p, iterations, smallest curvature seen), H p = b
SOLVERS: dict[str, Any] = {"cg": conjugate_gradients, "neumann": neumann, "dense": dense}


def judge(method: Implicit, iterations: int, residual: float, curvature: float) -> None:
    """Raise for a solve that must not be used."""
    if curvature <= 0:
        raise NotSolved(
            f"implicit-{method.solver}: the Hessian is not positive definite (after {iterations} iterations), so w_T is not a "
            f"minimum: train longer, penalise more, or give damping (now {method.damping:g})",
            iterations,
        )
    # The residual is measured anew with one more product, so rounding leaves it a little above what the solver saw.
    if not residual <= 10 * max(method.tolerance, 1e-14):
        raise NotSolved(
            f"implicit-{method.solver} did not converge: relative residual {residual:.1e} after {iterations} iterations, "
            f"tolerance {method.tolerance:g}; give more iterations, {SMALLER if method.solver == 'neumann' else ''}or damping",
            iterations,
        )


SMALLER = "a smaller step (below 2 / the largest curvature) "
