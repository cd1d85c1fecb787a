"""T1–T2: penalties moved by one elementary step's effect on the validation loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, moved_kinds, unconstrained
from hypertrail.hyperparameters import NETWORK, Hyper
from hypertrail.problem import Values

from ..compiled import norm
from ..stepping import step
from .rule import PeriodicRule, move_outer, start_outer

Array = Any
Tree = Any


class T1T2Rule(PeriodicRule):
    """Every `every` steps, after the step from w_t to w_{t+1}:

        u = −∇C₂(w_{t+1});   h = (∂_λ∇_w C̃₁(w_t))ᵀ u;   λ ← clip(λ − outer(h))

    With at='same' u = −∇C₂(w_t), and the move stands in the place of the step.

    The product is the tangent of w ↦ ∇_λ C̃₁ in direction u: of the penalties only, the compiler drops the data term, which
    does not contain λ, unless noise is among it. Cost: one gradient a step, M for each move; with noise one product more.
    """

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        return start_outer(self.method.outer, self.moved(hyper))

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        every = self.method.every

        def period(carry: tuple, x: tuple) -> tuple:
            (*elementary, hyper, memory, _), (xs, rows) = carry, x
            values = self.programs._values(hyper)
            before = jax.tree.map(lambda one: one[: every - 1], xs)
            (w, v, running), losses, _ = self.steps(tuple(elementary), values, data, before)
            indices, t = jax.tree.map(lambda one: one[-1], xs)
            seen, batch = self.programs.batch(values, data, indices)
            w_next, v_next = w, v
            if self.method.at == "after":
                w_next, v_next, loss, statistics = step(self.programs, w, v, values, data, indices, t)
                running = self.problem.update_running(running, statistics)
                losses = jnp.concatenate([losses, loss[None]])

            f, dw, _ = self.hyper_gradient(w_next, values, valid, rows)
            u = self.each_cut(jax.tree.map(jnp.negative, dw))
            h = {kind: self.each_cut(d) for kind, d in self.product(w, u, seen, batch, t).items()}
            size = norm(h)
            hyper, memory = self.move(hyper, values, h, size, memory)
            return (w_next, v_next, running, hyper, memory, h), (losses, f, size)

        hyper = state["hyper"]
        start = (*(state[key] for key in ("w", "v", "running", "hyper", "memory")), self.moved(hyper))
        (w, v, running, hyper, memory, h), (losses, f, sizes) = lax.scan(period, start, inputs)
        skipped = 0
        if self.method.nonfinite == "skip":
            skipped, sizes = jnp.sum(~jnp.isfinite(sizes)), ()
        after = {"w": w, "v": v, "running": running, "hyper": hyper, "memory": memory}
        return after, h, self.report(w, losses, f, sizes, skipped)

    def product(self, w: Tree, u: Tree, values: Values, batch: Tree, t: tuple) -> Hyper:
        """h = (∂_λ∇_w C̃₁)ᵀ u, for what moves: λ itself, or its free representation."""

        def slope(w: Tree) -> Values:
            return jax.grad(self.programs.inner.loss, argnums=1, has_aux=True)(w, values, batch, t)[0]

        dvalues = jax.jvp(slope, (w,), (u,))[1]
        h: Hyper = {}
        for kind, arrays in self.held(values).items():
            one = self.problem.declared(kind)
            d = {NETWORK: sum(dvalues[kind].values())} if one.level == NETWORK else dvalues[kind]
            free = self.method.representation == "free"
            h[kind] = {key: d[key] * one.slope(x) if free else d[key] for key, x in arrays.items()}
        return h

    def each_cut(self, arrays: Tree) -> Tree:
        """With nonfinite='zero': 0 for what is not finite. With clip='each-tensor': no array longer than clip_norm."""
        if self.method.nonfinite == "zero":
            arrays = jax.tree.map(lambda d: jnp.nan_to_num(d, nan=0.0, posinf=0.0, neginf=0.0), arrays)
        if self.method.clip == "each-tensor":
            arrays = jax.tree.map(lambda d: d * shortening(norm(d), self.method.clip_norm), arrays)
        return arrays

    def held(self, values: Values) -> Hyper:
        """The values of what moves, in the structure of the hyperparameters."""
        held: Hyper = {}
        for kind in moved_kinds(self.problem, self.method):
            network = self.problem.declared(kind).level == NETWORK
            held[kind] = {NETWORK: next(iter(values[kind].values()))} if network else dict(values[kind])
        return held

    def move(self, hyper: Hyper, values: Values, h: Hyper, size: Array, memory: State) -> tuple[Hyper, State]:
        """The outer step on λ or on its logarithm, then the bounds, which keep λ positive; nothing where ‖h‖ is not finite."""
        declared = self.problem.declared
        by_value = self.method.representation == "value"
        factor = shortening(size, self.method.clip_norm) if self.method.clip == "all" else 1.0
        here = self.held(values) if by_value else self.moved(hyper)
        moved, after = move_outer(self.method.outer, here, jax.tree.map(lambda d: factor * d, h), memory)
        if by_value:
            moved = {
                kind: {key: unconstrained(kind, jnp.clip(x, *declared(kind).bounds), jnp) for key, x in arrays.items()}
                for kind, arrays in moved.items()
            }
        good = jnp.isfinite(size)
        moved = hyper | self.clip(moved)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), (moved, after), (hyper, memory))


def shortening(size: Array, limit: float) -> Array:
    """What a vector of this norm is multiplied by so that it is no longer than `limit`."""
    return jnp.where(size > limit, limit / size, 1.0)
