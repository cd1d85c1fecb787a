"""What an online method cannot do on any task: said before a step is taken, in one line, with the reason and the way out."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.online import Online
from hypertrail.task import Task
from hypertrail_data.streams import generator

from ..trees import named
from .entries import declarations

Tree = Any


def refuse_no_method(method: Any, known: Any) -> None:
    if not isinstance(method, Online) or type(method) not in known:
        names = ", ".join(one.__name__ for one in known)
        raise UsageError(f"adapt takes an online method ({names}), not {method!r}")
    try:
        hash(method)
    except TypeError:
        raise UsageError(f"{method.name}: its settings must be hashable; give tuples in the place of lists") from None


def refuse_other_tree(hyper: Tree, declared: Tree) -> None:
    """The arrays that a caller gives have the tree and the shapes of those that the task declares."""
    found, expected = ({name: np.shape(leaf) for name, leaf in named(tree).items()} for tree in (hyper, declared))
    for name in [*expected, *(name for name in found if name not in expected)]:
        if found.get(name) != expected.get(name):
            is_, should = (f"of shape {one[name]}" if name in one else "missing" for one in (found, expected))
            raise UsageError(f"hyper{name} is {is_}, expected {should}; give a tree like Task.hyper")
    if jax.tree.structure(hyper) != jax.tree.structure(declared):
        raise UsageError(f"hyper is {jax.tree.structure(hyper)}, expected {jax.tree.structure(declared)}")


def refuse_declarations(task: Task, method: Online, moves: tuple[str, ...]) -> None:
    """Schedules, and projections that look at all numbers of an array together."""
    for name, leaf in declarations(task, moves):
        if leaf.steps is not None:
            raise UsageError(
                f"{method.name} moves hyper {name!r} while the network trains, and it is a schedule, {leaf.steps}; declare it "
                "without steps"
            )
        projection = getattr(leaf, "projection", None)
        if projection is not None and projection.couples:
            raise UsageError(
                f"{method.name} clips each number for itself, and hyper {name!r} has {projection}, which looks at all of them "
                "together; use bounds or Box(), or move it between whole trainings"
            )


def blocks_asked(method: Online, steps: int, step: int, blocks: int | None) -> int:
    """How many blocks to do from `step` on: `blocks`, or all that fit into T steps. UsageError for more, or for fewer than 0."""
    if method.block_steps > steps:
        raise UsageError(
            f"a block of {method.name} takes {method.block_steps} steps, the task has {steps}; lower the block or train longer"
        )
    room = steps - step - method.block_steps
    left = 0 if room < 0 else 1 + room // method.advance
    if blocks is not None and not 0 <= blocks <= left:
        raise UsageError(
            f"{blocks} blocks of {method.name}, expected 0 to {left}: so many fit into the {steps} steps of the task from step "
            f"{step} on"
        )
    return left if blocks is None else blocks


def refuse_few_batches(task: Task, method: Online, found: int) -> None:
    """A move draws its validation batches without repetition, from the task's seed."""
    asked = getattr(method, "validation_batches", 0)
    if task.valid is not None and asked > found:
        raise UsageError(
            f"{method.name} looks at {asked} validation batches for each move, the task has {found}; lower validation_batches "
            "(0: all of them)"
        )
    try:
        generator(task.seed, "hyper")
    except ValueError as error:
        raise UsageError(f"Task.seed draws the validation batches of the moves: {error}") from None


__all__ = ["blocks_asked", "refuse_declarations", "refuse_few_batches", "refuse_no_method", "refuse_other_tree"]
