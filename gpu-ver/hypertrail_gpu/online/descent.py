"""Hypergradient descent: learning rates that follow ⟨this gradient, the last direction⟩."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper

from ..functional import zeros
from .rule import Rule, by_name, shared

Array = Any
Tree = Any


class DescentRule(Rule):
    """Each step:

        h = Σ g ⊙ D over what shares an α                D = ∂w/∂α of the step before, 0 at the first
        α ← clip(α − β h),   or   α ← clip(α (1 − β h / (‖g‖ ‖D‖)))
        (w, v) ← update with the new α;   D ← ∂w/∂α of it, the update's tangent: no table of rules is needed

    Within a block α itself is carried, not its logarithm. Cost: one gradient a step.
    """

    def start(self, hyper: Hyper, w: Tree) -> State:
        return {"direction": zeros(w)}

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        p, hyper = self.programs, state["hyper"]
        one = self.problem.declared("learning_rate")
        fixed = p._values(hyper)

        def forward(carry: tuple, x: tuple) -> tuple:
            (w, v, running, alphas, D), (indices, t) = carry, x
            batch = self.take(data, indices)
            (loss, statistics), g = jax.value_and_grad(p.inner.loss, has_aux=True)(w, fixed, batch, t)
            alphas = self.move(alphas, g, D)

            def update(rate: Tree) -> tuple[Tree, Tree]:
                return p.inner.update(w, v, g, fixed | {"learning_rate": rate}, t)

            rate = by_name(one, alphas, w)
            (w, v), (D, _) = jax.jvp(update, (rate,), (jax.tree.map(jnp.ones_like, rate),))
            return (w, v, self.problem.update_running(running, statistics), alphas, D), loss

        alphas = {key: one.value(u, jnp) for key, u in hyper["learning_rate"].items()}
        start = (state["w"], state["v"], state["running"], alphas, state["memory"]["direction"])
        (w, v, running, alphas, D), losses = lax.scan(forward, start, inputs)
        rate = {key: unconstrained("learning_rate", x, jnp) for key, x in alphas.items()}
        after = {
            "w": w,
            "v": v,
            "running": running,
            "hyper": hyper | {"learning_rate": rate},
            "memory": {"direction": D},
        }
        return after, {}, self.report(w, losses)

    def move(self, alphas: dict[str, Array], g: Tree, D: Tree) -> dict[str, Array]:
        one, beta = self.problem.declared("learning_rate"), self.method.beta
        h = shared(one, {p: g[p] * D[p] for p in g})
        if self.method.rule == "additive":
            moved = {key: x - beta * h[key] for key, x in alphas.items()}
        else:
            g2, D2 = (shared(one, {p: x**2 for p, x in a.items()}) for a in (g, D))
            moved = {}
            for key, x in alphas.items():
                sizes = jnp.sqrt(g2[key]) * jnp.sqrt(D2[key])
                moved[key] = x * (1 - beta * h[key] / jnp.where(sizes > 0, sizes, 1.0))
        return {key: jnp.clip(x, *one.bounds) for key, x in moved.items()}
