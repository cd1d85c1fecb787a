"""T1–T2: penalties moved by one elementary step's effect on the validation loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper
from hypertrail.problem import Values

from ..compiled import norm
from ..functional import step
from .rule import PeriodicRule, move_outer, start_outer

Array = Any
Tree = Any


class T1T2Rule(PeriodicRule):
    """Every `every` steps, after the step from w_t to w_{t+1}:

        u = −∇C₂(w_{t+1});   h = (∂_λ∇_w C̃₁(w_t))ᵀ u;   λ ← clip(λ − outer(h))

    The product is the tangent of w ↦ ∇_λ C̃₁ in direction u: of the penalties only, the compiler drops the data term, which
    does not contain λ. Cost: one gradient a step, M for each move.
    """

    def start(self, hyper: Hyper, w: Tree) -> State:
        return start_outer(self.method.outer, self.moved(hyper))

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        inner, every = self.programs.inner, self.method.every

        def period(carry: tuple, x: tuple) -> tuple:
            (*elementary, hyper, memory, _), (xs, rows) = carry, x
            values = self.programs._values(hyper)
            before = jax.tree.map(lambda one: one[: every - 1], xs)
            (w, v, running), losses, _ = self.steps(tuple(elementary), values, data, before)
            indices, t = jax.tree.map(lambda one: one[-1], xs)
            batch = self.take(data, indices)
            w_next, v_next, loss, statistics = step(inner, w, v, values, batch, t)
            running = self.problem.update_running(running, statistics)

            f, dw, _ = self.hyper_gradient(w_next, values, valid, rows)
            h = self.product(w, jax.tree.map(jnp.negative, dw), values, hyper, batch, t)
            size = norm(h)
            hyper, memory = self.move(hyper, h, size, memory)
            losses = jnp.concatenate([losses, loss[None]])
            return (w_next, v_next, running, hyper, memory, h), (losses, f, size)

        hyper = state["hyper"]
        start = (*(state[key] for key in ("w", "v", "running", "hyper", "memory")), self.moved(hyper))
        (w, v, running, hyper, memory, h), (losses, f, sizes) = lax.scan(period, start, inputs)
        skipped = 0
        if self.method.skip:
            skipped, sizes = jnp.sum(~jnp.isfinite(sizes)), ()
        after = {"w": w, "v": v, "running": running, "hyper": hyper, "memory": memory}
        return after, h, self.report(w, losses, f, sizes, skipped)

    def product(self, w: Tree, u: Tree, values: Values, hyper: Hyper, batch: Tree, t: tuple) -> Hyper:
        """h = (∂_λ∇_w C̃₁)ᵀ u, for what moves: λ itself, or its free representation."""

        def slope(w: Tree) -> Values:
            return jax.grad(self.programs.inner.loss, argnums=1, has_aux=True)(w, values, batch, t)[0]

        h = self.programs._pull_back(hyper, jax.jvp(slope, (w,), (u,))[1])
        if self.method.representation == "free":
            return self.moved(h)
        declared = self.problem.declared
        return {
            kind: {
                key: d / declared(kind).slope(declared(kind).value(hyper[kind][key], jnp)) for key, d in arrays.items()
            }
            for kind, arrays in self.moved(h).items()
        }

    def move(self, hyper: Hyper, h: Hyper, size: Array, memory: State) -> tuple[Hyper, State]:
        """The outer step on λ or on its logarithm, then the bounds, which keep λ positive; nothing where ‖h‖ is not finite."""
        declared, limit = self.problem.declared, self.method.clip_norm
        values = self.method.representation == "value"
        factor = jnp.where(size > limit, limit / size, 1.0)
        here = self.moved(hyper)
        if values:
            here = {kind: {key: declared(kind).value(u, jnp) for key, u in a.items()} for kind, a in here.items()}
        moved, after = move_outer(self.method.outer, here, jax.tree.map(lambda d: factor * d, h), memory)
        if values:
            moved = {
                kind: {key: unconstrained(kind, jnp.clip(x, *declared(kind).bounds), jnp) for key, x in arrays.items()}
                for kind, arrays in moved.items()
            }
        good = jnp.isfinite(size)
        moved = hyper | self.clip(moved)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), (moved, after), (hyper, memory))
