"""RTHO and MARTHE(μ): forward-mode derivatives carried along with the training, the hyperparameters moving by them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State
from hypertrail.hyperparameters import Hyper, count

from ..compiled import norm
from ..forward import one_hot, unflatten
from ..functional import step, zeros
from .rule import PeriodicRule, move_outer, start_outer

Array = Any
Tree = Any


class TangentRule(PeriodicRule):
    """Each step, Z a state with a leading axis of m columns:

        Z ← μ A Z + B                                     one linearisation of the step, m tangents side by side
        every `every` steps:   h = ∇f(w) Z_w + ∂f/∂λ,     λ ← clip(λ − outer(h))

    Cost of a step: one gradient and m tangents; of a move: M gradients.
    """

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        m = count(hyper)
        Zw, Zv = jax.tree.map(lambda one: jnp.zeros((m, *one.shape), one.dtype), (w, v))
        return {"w": Zw, "v": Zv, "outer": start_outer(self.method.outer, hyper)}

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        programs, method, hyper = self.programs, self.method, state["hyper"]
        directions = one_hot(hyper, count(hyper), self.problem.dtype)

        def period(carry: tuple, x: tuple) -> tuple:
            (w, v, running, Z, hyper, memory, _), (xs, rows) = carry, x
            values = programs._values(hyper)
            columns = jax.vmap(lambda d: jax.jvp(programs._values, (hyper,), (d,))[1])(directions)

            def forward(carry: tuple, x: tuple) -> tuple:
                (w, v, running, Z), (indices, t) = carry, x
                seen, batch = programs.batch(values, data, indices)
                columns_seen = jax.vmap(lambda one: self.problem.seen(one, indices))(columns)

                def advance(w: Tree, v: Tree, values: Tree) -> tuple:
                    w, v, loss, statistics = step(programs.inner, w, v, values, batch, t)
                    return (w, v), (loss, statistics)

                (w, v), tangent, (loss, statistics) = jax.linearize(advance, w, v, seen, has_aux=True)
                Z = jax.vmap(tangent)(*jax.tree.map(lambda z: method.mu * z, Z), columns_seen)
                return (w, v, self.problem.update_running(running, statistics), Z), loss

            (w, v, running, Z), losses = lax.scan(forward, (w, v, running, Z), xs)
            f, dw, dvalues = self.hyper_gradient(w, values, valid, rows)
            through_w = jax.tree.map(lambda z, d: jnp.tensordot(z, d, d.ndim), Z[0], dw)
            direct = jax.tree.map(lambda z, d: jnp.tensordot(z, d, d.ndim), columns, dvalues)
            h = unflatten(sum(jax.tree.leaves(through_w) + jax.tree.leaves(direct)), hyper)
            moved, memory = move_outer(method.outer, hyper, h, memory)
            size = norm(h) + 0 * norm(Z[0])  # a Z that is not finite may still meet a zero gradient
            if method.restart:
                Z = zeros(Z)
            return (w, v, running, Z, self.clip(moved), memory, h), (losses, f, size)

        memory = state["memory"]
        Z = memory["w"], memory["v"]
        start = (state["w"], state["v"], state["running"], Z, hyper, memory["outer"], hyper)
        (w, v, running, Z, hyper, outer, h), (losses, f, sizes) = lax.scan(period, start, inputs)
        memory = {"w": Z[0], "v": Z[1], "outer": outer}
        after = {"w": w, "v": v, "running": running, "hyper": hyper, "memory": memory}
        return after, h, self.report(w, losses, f, sizes)
