"""Hyperparameters that move while the network trains, for anybody's model. The loop here does not know which method it runs.

    for block in adapt(task, Adaptive(131, 10, 4, moves=(("rate", 0.1), ("decay", 0.01)))):     # stop when you like
        np.savez(path, **block.state)                                                           # all that the next block needs

A method is a Rule: what it moves, what it remembers, and the traceable functions that make one block of it. One file each; the
settings, and the literature, are in `hypertrail.online`, the equations on a task in the docstring of each `block`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np

from hypertrail import adapting
from hypertrail.engines import Progress
from hypertrail.online import MARTHE, OSGM, RTHO, T1T2, Adaptive, Almeida, Clarke, HypergradientDescent, Online, Plain
from hypertrail.records import Cost
from hypertrail.task import Task

from .. import refusals as of_tasks
from ..batches import Memory, ahead, fed, table
from ..beginning import first_state, given_values, in_precision
from ..declared import initial
from ..inner import State, program
from ..judging import NoData, validation
from ..tasks import refuse_no_task
from ..trees import strong
from . import adaptive, almeida, clarke, descent, osgm, plain, t1t2, tangents
from .block import Look, Place, Read, Rule, Setting
from .entries import chosen, count
from .finite import refuse_nonfinite
from .looking import looked_at, looks, numbers_of, of_moves
from .refusals import blocks_asked, refuse_declarations, refuse_few_batches, refuse_no_method, refuse_other_tree
from .saved import flat, taken_up

Tree = Any

RULES: dict[type[Online], Rule] = {
    Plain: plain.RULE,
    Adaptive: adaptive.RULE,
    T1T2: t1t2.RULE,
    HypergradientDescent: descent.RULE,
    Almeida: almeida.RULE,
    RTHO: tangents.RULE,
    MARTHE: tangents.RULE,
    OSGM: osgm.RULE,
    Clarke: clarke.RULE,
}


@dataclass
class Block(adapting.Block):
    """One block of an adaptive run of a task. What it shares with the blocks of a Problem is described in `hypertrail.adapting`.

    gradient: the last hypergradient, in the tree of hyper, NumPy, None for what does not move; None where the method has none
    to show. state: all that the next block starts from, a flat dict of arrays on the device, of which no copy was made.
    place: the same as trees.
    """

    place: Place = field(kw_only=True, repr=False)

    @cached_property
    def hyper(self) -> Tree:
        """The unconstrained arrays in force at the end, NumPy, in the tree of Task.hyper."""
        return jax.tree.map(np.asarray, self.place.hyper)

    @property
    def end(self) -> State:
        """The weights w, the update's v, and the state that the loss hands on (`carried`), at the end."""
        return self.place.s


def adapt(
    task: Task,
    method: Online,
    hyper: Tree = None,
    state: Mapping[str, Any] | None = None,
    blocks: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Block]:
    """Train while `method` moves the hyperparameters, block by block: a generator of `Block` records.

    hyper: unconstrained arrays in the place of the declared ones. state: what an earlier block left, to go on from (hyper is then
    not looked at); to the same bits on a processor. blocks: how many; None: all that fit into the T batches of the task.
    progress(steps done, T) after each block.
    Cost: see the method; the first block of a task and method compiles, later ones and later calls do not, whatever the values.
    Raises UsageError at once for what cannot work; then NumericalFailure (quantity, step) in the block where a loss, a weight, a
    hypergradient or a hyperparameter is not finite: what was handed out before stays as it is.
    POOR: all methods see what helps soon, and those that look at the validation batches use them up; report on others.
    """
    refuse_no_task(task)
    refuse_no_method(method, RULES)
    rule, batches = RULES[type(method)], fed(task, "batches")
    T = batches.steps
    blocks_asked(method, T, 0, None)
    declared = initial(task, T)
    if hyper is None or state is not None:
        hyper = declared
    refuse_other_tree(hyper, declared)
    of_tasks.refuse_no_arrays(task, hyper)
    hyper = in_precision(task, without_weak_types(hyper))
    valid = validation(task) if looks(method) else NoData()
    refuse_few_batches(task, method, valid.steps)

    given = given_values(task, hyper, T)
    s = first_state(task, given)
    of_tasks.refuse_misfit(task, s, given, batches)
    if looks(method):
        of_tasks.refuse_measures(task, s, given, valid)
    moves = rule.moves(Look(task, T, method, hyper, given, s, batches.like()))
    refuse_declarations(task, method, moves)
    setting = Setting(method, T, batches.pick, valid.pick, moves)
    place = Place(s, hyper, strong(program(task, rule.start, setting)(s, hyper)))
    place, step, index = (place, 0, 0) if state is None else taken_up(place, state)
    asked = blocks_asked(method, T, step, blocks)
    return walk(task, rule, setting, batches, valid, place, (step, index, asked), progress)


def without_weak_types(hyper: Tree) -> Tree:
    """Weakly typed numbers by way of the host: to turn them into strong ones on the device would be a program of its own."""
    return jax.tree.map(lambda a: np.asarray(a) if getattr(a, "weak_type", False) else a, hyper)


def walk(
    task: Task,
    rule: Rule,
    setting: Setting,
    batches: Memory,
    valid: Memory,
    place: Place,
    span: tuple[int, int, int],
    progress: Progress | None,
) -> Iterator[Block]:
    """span: (the first step, the index of the first block, how many blocks)."""
    method, T, (step, first, asked) = setting.method, setting.steps, span
    starts = range(step, step + asked * method.advance, method.advance)
    x64, M = jax.config.read("jax_enable_x64"), looked_at(method, valid.steps)
    cost = rule.cost(method, M, count(chosen(task, setting.moves, place.hyper)))
    reading = ahead(batches, (table(start, method.block_steps, T - 1) for start in starts))
    looking = ahead(valid, (numbers_of(task, method, valid.steps, first + i) for i in range(asked)))
    clock = time.perf_counter()
    for i, (start, (x, payload), (looked, valid_payload)) in enumerate(zip(starts, reading, looking, strict=True)):
        numbers = of_moves(method, M, looked["at"])
        with jax.enable_x64(x64):  # of the caller of `adapt`; not held while the block is looked at
            moved: Any = place
            for part in rule.parts:
                moved = program(task, part, setting)(moved, Read(payload, x), Read(valid_payload, numbers))
            place, gradient, report = strong(moved[0]), moved[1], jax.tree.map(np.asarray, moved[2])
        refuse_nonfinite(report, start, method)
        stop, after = start + method.block_steps, start + method.advance
        yield Block(
            index=first + i,
            start=start,
            stop=stop,
            losses=report.losses.astype(np.float64),
            hyper_losses=report.hyper_losses.astype(np.float64),
            gradient=jax.tree.map(np.asarray, gradient),
            state=flat(place, after, first + i + 1),
            place=place,
            cost=Cost(cost.gradients, cost.hvps, time.perf_counter() - clock),
            skipped=int(report.skipped),
        )
        if progress:
            progress(after, T)
        clock = time.perf_counter()


__all__ = ["RULES", "Block", "adapt"]
