"""OSGM with hypergradient feedback (HDM): a diagonal step size, AdaGrad on it, and steps that may be refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper

from ..compiled import norm
from .rule import Rule, by_name, shared

Array = Any
Tree = Any


class OSGMRule(Rule):
    """Each step, both gradients on the same batch and masks:

        x⁺ = x − P g,   h = −g⁺ ⊙ g / ‖g‖²,   G ← G + h²,   P ← clip(P − η h / (√G + ε)),   x ← x⁺ only if f(x⁺) < f(x)

    Cost: two gradients a step.
    """

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        return {"sum": {key: jnp.zeros_like(u) for key, u in hyper["learning_rate"].items()}}

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        programs, hyper = self.programs, state["hyper"]
        one, η, ε = self.problem.declared("learning_rate"), self.method.learning_rate, self.method.epsilon
        fixed = programs._values(hyper)
        gradient = jax.value_and_grad(programs.inner.loss, has_aux=True)

        def forward(carry: tuple, x: tuple) -> tuple:
            (w, v, running, P, G), (indices, t) = carry, x
            seen, batch = programs.batch(fixed, data, indices)
            (loss, statistics), g = gradient(w, seen, batch, t)
            rate = fixed | {"learning_rate": by_name(one, P, w)}
            w_new, v_new = programs.inner.update(w, v, g, rate, t)
            (loss_new, _), g_new = gradient(w_new, seen, batch, t)

            size = sum(jnp.sum(d**2) for d in jax.tree.leaves(g))
            h = shared(one, {p: -g_new[p] * g[p] / jnp.where(size > 0, size, 1.0) for p in g})
            G = {key: G[key] + d**2 for key, d in h.items()}
            P = {key: jnp.clip(x - η * h[key] / (jnp.sqrt(G[key]) + ε), *one.bounds) for key, x in P.items()}
            falls = loss_new < loss
            w, v = jax.tree.map(lambda new, old: jnp.where(falls, new, old), (w_new, v_new), (w, v))
            return (w, v, self.problem.update_running(running, statistics), P, G), (loss, norm(h))

        P = {key: one.value(u, jnp) for key, u in hyper["learning_rate"].items()}
        start = (state["w"], state["v"], state["running"], P, state["memory"]["sum"])
        (w, v, running, P, G), (losses, sizes) = lax.scan(forward, start, inputs)
        rate = {key: unconstrained("learning_rate", x, jnp) for key, x in P.items()}
        after = {"w": w, "v": v, "running": running, "hyper": hyper | {"learning_rate": rate}, "memory": {"sum": G}}
        return after, {}, self.report(w, losses, sizes=sizes)
