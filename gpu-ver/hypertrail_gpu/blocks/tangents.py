"""RTHO and MARTHE(μ) on a task: derivatives of the state, carried along with the training, by which the hyperparameters move."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.errors import UsageError
from hypertrail.records import Cost
from hypertrail.task import Task

from ..declared import values
from ..inner import State, seen, step
from ..replay.forward import directions, through
from ..trees import filled, floats, norm, scaled, zeros
from . import outer_moves
from .block import Look, Place, Read, Report, Rule, Setting, periods, report, validated
from .entries import chosen, count, named_moves, tunable

Array = Any
Tree = Any


def moves(look: Look) -> tuple[str, ...]:
    """All entries, or those that `moves` names. UsageError for more numbers than `most`."""
    task, method, hyper = look.task, look.method, look.hyper
    outer_moves.refuse_outer(method)
    found = named_moves(method, tunable(task, hyper))
    m = count(chosen(task, found, hyper))
    if m > method.most:
        raise UsageError(
            f"{method.name} carries one state for each hyperparameter, {m} are more than most={method.most}; name few of them "
            "in moves=, share them, or use Adaptive"
        )
    return found


def remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> Tree:
    """Z_0 = 0: what λ does to the state before step 0 is past."""
    m = count(chosen(task, setting.moves, hyper))
    Z = jax.tree.map(lambda a: jnp.zeros((m, *a.shape), a.dtype), floats(s))
    return {"Z": Z, "outer": outer_moves.remembered(task, setting, s, hyper)}


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, Tree, Report]:
    """Each step, s = (w, v, state), with one column of Z for each number u_j that moves:

        Z ← μ A Z + B                     A = ∂(step)/∂s,  B = ∂(step)/∂u,  one linearisation with m tangents side by side
        every `every` steps:   h ← ∇f(w, state) Z + ∂f/∂u,    u ← clip(u − outer(h))

    Z_0 = 0, and Z goes on over moves and blocks; with `restart` it is 0 again after each move. RTHO: μ = 1.
    Cost of a step: one gradient and m tangents; of a move: M gradients. Memory: m states.
    """
    method = setting.method

    def period(carry: tuple, x: tuple) -> tuple:
        (s, Z, hyper, memory, _), (x, numbers) = carry, x
        given, columns = values(task, setting.steps, hyper), columns_of(task, setting, hyper)

        def one(carry: tuple[State, State], x: Tree) -> tuple[tuple[State, State], Array]:
            s, Z = carry
            batch = setting.pick(read.payload, x["at"])

            def whole(moving: State, given_floats: Tree) -> tuple[State, tuple]:
                rows = seen(task, filled(given, given_floats), batch)
                after, loss = step(task, filled(s, moving), rows, batch, x["t"], x["t_update"])
                return floats(after), (after, loss)

            _, tangent, (after, loss) = jax.linearize(whole, floats(s), floats(given), has_aux=True)
            return (after, jax.vmap(tangent)(scaled(method.mu, Z), columns)), loss

        (s, Z), losses = lax.scan(one, (s, Z), x)
        f, (ds, dgiven) = validated(task, setting, s, given, valid.payload, numbers)
        h = through(task, chosen(task, setting.moves, hyper), columns, ds, dgiven, Z)
        size = norm(h) + 0 * norm(Z.w)  # a Z that is not finite may still meet a zero gradient
        hyper, memory = outer_moves.moved(task, setting, hyper, h, memory)
        return (s, zeros(Z) if method.restart else Z, hyper, memory, h), (losses, f, size)

    hyper, memory = place.hyper, place.memory
    first = (place.s, memory["Z"], hyper, memory["outer"], chosen(task, setting.moves, hyper))
    last, (losses, f, sizes) = lax.scan(period, first, (periods(setting, read.x), valid.x))
    s, Z, hyper, outer, h = last
    return Place(s, hyper, {"Z": Z, "outer": outer}), h, report(s, hyper, losses, f, sizes)


def columns_of(task: Task, setting: Setting, hyper: Tree) -> Tree:
    """What a change of each number that moves does to the values, with a leading axis of m."""
    moving = chosen(task, setting.moves, hyper)

    def given(moving: Tree) -> Tree:
        return floats(values(task, setting.steps, filled(hyper, moving)))

    return jax.vmap(lambda direction: jax.jvp(given, (moving,), (direction,))[1])(directions(moving))


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(method.block + method.move_count * M, method.block * m)


RULE = Rule(moves, remembered, (block,), cost)
