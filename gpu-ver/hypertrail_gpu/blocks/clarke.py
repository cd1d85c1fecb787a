"""Clarke, Oldewage, Hernández-Lobato 2022 on a task: implicit differentiation of the update map by a truncated Neumann series."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from hypertrail.records import Cost
from hypertrail.task import Task

from ..declared import values
from ..inner import State, collect, step
from ..trees import filled, floats, norm
from .block import Look, Place, Read, Report, Rule, Setting, batch_of, periods, pulled_back, report, steps, validated
from .entries import chosen, named_moves, tunable
from .outer_moves import moved, refuse_outer, remembered

Array = Any
Tree = Any


def moves(look: Look) -> tuple[str, ...]:
    """All entries, or those that `moves` names."""
    refuse_outer(look.method)
    return named_moves(look.method, tunable(look.task, look.hyper))


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, Tree, Report]:
    """Every `every` steps, at the present (w, v, state), with the batch of the last step:

        Φ(w, λ) = w after one step with v and the state held
        dw, dλ ← ∂f/∂w, ∂f/∂λ
        for j = 0 … terms:   dw, dλ ← dw ∂Φ/∂w, dλ + dw ∂Φ/∂λ
        u ← clip(u − outer(h)),    h: dλ pulled back to the unconstrained arrays

    f's dependence on the state that the loss hands on has no part in h.
    Cost: one gradient a step; for a move M gradients and terms + 1 products.
    """

    def period(carry: tuple, x: tuple) -> tuple:
        (s, hyper, memory, _), (x, numbers) = carry, x
        given, last = values(task, setting.steps, hyper), jax.tree.map(lambda a: a[-1], x)
        s, losses, _ = steps(task, setting, s, given, Read(read.payload, x))
        batch, rows = batch_of(task, setting, given, read.payload, last)
        f, (ds, dgiven) = validated(task, setting, s, given, valid.payload, numbers)

        def phi(w: Tree, rows_floats: Tree) -> Tree:
            moving = State(w, s.v, s.carried)
            return step(task, moving, filled(rows, rows_floats), batch, last["t"], last["t_update"])[0].w

        _, pull = jax.vjp(phi, s.w, floats(rows))

        def term(_: Array, carry: tuple) -> tuple:
            dw, dgiven = carry
            dw, share = pull(dw)
            return dw, collect(task, dgiven, share, batch)

        dw, dgiven = lax.fori_loop(0, setting.method.terms + 1, term, (ds.w, dgiven))
        h = pulled_back(task, setting, hyper, dgiven)
        size = norm(h) + 0 * norm(dw)
        hyper, memory = moved(task, setting, hyper, h, memory)
        return (s, hyper, memory, h), (losses, f, size)

    first = (place.s, place.hyper, place.memory, chosen(task, setting.moves, place.hyper))
    (s, hyper, memory, h), (losses, f, sizes) = lax.scan(period, first, (periods(setting, read.x), valid.x))
    return Place(s, hyper, memory), h, report(s, hyper, losses, f, sizes)


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(method.block + method.move_count * M, method.move_count * (method.terms + 1))


RULE = Rule(moves, remembered, (block,), cost)
