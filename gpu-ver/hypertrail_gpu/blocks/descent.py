"""Hypergradient descent on a task: the learning rate follows ⟨this gradient, the last direction⟩."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.errors import UsageError
from hypertrail.hyper import Linear, Log
from hypertrail.records import Cost
from hypertrail.task import Task

from ..inner import State
from ..trees import zeros
from .block import Look, Place, Read, Report, Rule, Setting, gradient, report
from .rates import Rate, refuse_many_rates, refuse_rate

Array = Any
Tree = Any


def moves(look: Look) -> tuple[str, ...]:
    """The learning rate: one number, or one that is declared over the weights."""
    found, leaf = refuse_rate(look), refuse_many_rates(look)
    if look.method.rule == "multiplicative" and not isinstance(leaf, Log | Linear):
        raise UsageError(
            f"hypergradient-descent with rule='multiplicative' multiplies the rate itself, and hyper {look.method.rate!r} may be "
            "its logarithm; declare it as Log(…), or use rule='additive'"
        )
    return found


def remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> Tree:
    return zeros(s.w)


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, None, Report]:
    """Each step, α the value of the rate:

        g ← ∇_w L(w, state, λ, batch)
        h ← Σ g ⊙ D over the weights that share an α
        α ← clip(α − β h),   or   α ← clip(α (1 − β h / (‖g‖ ‖D‖))), the norms over the same weights; unmoved where one is 0
        w, v ← update(w, v, g, λ) with the new α
        D ← ∂w/∂α: the tangent of that update, v and g held, where all α grow by one at once

    D = 0 before the first step. For w ← w + α v it is v. Any update has one; where a weight's move depends on the α of other
    weights, too, D is the sum of these derivatives. Within a block α itself is carried. L is taken with the α before the move.
    Cost: one gradient a step. Memory: one direction.
    """
    rate = Rate(task, setting.steps, setting.method.rate, place.hyper)

    def one(carry: tuple, x: Tree) -> tuple[tuple, Array]:
        (s, alpha, D), batch = carry, setting.pick(read.payload, x["at"])
        g, loss, carried = gradient(task, s.w, s.carried, rate.given(alpha, batch), batch, x["t"])
        alpha = moved(setting, rate, alpha, g, D)

        def update(alpha: Tree) -> tuple[Tree, Tree]:
            return task.update(s.w, s.v, g, rate.given(alpha, batch), x["t_update"])

        w, D, v = jax.jvp(update, (alpha,), (jax.tree.map(jnp.ones_like, alpha),), has_aux=True)
        return (State(w, v, carried), alpha, D), loss

    (s, alpha, D), losses = lax.scan(one, (place.s, rate.first(), place.memory), read.x)
    hyper = rate.moved(alpha)
    return Place(s, hyper, D), None, report(s, hyper, losses)


def moved(setting: Setting, rate: Rate, alpha: Tree, g: Tree, D: Tree) -> Tree:
    """α after a step."""
    β = setting.method.beta
    h = rate.sums(alpha, jax.tree.map(jnp.multiply, g, D))
    if setting.method.rule == "additive":
        return rate.clipped(jax.tree.map(lambda alpha, h: alpha - β * h, alpha, h))
    squares = (rate.sums(alpha, jax.tree.map(jnp.square, tree)) for tree in (g, D))

    def of_array(alpha: Array, h: Array, g2: Array, D2: Array) -> Array:
        size = jnp.sqrt(g2) * jnp.sqrt(D2)
        return alpha * (1 - β * h / jnp.where(size > 0, size, 1.0))

    return rate.clipped(jax.tree.map(of_array, alpha, h, *squares))


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(method.block)


RULE = Rule(moves, remembered, (block,), cost)
