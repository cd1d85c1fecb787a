"""The adaptive method of the thesis on a task: n steps, M validation batches, K steps back, one step by signs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr

from hypertrail.errors import UsageError
from hypertrail.mantissa import BITS, refuse_beyond
from hypertrail.records import Cost
from hypertrail.task import Task

from ..declared import values
from ..inner import State, collect, reverse_step
from ..replay.undone import at_undone
from ..trees import dtype_of, filled, named, norm, zeros
from .block import Look, Place, Read, Report, Rule, Setting, back, batch_of, pulled_back, report, steps, validated
from .entries import chosen, clipped, each_entry, tunable

Array = Any
Tree = Any


def moves(look: Look) -> tuple[str, ...]:
    """The entries with a step above 0. UsageError where an entry has no step, where none moves, and for states='undone' where
    no step can be undone."""
    task, method, hyper = look.task, look.method, look.hyper
    found = tuple(name for name in tunable(task, hyper) if method.move(name) > 0)
    if not found:
        raise UsageError("adaptive moves nothing, all its steps are 0; give one above 0, or use Plain()")
    leaves = names_of(chosen(task, found, hyper))
    for name in method.averaged:
        if not any(name in both for both in leaves):
            raise UsageError(f"adaptive averaged {name!r}, found {', '.join(full for full, _ in leaves)}")
    if method.states == "undone":
        refuse_undo(look)
    return found


def refuse_undo(look: Look) -> None:
    task, method, s = look.task, look.method, look.s
    if getattr(task.update, "undo", None) is None:
        raise UsageError(
            f"adaptive with states='undone' undoes steps, which the update {type(task.update).__name__} does not offer "
            "(update.undo); use states='kept', or updates.Momentum(rate, momentum, 'damped')"
        )
    if named(s.carried):
        raise UsageError(
            f"adaptive with states='undone': the state of the task ({', '.join(named(s.carried))}) cannot be undone; "
            "use states='kept'"
        )
    precision = dtype_of(s.w).name
    if precision not in BITS:
        raise UsageError(f"adaptive with states='undone' needs float32 or float64, not {precision}; use states='kept'")
    if hasattr(task.update, "rates"):
        momenta = jax.tree.leaves(task.update.rates(s.w, look.given, 0)[1])
        smallest = [max(float(jnp.min(gamma)), 1e-300) for gamma in momenta]
        K, way_out = method.last, "lower last, or keep the states"
        refuse_beyond("adaptive with states='undone'", K, smallest, K, precision, way_out)


def remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> Tree:
    return zeros(chosen(task, setting.moves, hyper)) if setting.method.mass else ()


def forward(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, Array, Tree]:
    """n steps → (the place after them, the losses, the states before each of the last K)."""
    first = setting.method.steps - setting.method.last
    early, late = (part_of(read, part) for part in (slice(first), slice(first, None)))
    given = values(task, setting.steps, place.hyper)
    s, losses, _ = steps(task, setting, place.s, given, early)
    s, more, kept = steps(task, setting, s, given, late, keep=setting.method.states == "kept")
    return place._replace(s=s), jnp.concatenate([losses, more]), kept


def backward(
    task: Task, setting: Setting, after: tuple[Place, Array, Tree], read: Read, valid: Read
) -> tuple[Place, Tree, Report]:
    """One move of every entry that has a step, after n steps from s = (w, v, state) that led to s_n:

        dw, dstate, dλ ← mean ∇f(w_n, state_n, λ) over M random validation batches;   dv ← 0
        K times, from the last step:   dw, dv, dstate, dλ ← adjoint of the step         (`inner.reverse_step`)
        h ← dλ pulled back to the unconstrained arrays u;   of the arrays `averaged`: its mean over the last axis
        u ← clip(u − s sign(h)),  sign(0) = 0;     with mass m:  d ← m d − (1−m) sign(h),  u ← clip(u + s d)

    Cost: n + M gradients and K products. This part is a program of its own, so that it and `forward` each have the memory that
    they need, one after the other.
    """
    place, losses, kept = after
    method, s, K = setting.method, place.s, setting.method.last
    late = part_of(read, slice(method.steps - K, None))
    given = values(task, setting.steps, place.hyper)
    f, adjoint = validated(task, setting, s, given, valid.payload, valid.x[0])
    if method.states == "kept":
        (ds, dgiven), first = back(task, setting, adjoint, kept, given, late), jax.tree.map(lambda a: a[0], kept)
    else:
        (ds, dgiven), first = undone(task, setting, adjoint, s, given, late)
    h = pulled_back(task, setting, place.hyper, dgiven)
    hyper, memory = moved(task, setting, place.hyper, h, place.memory)
    size = norm(h) + 0 * norm(ds.w)  # an adjoint that is not finite may still meet a zero
    done = report(s, hyper, losses, f, size)
    return Place(s if method.mode == "restore" else first, hyper, memory), h, done


def part_of(read: Read, steps: slice) -> Read:
    return read._replace(x=jax.tree.map(lambda a: a[steps], read.x))


def undone(task: Task, setting: Setting, adjoint: tuple, s: State, given: Tree, read: Read) -> tuple[tuple, State]:
    """The adjoints of the last K steps, whose states are undone in floating point → (the adjoint, the state before them)."""

    def one(carry: tuple, x: Tree) -> tuple[tuple, None]:
        (after, dgiven), s = carry
        batch, rows = batch_of(task, setting, given, read.payload, x)
        _, s = at_undone(task, s, (), x, 0, rows, batch)
        before, share, _ = reverse_step(task, s, rows, batch, x["t"], x["t_update"], after)
        return ((before, collect(task, dgiven, share, batch)), s), None

    return lax.scan(one, (adjoint, s), read.x, reverse=True)[0]


def moved(task: Task, setting: Setting, hyper: Tree, h: Tree, memory: Tree) -> tuple[Tree, Tree]:
    """The step by signs, clipped to the declared bounds."""
    m, moving = setting.method.mass, chosen(task, setting.moves, hyper)
    d = jax.tree.map(lambda h: -jnp.sign(h), averaged(setting, h))
    if m:
        d = jax.tree.map(lambda d, now: m * d + (1 - m) * now, memory, d)

    def of_entry(name: str, part: Tree, d: Tree) -> Tree:
        s = setting.method.move(name) if name in setting.moves else 0.0
        return jax.tree.map(lambda u, d: u + s * d, part, d)

    return filled(hyper, clipped(task, each_entry(task, of_entry, moving, d))), d if m else ()


def averaged(setting: Setting, h: Tree) -> Tree:
    """The hypergradient as its signs are taken: of the arrays that `averaged` names the mean over the last axis."""

    def of_array(path: tuple, h: Array) -> Array:
        named = keystr(path) in setting.method.averaged or keystr(path[-1:], simple=True) in setting.method.averaged
        return jnp.broadcast_to(h.mean(axis=-1, keepdims=True), h.shape) if named and h.ndim else h

    return jax.tree_util.tree_map_with_path(of_array, h)


def names_of(tree: Tree) -> list[tuple[str, str]]:
    """(the path, its last key) of every array."""
    return [(keystr(path), keystr(path[-1:], simple=True)) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(method.steps + M, method.last)


RULE = Rule(moves, remembered, (forward, backward), cost)
