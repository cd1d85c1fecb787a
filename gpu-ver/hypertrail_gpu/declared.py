"""From what the outer optimiser moves to what the functions of a task are given: `values`, once for each training.

u (unconstrained arrays, in the tree of Task.hyper) → representation, schedule, sharing → the values. The way back is `jax.vjp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.hyper import Leaf
from hypertrail.task import Task

from .trees import named

Array = Any
Tree = Any


def is_declared(leaf: Any) -> bool:
    return isinstance(leaf, Leaf)


def has_declared(tree: Tree) -> bool:
    return any(map(is_declared, jax.tree.leaves(tree, is_leaf=is_declared)))


def over_leaves(function: Any, tree: Tree, *rest: Tree) -> Tree:
    """`function` on every leaf of Task.hyper, where a declaration is a leaf, and on what the other trees have there."""
    return jax.tree.map(function, tree, *rest, is_leaf=is_declared)


@dataclass(frozen=True)
class Paths:
    """Where the declarations of a task stand. leaves: {path: declaration}."""

    leaves: dict[tuple[Any, ...], Leaf]

    def of(self, path: tuple[Any, ...]) -> tuple[tuple[Any, ...], Leaf | None]:
        """The declaration that an array belongs to, with its path; ((), None) where it belongs to none."""
        for n in range(len(path) + 1):
            if path[:n] in self.leaves:
                return path[:n], self.leaves[path[:n]]
        return (), None


def paths(task: Task) -> Paths:
    leaves = jax.tree_util.tree_flatten_with_path(task.hyper, is_leaf=is_declared)[0]
    return Paths({path: leaf for path, leaf in leaves if is_declared(leaf)})


def initial(task: Task, steps: int) -> Tree:
    """u of what is declared, float64 NumPy arrays; other leaves as they are. steps: T."""

    def of_leaf(leaf: Any) -> Any:
        return initial_of(leaf, task, steps) if is_declared(leaf) else leaf

    return over_leaves(of_leaf, task.hyper)


def initial_of(leaf: Leaf, task: Task, steps: int) -> Tree:
    front = () if leaf.steps is None else (leaf.steps.count(steps),)
    u = leaf.free(leaf.init)
    if leaf.over is None:
        if leaf.steps is not None and u.shape[:1] != front:
            u = np.broadcast_to(u, (*front, *u.shape))
        return leaf.project(np.array(u))
    shapes = groups(leaf, task)
    return {group: leaf.project(np.full((*front, *shape), float(u))) for group, shape in shapes.items()}


def groups(leaf: Leaf, task: Task) -> dict[str, tuple[int, ...]]:
    """{group: the shape of its array} of a shared hyperparameter."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in weights(task).items():
        shape = np.shape(weight)
        if not leaf.over.reaches(name, shape):
            continue
        group, held = leaf.over.group(name, shape), leaf.over.held(shape)
        if shapes.setdefault(group, held) != held:
            raise UsageError(f"over: group {group!r} has arrays of shapes {list(shapes[group])} and {list(held)}")
    if not shapes:
        raise UsageError("over: where(name, shape) is False for every array of the weights")
    return shapes


def weights(task: Task) -> dict[str, Any]:
    if task.weights is None:
        raise UsageError(
            "a hyperparameter that is shared over the weights needs their shapes; give Task(weights=…) beside start"
        )
    return named(task.weights)


def values(task: Task, steps: int, hyper: Tree) -> Tree:
    """What the functions of the task are given for the arrays `hyper`. Cost: one pass over them."""
    if task.values is not None:
        return task.values(hyper)
    if not has_declared(task.hyper):
        return hyper

    def of_leaf(leaf: Any, u: Tree) -> Tree:
        return value_of(leaf, task, steps, u) if is_declared(leaf) else u

    return over_leaves(of_leaf, task.hyper, hyper)


def value_of(leaf: Leaf, task: Task, steps: int, u: Tree) -> Tree:
    def of_steps(u: Array) -> Array:
        return leaf.value(u if leaf.steps is None else spread(leaf.steps, steps, u), jnp)

    if leaf.over is None:
        return of_steps(u)
    arrays = {group: of_steps(array) for group, array in u.items()}
    some = next(iter(arrays.values()))
    front = () if leaf.steps is None else (steps,)
    elsewhere = jnp.full(front, leaf.over.elsewhere, some.dtype)

    def of_weight(path: Any, weight: Array) -> Array:
        name, shape = jax.tree_util.keystr(path), np.shape(weight)
        if not leaf.over.reaches(name, shape):
            return elsewhere
        return arrays[leaf.over.group(name, shape)]

    return jax.tree_util.tree_map_with_path(of_weight, task.weights)


def spread(schedule: Any, steps: int, u: Array) -> Array:
    """(count, …) → (T, …)."""
    pieces = schedule.pieces(steps)
    if pieces is not None:
        return u[pieces]
    matrix = schedule.matrix(steps)
    return u if matrix is None else jnp.tensordot(jnp.asarray(matrix, u.dtype), u, 1)


def marks(task: Task) -> Tree:
    """A prefix of the values' tree, True where an array has a row for each training example; None: there is none."""
    if task.per_example is not None:
        return task.per_example

    def of_leaf(leaf: Any) -> bool:
        return is_declared(leaf) and leaf.per_example

    tree = over_leaves(of_leaf, task.hyper)
    return tree if any(jax.tree.leaves(tree)) else None


def project(task: Task, hyper: Tree) -> Tree:
    """Every array put back on what its declaration allows; NumPy arrays."""

    def of_leaf(leaf: Any, u: Tree) -> Tree:
        return jax.tree.map(lambda a: leaf.project(np.asarray(a)), u) if is_declared(leaf) else u

    return over_leaves(of_leaf, task.hyper, hyper)
