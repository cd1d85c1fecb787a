"""Implicit differentiation at w_T: what the hyperparameters do to a minimum, without the way to it. float64.

    ∇_w L(w*, λ) = 0   ⇒   df/dλ = ∂f/∂λ − (∂²L/∂λ∂w)ᵀ p,   (H + damping) p = ∇f(w*)

L is ONE function here: the loss on the whole training split as one batch, dropout off, batch norm with the statistics of that
split, penalties included. Sources: Bengio 2000; Lorraine, Vicol, Duvenaud 2020, theorem 1 and algorithm 3
(Neumann); conjugate gradients: Hestenes, Stiefel 1952. POOR where w_T is not a minimum of L: see `gradient_norm` in the
diagnostics, ‖∇L(w_T)‖, which should be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hypertrail.errors import NotSolved
from hypertrail.hyperparameters import Hyper
from hypertrail.methods import Implicit
from hypertrail.problem import Problem
from hypertrail.records import Params, Training

from .losses import elementary_gradient, second_order
from .reverse import Adjoint, add, start
from .training import norm

Product = Callable[[np.ndarray], np.ndarray]


def implicit(problem: Problem, hyper: Hyper, training: Training, method: Implicit) -> tuple[Adjoint, dict[str, Any]]:
    """dλ by the formula above, and its diagnostics: iterations, residual (relative), gradient_norm = ‖∇L(w_T)‖.

    dw and dv of the result are 0: a minimum does not remember where it was begun. Cost: one gradient per validation batch, and
    over the whole split one product per iteration (dense: P), one for the residual and one for the mixed term.
    Raises NotSolved (a NumericalFailure) for a solve that does not reach the tolerance; P > most with 'dense' is
    refused before (`hypertrail.refusals`).
    """
    method = method.at("float64")
    values = problem.values(hyper)
    w = {p: np.asarray(one, dtype=np.float64) for p, one in training.final.items()}
    x, y = problem.splits.train.x.astype(np.float64), problem.splits.train.y
    begun = start(problem, values, w)
    _, g, _ = elementary_gradient(problem, w, values, x, y, None)

    def product(flat: np.ndarray) -> np.ndarray:
        Hu, _ = second_order(problem, w, values, x, y, None, unflat(flat, w))
        return flattened(Hu) + method.damping * flat

    b = flattened({p: begun.dw[p] for p in w})
    solution, iterations, residual = SOLVERS[method.solver](product, b, method)
    _, mixed = second_order(problem, w, values, x, y, None, unflat(-solution, w))
    add(begun.dvalues, mixed)
    zero = {p: np.zeros_like(one) for p, one in w.items()}
    result = Adjoint(zero, problem.initial_velocity(), begun.dvalues, begun.hyper_loss, np.empty(0), w)
    return result, {"iterations": iterations, "residual": residual, "gradient_norm": norm(g)}


def conjugate_gradients(product: Product, b: np.ndarray, method: Implicit) -> tuple[np.ndarray, int, float]:
    """p with H p = b, H positive definite; (p, iterations, ‖b − H p‖ / ‖b‖, computed anew).

        a = rᵀr / dᵀHd;  p += a d;  r −= a Hd;  β = r'ᵀr' / rᵀr;  d = r' + β d

    (P,) float64. NotSolved for dᵀHd ≤ 0 and where `iterations` are not enough.
    """
    p, r = np.zeros_like(b), b.copy()
    d, rr, size = r.copy(), float(r @ r), float(np.sqrt(b @ b))
    for k in range(method.iterations):
        if np.sqrt(rr) <= method.tolerance * size:
            return p, k, verified(product, p, b, method, k)
        Hd = product(d)
        curvature = float(d @ Hd)
        if not curvature > 0.0:
            raise NotSolved(
                f"conjugate gradients met a direction of curvature {curvature / float(d @ d):.3g}, at iteration {k}, relative "
                f"residual {np.sqrt(rr) / size:.1e}, tolerance {method.tolerance:g}: w_T is not a minimum; train longer or "
                f"give damping (now {method.damping:g})",
                k,
            )
        a = rr / curvature
        p, r = p + a * d, r - a * Hd
        rr, before = float(r @ r), rr
        d = r + rr / before * d
    if np.sqrt(rr) <= method.tolerance * size:
        return p, method.iterations, verified(product, p, b, method, method.iterations)
    raise not_enough("conjugate gradients", np.sqrt(rr) / size, method, "give more iterations or damping")


def neumann(product: Product, b: np.ndarray, method: Implicit) -> tuple[np.ndarray, int, float]:
    """p = η Σ_{j ≤ K} (I − ηH)^j b, until ‖b − H p‖ ≤ tolerance ‖b‖; (p, K + 1, relative residual). η = method.step.

        r_0 = b;   p += η r;   r −= η H r          r stays b − H p

    Converges where 0 < η H < 2. NotSolved where the residual has grown a thousandfold, and where `iterations` are not enough.
    """
    p, r, size = np.zeros_like(b), b.copy(), float(np.sqrt(b @ b))
    relative = 1.0 if size else 0.0
    for k in range(method.iterations + 1):
        if relative <= method.tolerance:
            return p, k, verified(product, p, b, method, k)
        if not relative < 1e3:
            raise NotSolved(
                f"the Neumann series diverges: relative residual {relative:.1e} after {k} terms, tolerance "
                f"{method.tolerance:g}; its step {method.step:g} must be below 2 / the largest curvature, and no curvature "
                "negative: make it smaller, or give damping",
                k,
            )
        if k < method.iterations:
            p, r = p + method.step * r, r - method.step * product(r)
            relative = float(np.sqrt(r @ r)) / size
    raise not_enough("the Neumann series", relative, method, "give more iterations, a larger step, or use 'cg'")


def dense(product: Product, b: np.ndarray, method: Implicit) -> tuple[np.ndarray, int, float]:
    """p = H⁻¹ b by Cholesky, H from P Hessian-vector products; (p, P, relative residual). For P ≤ method.most.

    NotSolved where H is not positive definite or so near to singular that the residual is too large.
    """
    size = len(b)
    H = np.stack([product(column) for column in np.eye(size)])
    try:
        L = np.linalg.cholesky((H + H.T) / 2)
    except np.linalg.LinAlgError:
        low = float(np.linalg.eigvalsh((H + H.T) / 2)[0])
        raise NotSolved(
            f"the Hessian is not positive definite, its smallest eigenvalue is {low:.3g}: no residual reaches the tolerance "
            f"{method.tolerance:g}; w_T is not a minimum: train longer or give damping (now {method.damping:g})",
            size,
        ) from None
    p = np.linalg.solve(L.T, np.linalg.solve(L, b))
    return p, size, verified(product, p, b, method, size)


SOLVERS = {"cg": conjugate_gradients, "neumann": neumann, "dense": dense}


def verified(product: Product, p: np.ndarray, b: np.ndarray, method: Implicit, iterations: int) -> float:
    """‖b − H p‖ / ‖b‖, computed from p. NotSolved above ten times the tolerance: rounding has eaten what the solver saw."""
    size = float(np.sqrt(b @ b))
    gap = b - product(p)
    residual = float(np.sqrt(gap @ gap)) / size if size else 0.0
    if not residual <= 10 * method.tolerance:
        raise NotSolved(
            f"implicit-{method.solver}: the solution's relative residual is {residual:.1e}, tolerance {method.tolerance:g}; "
            "the Hessian is nearly singular: give damping, or a larger tolerance",
            iterations,
        )
    return residual


def not_enough(who: str, residual: float, method: Implicit, way_out: str) -> NotSolved:
    return NotSolved(
        f"{who} did not converge: relative residual {residual:.1e} after {method.iterations} iterations, tolerance "
        f"{method.tolerance:g}; {way_out}",
        method.iterations,
    )


def flattened(a: Params) -> np.ndarray:
    """(P,): all tensors one after the other."""
    return np.concatenate([one.ravel() for one in a.values()])


def unflat(flat: np.ndarray, like: Params) -> Params:
    """Back into tensors of the shapes of `like`, in its order."""
    ends = np.cumsum([one.size for one in like.values()])
    parts = np.split(flat, ends[:-1])
    return {p: part.reshape(one.shape) for (p, one), part in zip(like.items(), parts, strict=True)}
