"""The machinery on plain functions: any loss over any pytree, any pure update, any pytree of hyperparameters.

This is the core that the engine runs on its problems, and the public face for people who bring their own model:

    inner = Inner(loss, update)                       # loss(w, hyper, batch, t),  update(w, v, g, hyper, t)
    run = train(inner, w0, v0, hyper, batches)        # batches: a pytree with a leading axis of T steps
    result = hypergradient(inner, hyper_loss, run, hyper, batches)
    result.hyper                                      # d hyper_loss(w_T, hyper) / d hyper, exact
    slopes(inner, hyper_loss, w0, v0, hyper, batches) # is it right? beside differences of whole trainings

`step` and `reverse_step` are mirror images: what the first computes from (w, v), the second undoes for (dw, dv).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.errors import UsageError
from hypertrail.verify import LEVELS, START, derivative

Tree = Any


@dataclass(frozen=True)
class Inner:
    """An elementary problem. Both functions must be pure and traceable by JAX.

    loss(w, hyper, batch, t) → scalar, or (scalar, aux) with has_aux. Twice differentiable in w.
    update(w, v, g, hyper, t) → (w, v): what one gradient g does; w, v, g, hyper are pytrees of floating point arrays. v may
    also hold other leaves (counters, keys): they are carried along and nothing is differentiated with respect to them.
    For an optax transformation: `transformation.from_optax`.
    """

    loss: Callable[..., Any]
    update: Callable[..., tuple[Tree, Tree]]
    has_aux: bool = False


def step(inner: Inner, w: Tree, v: Tree, hyper: Tree, batch: Tree, t: Any) -> tuple[Tree, Tree, Any, Tree]:
    """One elementary step: (w_t, v_t) → (w_{t+1}, v_{t+1}), loss at w_t, aux. Cost: one gradient.

    g ← ∇_w L(w, λ, batch)
    (w, v) ← update(w, v, g, λ)
    """
    out, g = jax.value_and_grad(inner.loss, has_aux=inner.has_aux)(w, hyper, batch, t)
    loss, aux = out if inner.has_aux else (out, None)
    w, v = inner.update(w, v, g, hyper, t)
    return w, v, loss, aux


def reverse_step(
    inner: Inner, w: Tree, v: Tree, hyper: Tree, batch: Tree, t: Any, dw: Tree, dv: Tree
) -> tuple[Tree, Tree, Tree]:
    """The adjoint of `step` at (w_t, v_t): (dw_{t+1}, dv_{t+1}) → (dw_t, dv_t) and this step's share of dλ.

        u, dw, dv, dλ ← adjoint of update            (u: cotangent of g)
        dw += (∂²L/∂w²) u,   dλ += (∂²L/∂λ∂w)ᵀ u

    Cost: one gradient with its HVP. Source: Maclaurin et al. 2015, algorithm 2; Franceschi et al. 2017, algorithm 1.
    """
    g, tangent = linearise(inner, w, hyper, batch, t)
    return pull(inner, w, v, g, tangent, hyper, t, dw, dv)


def linearise(
    inner: Inner, w: Tree, hyper: Tree, batch: Tree, t: Any
) -> tuple[Tree, Callable[[Tree], tuple[Tree, Tree]]]:
    """g = ∇_w L, and the map u ↦ ((∂²L/∂w²) u, (∂²L/∂λ∂w)ᵀ u).

    ONE forward-over-reverse linearisation of w ↦ (∇_w L, ∇_λ L): its value is g, its tangent both products, since
    the Hessian is symmetric and ∂(∇_λ L)/∂w · u is the mixed term. Cost: one gradient, and one HVP when the map is used.
    """

    def gradients(w: Tree) -> Tree:
        out = jax.grad(inner.loss, argnums=(0, 1), has_aux=inner.has_aux)(w, hyper, batch, t)
        return out[0] if inner.has_aux else out

    (g, _), tangent = jax.linearize(gradients, w)
    return g, tangent


def pull(
    inner: Inner, w: Tree, v: Tree, g: Tree, tangent: Callable[..., Any], hyper: Tree, t: Any, dw: Tree, dv: Tree
) -> tuple[Tree, Tree, Tree]:
    """The rest of `reverse_step`, once g is there: for providers that need g to find v_t."""

    def update(w: Tree, moving: Tree, g: Tree, hyper: Tree) -> tuple[Tree, Tree]:
        w, v_next = inner.update(w, filled(v, moving), g, hyper, t)
        return w, floats(v_next)

    _, update_pull = jax.vjp(update, w, floats(v), g, hyper)
    dw, dv, u, dhyper = update_pull((dw, dv))
    hvp, mixed = tangent(u)
    return add(dw, hvp), dv, add(dhyper, mixed)


def add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def zeros(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)


def floats(tree: Tree) -> Tree:
    """The same tree with None in place of every leaf that is not floating point: what can be differentiated."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else None, tree)


def filled(tree: Tree, moving: Tree) -> Tree:
    """`tree` with the leaves of `moving`, and its own where that has None: undoes `floats`."""
    return jax.tree.map(lambda a, b: a if b is None else b, tree, moving)


class Run(NamedTuple):
    """w, v: the state after T steps; losses: (T,); w_path, v_path: the states before step 0, every, 2 every, …, stacked."""

    w: Tree
    v: Tree
    losses: Any
    w_path: Tree
    v_path: Tree


class Result(NamedTuple):
    """value: the hyper loss; hyper, w0, v0: its gradient with respect to λ, w_0 and v_0, same structure as those (None in v0
    for what is not floating point)."""

    value: Any
    hyper: Tree
    w0: Tree
    v0: Tree


@partial(jax.jit, static_argnums=0, static_argnames="every")
def train(inner: Inner, w0: Tree, v0: Tree, hyper: Tree, batches: Tree, *, every: int = 1) -> Run:
    """T elementary steps in one compiled scan, T the length of the leading axis of `batches`.

    every: keep the state of each so many steps only, the reverse pass computes the others again: T/every + every states in
    place of T, for one more training; √T is the least. Raises UsageError where it does not divide T.
    Cost: T gradients; memory: T/every states. Compiles once for each `inner` (keep the object), `every` and set of shapes.
    """
    steps = length(batches)
    if every < 1 or steps % every:
        raise UsageError(f"train: a state every {every} steps, expected a divisor of the {steps} steps")

    def forward(state: Tree, x: Tree) -> Tree:
        w, v, loss, _ = step(inner, *state, hyper, *x)
        return (w, v), loss

    def stretch(state: Tree, xs: Tree) -> Tree:
        after, losses = lax.scan(forward, state, xs) if every > 1 else forward(state, xs)
        return after, (losses, state)

    (w, v), (losses, (w_path, v_path)) = lax.scan(stretch, (w0, v0), stretches((batches, jnp.arange(steps)), every))
    return Run(w, v, losses.reshape(steps), w_path, v_path)


@partial(jax.jit, static_argnums=(0, 1))
def hypergradient(inner: Inner, hyper_loss: Callable[..., Any], run: Run, hyper: Tree, batches: Tree) -> Result:
    """Exact gradient of hyper_loss(w_T, hyper) through all T steps, by the kept states of `run`.

    Cost: T gradients with their HVPs, one gradient of the hyper loss; T gradients more where `run` kept a state every so many
    steps. Equal to `jax.grad` through the unrolled loop.
    """
    steps = length(batches)
    every = steps // length((run.w_path, run.v_path))
    value, (dw, dhyper) = jax.value_and_grad(hyper_loss, argnums=(0, 1))(run.w, hyper)

    def backward(adjoint: Tree, x: Tree) -> Tree:
        (dw, dv, dhyper), ((batch, t), (w, v)) = adjoint, x
        dw, dv, more = reverse_step(inner, w, v, hyper, batch, t, dw, dv)
        return (dw, dv, add(dhyper, more)), None

    def again(state: Tree, x: Tree) -> Tree:
        return step(inner, *state, hyper, *x)[:2], state

    def stretch(adjoint: Tree, x: Tree) -> Tree:
        xs, state = x
        _, states = lax.scan(again, state, xs)
        return lax.scan(backward, adjoint, (xs, states), reverse=True)

    start = (dw, zeros(floats(run.v)), dhyper)
    path = (stretches((batches, jnp.arange(steps)), every), (run.w_path, run.v_path))
    (dw, dv, dhyper), _ = lax.scan(stretch if every > 1 else backward, start, path, reverse=True)
    return Result(value, dhyper, dw, dv)


def length(tree: Tree) -> int:
    """Of the leading axis."""
    return int(jax.tree.leaves(tree)[0].shape[0])


def stretches(tree: Tree, every: int) -> Tree:
    """(T, …) → (T/every, every, …); every = 1: as it is."""
    return tree if every == 1 else jax.tree.map(lambda a: a.reshape(-1, every, *a.shape[1:]), tree)


class Slopes(NamedTuple):
    """The derivative of the hyper loss along one direction: by the hypergradient, and by differences of whole trainings."""

    hypergradient: float
    differences: float


def slopes(
    inner: Inner, hyper_loss: Callable[..., Any], w0: Tree, v0: Tree, hyper: Tree, batches: Tree, seed: int = 0
) -> Slopes:
    """Is the hypergradient right? Its slope along a random direction d beside the differences of whole trainings.

        d: ±1 for each number of λ;   ⟨df/dλ, d⟩   and   (f(λ + ε d) − f(λ − ε d)) / 2ε,  extrapolated to ε = 0

    In float64, whatever the arrays are: the two agree to 1e-6 of the larger where the loss is smooth. They do not where the
    functions have kinks (relu), cast to float32 themselves, or where a tree of `batches` or `w0` holds what λ should reach.
    v0 counts as a constant. Cost: one hypergradient, up to 16 trainings, and the compilation of both for float64.
    """
    with jax.enable_x64(True):
        w0, v0, hyper, batches = jax.tree.map(doubled, (w0, v0, hyper, batches))
        rng = np.random.default_rng(seed)
        signs = jax.tree.map(lambda u: jnp.asarray(rng.choice([-1.0, 1.0], size=u.shape)), hyper)

        def f(epsilon: float) -> float:
            moved = jax.tree.map(lambda u, d: u + epsilon * d, hyper, signs)
            return float(hyper_loss(train(inner, w0, v0, moved, batches).w, moved))

        gradient = hypergradient(inner, hyper_loss, train(inner, w0, v0, hyper, batches), hyper, batches).hyper
        slope = float(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, signs))))
        return Slopes(slope, derivative(f, START, LEVELS, abs(slope) * 1e-7))


def doubled(leaf: Any) -> Any:
    """The same numbers in float64; what is not floating point (indices, keys) as it is."""
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf
