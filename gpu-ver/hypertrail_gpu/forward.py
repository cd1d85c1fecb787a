"""Forward mode: the derivative of the state with respect to every hyperparameter, carried along with the training.

    Z_0 = ∂(w_0, v_0)/∂λ (0 but for an initial scale or weight),   Z_{t+1} = A_t Z_t + B_t,   df/dλ = ∂f/∂w · Z_T + ∂f/∂λ

with A_t = ∂(step)/∂(w, v) and B_t = ∂(step)/∂λ. Franceschi, Donini, Frasconi, Pontil: "Forward and reverse
gradient-based hyperparameter optimization", ICML 2017, section 3.2 and algorithm 2.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure
from hypertrail.hyperparameters import Hyper, count
from hypertrail.methods import Forward
from hypertrail.problem import Problem
from hypertrail.records import Hypergradient, Training, Undoable, hypergradient_cost

from .compiled import Compiled, compiled, of_the_start, precision
from .functional import step
from .reversal import with_effective_momentum

Array = Any
Tree = Any


def forward_mode(
    problem: Problem, hyper: Hyper, training: Training, method: Forward, progress: Progress | None
) -> Hypergradient:
    """Exact hypergradient by forward mode. The columns of Z are carried side by side (vmap over one linearisation a step).

    Cost: T gradients and T · m products (tangents of a gradient); memory: m states. dw_0 and dv_0 are not known to this method:
    they are empty. Raises NumericalFailure where Z or f is not finite. Of a reversible run it takes the effective γ.
    """
    started = time.perf_counter()
    m = count(hyper)
    with precision(problem):
        programs = compiled(problem)
        hyper = jax.tree.map(lambda u: np.asarray(u, problem.dtype), hyper)
        values = programs.values(hyper)
        if isinstance(training.trajectory, Undoable):
            hyper, values = with_effective_momentum(problem, hyper, values, training.trajectory)
        directions = one_hot(hyper, m, problem.dtype)
        columns = jax.vmap(lambda d: jax.jvp(programs.values, (hyper,), (d,))[1])(directions)
        still = {kind: one for kind, one in values.items() if kind not in columns}  # the effective γ, declared or not
        ways = columns | jax.tree.map(lambda one: jnp.zeros((m, *one.shape), one.dtype), still)
        w, v = jax.tree.map(jnp.asarray, (programs.initial_weights(values), problem.initial_velocity()))
        Z = jax.tree.map(lambda one: jnp.zeros((m, *one.shape), one.dtype), (w, v))
        if of_the_start(values):
            start = programs.program("forward mode at w_0", lambda: programs.jit(start_tangents(problem)))
            Z = start(problem.initial_weights(), of_the_start(values), of_the_start(columns)), Z[1]
        advance = programs.program("forward mode", lambda: programs.jit(chunk(programs)))
        for start in range(0, problem.steps, programs.chunk):
            stop = min(start + programs.chunk, problem.steps)
            (w, v, Z), found = advance((w, v, Z), values, ways, programs.train_data, programs.steps(start, stop))
            judge(*map(np.asarray, found), start)
            if progress:
                progress(stop, problem.steps)
        f, dw, dvalues = programs.hyper_gradient(w, values, programs.valid_data)
        if not np.isfinite(f):
            raise NumericalFailure("hyper loss", problem.steps)
        through_w = jax.tree.map(lambda z, d: jnp.tensordot(z, d, d.ndim), Z[0], dw)
        direct = jax.tree.map(lambda z, d: jnp.tensordot(z, d, d.ndim), columns, dvalues)
        h = np.asarray(sum(jax.tree.leaves(through_w) + jax.tree.leaves(direct)), np.float64)
    gradient = unflatten(h, hyper)
    return Hypergradient(
        gradient=gradient,
        initial_weights={},
        initial_velocity={},
        hyper_loss=float(f),
        adjoint_norms=np.empty(0),
        method=method.name,
        cost=hypergradient_cost(problem, training, method, problem.steps * m, time.perf_counter() - started),
        diagnostics={
            "N": problem.steps,
            "zero": [k for k, one in gradient.items() if not any(map(np.any, one.values()))],
        },
    )


def start_tangents(problem: Problem) -> Any:
    """(drawn w_0, values, their m columns) → the m columns of ∂w_0."""

    def tangents(drawn: Tree, values: Tree, columns: Tree) -> Tree:
        return jax.vmap(lambda dot: jax.jvp(lambda one: problem.scaled(drawn, one), (values,), (dot,))[1])(columns)

    return tangents


def chunk(programs: Compiled) -> Any:
    """Some steps of (w, v, Z); Z = (∂w, ∂v) with a leading axis of m columns. Also each step's loss, and ‖Z‖ after it."""

    def advance(state: tuple, values: Tree, columns: Tree, data: Tree, xs: Tree) -> tuple:
        def one(state: tuple, x: tuple) -> tuple:
            (w, v, (Zw, Zv)), (indices, t) = state, x

            def whole(w: Tree, v: Tree, values: Tree) -> tuple[tuple[Tree, Tree], Array]:
                w, v, loss, _ = step(programs.inner, w, v, *programs.batch(values, data, indices), t)
                return (w, v), loss

            (w, v), tangent, loss = jax.linearize(whole, w, v, values, has_aux=True)
            Z = jax.vmap(tangent)(Zw, Zv, columns)
            return (w, v, Z), (loss, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(Z))))

        return lax.scan(one, state, xs)

    return advance


def judge(losses: np.ndarray, sizes: np.ndarray, start: int) -> None:
    """Raise for the first step whose loss, or after which ‖Z‖, is not finite."""
    for i in np.flatnonzero(~np.isfinite(losses) | ~np.isfinite(sizes))[:1]:
        if not np.isfinite(losses[i]):
            raise NumericalFailure("elementary loss", start + int(i), "a smaller learning rate may help")
        raise NumericalFailure(
            "forward derivative (‖Z‖)", start + int(i) + 1, "the run is chaotic or diverged; lower the learning rate"
        )


def one_hot(hyper: Hyper, m: int, dtype: np.dtype) -> Hyper:
    """The m unit directions, in the structure of `hyper`, with a leading axis of m."""
    out: Hyper = {}
    at = 0
    for kind, arrays in hyper.items():
        out[kind] = {}
        for key, u in arrays.items():
            block = np.zeros((m, u.size), dtype)
            block[at : at + u.size] = np.eye(u.size)
            out[kind][key] = block.reshape(m, *u.shape)
            at += u.size
    return out


def unflatten(h: Array, hyper: Hyper) -> Hyper:
    """(m,) numbers back into the structure of `hyper`, in the order of `one_hot`."""
    out: Hyper = {}
    at = 0
    for kind, arrays in hyper.items():
        out[kind] = {}
        for key, u in arrays.items():
            out[kind][key] = h[at : at + u.size].reshape(u.shape)
            at += u.size
    return out
