"""The hypergradient of a task's first steps by `jax.grad` through a plain loop, which uses nothing of this engine but `values`.

It keeps every step's linearisation and compiles every step by itself, so it is for few steps: an oracle, not a method.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hypertrail.hyperparameters import Hyper
from hypertrail.task import Arrays, Rows, Start, Stream

from . import declared
from .beginning import in_precision
from .trees import filled, floats, strong
from .tuned import TunedTask

Tree = Any


def unrolled(tuned: TunedTask, steps: int) -> Hyper:
    """df/dλ after the first `steps` steps, where tuning begins. Compiles for a time that grows with the steps."""
    task = tuned.task
    with tuned.precision():
        hyper = in_precision(task, tuned.start)

        def f(moving: Tree) -> Any:
            given = declared.values(task, tuned.steps, filled(hyper, moving))
            w, state = task.start(given) if task.start else strong(Start(task.weights, task.state))
            v = task.update.init(w, given) if hasattr(task.update, "init") else jax.tree.map(jnp.zeros_like, w)
            for t in range(steps):
                w, v, state = step(tuned, w, v, state, given, batch_of(task.batches, t), t)
            batches = [None] if task.valid is None else [batch_of(task.valid, k) for k in range(length(task.valid))]
            states = () if state is None else (state,)
            return sum(task.hyper_loss(w, *copied(states), given, batch) for batch in batches) / len(batches)

        return tuned.as_hyper(jax.jit(jax.grad(f))(floats(hyper)))


def step(tuned: TunedTask, w: Tree, v: Tree, state: Tree, given: Tree, batch: Tree, t: int) -> tuple[Tree, Tree, Tree]:
    task = tuned.task
    marked = declared.marks(task)
    if marked is None:
        seen = given
    else:
        rows = task.rows(batch)
        seen = jax.tree.map(lambda mark, part: jax.tree.map(lambda a: a[rows], part) if mark else part, marked, given)
    at = jnp.asarray(t, jnp.int32)

    def loss(w: Tree) -> tuple[Any, Tree]:
        return (task.loss(w, seen, batch, at), None) if state is None else task.loss(w, copied(state), seen, batch, at)

    g, state = jax.grad(loss, has_aux=True)(w)
    return *task.update(w, v, g, given if marked is None else seen, at), state


def copied(tree: Tree) -> Tree:
    """The same tree in a container of its own: Flax NNX writes a variable only where its container was made."""
    return jax.tree.map(lambda a: a, tree)


def batch_of(batches: Any, t: int) -> Tree:
    if isinstance(batches, Stream):
        return jax.tree.map(jnp.asarray, batches.read(t))
    if isinstance(batches, Rows):
        return jax.tree.map(lambda a: jnp.asarray(a)[batches.indices[t]], batches.data)
    tree = batches.tree if isinstance(batches, Arrays) else batches
    return jax.tree.map(lambda a: jnp.asarray(a)[t], tree)


def length(batches: Any) -> int:
    if isinstance(batches, Stream):
        return batches.steps
    if isinstance(batches, Rows):
        return len(batches.indices)
    return len(jax.tree.leaves(batches.tree if isinstance(batches, Arrays) else batches)[0])
