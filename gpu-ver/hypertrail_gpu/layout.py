"""Which arrays of a state the reverse pass reads: only these are kept of a trajectory.

A hypergradient of penalties through momentum SGD, for instance, needs the weights of every step and no velocity: half of the
memory. Which arrays are read is found in the traced reverse step, so it holds for every loss and every update.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from hypertrail.task import Task

from .inner import State, reverse_step, seen
from .trees import floats, is_float, named, names

Array = Any
Tree = Any


@dataclass(frozen=True)
class Layout:
    """names: of the kept arrays; None for those that are not. shapes, dtypes: of all of them, in the order of a State."""

    structure: Any
    names: tuple[str | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @property
    def kept(self) -> list[str]:
        return [name for name in self.names if name is not None]

    def of(self, s: State) -> dict[str, Array]:
        """The arrays of a state that are kept."""
        return {name: leaf for name, leaf in zip(self.names, jax.tree.leaves(s), strict=True) if name is not None}

    def state(self, kept: dict[str, Array]) -> State:
        """A state of which these arrays were kept; what is not read is 0."""
        every = zip(self.names, self.shapes, self.dtypes, strict=True)
        leaves = [jnp.zeros(shape, dtype) if name is None else kept[name] for name, shape, dtype in every]
        return jax.tree.unflatten(self.structure, leaves)


def layout_of(task: Task, s: State, given: Tree, batch: Tree) -> Layout:
    """What the reverse steps of this task read of states like s. Traces one step, once for each set of shapes."""
    leaves = jax.tree.leaves(s)
    shapes, dtypes = tuple(leaf.shape for leaf in leaves), tuple(leaf.dtype for leaf in leaves)
    key = "layout", jax.tree.structure((s, given, batch)), shapes, dtypes
    if key not in task.programs:
        read = reads(task, s, given, batch)
        every = zip(names(s), leaves, read, strict=True)
        kept = tuple(name if used or not is_float(leaf) else None for name, leaf, used in every)
        task.programs[key] = Layout(jax.tree.structure(s), kept, shapes, dtypes)
    layout: Layout = task.programs[key]
    return layout


def carried_read(task: Task, s: State, given: Tree, batch: Tree) -> list[str]:
    """The names of the arrays that the loss hands on and that a reverse step reads: those that cannot be undone."""
    before = len(jax.tree.leaves((s.w, s.v)))
    read = reads(task, s, given, batch)[before:]
    return [name for name, used in zip(named(s.carried), read, strict=True) if used]


def reads(task: Task, s: State, given: Tree, batch: Tree) -> list[bool]:
    """For each array of the state, whether something of a reverse step's results depends on it."""

    def back(s: State, after: State, given: Tree, batch: Tree, t: Array) -> Any:
        return reverse_step(task, s, seen(task, given, batch), batch, t, t, after)

    t = jax.ShapeDtypeStruct((), jnp.int32)
    traced = jax.make_jaxpr(partial(back))(s, floats(s), given, batch, t).jaxpr
    _, used = dce_jaxpr(traced, [True] * len(traced.outvars))
    return list(used[: len(jax.tree.leaves(s))])
