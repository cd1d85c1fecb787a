"""Almeida, Langlois, Amaral, Plakhov 1998: a learning rate for each parameter, moved by two gradients in a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper

from ..functional import zeros
from ..stepping import by_rows, gradient, sweepable
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
        fixed, swept = programs._values(hyper), sweepable(programs)

        def averaged(s: Array, g: Array) -> Array:
            return γ * s + (1 - γ) * g**2

        def moved(p: Array, g: Array, last: Array, s: Array) -> Array:
            agreement = jnp.where(s > 0, g * last / jnp.where(s > 0, s, 1.0), 0.0)
            return jnp.clip(p * jnp.maximum(0.5, 1 + k * agreement), *one.bounds)

        def forward(carry: tuple, x: tuple) -> tuple:
            (now, running), (indices, t) = carry, x
            seen, batch = programs.batch(fixed, data, indices)
            (loss, statistics), g = gradient(programs, now["w"], seen, batch, t, swept)

            left = {name: one for name, one in g.items() if name not in swept}
            rest = {key: {name: arrays[name] for name in left} for key, arrays in now.items()}
            square = jax.tree.map(averaged, rest["square"], left)
            p = jax.tree.map(moved, rest["learning_rate"], left, rest["last"], square)
            w, v = programs.update(rest["w"], rest["v"], left, fixed | {"learning_rate": p}, t)
            after = {"w": w, "v": v, "learning_rate": p, "last": left, "square": square}

            for name in swept:
                # In this order: what is written is what the next ones read.
                first = {
                    "square": (now["square"][name], lambda g, o: averaged(o["square"], g)),
                    "learning_rate": (
                        now["learning_rate"][name],
                        lambda g, o: moved(o["learning_rate"], g, o["last"], o["square"]),
                    ),
                    "last": (now["last"][name], lambda g, o: g),
                }
                written, penalty, _ = by_rows(programs, name, now["w"], now["v"], g, seen, t, first=first)
                loss = loss + penalty
                for key, array in written.items():
                    after[key][name] = array
            return (after, self.problem.update_running(running, statistics)), loss

        start = {
            "w": state["w"],
            "v": state["v"],
            "learning_rate": {name: one.value(u, jnp) for name, u in hyper["learning_rate"].items()},
            "last": memory["gradient"],
            "square": memory["square"],
        }
        (end, running), losses = lax.scan(forward, (start, state["running"]), inputs)
        rate = {name: unconstrained("learning_rate", p, jnp) for name, p in end["learning_rate"].items()}
        after = {
            "w": end["w"],
            "v": end["v"],
            "running": running,
            "hyper": hyper | {"learning_rate": rate},
            "memory": {"gradient": end["last"], "square": end["square"]},
        }
        return after, {}, self.report(end["w"], losses)
