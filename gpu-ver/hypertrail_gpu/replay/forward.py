"""Forward mode: the derivative of the state with respect to every hyperparameter, carried along with the training. Exact.

    Z_0 = ∂s_0/∂λ,   Z_{t+1} = A_t Z_t + B_t,   df/dλ = ∇f Z_T + ∂f/∂λ,      s = (w, v, state)

with A_t = ∂(step)/∂s and B_t = ∂(step)/∂λ. Franceschi, Donini, Frasconi, Pontil: "Forward and reverse gradient-based
hyperparameter optimization", ICML 2017, section 3.2 and algorithm 2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from hypertrail.errors import UsageError
from hypertrail.methods import Forward
from hypertrail.task import Task

from ..batches import Inputs, Pick, ahead, table
from ..beginning import Begin
from ..declared import values
from ..inner import State, program, seen, step
from ..keeper import LOWER
from ..trail import Pass, refuse_first
from ..trees import filled, floats, norm

Array = Any
Tree = Any


def forward_mode(run: Pass, adjoint: tuple, method: Forward) -> tuple[tuple, int]:
    """The run once more with its m tangents side by side. Cost: T gradients and T · m tangents; memory: m states."""
    trail = run.trail
    task, hyper, given, T = trail.task, trail.hyper, trail.values, trail.steps
    refuse_many(hyper, method)
    columns = program(task, columns_of, trail.whole)(hyper)
    s, Z = trail.start, program(task, first_tangents, trail.begun.begin)(given, columns, trail.start)
    starts = range(0, T, trail.chunk)
    tables = [table(a, trail.chunk, T - 1) for a in starts]
    for a, (x, payload) in zip(starts, ahead(trail.batches, tables), strict=True):
        b = min(a + trail.chunk, T)
        inputs = Inputs(given, payload, x, np.int32(0), np.int32(b - a))
        s, Z, record = program(task, tangents, trail.batches.pick)(s, Z, columns, inputs)
        losses, sizes = (np.asarray(one)[: b - a] for one in record)
        refuse_first(losses, "elementary loss", trail.batches.first + a, LOWER)
        later = trail.batches.first + a + 1
        refuse_first(
            sizes, "forward derivative (‖Z‖)", later, "the run is chaotic or diverged; lower the learning rate"
        )
        if run.progress:
            run.progress(b, T)
    (ds, dhyper) = adjoint
    run.diagnostics["N"] = T
    run.pulled = True
    return (None, program(task, through)(hyper, columns, ds, dhyper, Z)), T


def refuse_many(hyper: Tree, method: Forward) -> None:
    m = sum(jnp.size(leaf) for leaf in jax.tree.leaves(floats(hyper)))
    if m > method.most:
        raise UsageError(
            f"forward mode carries one state for each of {m} hyperparameters, at most {method.most}; use a way back"
        )


def directions(hyper: Tree) -> Tree:
    """The m unit directions of λ, in its tree, with a leading axis of m."""
    flat, restore = ravel_pytree(floats(hyper))
    return jax.vmap(restore)(jnp.eye(flat.size, dtype=flat.dtype))


def columns_of(task: Task, steps: int, hyper: Tree) -> Tree:
    """What the m directions do to the values, with a leading axis of m."""

    def column(direction: Tree) -> Tree:
        return jax.jvp(lambda u: floats(values(task, steps, filled(hyper, u))), (floats(hyper),), (direction,))[1]

    return jax.vmap(column)(directions(hyper))


def first_tangents(task: Task, begin: Begin | None, given: Tree, columns: Tree, s: State) -> State:
    """Z_0: what λ does to the state before step 0."""

    def tangent(column: Tree) -> State:
        return jax.jvp(lambda h: floats(begin(task, filled(given, h), s) if begin else s), (floats(given),), (column,))[
            1
        ]

    return jax.vmap(tangent)(columns)


def tangents(task: Task, pick: Pick, s: State, Z: State, columns: Tree, inputs: Inputs) -> tuple[State, State, tuple]:
    """Steps lo … hi − 1 of a chunk with Z ← A Z + B → (state, Z, (the loss of each step, ‖Z‖ after each))."""
    hyper, payload, x, lo, hi = inputs
    n, dtype = len(x["t"]), jax.tree.leaves(s.w)[0].dtype

    def body(i: Array, carry: tuple) -> tuple:
        s, Z, (losses, sizes) = carry
        batch, t = pick(payload, x["at"][i]), x["t"][i]

        def whole(moving: State, h: Tree) -> tuple[State, tuple]:
            after, loss = step(task, filled(s, moving), seen(task, filled(hyper, h), batch), batch, t, t)
            return floats(after), (after, loss)

        _, tangent, (after, loss) = jax.linearize(whole, floats(s), floats(hyper), has_aux=True)
        Z = jax.vmap(tangent)(Z, columns)
        return after, Z, (losses.at[i].set(loss.astype(dtype)), sizes.at[i].set(norm(Z).astype(dtype)))

    return lax.fori_loop(lo, hi, body, (s, Z, (jnp.zeros(n, dtype), jnp.zeros(n, dtype))))


def through(task: Task, hyper: Tree, columns: Tree, ds: State, dhyper: Tree, Z: State) -> Tree:
    """∇f Z + ∂f/∂λ, in the tree of λ."""

    def dot(z: Array, d: Array) -> Array:
        return jnp.tensordot(z, d, d.ndim)

    terms = jax.tree.leaves(jax.tree.map(dot, (Z.w, Z.carried, columns), (ds.w, ds.carried, dhyper)))
    return ravel_pytree(floats(hyper))[1](sum(terms))
