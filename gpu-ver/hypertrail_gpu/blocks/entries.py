"""The hyperparameters of a task by the names of their first-level entries: which of them move, between which bounds, and as
values or as unconstrained arrays.

    hyper = {"rate": Log(0.1), "decay": {"hidden": Log(1e-4), "out": Log(1e-4)}, "classes": 10}      entries: rate, decay, classes

A tuple has the entries "0", "1", …; a tree that is one leaf has the entry "hyper".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from hypertrail.errors import UsageError
from hypertrail.hyper import Free, Leaf, Linear, Log, Logit
from hypertrail.task import Task

from ..declared import is_declared, over_leaves
from ..trees import is_float

Array = Any
Tree = Any


def first_level(task: Task) -> tuple[list[str], Any]:
    """(the names of the entries, the tree definition whose leaves they are)."""
    tree = task.hyper
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is not tree)
    return [jax.tree_util.keystr(path, simple=True) or "hyper" for path, _ in paths], structure


def entry(task: Task, name: str, tree: Tree) -> Tree:
    """What a tree like hyper has at one entry."""
    names, structure = first_level(task)
    return structure.flatten_up_to(tree)[names.index(name)]


def with_entry(task: Task, name: str, tree: Tree, part: Tree) -> Tree:
    """The tree with another part at one entry."""
    return each_entry(task, lambda other, old: part if other == name else old, tree)


def each_entry(task: Task, function: Callable[..., Tree], *trees: Tree) -> Tree:
    """function(name, its part of each tree) at every entry."""
    names, structure = first_level(task)
    return structure.unflatten([*map(function, names, *map(structure.flatten_up_to, trees))])


def chosen(task: Task, names: tuple[str, ...], hyper: Tree) -> Tree:
    """The floating point arrays of these entries, and None in all other places: what moves."""

    def of_entry(name: str, part: Tree) -> Tree:
        return jax.tree.map(lambda a: a if name in names and is_float(a) else None, part)

    return each_entry(task, of_entry, hyper)


def tunable(task: Task, hyper: Tree) -> tuple[str, ...]:
    """The entries that hold a floating point array."""
    return tuple(name for name in first_level(task)[0] if any(map(is_float, jax.tree.leaves(entry(task, name, hyper)))))


def declarations(task: Task, names: tuple[str, ...]) -> list[tuple[str, Leaf]]:
    """(its entry, the declaration) of what is declared within these entries."""
    return [
        (name, leaf)
        for name in names
        for leaf in jax.tree.leaves(entry(task, name, task.hyper), is_leaf=is_declared)
        if is_declared(leaf)
    ]


def count(moving: Tree) -> int:
    """How many numbers move."""
    return sum(int(np.size(a)) for a in jax.tree.leaves(moving))


# -- bounds -------------------------------------------------------------------------------------------------------------------


def clipped(task: Task, hyper: Tree) -> Tree:
    """Every array of a tree like hyper between its declared bounds; None may stand in the place of arrays."""

    def of_leaf(leaf: Any, part: Tree) -> Tree:
        return jax.tree.map(partial(between_bounds, leaf), part) if is_declared(leaf) else part

    return over_leaves(of_leaf, task.hyper, hyper)


def between_bounds(leaf: Leaf, u: Array) -> Array:
    low, high = (float(bound) for bound in leaf.project(np.array([-np.inf, np.inf])))
    return jnp.clip(u, low, high)


# -- a hyperparameter as its value ------------------------------------------------------------------------------------------


def by_value(task: Task, names: tuple[str, ...]) -> Task:
    """The same task with the hyperparameters of these entries held as the values that its functions are given, in the place of
    unconstrained arrays: a Log(0.1) is then 0.1, and not ln 0.1. Plain arrays are values already."""

    def of_leaf(leaf: Any) -> Any:
        return as_value(leaf) if is_declared(leaf) else leaf

    def of_entry(name: str, part: Tree) -> Tree:
        return over_leaves(of_leaf, part) if name in names else part

    return replace(task, hyper=each_entry(task, of_entry, task.hyper))


def as_value(leaf: Leaf) -> Leaf:
    """The declaration of the value itself, between the same bounds."""
    if isinstance(leaf, Linear | Free):
        return leaf
    low, high = np.clip(leaf.bounds, *leaf.domain)
    return Linear(leaf.init, (float(low), float(high)), leaf.steps, leaf.over, leaf.per_example)


def to_values(task: Task, names: tuple[str, ...], hyper: Tree) -> Tree:
    """From unconstrained arrays to the arrays of `by_value(task, names)`."""
    return over_declared(task, names, lambda leaf, u: leaf.value(u, jnp), hyper)


def from_values(task: Task, names: tuple[str, ...], hyper: Tree) -> Tree:
    """Undoes `to_values`."""
    return over_declared(task, names, unconstrained, hyper)


def unconstrained(leaf: Leaf, value: Array) -> Array:
    """u of a value, traceable."""
    if isinstance(leaf, Log):
        return jnp.log(value)
    if isinstance(leaf, Logit):
        return jnp.log(value) - jnp.log1p(-value)
    return value


def refuse_unknown_values(task: Task, method: Any, names: tuple[str, ...]) -> None:
    """UsageError for a declaration of somebody's own, from whose value nobody knows the way back."""
    for name, leaf in declarations(task, names):
        if type(leaf) not in (Log, Logit, Linear, Free):
            raise UsageError(
                f"{method.name} moves hyper {name!r} by its value, and {type(leaf).__name__} is none of Log, Logit, Linear and "
                "Free; declare it as one of them, or move the unconstrained array (T1T2: representation='free')"
            )


def over_declared(task: Task, names: tuple[str, ...], function: Callable[[Leaf, Array], Array], hyper: Tree) -> Tree:
    """function(declaration, array) on every declared array of these entries; the others stay."""

    def of_leaf(leaf: Any, part: Tree) -> Tree:
        return jax.tree.map(partial(function, leaf), part) if is_declared(leaf) else part

    def of_entry(name: str, declared: Tree, part: Tree) -> Tree:
        return over_leaves(of_leaf, declared, part) if name in names else part

    return each_entry(task, of_entry, task.hyper, hyper)


# -- what a function reads ----------------------------------------------------------------------------------------------------


def read_by(task: Task, what: str, function: Callable[[Tree, Tree], Any], hyper: Tree, batch: Tree) -> tuple[str, ...]:
    """The entries with numbers that move which the result of function(hyper, batch) depends on, as its trace tells; nothing is
    computed. What goes into a loop or a branch counts as read. what: the loss or the update, to remember the answer by."""
    if ("reads", what) not in task.programs:
        found = inputs_read(jax.make_jaxpr(function)(hyper, batch).jaxpr)
        used = jax.tree.unflatten(jax.tree.structure(hyper), found[: len(jax.tree.leaves(hyper))])
        names = tuple(name for name in tunable(task, hyper) if any(jax.tree.leaves(entry(task, name, used))))
        task.programs["reads", what] = names
    return task.programs["reads", what]


def inputs_read(jaxpr: Any, outputs: list[bool] | None = None) -> list[bool]:
    """Which inputs of a jaxpr its outputs depend on. outputs: which of those are asked for, None: all."""
    wanted = [True] * len(jaxpr.outvars) if outputs is None else outputs
    needed = {var for var, asked in zip(jaxpr.outvars, wanted, strict=True) if asked and not isinstance(var, Literal)}
    for equation in reversed(jaxpr.eqns):
        asked = [var in needed for var in equation.outvars]
        if any(asked):
            inside = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
            read = [True] * len(equation.invars) if inside is None else inputs_read(inside.jaxpr, asked)
            needed |= {
                var for var, used in zip(equation.invars, read, strict=True) if used and not isinstance(var, Literal)
            }
    return [var in needed for var in jaxpr.invars]


def named_moves(method: Any, found: tuple[str, ...], why: str = "this task can move") -> tuple[str, ...]:
    """What `moves=` of a declaration names, or all of `found`; UsageError for another name."""
    for name in method.moves:
        if name not in found:
            raise UsageError(
                f"{method.name} moves={method.moves}, and the hyperparameters that {why} are {', '.join(found)}"
            )
    return method.moves or found
