"""Implicit differentiation: the hypergradient of a minimum, whatever the way to it was.

    dλ = ∂_λ f − (∂²L/∂λ∂w)ᵀ p,   (H + damping) p = ∇f(w_T)

L is the task's `whole_loss`, over all training data; right only where ∇L(w_T) = 0. Bengio, "Gradient-based optimization of
hyperparameters", Neural Computation 2000; Lorraine, Vicol, Duvenaud, AISTATS 2020, theorem 1 and algorithm 3 (Neumann).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from hypertrail.errors import UsageError
from hypertrail.methods import Implicit
from hypertrail.task import Task

from ..implicit import SOLVERS, judge
from ..inner import State, program
from ..trail import Pass
from ..trees import filled, floats, subtract

Array = Any
Tree = Any


def implicit_gradient(run: Pass, adjoint: tuple, method: Implicit) -> tuple[tuple, int]:
    """The solve and the mixed term at w_T. Raises NotSolved for a solve that did not converge or met negative curvature.

    diagnostics: iterations, residual (relative), gradient_norm = ‖∇L(w_T)‖, which should be near 0.
    """
    trail = run.trail
    refuse_no_whole_loss(trail.task, method)
    (ds, dhyper) = adjoint
    method = method.at(np.dtype(jax.tree.leaves(trail.start.w)[0].dtype).name)
    mixed, iterations, residual, curvature, size = program(trail.task, solved, method)(trail.end, trail.values, ds.w)
    judge(method, int(iterations), float(residual), float(curvature))
    run.diagnostics.update(iterations=int(iterations), residual=float(residual), gradient_norm=float(size))
    return (None, subtract(dhyper, mixed)), trail.steps


def refuse_no_whole_loss(task: Task, method: Implicit) -> None:
    if task.whole_loss is None:
        raise UsageError(f"{method.name} needs the loss over all training data; give Task(whole_loss=…)")


def solved(task: Task, method: Implicit, s: State, hyper: Tree, dw: Tree) -> tuple:
    """((∂²L/∂λ∂w)ᵀ p, iterations, relative residual, curvature, ‖∇L(w_T)‖)."""
    b, restore = ravel_pytree(dw)

    def gradients(w: Tree) -> tuple[Tree, Tree]:
        def loss(w: Tree, h: Tree) -> Array:
            h = filled(hyper, h)
            return task.whole_loss(w, h) if s.carried is None else task.whole_loss(w, s.carried, h)

        return jax.grad(loss, (0, 1))(w, floats(hyper))

    (g, _), products = jax.linearize(gradients, s.w)

    def H(u: Array) -> Array:
        return ravel_pytree(products(restore(u))[0])[0] + method.damping * u

    p, iterations, curvature = SOLVERS[method.solver](H, b, method)
    residual = jnp.linalg.norm(H(p) - b) / jnp.linalg.norm(b)
    return products(restore(p))[1], iterations, residual, curvature, jnp.linalg.norm(ravel_pytree(g)[0])
