"""What a rule is, and what several of them share: steps, validation gradients, sums over what shares a value, outer moves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail import outer
from hypertrail.adapting import State, moved_kinds, validation_rows
from hypertrail.errors import UsageError
from hypertrail.hyperparameters import NETWORK, Hyper, Hyperparameter
from hypertrail.problem import Values

from ..compiled import Compiled, norm
from ..stepping import step

Array = Any
Tree = Any
Elementary = tuple[Tree, Tree, Tree]  # (w, v, running)


class Rule:
    """An online method on one problem. Subclasses say what it remembers (`start`), what a block reads from the host (`inputs`)
    and, in one traceable function, what it does (`block`); `run` is that function, compiled as a whole or in parts."""

    def __init__(self, programs: Compiled, method: Any) -> None:
        self.programs, self.problem, self.method = programs, programs.problem, method
        x, y = programs.valid_data
        self.valid_data = x.reshape(-1, *x.shape[2:]), y.reshape(-1)
        self.run = programs.jit(self.block)

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        """The memory before the first block: nested dicts of arrays."""
        return {}

    def inputs(self, start: int, block: int) -> Tree:
        """Host arrays that the block starting at this step reads, always of the same shapes."""
        return self.programs.steps(start, start + self.method.block_steps)

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        """The state one block later, the last hypergradient ({} for none) and `report`. data, valid: (x, y) of the splits."""
        raise NotImplementedError

    # -- shared -------------------------------------------------------------------------------------------------------

    def report(
        self, w: Tree, losses: Array, hyper_losses: Any = (), sizes: Any = (), skipped: Any = 0
    ) -> dict[str, Array]:
        """sizes: ‖h‖ of each move, to see that it is finite."""
        empty = jnp.zeros((0,), losses.dtype)
        hyper_losses, sizes = (empty if isinstance(one, tuple) else jnp.ravel(one) for one in (hyper_losses, sizes))
        return {
            "losses": losses.reshape(-1),
            "hyper_losses": hyper_losses,
            "sizes": sizes,
            "size": norm(w),
            "skipped": jnp.asarray(skipped),
        }

    def steps(
        self, state: Elementary, values: Values, data: Tree, xs: Tree, keep: bool = False
    ) -> tuple[Elementary, Array, Tree]:
        """Plain steps forward, one for each entry of xs → (state, losses, the states (w, v) before each where kept)."""

        def forward(state: Elementary, x: tuple) -> tuple:
            (w, v, running), (indices, t) = state, x
            w_next, v_next, loss, statistics = step(self.programs, w, v, values, data, indices, t)
            kept = (w, v) if keep else ()
            return (w_next, v_next, self.problem.update_running(running, statistics)), (loss, kept)

        state, (losses, kept) = lax.scan(forward, state, xs)
        return state, losses, kept

    def hyper_gradient(self, w: Tree, values: Values, valid: Tree, rows: Array) -> tuple[Array, Tree, Values]:
        """(f, ∂f/∂w, ∂f/∂value) on the validation batches whose rows these are, (M, B). Cost: M gradients."""
        return self.programs._hyper_gradient(w, values, (valid[0][rows], valid[1][rows]))

    def validation_rows(self, numbers: Any) -> np.ndarray:
        """(moves, M, B): the rows of each move of a block."""
        batches = self.method.validation_batches
        return np.stack([validation_rows(self.problem, batches, int(number)) for number in numbers])

    def moved(self, hyper: Hyper) -> Hyper:
        """The part of the hyperparameters that this method moves."""
        return {kind: hyper[kind] for kind in moved_kinds(self.problem, self.method)}

    def clip(self, hyper: Hyper) -> Hyper:
        """Every array to the bounds of its declaration."""
        clipped = {}
        for kind, arrays in hyper.items():
            one = self.problem.declared(kind)
            low, high = one.project(np.array([-np.inf, np.inf]))
            clipped[kind] = {key: jnp.clip(u, low, high) for key, u in arrays.items()}
        return clipped


class PeriodicRule(Rule):
    """Rules that move every `every` steps: their inputs are cut into periods, with validation rows for each."""

    def inputs(self, start: int, block: int) -> Tree:
        every, moves = self.method.every, self.method.move_count
        xs = self.programs.steps(start, start + self.method.block)
        cut = jax.tree.map(lambda one: one.reshape(moves, every, *one.shape[1:]), xs)
        return cut, self.validation_rows(start + every * (1 + np.arange(moves)) - 1)


def shared(one: Hyperparameter, terms: dict[str, Array]) -> dict[str, Array]:
    """Σ over what shares a value: {parameter name: its full shape} → {key: shape of the held array}."""
    if one.level == NETWORK:
        return {NETWORK: sum(jnp.sum(d.sum(axis=-1)) for d in terms.values())}  # rows first: quicker on a processor
    sums = {"layer": jnp.sum, "unit": lambda d: d.sum(axis=tuple(range(d.ndim - 1))), "parameter": lambda d: d}
    return {name: sums[one.level](d) for name, d in terms.items()}


def by_name(one: Hyperparameter, arrays: dict[str, Array], names: Any) -> dict[str, Array]:
    """The held values for each parameter."""
    return {name: arrays[NETWORK if one.level == NETWORK else name] for name in names}


# -- the outer rules of hypertrail.outer, traceable -----------------------------------------------------------------------


def start_outer(rule: outer.Rule, hyper: Hyper) -> State:
    """The outer rule's state as nested dicts of arrays."""
    if type(rule) not in OUTER:
        raise UsageError(
            f"outer rule {rule}: the compiled online methods have {', '.join(one.__name__ for one in OUTER)}"
        )
    slots = {slot: jax.tree.map(jnp.zeros_like, hyper) for slot in rule.slots}
    return {"count": jnp.zeros((), jnp.int32), "slots": slots}


def move_outer(rule: outer.Rule, hyper: Hyper, h: Hyper, memory: State) -> tuple[Hyper, State]:
    """One outer step, without clipping."""
    count = memory["count"] + 1
    moved, slots = OUTER[type(rule)](rule, hyper, h, memory["slots"], count)
    return moved, {"count": count, "slots": slots}


def gradient_descent(rule: Any, hyper: Hyper, h: Hyper, slots: State, k: Array) -> tuple[Hyper, State]:
    return jax.tree.map(lambda λ, h: λ - rule.learning_rate * h, hyper, h), slots


def sign(rule: Any, hyper: Hyper, h: Hyper, slots: State, k: Array) -> tuple[Hyper, State]:
    return jax.tree.map(lambda λ, h: λ - rule.learning_rate * jnp.sign(h), hyper, h), slots


def sign_momentum(rule: Any, hyper: Hyper, h: Hyper, slots: State, k: Array) -> tuple[Hyper, State]:
    u = jax.tree.map(lambda u, h: rule.mass * u - (1 - rule.mass) * jnp.sign(h), slots["u"], h)
    return jax.tree.map(lambda λ, u: λ + rule.learning_rate * u, hyper, u), {"u": u}


def adam(rule: Any, hyper: Hyper, h: Hyper, slots: State, k: Array) -> tuple[Hyper, State]:
    b1, b2, ε, lr = rule.b1, rule.b2, rule.epsilon, rule.learning_rate
    outside, under = (ε, 0.0) if rule.epsilon_place == "outside" else (0.0, ε)
    m = jax.tree.map(lambda m, h: b1 * m + (1 - b1) * h, slots["m"], h)
    s = jax.tree.map(lambda s, h: b2 * s + (1 - b2) * h**2, slots["s"], h)

    def moved(λ: Array, m: Array, s: Array) -> Array:
        t = k.astype(λ.dtype)
        return λ - lr * (m / (1 - b1**t)) / (jnp.sqrt((s + under) / (1 - b2**t)) + outside)

    return jax.tree.map(moved, hyper, m, s), {"m": m, "s": s}


OUTER: dict[type[outer.Rule], Any] = {
    outer.GradientDescent: gradient_descent,
    outer.Sign: sign,
    outer.SignMomentum: sign_momentum,
    outer.Adam: adam,
}
