"""Where a training begins: the hyperparameters in their precision, their values, and the state before step 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypertrail.task import Start, Task
from hypertrail.users_code import told

from .declared import is_declared, over_leaves, values
from .inner import State, begin, program
from .trees import dtype_of, filled, floats, strong

Tree = Any

# (task, λ, the state before step 0) → that state as a function of λ
Begin = Callable[[Task, Tree, State], State]


def begin_task(task: Task, hyper: Tree, s: State) -> State:
    return begin(task, hyper, Start(s.w, s.carried))


class Beginning(NamedTuple):
    """hyper: the arrays that are moved; values: what the functions of the task are given for them. state: before step 0.
    begin: how the state depends on the values; None where it does not."""

    hyper: Tree
    values: Tree
    state: State
    begin: Begin | None = begin_task


def beginning(task: Task, hyper: Tree, steps: int) -> Beginning:
    """Of a training of the task by itself. steps: T."""
    hyper = in_precision(task, hyper)
    given = given_values(task, hyper, steps)
    return Beginning(hyper, given, first_state(task, given))


def given_values(task: Task, hyper: Tree, steps: int) -> Tree:
    """What the functions of the task are given."""
    return program(task, values, steps)(hyper)


def first_state(task: Task, given: Tree) -> State:
    """The state before step 0."""
    start = Start(None, None) if task.start else strong(Start(task.weights, task.state))
    with told("start" if task.start else "update.init"):
        return strong(program(task, begin)(given, start))


def in_precision(task: Task, hyper: Tree) -> Tree:
    """On the device, strongly typed: declared hyperparameters in the precision of the weights, plain arrays in their own."""
    dtype = dtype_of(strong(task.weights if task.weights is not None else hyper))

    def cast(leaf: Any, u: Tree) -> Tree:
        if is_declared(leaf):
            return jax.tree.map(lambda a: jnp.asarray(a, dtype), u)
        return jnp.asarray(u, strong(leaf).dtype)

    return over_leaves(cast, task.hyper, hyper)


def pull_start(task: Task, begin: Begin, given: Tree, s: State, ds: State) -> Tree:
    """The adjoint of `begin`: what reaches the hypergradient through the state before step 0."""
    return jax.vjp(lambda moving: floats(begin(task, filled(given, moving), s)), floats(given))[1](ds)[0]


def pull_values(task: Task, steps: int, hyper: Tree, dvalues: Tree) -> Tree:
    """The adjoint of `values`: from what the functions were given to what is moved."""
    return jax.vjp(lambda moving: floats(values(task, steps, filled(hyper, moving))), floats(hyper))[1](dvalues)[0]
