"""One elementary step of a problem: `functional.step`, and on a processor the same numbers in an order that spares memory.

Two things cost time there that is no arithmetic (perceptron 784-1000-1000-10, batch 128, a penalty and a rate for each weight: an
eighth of a step). Weights are copied because the compiler does not know that they are read for the last time before they are
written: so nothing is written before the whole gradient is there. And the value of a penalty, v' and w' are loops of their own
over the same arrays: so a large tensor is walked through by rows (rows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from hypertrail.problem import PENALTIES, Problem, Values

from . import functional
from .devices import Layout
from .dynamics import VELOCITIES, rule
from .rows import Blocks, later, rows_of_block, sweep

if TYPE_CHECKING:
    from .compiled import Compiled

Array = Any
Tree = Any


def large(problem: Problem, layout: Layout) -> list[str]:
    """The tensors that are worth it: on one processor. A GPU writes several arrays in one loop by itself."""
    if jax.default_backend() != "cpu" or layout.count > 1:
        return []
    return [p.name for p in problem.params if rows_of_block(p.shape, problem.dtype.itemsize)]


def step(
    programs: Compiled, w: Tree, v: Tree, values: Values, data: Tree, indices: Array, t: tuple
) -> tuple[Tree, Tree, Array, Tree]:
    """(w_t, v_t) → (w_{t+1}, v_{t+1}), loss at w_t, batch statistics, on these rows of the train split. Cost: one gradient.

    Not to be differentiated nor vmapped: `programs.inner` is.
    """
    seen, batch = programs.batch(values, data, indices)
    if not programs.large:
        return functional.step(programs.inner, w, v, seen, batch, t)
    swept = [name for name in sweepable(programs) if penalties(programs, seen, name)]
    (loss, statistics), g = gradient(programs, w, seen, batch, t, swept)
    t = (*t[:2], later(t[2], g.values()))
    rest = [{name: one for name, one in arrays.items() if name not in swept} for arrays in (w, v, g)]
    w_next, v_next = programs.update(*rest, seen, t)
    for name in swept:
        written, penalty, _ = by_rows(programs, name, w, v, g, seen, t)
        w_next[name], v_next[name] = written["w"], written["v"]
        loss = loss + penalty
    return w_next, v_next, loss, statistics


def sweepable(programs: Compiled) -> list[str]:
    """The tensors to walk through by rows: where the new velocity moves the weights, and a penalty is a sum over them."""
    problem = programs.problem
    return programs.large if problem.dynamics.kind in VELOCITIES and type(problem).penalty is Problem.penalty else []


def penalties(programs: Compiled, values: Values, name: str) -> dict[str, Array]:
    """{kind: λ} of one tensor."""
    values = programs.complete(values)
    return {kind: values[kind][name] for kind in PENALTIES if name in values.get(kind, {})}


def gradient(
    programs: Compiled, w: Tree, values: Values, batch: Tree, t: tuple, swept: Collection[str]
) -> tuple[tuple[Array, Tree], Tree]:
    """((L, batch statistics), ∇L), both without the penalties of the tensors `swept`, which `by_rows` adds."""
    left = {
        kind: {name: one for name, one in arrays.items() if name not in swept} if kind in PENALTIES else arrays
        for kind, arrays in programs.complete(values).items()
    }
    return jax.value_and_grad(programs.inner.loss, has_aux=True)(w, left, batch, t)


def by_rows(
    programs: Compiled,
    name: str,
    w: Tree,
    v: Tree,
    g: Tree,
    values: Values,
    t: tuple,
    move: bool = True,
    products: Callable[[Array, Array], tuple[Array, ...]] = lambda g, v: (),
    first: Mapping[str, tuple[Array, Callable[[Array, Blocks], Array]]] = MappingProxyType({}),
) -> tuple[dict[str, Array], Array, tuple[Array, ...]]:
    """One tensor's part of a step, once the gradient of all tensors is there:

        g ← g + ∇penalty(w);   what `first` says, in its order;   v' by the dynamics;   w' = w ± α v' where `move`

    products(g, v): elementwise, of the whole g and the old v.
    first: further arrays of the tensor's shape, name → (array, f), array ← f(g, arrays): elementwise, of the whole g and of all
    arrays as they are then, by name, "v" and those of `first` among them. "learning_rate" is the α of this step.
    → what was written, by name ("v", "w", those of `first`), the penalty's value, and each product summed over the blocks: an
    array (rows of a block, n) whose entries are left to add up.
    """
    dynamics, λ = programs.problem.dynamics, penalties(programs, values, name)
    advance, sign = rule(dynamics, t[0]), VELOCITIES[dynamics.kind]
    # α and the schedule's factor apart: their product would be an array of its own, written and read in every step.
    alpha, gamma = (one[name] for one in programs.rates(values, (*t[:2], 1)))
    arrays = {**λ, "g": g[name], "w": w[name], "v": v[name], "momentum": gamma, "learning_rate": alpha, "factor": t[2]}
    arrays |= {key: one for key, (one, _) in first.items()}

    def penalised(o: Blocks) -> tuple[tuple[Array, ...], Array]:
        """The penalty's terms, none or one array of them, and the whole g."""
        if not λ:
            return (), o["g"]
        terms, pull = jax.vjp(lambda w: sum(PENALTIES[kind](o[kind], w) for kind in λ), o["w"])
        return (terms,), o["g"] + pull(jnp.ones_like(terms))[0]

    def terms(o: Blocks) -> tuple[Array, ...]:
        terms, g = penalised(o)
        return (*terms, *products(g, o["v"]))

    def velocity(o: Blocks) -> Array:
        return advance(o["w"], o["v"], penalised(o)[1], 0.0, o["momentum"])[1]

    def moved(o: Blocks) -> Array:
        return o["w"] + sign * (o["factor"] * o["learning_rate"]) * o["v"]

    writes = {key: lambda o, f=f: f(penalised(o)[1], o) for key, (_, f) in first.items()} | {"v": velocity}
    if move:
        writes["w"] = moved
    written, sums = sweep(arrays, writes, terms, later(jnp.zeros((), jnp.int32), g.values()))
    if not λ:
        return written, jnp.zeros_like(t[2]), sums
    return written, jnp.sum(sums[0].sum(axis=-1)), sums[1:]


__all__ = ["by_rows", "gradient", "large", "penalties", "step", "sweepable"]
