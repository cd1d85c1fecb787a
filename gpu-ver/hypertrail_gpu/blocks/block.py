"""What a block is made of, and the loops that several methods share: steps forward, validation batches, steps back.

A method is one traceable function from a Place to the next one. It is compiled once for each task and Setting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.records import Cost
from hypertrail.task import Task

from ..batches import Inputs, Pick
from ..declared import values
from ..inner import State, collect, elementary_loss, hyper_loss, reverse_step, seen, step
from ..judging import judge
from ..trees import dtype_of, filled, floats, norm, zeros
from .entries import chosen

Array = Any
Tree = Any


class Setting(NamedTuple):
    """What the program of a block is compiled for; it is hashable.

    method: the declaration. steps: T of the task. pick, pick_valid: how a batch is taken from a payload. moves: the names of the
    first-level entries of hyper that move.
    """

    method: Any
    steps: int
    pick: Pick
    pick_valid: Pick
    moves: tuple[str, ...]


class Place(NamedTuple):
    """Where a run stands: the state of training, the arrays of the hyperparameters, and what the method remembers."""

    s: State
    hyper: Tree
    memory: Tree


class Read(NamedTuple):
    """Batches that a block reads. payload: where they are. x: the table of the steps; of validation batches, (moves, M) their
    numbers in the payload."""

    payload: Tree
    x: Tree


class Report(NamedTuple):
    """What the host looks at. losses: of the steps. hyper_losses: one for each move. sizes: norms that must be finite, one for
    each move. weights: ‖w‖ at the end. lost: whether a hyperparameter is NaN (an infinite one may be right: log 0). skipped:
    moves that were left out."""

    losses: Array
    hyper_losses: Array
    sizes: Array
    weights: Array
    lost: Array
    skipped: Array


class Look(NamedTuple):
    """What a method is given to say what it moves: the task and its T, the declaration, the arrays of the hyperparameters and
    their values, the state before step 0, and the shapes of a batch."""

    task: Task
    steps: int
    method: Any
    hyper: Tree
    given: Tree
    s: State
    batch: Tree


class Rule(NamedTuple):
    """A method on tasks.

    moves(look) → the names of the entries of hyper that move; it raises UsageError for a task on which the method cannot run.
    start(task, setting, s, hyper) → the memory before the first block, traceable.
    parts: the traceable functions that make a block, each a program of its own. The first is given a Place, each further one
        what the one before it returned, and all of them the training batches and the validation batches, as Read. The last one
        returns (Place, the last hypergradient or None, Report).
    cost(method, M, m) → of a block with M validation batches a move and m numbers that move, by the rule of `records.Cost`.
    """

    moves: Callable[[Look], tuple[str, ...]]
    start: Callable[..., Tree]
    parts: tuple[Callable[..., Any], ...]
    cost: Callable[[Any, int, int], Cost]


def nothing_remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> tuple:
    return ()


def batch_of(task: Task, setting: Setting, given: Tree, payload: Tree, x: Tree) -> tuple[Tree, Tree]:
    """(the batch of one step, the values as it sees them)."""
    batch = setting.pick(payload, x["at"])
    return batch, seen(task, given, batch)


def gradient(task: Task, w: Tree, carried: Tree, rows: Tree, batch: Tree, t: Array) -> tuple[Tree, Array, Tree]:
    """(∇_w L, L, the next state). Cost: one gradient."""

    def loss(w: Tree) -> tuple[Array, Tree]:
        return elementary_loss(task, w, carried, rows, batch, t)

    (value, carried), g = jax.value_and_grad(loss, has_aux=True)(w)
    return g, value, carried


def steps(
    task: Task, setting: Setting, s: State, given: Tree, read: Read, keep: bool = False
) -> tuple[State, Array, Tree]:
    """Plain steps forward → (the state after them, L before each, the states before each where `keep`). Cost: a gradient each."""

    def one(s: State, x: Tree) -> tuple[State, tuple[Array, Any]]:
        batch, rows = batch_of(task, setting, given, read.payload, x)
        after, loss = step(task, s, rows, batch, x["t"], x["t_update"])
        return after, (loss, s if keep else ())

    s, (losses, kept) = lax.scan(one, s, read.x)
    return s, losses, kept


def validated(
    task: Task, setting: Setting, s: State, given: Tree, payload: Tree, numbers: Array
) -> tuple[Array, tuple]:
    """(f, (the adjoint of the state, ∂f/∂values)): means over these validation batches. Cost: a gradient each."""
    M = len(numbers)
    total = jnp.zeros((), dtype_of(s.w)), *zeros((s.w, floats(s.carried), floats(given)))
    inputs = Inputs(given, payload, {"at": numbers}, 0, M)
    total = judge(task, setting.pick_valid, hyper_loss, total, s.w, s.carried, inputs)
    f, dw, dcarried, dgiven = jax.tree.map(lambda a: a / M, total)
    return f, (State(dw, zeros(floats(s.v)), dcarried), dgiven)


def back(task: Task, setting: Setting, adjoint: tuple, kept: State, given: Tree, read: Read) -> tuple:
    """The exact adjoints of the steps whose states were kept, from the last one to the first. Cost: a product each."""

    def one(adjoint: tuple, kept_and_x: tuple[State, Tree]) -> tuple[tuple, None]:
        (after, dgiven), (s, x) = adjoint, kept_and_x
        batch, rows = batch_of(task, setting, given, read.payload, x)
        before, share, _ = reverse_step(task, s, rows, batch, x["t"], x["t_update"], after)
        return (before, collect(task, dgiven, share, batch)), None

    return lax.scan(one, adjoint, (kept, read.x), reverse=True)[0]


def pulled_back(task: Task, setting: Setting, hyper: Tree, dgiven: Tree) -> Tree:
    """From the adjoint of the values to that of the unconstrained arrays that move; None in all other places."""
    moving = chosen(task, setting.moves, hyper)

    def of_moving(moving: Tree) -> Tree:
        return floats(values(task, setting.steps, filled(hyper, moving)))

    return jax.vjp(of_moving, moving)[1](dgiven)[0]


def periods(setting: Setting, x: Tree) -> Tree:
    """The table of a block in rows of `every` steps, one row for each move."""
    method = setting.method
    return jax.tree.map(lambda a: a.reshape(method.move_count, method.every, *a.shape[1:]), x)


def report(
    s: State, hyper: Tree, losses: Array, hyper_losses: Any = None, sizes: Any = None, skipped: Any = 0
) -> Report:
    none = jnp.zeros(0, losses.dtype)
    lost = jnp.stack([jnp.isnan(u).any() for u in jax.tree.leaves(floats(hyper))]).any()
    hyper_losses, sizes = (none if a is None else jnp.ravel(a) for a in (hyper_losses, sizes))
    return Report(losses.reshape(-1), hyper_losses, sizes, norm(s.w), lost, jnp.asarray(skipped))


__all__ = [
    "Look",
    "Place",
    "Read",
    "Report",
    "Rule",
    "Setting",
    "back",
    "batch_of",
    "gradient",
    "nothing_remembered",
    "periods",
    "pulled_back",
    "report",
    "steps",
    "validated",
]
