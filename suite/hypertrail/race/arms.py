"""Arms of a comparison: one training run each, under one method or one schedule, within the same budget of gradient evaluations.

    arm = Arm("adaptive", Adaptive(131, 10, 4))
    arm = Arm("cosine-0.3", Plain(131), start=(("learning_rate", 0.3),), schedule="cosine")
    record = in_run(run, engine, problem, arm, budget=20_000)      # what lands in parts/<name>.json

The budget is counted in gradients of the elementary loss, the Hessian-vector products as two (`Cost.price`): a method
that costs more takes fewer steps, plain training takes `budget` of them. Validation batches count as one gradient each, so give
them the size of the training batch (Problem.valid_batch). problem.steps is the budget: no arm takes more steps than that.

Every arm spends its budget to the last gradient. When no whole block fits any more, a shorter block of the same method
follows where the method has one, and then plain steps that leave the hyperparameters where they are (`affordable`).

The network is measured on all splits with the deterministic forward before the first step, every `every` blocks, and at the
end. What the next block starts from is put on the disk after each measurement, after any block that ends two minutes after the
last time, and after any block at which a signal asks to stop: one file that appears whole or not at all. A process killed
anywhere goes on from there and ends with the same bits (on a CPU); only the seconds are others.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .. import stopping
from ..adapting import Block, State, gather, moved_kinds, refuse
from ..engines import Engine
from ..errors import NumericalFailure, UsageError
from ..hyperparameters import Hyper
from ..online import Adaptive, Online, Periodic, Plain
from ..problem import Problem
from ..runs import Run, arrays
from ..runs.names import ARMS
from ..runs.writing import make_folder
from ..vanished import vanished
from .arm_records import Record, begun, count, measure, measure_start, over, save

EVERY = 120.0  # seconds of work that a kill may cost, and a block


def step_schedule(done: float) -> float:
    """A tenth from half of the budget on, a hundredth from three quarters on (as DenseNet was trained on CIFAR-10)."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def cosine_schedule(done: float) -> float:
    """Half a cosine from 1 down to 0 (Loshchilov, Hutter 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * done))


# What multiplies the learning rate in a block that starts when this share of the budget is spent, 0 ≤ done < 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "step": step_schedule,
    "cosine": cosine_schedule,
}


@dataclass(frozen=True)
class Arm:
    """name: its own within a run, of letters, digits, '.', '-'. start: (kind, value) in place of the declared init, everywhere.

    schedule: constant, step or cosine, of the learning rate, block by block; only where the method leaves rates alone.
    """

    name: str
    method: Online
    start: tuple[tuple[str, float], ...] = ()
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.-]+", self.name):
            raise UsageError(f"arm {self.name!r}, expected letters, digits, '.', '-'")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")

    def first_hyper(self, problem: Problem) -> Hyper:
        """The hyperparameters before the first block: the declared ones, with the values of `start`."""
        hyper = problem.initial_hyper()
        for kind, value in self.start:
            one = problem.declared(kind)
            if one is None or not one.bounds[0] <= value <= one.bounds[1]:
                within = f"between {one.bounds[0]:g} and {one.bounds[1]:g}" if one else "a kind that is declared"
                raise UsageError(f"arm {self.name}: {kind} {value:g} at the start, expected {within}")
            hyper[kind] = {key: np.full_like(u, one.free(value)) for key, u in hyper[kind].items()}
        for sentence in vanished(problem.hyperparameters, hyper, problem.dtype):
            raise UsageError(f"arm {self.name}: {sentence} at the start; expected a larger start, or float64")
        return hyper

    def scheduled(self, problem: Problem, hyper: Hyper, done: float) -> Hyper:
        """`hyper` with the learning rates that the schedule has where `done` of the budget is spent. Bounds do not hold them."""
        start, rates = self.first_hyper(problem)["learning_rate"], hyper["learning_rate"]
        shift = math.log(max(SCHEDULES[self.schedule](done), 1e-12))
        return hyper | {"learning_rate": {key: (start[key] + shift).astype(u.dtype) for key, u in rates.items()}}


def in_run(
    run: Run,
    engine: Engine,
    problem: Problem,
    arm: Arm,
    budget: int,
    every: int = 1,
    seen: Callable[[int, int], None] | None = None,
) -> Record:
    """One arm as a part of a study: its record, computed here or where an earlier start of this run did so.

    What it needs to go on lies in arms/ while it is at work. Cost and errors: see `train`.
    """
    name = f"s{problem.seed}-{arm.name}"
    path = run.path / ARMS / f"{name}.npz"
    make_folder(path.parent)
    record = run.part(name, lambda: train(engine, problem, arm, budget, path, every, seen, run.identity))
    path.unlink(missing_ok=True)
    return record


def refuse_arm(problem: Problem, arm: Arm, budget: int) -> None:
    """UsageError for an arm that cannot run on this problem within this budget, before anything is computed.

    Called for every arm of a comparison before the first is trained.
    """
    refuse(problem, arm.method)
    price = arm.method.cost(problem).price
    if price > budget:
        raise UsageError(f"a block of arm {arm.name} costs {price} gradients, more than the budget of {budget}")
    arm.first_hyper(problem)
    if arm.schedule != "constant":
        if problem.declared("learning_rate") is None:
            raise UsageError(
                f"arm {arm.name}: schedule {arm.schedule!r} is of the learning rate, which is not declared; declare "
                "LearningRate or use schedule 'constant'"
            )
        if "learning_rate" in moved_kinds(problem, arm.method) and moves(arm.method, "learning_rate"):
            raise UsageError(
                f"arm {arm.name}: {arm.method.name} moves the learning rate itself; use schedule 'constant'"
            )
    if problem.steps < budget:
        raise UsageError(
            f"the problem has {problem.steps} steps, expected the budget, {budget}: plain training takes them"
        )


def train(
    engine: Engine,
    problem: Problem,
    arm: Arm,
    budget: int,
    path: Path,
    every: int = 1,
    seen: Callable[[int, int], None] | None = None,
    run: str = "",
) -> Record:
    """Blocks until the budget is spent; goes on from `path` where it is there, and leaves the last state there.

    every: blocks between two measurements. seen(gradients spent, budget) after each block. run: the identity of the run; a file
    that is not of this run and this arm, or not whole, counts as none. Returns

        arm, schedule, method, start, seed, budget, every       what was asked
        steps, gradients, hvps, price       where it ended, what it has cost, the price of the first block, which is whole
        failed                              None, or what was not finite, and at which step
        blown_up                            None, or in words how far a finite training has left where it began (blown_up.py)
        norms                               ‖w‖ at each point
        block                               {"steps", "loss", "hyper_loss", "seconds", "processor"}: a list each, one entry
                                            per block; steps: taken in it; losses: means; seconds on the wall and of the
                                            processor: the first block after a start compiles
        points                              [{"block", "step", "gradients", "metrics": {split: {"loss", "error", …}}}]; the
                                            first is the start, before any step (block −1)
        hyper                               {kind: {tensor: [[mean, 5, 25, 50, 75, 95 %], …]}}, unconstrained, one for each
                                            point; one tensor, 'network', where the method moves nothing
        evaluation_seconds                  spent in measuring
        digest                              sha256 of all that the last state holds; None where it failed

    Raises UsageError for what `refuse_arm` refuses, a budget that holds no block;
    Stopped after any block, and a save, where a signal has asked. A loss that is not finite is a result.
    """
    refuse_arm(problem, arm, budget)
    record, state = begun(problem, arm, budget, every, path, run)
    if not over(record):
        try:
            if not record["points"]:
                measure_start(record, engine, problem, arm)
            clock, saved = time.process_time(), time.monotonic()
            for block in blocks(engine, problem, arm, state, record):
                count(record, block, time.process_time() - clock)
                if (block.index + 1) % every == 0 or over(record):
                    measure(record, engine, problem, gather(problem, [block]), arm, block.index)
                    saved = -math.inf
                if time.monotonic() - saved >= EVERY:
                    save(path, record, block.state, run)
                    saved = time.monotonic()
                if seen:
                    seen(record["gradients"], budget)
                stopping.here(f"block {block.index} of arm {arm.name}", partial(save, path, record, block.state, run))
                if over(record):
                    break
                clock = time.process_time()
        except NumericalFailure as failure:  # once more it would end the same way, wherever the last save was
            return record | {"failed": str(failure), "digest": None}
    return record | {"digest": arrays.digest(arrays.load(path)["state"])}


def moves(method: Online, kind: str) -> bool:
    """Whether the method gives this kind a step other than 0."""
    return not isinstance(method, Adaptive) or method.move(kind) != 0


def blocks(engine: Engine, problem: Problem, arm: Arm, state: State | None, record: Record) -> Iterator[Block]:
    """Every block that the budget has room for, the learning rates set before each where the arm has a schedule.

    `record` counts what is spent: the caller adds each block to it before it asks for the next.
    """
    hyper = arm.first_hyper(problem)
    while (left := record["budget"] - record["gradients"]) > 0:
        method = affordable(problem, arm.method, left)
        if state is not None and type(method) is not type(arm.method):
            state = state | {"memory": {}}  # what the arm's own method remembers is no business of a plain step
        number, now = left // method.cost(problem).price, hyper
        if arm.schedule != "constant":
            done, number = record["gradients"] / record["budget"], 1
            now = arm.scheduled(problem, hyper, done)
            if state is not None:
                state = state | {"hyper": arm.scheduled(problem, state["hyper"], done)}
        for block in engine.adapt(problem, now, method, state=state, blocks=number):
            state = block.state
            yield block


def affordable(problem: Problem, method: Online, left: int) -> Online:
    """The method with the longest block, up to its own, that costs at most `left` gradients (left ≥ 1).

    Periodic methods have blocks of whole periods. Where not even the shortest block fits, and for Adaptive, whose block is part
    of the method, `left` plain steps: one gradient each, and no hyperparameter moves.
    """
    if method.cost(problem).price <= left:
        return method
    period = method.every if isinstance(method, Periodic) else 1
    for steps in range(getattr(method, "block", 0) - period, 0, -period):
        shorter = replace(method, block=steps)  # type: ignore[call-arg]
        if shorter.cost(problem).price <= left:
            return shorter
    return Plain(left)
