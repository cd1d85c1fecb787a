"""Training a task and its hypergradient, by every method of the suite: the engine's two functions for anybody's model."""

from __future__ import annotations

from typing import Any

from hypertrail.engines import Progress
from hypertrail.errors import UsageError
from hypertrail.keeping import Keep, from_middle
from hypertrail.methods import Method, parse_method
from hypertrail.runs.midway import Midway
from hypertrail.task import Task

from . import replay, trail
from .trail import Result, Trail

Tree = Any


def train(
    task: Task,
    keep: Keep = "memory",
    hyper: Tree = None,
    progress: Progress | None = None,
    midway: Midway | None = None,
) -> Trail:
    """T steps of the task. Cost: T gradients.

    keep: what is kept of the trajectory, see `hypertrail.keeping`. hyper: the arrays in the place of the declared ones.
    midway: where a training that was stopped goes on, to the same bits (keep 'ends' or a Path only).
    Raises UsageError for what cannot be trained, before anything is computed; NumericalFailure, naming the step, for the first
    loss that is not finite.
    """
    refuse_no_task(task)
    return trail.train(task, replay.making(keep), hyper, progress, midway if from_middle(keep) else None)


def hypergradient(trained: Trail, method: Method | str = "exact", progress: Progress | None = None) -> Result:
    """df/dλ of a training, by a method or its name ('exact', 'drmad-C4', …). Cost: see the method."""
    method = parse_method(method) if isinstance(method, str) else method
    return trail.hypergradient(trained, replay.way(trained, method), progress)


def refuse_no_task(task: Any) -> None:
    if not isinstance(task, Task):
        raise UsageError(f"{type(task).__name__} is no task, expected a hypertrail.Task")
