"""The adaptive method of the thesis: n steps, M validation batches, K steps back, one step by signs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.adapting import State, output_weights
from hypertrail.hyperparameters import Hyper

from ..compiled import Compiled, norm
from ..functional import zeros
from .rule import Elementary, Rule

Array = Any
Tree = Any


class AdaptiveRule(Rule):
    """One block is one move of every declared hyperparameter.

        n steps forward from (w, v), the last K states kept;   dw = ∇f(w_T), dv = 0 on M random validation batches
        K steps back:  `functional.reverse_step` at the kept states (or `Compiled._undo_chunk`: undone in floating point)
        of the output layer's W:  dr, dλ ← their means over the classes
        r ← clip(r − s_r sign(dr)),  λ ← clip(λ − s_λ sign(dλ))

    Cost: n + M gradients and K products.
    """

    def __init__(self, programs: Compiled, method: Any) -> None:
        super().__init__(programs, method)
        self.run = self.block
        self.forward, self.backward = programs.jit(self._forward), programs.jit(self._backward)

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        return {"u": zeros(hyper)} if self.method.mass else {}

    def inputs(self, start: int, block: int) -> Tree:
        T, K = start + self.method.steps, self.method.last
        first, last = self.programs.steps(start, T - K), self.programs.steps(T - K, T)
        return first, last, self.validation_rows([block])[0]

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        """Not to be compiled: two programs, each with the memory that it needs for itself. One program needed twice as much at
        once, in pages that the system hands out anew for every block: with a million weights that was 4 % of the time."""
        end, running_before, losses, kept = self.forward(state, inputs, data)
        return self.backward(end, running_before, losses, kept, state["hyper"], state["memory"], inputs, data, valid)

    def _forward(self, state: State, inputs: Tree, data: Tree) -> tuple[Elementary, Tree, Array, Tree]:
        """n steps → (the state after them, the running averages before the last K, losses, (w, v) before each of the last K)."""
        first, last, _ = inputs
        values = self.programs._values(state["hyper"])
        early, losses, _ = self.steps((state["w"], state["v"], state["running"]), values, data, first)
        end, more, kept = self.steps(early, values, data, last, self.method.states == "kept")
        return end, early[2], jnp.concatenate([losses, more]), kept

    def _backward(
        self,
        end: Elementary,
        running_before: Tree,
        losses: Array,
        kept: Tree,
        hyper: Hyper,
        memory: State,
        inputs: Tree,
        data: Tree,
        valid: Tree,
    ) -> tuple[State, Hyper, dict[str, Array]]:
        """M validation batches, K steps back, the move."""
        p, method = self.programs, self.method
        w, v, running = end
        _, last, rows = inputs
        values = p._values(hyper)
        f, dw, dvalues = self.hyper_gradient(w, values, valid, rows)
        if method.states == "kept":
            dw, _, dvalues = self.back((dw, zeros(v), dvalues), kept, values, data, last)
            before = jax.tree.map(lambda one: one[0], kept)
        else:
            (*before, dw, _, dvalues), _ = p._undo_chunk((w, v, dw, zeros(v), dvalues), values, data, last)
        h = p._pull_back(hyper, dvalues)

        moved, memory = self.move(hyper, h, memory)
        if method.mode != "restore":
            (w, v), running = before, running_before
        after = {"w": w, "v": v, "running": running, "hyper": moved, "memory": memory}
        size = norm(h) + 0 * norm(dw)  # an adjoint that is not finite may still meet a zero
        return after, h, self.report(w, losses, f, size)

    def back(self, adjoint: Tree, kept: Tree, values: Tree, data: Tree, xs: Tree) -> Tree:
        """K exact reverse steps at the kept states, from the last."""

        def backward(adjoint: Tree, x: tuple) -> tuple:
            (w, v), (indices, t) = x
            return self.programs.backward(adjoint, w, v, values, data, indices, t), None

        return lax.scan(backward, adjoint, (kept, xs), reverse=True)[0]

    def move(self, hyper: Hyper, h: Hyper, memory: State) -> tuple[Hyper, State]:
        """λ ← clip(λ − s sign(h)), or with mass m:  u ← m u − (1−m) sign(h),  λ ← clip(λ + s u)."""
        m = self.method.mass
        u = jax.tree.map(lambda d: -jnp.sign(d), self.averaged(h))
        if m:
            u = jax.tree.map(lambda u, d: m * u + (1 - m) * d, memory["u"], u)
        moved = {}
        for kind, arrays in hyper.items():
            s = self.method.move(kind)
            moved[kind] = {key: x + s * u[kind][key] for key, x in arrays.items()}
        moved = self.clip(moved)
        moved |= {kind: arrays for kind, arrays in hyper.items() if self.method.move(kind) == 0}
        return moved, {"u": u} if m else {}

    def averaged(self, h: Hyper) -> Hyper:
        """The hypergradient as its signs are taken: that of the output layer's W averaged over the classes."""
        names = {p.name for p in output_weights(self.problem.network)} if self.method.average_output else set()
        return {
            kind: {key: over_classes(d) if key in names else d for key, d in arrays.items()}
            for kind, arrays in h.items()
        }


def over_classes(u: Array) -> Array:
    """The mean over the last axis, which holds the classes in an array of the output layer's W. Same shape; a scalar stays."""
    return jnp.broadcast_to(u.mean(axis=-1, keepdims=True), u.shape) if u.ndim else u
