"""OSGM with hypergradient feedback (HDM) on a task: AdaGrad on the learning rate, and steps that may be refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.records import Cost
from hypertrail.task import Task

from ..inner import State
from ..trees import filled, floats, norm, zeros
from .block import Look, Place, Read, Report, Rule, Setting, gradient, report
from .entries import entry
from .rates import Rate, refuse_rate

Array = Any
Tree = Any


def moves(look: Look) -> tuple[str, ...]:
    """The learning rate: one number, a tree of numbers, or one that is declared over the weights."""
    return refuse_rate(look)


def remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> Tree:
    return zeros(floats(entry(task, setting.moves[0], hyper)))


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, None, Report]:
    """Each step, P the value of the rate, both gradients on the same batch and masks, with the state before the step:

        g ← ∇_w L(w),    w⁺, v⁺ ← update(w, v, g, λ),    g⁺ ← ∇_w L(w⁺)
        h ← (∂w⁺/∂P)ᵀ g⁺ / ‖g‖²                          by jax.vjp of the update, v and g held
        G ← G + h²,    P ← clip(P − η h / (√G + ε))
        w, v ← w⁺, v⁺ only if L(w⁺) < L(w)

    For w⁺ = w − P g this is h = −g⁺ ⊙ g / ‖g‖², summed over the weights that share a P: the published rule. For other updates h
    is the slope of L(w⁺) by P, over ‖g‖².
    Cost: two gradients a step. Memory: an array like P.
    """
    η, ε = setting.method.learning_rate, setting.method.epsilon
    rate = Rate(task, setting.steps, setting.method.rate, place.hyper)
    fixed = rate.first()

    def one(carry: tuple, x: Tree) -> tuple[tuple, tuple]:
        (s, P, G), batch = carry, setting.pick(read.payload, x["at"])

        def given(P: Tree) -> Tree:
            return rate.given(filled(fixed, P), batch)

        def update(P: Tree) -> tuple[Tree, Tree]:
            return task.update(s.w, s.v, g, given(P), x["t_update"])

        g, loss, carried = gradient(task, s.w, s.carried, given(P), batch, x["t"])
        w_new, pull, v_new = jax.vjp(update, P, has_aux=True)
        g_new, loss_new, _ = gradient(task, w_new, s.carried, given(P), batch, x["t"])

        size = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(g))
        h = jax.tree.map(lambda d: d / jnp.where(size > 0, size, 1.0).astype(d.dtype), pull(g_new)[0])
        G = jax.tree.map(lambda G, h: G + h**2, G, h)
        P = jax.tree.map(lambda P, h, G: P - η * h / (jnp.sqrt(G) + ε), P, h, G)
        P = floats(rate.clipped(filled(fixed, P)))
        falls = loss_new < loss
        w, v = jax.tree.map(lambda new, old: jnp.where(falls, new, old), (w_new, v_new), (s.w, s.v))
        return (State(w, v, carried), P, G), (loss, norm(h))

    (s, P, G), (losses, sizes) = lax.scan(one, (place.s, floats(fixed), place.memory), read.x)
    hyper = rate.moved(filled(fixed, P))
    return Place(s, hyper, G), None, report(s, hyper, losses, sizes=sizes)


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(2 * method.block)


RULE = Rule(moves, remembered, (block,), cost)
