"""T1–T2 on a task: what the loss reads, moved by one elementary step's effect on the validation loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.errors import UsageError
from hypertrail.records import Cost
from hypertrail.task import Task

from ..declared import values
from ..inner import State, elementary_loss, seen, step
from ..trees import filled, norm, scaled
from .block import Look, Place, Read, Report, Rule, Setting, batch_of, periods, report, steps, validated
from .entries import by_value, chosen, from_values, named_moves, read_by, refuse_unknown_values, to_values
from .outer_moves import moved, refuse_outer, remembered

Array = Any
Tree = Any


def moves(look: Look) -> tuple[str, ...]:
    """The entries that the elementary loss reads, or those that `moves` names. UsageError for one that it does not read."""
    task, method, s = look.task, look.method, look.s
    refuse_outer(method)

    def loss(hyper: Tree, batch: Tree) -> Array:
        rows = seen(task, values(task, look.steps, hyper), batch)
        return elementary_loss(task, s.w, s.carried, rows, batch, jnp.zeros((), jnp.int32))[0]

    found = read_by(task, "loss", loss, look.hyper, look.batch)
    if not found:
        raise UsageError(
            "t1t2 moves what the loss reads, and this task's loss reads no hyperparameter; use Adaptive or Clarke"
        )
    names = named_moves(method, found, "the loss reads")
    if method.representation == "value":
        refuse_unknown_values(task, method, names)
    return names


def held_by(task: Task, setting: Setting) -> Task:
    """The task as its hyperparameters move: by their values, or as unconstrained arrays."""
    return by_value(task, setting.moves) if setting.method.representation == "value" else task


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, Tree, Report]:
    """Every `every` steps, after the step from w_t to w_{t+1}:

        u ← −∇_w f(w_{t+1}, state_{t+1}, λ)             the mean over the validation batches of this move
        h ← (∂_λ∇_w L(w_t, state_t, λ, batch_t))ᵀ u     of the λ that move
        λ ← clip(λ − outer(h · min(1, clip_norm / ‖h‖)))

    With at='same' u is taken at (w_t, state_t), and the move stands in the place of the step. λ is the value that the functions
    are given (representation='value'), or the unconstrained array. h is ∂f/∂λ through the weights of a step w ← w − η g, divided
    by η, whatever the update; f's own dependence on λ has no part in it, nor has the state that the loss hands on.
    Cost: one gradient a step; M gradients and one product for each move.
    """
    held, every = held_by(task, setting), setting.method.every
    by_values = held is not task

    def period(carry: tuple, x: tuple) -> tuple:
        (s, hyper, memory, _), (x, numbers) = carry, x
        given = values(held, setting.steps, hyper)
        before, last = jax.tree.map(lambda a: a[: every - 1], x), jax.tree.map(lambda a: a[-1], x)
        s, losses, _ = steps(task, setting, s, given, Read(read.payload, before))
        batch, rows = batch_of(task, setting, given, read.payload, last)
        after = s
        if setting.method.at == "after":
            after, loss = step(task, s, rows, batch, last["t"], last["t_update"])
            losses = jnp.concatenate([losses, loss[None]])

        f, (ds, _) = validated(task, setting, after, given, valid.payload, numbers)
        u = cut_each(setting, jax.tree.map(jnp.negative, ds.w))
        h = cut_each(setting, mixed(held, task, setting, s, hyper, u, batch, last["t"]))
        size = norm(h)
        factor = shortening(size, setting.method.clip_norm) if setting.method.clip == "all" else 1.0
        new = moved(held, setting, hyper, scaled(factor, h), memory)
        good = jnp.isfinite(size)
        hyper, memory = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, (hyper, memory))
        return (after, hyper, memory, h), (losses, f, size)

    hyper = to_values(task, setting.moves, place.hyper) if by_values else place.hyper
    first = (place.s, hyper, place.memory, chosen(task, setting.moves, hyper))
    (s, hyper, memory, h), (losses, f, sizes) = lax.scan(period, first, (periods(setting, read.x), valid.x))
    hyper = from_values(task, setting.moves, hyper) if by_values else hyper
    skipped: Any = 0
    if setting.method.nonfinite == "skip":
        skipped, sizes = jnp.sum(~jnp.isfinite(sizes)), jnp.zeros_like(sizes)
    return Place(s, hyper, memory), h, report(s, hyper, losses, f, sizes, skipped)


def mixed(held: Task, task: Task, setting: Setting, s: State, hyper: Tree, u: Tree, batch: Tree, t: Array) -> Tree:
    """(∂_λ∇_w L)ᵀ u: the tangent of w ↦ ∇_λ L in direction u; of a loss with a `custom_vjp`, whose second derivatives need not be
    symmetric, the adjoint of λ ↦ ∇_w L."""

    def loss(w: Tree, moving: Tree) -> Array:
        given = seen(task, values(held, setting.steps, filled(hyper, moving)), batch)
        return elementary_loss(task, w, s.carried, given, batch, t)[0]

    moving = chosen(task, setting.moves, hyper)
    if task.programs.get("symmetric", True):
        return jax.jvp(lambda w: jax.grad(loss, 1)(w, moving), (s.w,), (u,))[1]
    return jax.vjp(lambda moving: jax.grad(loss)(s.w, moving), moving)[1](u)[0]


def cut_each(setting: Setting, arrays: Tree) -> Tree:
    """With nonfinite='zero': 0 for what is not finite. With clip='each-tensor': no array longer than clip_norm."""
    if setting.method.nonfinite == "zero":
        arrays = jax.tree.map(lambda d: jnp.nan_to_num(d, nan=0.0, posinf=0.0, neginf=0.0), arrays)
    if setting.method.clip == "each-tensor":
        arrays = jax.tree.map(lambda d: scaled(shortening(norm(d), setting.method.clip_norm), d), arrays)
    return arrays


def shortening(size: Array, limit: float) -> Array:
    """What a vector of this norm is multiplied by so that it is no longer than `limit`."""
    return jnp.where(size > limit, limit / size, 1.0)


def cost(method: Any, M: int, m: int) -> Cost:
    left_out = method.move_count * (method.every - method.steps_before_move)
    return Cost(method.block + method.move_count * M - left_out, method.move_count)


RULE = Rule(moves, remembered, (block,), cost)
