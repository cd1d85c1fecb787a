"""What step t reads, in whatever order it is asked for: the batches of a task as the compiled programs take them.

A program gets a payload and a table that says where in it the batch of each step stands. For batches that are in memory the
payload is all of them, and the same in every call. For a stream it is what one thread has read while the device was busy
with the steps before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.task import Arrays, Rows, Stream, Task
from hypertrail.users_code import told

from .trees import length, named, strong

Tree = Any


CHUNK_STEPS = 250  # long enough that the host is not waited for, short enough for progress and early failure


class Inputs(NamedTuple):
    """What a program reads for a chunk of steps: the values of the hyperparameters, a payload of batches, the table that says
    where in it the batch of each step stands, and the span [lo, hi) of the table that is done."""

    hyper: Tree
    payload: Tree
    x: Tree
    lo: Any
    hi: Any


class Memory:
    """Batches on the device, one after the other along the first axis.

    first: the step of the first batch. Batches are numbered from 0; loss and update are told `first` more.
    """

    first = 0

    def __init__(self, tree: Tree) -> None:
        self.tree = strong(tree)
        self.steps = length(self.tree)

    def load(self, steps: np.ndarray) -> tuple[Tree, np.ndarray]:
        """(the payload, where in it the batch of each of these steps stands)."""
        return self.tree, steps

    @staticmethod
    def pick(payload: Tree, i: Any) -> Tree:
        """Inside a program: batch i of the payload."""
        return jax.tree.map(lambda a: a[i], payload)

    def put(self, payload: Tree) -> Tree:
        """What `load` gave, on the device."""
        return payload

    def look(self, t: int) -> Tree:
        """The batch of step t, for checks."""
        return self.pick(self.tree, t)

    def like(self) -> Tree:
        """The shapes and dtypes of a batch."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self.tree)


class OfRows(Memory):
    """A data set on the device, and the numbers of the rows of each batch."""

    def __init__(self, rows: Rows) -> None:
        self.tree = strong(rows.data), jnp.asarray(rows.indices, jnp.int32)
        self.steps = len(rows.indices)

    @staticmethod
    def pick(payload: Tree, i: Any) -> Tree:
        data, indices = payload
        return jax.tree.map(lambda a: a[indices[i]], data)

    def like(self) -> Tree:
        data, indices = self.tree
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((indices.shape[1], *a.shape[1:]), a.dtype), data)


class Read(Memory):
    """Batches of a stream: NumPy arrays, stacked for one chunk of steps at a time."""

    def __init__(self, stream: Stream) -> None:
        self.read, self.steps = stream.read, stream.steps
        self.x64 = jax.config.read("jax_enable_x64")  # of the caller: exact reversal turns it on for itself

    def load(self, steps: np.ndarray) -> tuple[Tree, np.ndarray]:
        batches: dict[int, Tree] = {}
        for t in map(int, steps):
            if t not in batches:
                with told(f"read({t})"):
                    batches[t] = self.read(t)
        try:
            return jax.tree.map(lambda *a: np.stack(a), *(batches[int(t)] for t in steps)), np.arange(len(steps))
        except ValueError as error:
            raise UsageError(
                f"read(t) gives other shapes or another tree at some t of {min(batches)} … {max(batches)} ({error})"
            ) from None

    def put(self, payload: Tree) -> Tree:
        with jax.enable_x64(self.x64):
            return jax.tree.map(jnp.asarray, payload)

    def look(self, t: int) -> Tree:
        with told(f"read({t})"):
            return self.put(self.read(t))

    def like(self) -> Tree:
        return self.look(0)


def fed(task: Task, what: str) -> Memory:
    """`feed` of task.batches or task.valid, once for each task and x64 mode: the data stay on the device with the task."""
    key = "fed", what, jax.config.read("jax_enable_x64")
    if key not in task.programs:
        task.programs[key] = feed(getattr(task, what), what)
    batches: Memory = task.programs[key]
    return batches


def feed(batches: Any, what: str) -> Memory:
    """The batches of a task in the form that programs take. what: 'batches' or 'valid', for messages. UsageError where they
    are none."""
    if isinstance(batches, Memory):
        return batches
    if isinstance(batches, Stream):
        if not isinstance(batches.steps, int) or batches.steps < 1:
            raise UsageError(f"{what}: a stream of {batches.steps!r} steps, expected a whole number from 1 on")
        return Read(batches)
    if isinstance(batches, Rows):
        refuse_rows(batches, what)
        return OfRows(batches)
    tree = batches.tree if isinstance(batches, Arrays) else batches
    refuse_no_arrays(tree, what)
    refuse_list(batches, what)
    lengths = {name: leaf.shape[0] if np.ndim(leaf) else None for name, leaf in named(tree).items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise UsageError(
            f"{what}: the leading axis is the number of the batch and must be one for all arrays, found {lengths}"
        )
    if not next(iter(lengths.values())):
        raise UsageError(f"{what}: no batch, expected at least one")
    return Memory(tree)


def refuse_list(batches: Any, what: str) -> None:
    """A list of batches is a tree too, of which every array would be cut along the examples. It is told from a list of the
    parts of a batch, such as [x, y], by being longer than two, with all its entries alike."""
    if not isinstance(batches, list) or len(batches) < 3:
        return
    kinds = {
        (jax.tree.structure(batch), *((getattr(a, "dtype", None), np.shape(a)[1:]) for a in jax.tree.leaves(batch)))
        for batch in batches
    }
    if len(kinds) == 1:
        raise UsageError(
            f"{what} is a list of {len(batches)} entries that are alike, expected arrays with a leading axis of steps. If each "
            f"is the batch of a step, give hypertrail.Stream({what}.__getitem__, {len(batches)}); if each is a part of every "
            f"batch, hypertrail.Arrays({what})"
        )


def refuse_no_arrays(tree: Tree, what: str) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, Iterator))[0] or [
        ((), tree)
    ]
    for path, leaf in leaves:
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
            name = jax.tree_util.keystr(path)
            raise UsageError(
                f"{what}{name} is a {type(leaf).__module__}.{type(leaf).__qualname__}, expected arrays with a leading axis of "
                "steps. For anything that is read piece by piece (a file, a loader, a generator) give "
                "hypertrail.Stream(read, steps), with read(t) → the batch of step t"
            )


def refuse_rows(rows: Rows, what: str) -> None:
    refuse_no_arrays(rows.data, f"{what}.data")
    indices = np.asarray(rows.indices)
    if indices.ndim != 2 or not np.issubdtype(indices.dtype, np.integer) or not indices.size:
        raise UsageError(
            f"{what}.indices: {indices.dtype}{list(indices.shape)}, expected whole numbers of shape (steps, batch)"
        )
    examples = min(np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(rows.data))
    if indices.min() < 0 or indices.max() >= examples:
        bad = int(indices.min()) if indices.min() < 0 else int(indices.max())
        raise UsageError(f"{what}.indices: row {bad}, expected 0 … {examples - 1}, the rows of the data")


def ahead(batches: Memory, tables: Sequence[dict[str, np.ndarray]]) -> Iterator[tuple[dict[str, np.ndarray], Tree]]:
    """(table, payload) of each table of steps, in order. One thread reads the next payload while the device works.

    The thread makes NumPy arrays only: JAX's x64 mode is a setting of the thread, and would cut float64 to float32 there.
    """
    if not isinstance(batches, Read):
        for rows in tables:
            payload, at = batches.load(rows["t"])
            yield placed(rows, at, batches.first), payload
        return
    with ThreadPoolExecutor(1) as thread:
        reading = None
        for rows in [*tables, None]:
            ready, reading = reading, rows and (rows, thread.submit(batches.load, rows["t"]))
            if ready:
                payload, at = ready[1].result()
                yield placed(ready[0], at, batches.first), batches.put(payload)


def placed(rows: dict[str, np.ndarray], at: np.ndarray, first: int) -> dict[str, np.ndarray]:
    """A table with the places of the batches in the payload, and with the steps that loss and update are told."""
    steps = {key: rows[key] + np.int32(first) for key in ("t", "t_update")}
    return rows | steps | {"at": np.asarray(at, np.int32)}


def table(start: int, steps: int, last: int) -> dict[str, np.ndarray]:
    """The steps start … start + steps − 1 of a chunk, none beyond `last`: t for loss and batch, t_update for the update (they
    differ on a line of DrMAD). Tables have one length, whatever is done of them, so the odd last chunk compiles nothing."""
    t = np.minimum(start + np.arange(steps), last).astype(np.int32)
    return {"t": t, "t_update": t}


Pick = Callable[[Tree, Any], Tree]
