"""Clarke, Oldewage, Hernández-Lobato 2022: implicit differentiation of the update map by a truncated Neumann series."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from hypertrail.adapting import State
from hypertrail.hyperparameters import Hyper

from ..compiled import norm
from ..functional import linearise, pull, zeros
from .rule import PeriodicRule, move_outer, start_outer

Array = Any
Tree = Any


class ClarkeRule(PeriodicRule):
    """Every `every` steps, at the present (w, v), with the batch of the last step:

        dw = ∇f(w)
        for j = 0 … terms:   h += dw B;   dw ← dw A          one adjoint step at the same place, dv = 0 each time
        λ ← clip(λ − outer(h))

    Cost: one gradient a step; for a move M gradients and terms + 1 products.
    """

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        return start_outer(self.method.outer, hyper)

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        programs, method = self.programs, self.method

        def period(carry: tuple, x: tuple) -> tuple:
            (*elementary, hyper, memory, _), (xs, rows) = carry, x
            values = programs._values(hyper)
            (w, v, running), losses, _ = self.steps(tuple(elementary), values, data, xs)
            indices, t = jax.tree.map(lambda one: one[-1], xs)
            f, dw, dvalues = self.hyper_gradient(w, values, valid, rows)
            seen, batch = programs.batch(values, data, indices)
            g, tangent = linearise(programs.inner, w, seen, batch, t)

            def term(_: Array, carry: tuple) -> tuple:
                dw, dvalues = carry
                dw, _, more = pull(programs.inner, w, v, g, tangent, seen, t, dw, zeros(v))
                return dw, programs.collect(dvalues, more, indices)

            _, dvalues = lax.fori_loop(0, method.terms + 1, term, (dw, dvalues))
            h = programs._pull_back(hyper, dvalues)
            moved, memory = move_outer(method.outer, hyper, h, memory)
            return (w, v, running, self.clip(moved), memory, h), (losses, f, norm(h))

        start = tuple(state[key] for key in ("w", "v", "running", "hyper", "memory", "hyper"))
        (w, v, running, hyper, memory, h), (losses, f, sizes) = lax.scan(period, start, inputs)
        after = {"w": w, "v": v, "running": running, "hyper": hyper, "memory": memory}
        return after, h, self.report(w, losses, f, sizes)
