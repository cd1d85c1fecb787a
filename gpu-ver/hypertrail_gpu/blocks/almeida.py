"""Almeida, Langlois, Amaral, Plakhov 1998 on a task: a learning rate for each weight, moved by two gradients in a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.errors import UsageError
from hypertrail.records import Cost
from hypertrail.task import Task

from ..declared import is_declared
from ..inner import State, program
from ..trees import dtype_of, filled, floats, zeros
from .block import Look, Place, Read, Report, Rule, Setting, gradient, report
from .rates import Rate, refuse_many_rates, refuse_rate

Array = Any
Tree = Any

BIG = 1000.0  # a gradient that no clipping leaves as it is


def moves(look: Look) -> tuple[str, ...]:
    """The learning rate. UsageError where it is not one for each weight, or where the update is not gradient descent."""
    method, found = look.method, refuse_rate(look)
    leaf = refuse_many_rates(look)
    if not is_declared(leaf) or leaf.over is None or leaf.over.by != "parameter":
        raise UsageError(
            f"almeida has one learning rate for each weight; declare hyper {method.rate!r} as Log(…, over=Shared('parameter'))"
        )
    batch = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), look.batch)
    if not program(look.task, descends, look.steps, method.rate)(look.s, look.hyper, batch):
        raise UsageError(
            f"almeida is gradient descent, w ← w − p g with p from hyper {method.rate!r}, and the update of this task moves the "
            "weights otherwise (momentum, decay, clipping, a scale); use updates.Momentum with momentum 0"
        )
    return found


def descends(task: Task, steps: int, name: str, s: State, hyper: Tree, batch: Tree) -> Array:
    """Whether the update of step 0 is w ← w − p g, tried at w = v = 1 and g = 1000: the step there, and its derivatives by w
    (1), v (0) and g (−p)."""
    rate = Rate(task, steps, name, hyper)
    p = rate.spread(rate.first(), s.w)
    ones, given = jax.tree.map(jnp.ones_like, (s.w, floats(s.v))), rate.given(rate.first(), batch)
    start = (*ones, jax.tree.map(lambda a: jnp.full_like(a, BIG), s.w))

    def update(w: Tree, v: Tree, g: Tree) -> Tree:
        return task.update(w, filled(s.v, v), g, given, jnp.zeros((), jnp.int32))[0]

    w, tangent = jax.linearize(update, *start)
    still = zeros(start)
    by_w, by_v, by_g = (tangent(*still[:i], (*ones, ones[0])[i], *still[i + 1 :]) for i in range(3))
    small = 16 * float(jnp.finfo(dtype_of(s.w)).eps)

    def alike(found: Tree, true: Tree) -> list[Array]:
        return jax.tree.leaves(
            jax.tree.map(lambda a, b: jnp.all(jnp.abs(a - b) <= small * (1 + jnp.abs(b))), found, true)
        )

    pairs = [
        (w, jax.tree.map(lambda p: 1 - p * BIG, p)),
        (by_w, ones[0]),
        (by_v, still[0]),
        (by_g, jax.tree.map(jnp.negative, p)),
    ]
    return jnp.stack([same for found, true in pairs for same in alike(found, true)]).all()


def remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> Tree:
    return {"gradient": zeros(s.w), "square": zeros(s.w)}


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, None, Report]:
    """Each step, for each weight, g_last = 0 and s = 0 before the first:

        g ← ∇_w L(w, state, λ, batch)
        s ← γ s + (1−γ) g²
        p ← clip(p · max(½, 1 + k g g_last / s))        unmoved where s = 0
        w, v ← update(w, v, g, λ) with the new p         w ← w − p g

    Cost: one gradient a step. Memory: two vectors.
    """
    k, γ = setting.method.k, setting.method.average
    rate = Rate(task, setting.steps, setting.method.rate, place.hyper)

    def one(carry: tuple, x: Tree) -> tuple[tuple, Array]:
        (s, p, last, square), batch = carry, setting.pick(read.payload, x["at"])
        g, loss, carried = gradient(task, s.w, s.carried, rate.given(p, batch), batch, x["t"])
        square = jax.tree.map(lambda s, g: γ * s + (1 - γ) * g**2, square, g)
        agreement = rate.sums(p, jax.tree.map(agreeing, g, last, square))
        p = rate.clipped(jax.tree.map(lambda p, a: p * jnp.maximum(0.5, 1 + k * a), p, agreement))
        w, v = task.update(s.w, s.v, g, rate.given(p, batch), x["t_update"])
        return (State(w, v, carried), p, g, square), loss

    first = (place.s, rate.first(), place.memory["gradient"], place.memory["square"])
    (s, p, last, square), losses = lax.scan(one, first, read.x)
    hyper = rate.moved(p)
    return Place(s, hyper, {"gradient": last, "square": square}), None, report(s, hyper, losses)


def agreeing(g: Array, last: Array, s: Array) -> Array:
    """g g_last / s, 0 where s = 0."""
    return jnp.where(s > 0, g * last / jnp.where(s > 0, s, 1.0), 0.0)


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(method.block)


RULE = Rule(moves, remembered, (block,), cost)
