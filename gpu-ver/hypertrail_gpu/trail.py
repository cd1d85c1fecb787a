"""T steps forward, and THE reverse pass: two loops over compiled chunks of steps, mirror images of each other.

    trail = train(task, keep="memory")          # the training, and what was kept of its trajectory
    result = hypergradient(trail, Exact())      # d (mean hyper loss after T steps) / d hyper

After each chunk, while the device is busy with the next one, the numbers of the last are looked at, states are stored and
progress is told. Where the states of the reverse pass come from is a replay's business (the folder replay).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, VerificationFailure
from hypertrail.methods import MEASURED_STEPS
from hypertrail.runs.midway import Midway
from hypertrail.task import Task

from . import batches as of_batches
from . import refusals
from .batches import Inputs, Memory, Pick, ahead, fed, table
from .beginning import Beginning, beginning, pull_start, pull_values
from .declared import initial
from .inner import State, collect, hyper_loss, program, reverse_step, seen
from .judging import HyperLoss, hyper_gradient, validation
from .keeper import Ends
from .layout import Layout, layout_of
from .midway import Here, taken_up, write
from .trees import add, dtype_of, named, norm, subtract

Array = Any
Tree = Any

CHUNK_BYTES = 256 << 20
DIVERGED = "the reverse pass diverged; lower the learning rate, or take fewer steps"


@dataclass
class Trail:
    """One training run, and all that its hypergradient needs. It holds its hyperparameters and batches by reference, so there
    is nothing that a caller could mismatch.

    begun: where it began. whole: the number of steps that the values are made for. losses: (T,) float64, L before each step.
    distances: ‖w_{t+1} − w_0‖ of the first 20 steps. kept: the keeper, with what it kept.
    """

    task: Task
    begun: Beginning
    batches: Memory
    whole: int
    chunk: int
    kept: Any
    losses: np.ndarray
    distances: np.ndarray
    position: Any = None
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        return self.batches.steps

    @property
    def hyper(self) -> Tree:
        """The arrays that are moved."""
        return self.begun.hyper

    @property
    def values(self) -> Tree:
        """What the functions of the task were given."""
        return self.begun.values

    @property
    def start(self) -> State:
        """The state before step 0."""
        return self.begun.state

    @property
    def end(self) -> State:
        """The state after T steps."""
        return self.kept.leave(self.position)


# (task, T, λ, the state before step 0, steps that an earlier start took, what is remembered of this training) → (the task as it
# is trained, the keeper of its states); see `replay.keeper`
MakeKeeper = Callable[[Task, int, Tree, State], tuple[Task, Ends]]


def train(
    task: Task,
    make_keeper: MakeKeeper,
    hyper: Tree = None,
    progress: Progress | None = None,
    midway: Midway | None = None,
) -> Trail:
    """T steps from the beginning, T being the number of the task's batches. Cost: T gradients.

    hyper: in the place of task.hyper. midway: where an earlier start left off, and where this one leaves what a later one needs.
    Raises UsageError for what cannot be trained, before anything is; NumericalFailure, naming the step, for the first loss
    that is not finite.
    """
    batches = fed(task, "batches")
    hyper = initial(task, batches.steps) if hyper is None else hyper
    refusals.refuse_no_arrays(task, hyper)
    begun = beginning(task, hyper, batches.steps)
    refusals.refuse_measures(task, begun.state, begun.values, validation(task))
    return train_from(task, begun, batches, make_keeper, progress, midway)


def train_from(
    task: Task,
    begun: Beginning,
    batches: Memory,
    make_keeper: MakeKeeper,
    progress: Progress | None = None,
    midway: Midway | None = None,
    whole: int | None = None,
) -> Trail:
    """`train` from a beginning that is there already, on batches that are not the task's own.

    whole: the number of steps of a longer training, whose programs are to be used.
    """
    started = time.perf_counter()
    T, s, given = batches.steps, begun.state, begun.values
    refusals.refuse_misfit(task, s, given, batches)
    middle = Here(0, s) if midway is None else taken_up(midway, s)
    task, kept = make_keeper(task, T, given, s, middle.step, {} if midway is None else midway.about)
    length = chunk_length(whole or T, s)
    cuts = kept.cuts()
    spans = [(i, min(i + length, b)) for a, b in pairwise(cuts) for i in range(a, b, length)]
    length = length if whole else max(b - a for a, b in spans)
    trail = Trail(task, begun, batches, whole or T, length, kept, np.zeros(T), np.zeros(min(T, MEASURED_STEPS)))
    trail.losses[: middle.step] = middle.losses
    trail.distances[: len(middle.distances)] = middle.distances
    spans = [(max(a, middle.step), b) for a, b in spans if b > middle.step]
    if kept.keeps_states:
        kept.layout = layout_of(task, s, given, batches.like())
    position = kept.enter(task, middle.state, given)

    def look(a: int, b: int, path: Tree, record: tuple, position: Any) -> None:
        losses, distances, size = (np.asarray(array) for array in record)
        refuse_first(losses[: b - a], kept.quantity, batches.first + a, kept.hint)
        if not np.isfinite(size):  # every step had a loss, but the last of them led nowhere
            raise NumericalFailure("elementary weights", batches.first + b, kept.hint)
        trail.losses[a:b] = losses[: b - a]
        measured = trail.distances[a:b]
        measured[:] = distances[: len(measured), 0]
        kept.after(a, b, path, distances[: b - a, 1:], position)
        if midway and midway.due():
            kept.flush()
            spent = middle.seconds + time.perf_counter() - started
            write(midway, Here(b, kept.leave(position), trail.losses[:b], trail.distances[:b], spent))
        if progress:
            progress(b, T)

    try:
        waiting: Any = None
        for (a, b), (x, payload) in zip(
            spans, ahead(batches, [table(a, length, T - 1) for a, _ in spans]), strict=True
        ):
            with kept.precision():
                position, more = kept.before(a, position)
                origins = tuple((np.int32(batches.first + at), w) for at, w in ((0, s.w), *more))
                run = program(task, forward, batches.pick, kept.advance, kept.layout if kept.wants(a) else None)
                inputs = Inputs(given, payload, x, np.int32(0), np.int32(b - a))
                position, path, record = run(position, origins, inputs)
            if waiting is not None:
                look(*waiting)
            waiting = a, b, path, record, position
        if waiting is not None:
            look(*waiting)
        kept.finished()
    except BaseException:
        kept.close()
        raise
    trail.position, trail.seconds = position, middle.seconds + time.perf_counter() - started
    return trail


def forward(
    task: Task,
    pick: Pick,
    advance: Callable,
    keep: Layout | None,
    position: Any,
    origins: tuple,
    inputs: Inputs,
) -> tuple[Any, Tree, tuple]:
    """Steps lo … hi − 1 of a chunk forward → (the position after them, what is kept of the states before each, the record).

    record: the loss of each step, its ‖w_{t+1} − w_a‖ for each origin (a, w_a) and t < a + 20, and the norm of the last weights.
    """
    hyper, payload, x, lo, hi = inputs
    n, dtype = len(x["t"]), dtype_of(origins[0][1])
    path = jax.tree.map(lambda a: jnp.zeros((n, *a.shape), a.dtype), keep.of(position)) if keep else {}
    losses, distances = jnp.zeros(n, dtype), jnp.zeros((n, len(origins)), dtype)

    def body(i: Array, carry: tuple) -> tuple:
        position, path, losses, distances = carry
        path = jax.tree.map(lambda all, a: all.at[i].set(a), path, keep.of(position)) if keep else {}
        batch, t = pick(payload, x["at"][i]), x["t"][i]
        position, loss, w = advance(task, position, seen(task, hyper, batch), batch, t)
        ways = jnp.stack([distance(t, w, *origin).astype(dtype) for origin in origins])
        return position, path, losses.at[i].set(loss.astype(dtype)), distances.at[i].set(ways)

    position, path, losses, distances = lax.fori_loop(lo, hi, body, (position, path, losses, distances))
    # Of integers the loss says it. An update's own state may hold an infinity from the beginning ("the best so far").
    return position, path, (losses, distances, norm(getattr(position, "w", ())))


def distance(t: Array, w: Tree, a: Array, w_a: Tree) -> Array:
    """‖w_{t+1} − w_a‖ for the first steps from a, 0 for the others: a distance costs a fifth of a step on a small network."""
    return lax.cond(
        (t - a < MEASURED_STEPS) & (t >= a), lambda: norm(subtract(w, w_a)), lambda: jnp.zeros((), dtype_of(w))
    )


def chunk_length(steps: int, s: State) -> int:
    """Steps per compiled chunk, such that the states of one fit into CHUNK_BYTES."""
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((s.w, s.v)))
    return min(steps, of_batches.CHUNK_STEPS, max(1, CHUNK_BYTES // max(state_bytes, 1)))


# -- the reverse pass --------------------------------------------------------------------------------------------------------


@dataclass
class Pass:
    """One pass back over a training.

    norms: ‖dw‖ before each reverse step, in the order in which they are taken. replayed: how far the losses seen again were
    from those of training, relative. diagnostics: the method's own numbers. recomputed: steps that were taken again. pulled:
    whether the way gives the gradient of what is moved itself, and not of the values.
    """

    trail: Trail
    progress: Progress | None = None
    norms: list[np.ndarray] = field(default_factory=list)
    replayed: float = 0.0
    diagnostics: dict[str, Any] = field(default_factory=dict)
    pulled: bool = False
    recomputed: int = 0


class Chunk(NamedTuple):
    """Steps hi − 1 … lo of a table, taken backward. fixed: what the replay reads for them."""

    x: Tree
    payload: Tree
    lo: int
    hi: int
    fixed: Tree = ()


# at(task, position, fixed, x_i, i, hyper, batch) → (the position before the step, its State)
At = Callable[..., tuple[Any, State]]
# How far a loss that is computed again may be from the one of training, relative to the largest.
AGAIN = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


def walk(
    run: Pass,
    at: At,
    chunks: Iterator[Chunk],
    adjoint: tuple,
    position: Any = (),
    replays: bool = True,
    back: Callable = reverse_step,
) -> tuple[tuple, Any]:
    """Backward over these chunks, from the last to the first → (the adjoint where they end, the last position).

    adjoint: (State, dλ). replays: whether the states are those of the run, so that every loss must be seen again: this is what
    finds a stream that is not a pure function of t. back: the reverse step.
    """
    trail = run.trail
    task, T = trail.task, trail.steps
    go, waiting = program(task, backward, trail.batches.pick, at, back), None
    allowed = AGAIN[dtype_of(trail.start.w).name]

    def look(chunk: Chunk, record: tuple) -> None:
        losses, sizes = (np.asarray(array)[chunk.lo : chunk.hi] for array in record)
        t = chunk.x["t"][chunk.lo : chunk.hi]
        for i in np.flatnonzero(~np.isfinite(sizes))[-1:]:
            raise NumericalFailure("adjoint of the weights (‖dw‖)", int(t[i]), DIVERGED)
        run.norms.append(sizes[::-1])
        if replays:
            true = trail.losses[t - trail.batches.first]
            off = np.abs(losses - true) / (np.abs(trail.losses).max() + 1e-300)
            run.replayed = max(run.replayed, float(off.max()))
            if not off.max() <= allowed:
                worst = int(np.argmax(off))
                raise VerificationFailure(
                    f"at step {t[worst]} the reverse pass sees the loss {losses[worst]:.9g}, training saw {true[worst]:.9g}: the "
                    "batches are not those of this training, or read(t) is not a pure function of t"
                )
        if run.progress:
            run.progress(T + trail.batches.first - int(t[0]), T)

    for chunk in chunks:
        inputs = Inputs(trail.values, chunk.payload, chunk.x, np.int32(chunk.lo), np.int32(chunk.hi))
        with trail.kept.precision():
            adjoint, position, record = go((adjoint, position), chunk.fixed, inputs)
        if waiting is not None:
            look(*waiting)
        waiting = chunk, record
    if waiting is not None:
        look(*waiting)
    return adjoint, position


def backward(
    task: Task,
    pick: Pick,
    at: At,
    back: Callable,
    there: tuple,
    fixed: Any,
    inputs: Inputs,
) -> tuple[tuple, Any, tuple]:
    """Steps hi − 1 … lo of a chunk backward: the mirror image of `forward`, whatever the replay and whatever the update.

    there: (the adjoint after them, the position there) → (the adjoint before them, the position there, the record: the loss of
    each step, ‖dw‖ before each reverse step).
    """
    (adjoint, position), (hyper, payload, x, lo, hi) = there, inputs
    n, dtype = len(x["t"]), dtype_of(adjoint[0].w)
    record = jnp.zeros(n, dtype), jnp.zeros(n, dtype)

    def body(k: Array, carry: tuple) -> tuple:
        (after, dhyper), position, (losses, sizes) = carry
        i = hi - 1 - (k - lo)
        x_i = jax.tree.map(lambda a: a[i], x)
        batch = pick(payload, x_i["at"])
        rows = seen(task, hyper, batch)
        position, s = at(task, position, fixed, x_i, i, rows, batch)
        sizes = sizes.at[i].set(norm(after.w).astype(dtype))
        before, share, loss = back(task, s, rows, batch, x_i["t"], x_i["t_update"], after)
        return (before, collect(task, dhyper, share, batch)), position, (losses.at[i].set(loss.astype(dtype)), sizes)

    return lax.fori_loop(lo, hi, body, (adjoint, position, record))


def chunks_back(run: Pass, first: int, stop: int, fixed: Callable[[int], Tree] = lambda a: ()) -> Iterator[Chunk]:
    """The steps stop − 1 … first in chunks, for replays that find their states by themselves."""
    trail = run.trail
    spans = [(max(b - trail.chunk, first), b) for b in range(stop, first, -trail.chunk)]
    tables = [table(a, trail.chunk, trail.steps - 1) for a, _ in spans]
    for (a, b), (x, payload) in zip(spans, ahead(trail.batches, tables), strict=True):
        yield Chunk(x, payload, 0, b - a, fixed(a))


class Result(NamedTuple):
    """value: the mean hyper loss f. hyper: df/dλ, in the tree of λ (None in the place of what is not floating point). start: the
    adjoint of the State before step 0, None where the method does not go there. steps: of the way back. replayed: how far
    the losses seen again were from those of training, relative. diagnostics: the method's own numbers. recomputed: steps that
    were taken again."""

    value: float
    hyper: Tree
    start: State | None
    steps: int
    replayed: float
    norms: np.ndarray
    diagnostics: dict[str, Any]
    recomputed: int


def hypergradient(
    trail: Trail,
    way: Callable[[Pass, tuple], tuple[tuple, int]],
    progress: Progress | None = None,
    f: HyperLoss = hyper_loss,
) -> Result:
    """d f(w_T, state_T, λ) / dλ by a way back.

    way(pass, adjoint) → (the adjoint where it ended, the step there); see the folder replay.
    Where it goes all the way, what λ does to the beginning is added: a scale of w_0, an update's state that is filled from λ.
    Raises NumericalFailure, naming quantity and step, for a hypergradient that is not finite.
    """
    run = Pass(trail, progress)
    value, adjoint = hyper_gradient(trail, f)
    (ds, dhyper), first = way(run, adjoint)
    begin = trail.begun.begin
    if first == 0 and begin is not None:
        dhyper = add(dhyper, program(trail.task, pull_start, begin)(trail.values, trail.start, ds))
    if not run.pulled:
        dhyper = program(trail.task, pull_values, trail.whole)(trail.hyper, dhyper)
    refuse_nonfinite_gradient(dhyper, trail.batches.first + first)
    norms = np.concatenate(run.norms) if run.norms else np.empty(0)
    return Result(
        value, dhyper, ds if first == 0 else None, len(norms), run.replayed, norms, run.diagnostics, run.recomputed
    )


def refuse_nonfinite_gradient(dhyper: Tree, step: int) -> None:
    for name, leaf in named(dhyper).items():
        if not np.all(np.isfinite(np.asarray(leaf, np.float64))):
            raise NumericalFailure(f"hypergradient of hyper{name}", step, DIVERGED)


def refuse_first(numbers: np.ndarray, what: str, start: int, hint: str) -> None:
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise NumericalFailure(what, start + int(bad[0]), hint)
