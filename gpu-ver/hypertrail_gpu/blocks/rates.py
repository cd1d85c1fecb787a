"""The learning rate of a task, for the methods that move it and nothing else: one entry of hyper, held as its value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.task import Task

from ..declared import is_declared, value_of, values
from ..inner import seen
from ..trees import floats
from .block import Look
from .entries import (
    as_value,
    by_value,
    clipped,
    declarations,
    each_entry,
    entry,
    from_values,
    read_by,
    refuse_unknown_values,
    to_values,
    with_entry,
)
from .refusals import refuse_declarations

Array = Any
Tree = Any


class Rate:
    """How the functions of a block get at the rate. name: of the entry. held: the task with the rate by its value.

    A rate is here what `held` has at the entry: one array, {group: array} of what is declared over the weights, or a tree of
    arrays. fixed: hyper with all other entries.
    """

    def __init__(self, task: Task, steps: int, name: str, hyper: Tree) -> None:
        self.task, self.steps, self.name = task, steps, name
        self.held = by_value(task, (name,))
        self.fixed = to_values(task, (name,), hyper)

    def first(self) -> Tree:
        """The rate that a block begins with."""
        return entry(self.task, self.name, self.fixed)

    def hyper(self, rate: Tree) -> Tree:
        """The hyperparameters of the task `held`, with this rate."""
        return with_entry(self.task, self.name, self.fixed, rate)

    def given(self, rate: Tree, batch: Tree) -> Tree:
        """The values with this rate, as the batch sees them."""
        return seen(self.task, values(self.held, self.steps, self.hyper(rate)), batch)

    def clipped(self, rate: Tree) -> Tree:
        """Between the declared bounds."""

        def of_entry(name: str, part: Tree) -> Tree:
            return rate if name == self.name else jax.tree.map(lambda a: None, part)

        return entry(self.task, self.name, clipped(self.held, each_entry(self.task, of_entry, self.fixed)))

    def moved(self, rate: Tree) -> Tree:
        """The unconstrained hyperparameters, with this rate."""
        return from_values(self.task, (self.name,), self.hyper(rate))

    def spread(self, rate: Tree, w: Tree) -> Tree:
        """The rate of each weight: a tree of arrays like w."""
        leaf = entry(self.task, self.name, self.task.hyper)
        if is_declared(leaf) and leaf.over is not None:
            of_weights = value_of(as_value(leaf), self.task, self.steps, rate)
        else:
            of_weights = jax.tree.map(lambda _: jnp.reshape(rate, ()), w)
        return jax.tree.map(lambda a, like: jnp.broadcast_to(a, like.shape).astype(like.dtype), of_weights, w)

    def sums(self, rate: Tree, terms: Tree) -> Tree:
        """Σ of a tree like w over all weights that share a rate: the adjoint of `spread`."""
        return jax.vjp(lambda rate: self.spread(rate, terms), rate)[1](terms)[0]


def refuse_rate(look: Look) -> tuple[str, ...]:
    """(the entry that is the learning rate,), or UsageError where it cannot be moved as one: an update that does not read it, a
    row for each training example, or arrays of numbers of which nobody says what they are for."""
    task, method, s = look.task, look.method, look.s

    def update(hyper: Tree, batch: Tree) -> Tree:
        given = seen(task, values(task, look.steps, hyper), batch)
        return task.update(s.w, s.v, s.w, given, jnp.zeros((), jnp.int32))[0]

    found, name = read_by(task, "update", update, look.hyper, look.batch), method.rate
    if name not in found:
        raise UsageError(
            f"{method.name} moves the learning rate, hyper {name!r}, and the update of this task reads "
            f"{', '.join(found) or 'no hyperparameter'}; name the entry that is the rate, {type(method).__name__}(rate=…)"
        )
    refuse_declarations(task, method, (name,))
    refuse_unknown_values(task, method, (name,))
    arrays = jax.tree.leaves(floats(entry(task, name, look.hyper)))
    shared = [leaf for _, leaf in declarations(task, (name,)) if leaf.over is not None]
    if any(leaf.per_example for _, leaf in declarations(task, (name,))):
        raise UsageError(f"{method.name} moves a learning rate, and hyper {name!r} has a row for each training example")
    if not shared and any(np.size(a) != 1 for a in arrays):
        raise UsageError(
            f"{method.name}: hyper {name!r} holds {max(map(np.size, arrays))} numbers in one array, and which weights share "
            "one of them is not declared; declare it as one number, or with over=Shared(…)"
        )
    return (name,)


def refuse_many_rates(look: Look) -> Any:
    """What stands at the entry of the rate, a declaration or one plain number; UsageError for a tree of several."""
    leaf = entry(look.task, look.method.rate, look.task.hyper)
    if not is_declared(leaf) and len(jax.tree.leaves(leaf)) != 1:
        raise UsageError(
            f"{look.method.name} sums over the weights that share a rate, and hyper {look.method.rate!r} is a tree of several "
            "rates; declare it as one, with over=Shared(…)"
        )
    return leaf
