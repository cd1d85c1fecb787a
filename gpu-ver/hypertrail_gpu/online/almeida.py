"""Almeida, Langlois, Amaral, Plakhov 1998: a learning rate for each parameter, moved by two gradients in a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper

from ..functional import zeros
from .rule import Rule

Array = Any
Tree = Any


class AlmeidaRule(Rule):
    """Each step:

        s ← γ s + (1−γ) g²
        p ← clip(p · max(½, 1 + k g g_last / s))        unmoved where s = 0
        (w, v) ← update with p                          momentum 0: w ← w − p g

    Cost: one gradient a step.
    """

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        return {"gradient": zeros(w), "square": zeros(w)}

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        programs, hyper, memory = self.programs, state["hyper"], state["memory"]
        one, k, γ = self.problem.declared("learning_rate"), self.method.k, self.method.average
        fixed = programs._values(hyper)

        def moved(p: Array, g: Array, last: Array, s: Array) -> Array:
            agreement = jnp.where(s > 0, g * last / jnp.where(s > 0, s, 1.0), 0.0)
            return jnp.clip(p * jnp.maximum(0.5, 1 + k * agreement), *one.bounds)

        def forward(carry: tuple, x: tuple) -> tuple:
            (w, v, running, p, last, s), (indices, t) = carry, x
            seen, batch = programs.batch(fixed, data, indices)
            (loss, statistics), g = jax.value_and_grad(programs.inner.loss, has_aux=True)(w, seen, batch, t)
            s = jax.tree.map(lambda s, g: γ * s + (1 - γ) * g**2, s, g)
            p = jax.tree.map(moved, p, g, last, s)
            w, v = programs.inner.update(w, v, g, fixed | {"learning_rate": p}, t)
            return (w, v, self.problem.update_running(running, statistics), p, g, s), loss

        p = {name: one.value(u, jnp) for name, u in hyper["learning_rate"].items()}
        start = (state["w"], state["v"], state["running"], p, memory["gradient"], memory["square"])
        (w, v, running, p, last, s), losses = lax.scan(forward, start, inputs)
        rate = {name: unconstrained("learning_rate", x, jnp) for name, x in p.items()}
        memory = {"gradient": last, "square": s}
        after = {"w": w, "v": v, "running": running, "hyper": hyper | {"learning_rate": rate}, "memory": memory}
        return after, {}, self.report(w, losses)
