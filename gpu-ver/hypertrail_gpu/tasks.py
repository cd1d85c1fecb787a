"""Training a task and its hypergradient, by every method of the suite: the engine's two functions for anybody's model."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypertrail.engines import Progress
from hypertrail.errors import UsageError
from hypertrail.keeping import Keep
from hypertrail.methods import Method, parse_method
from hypertrail.task import Task

from . import replay, trail
from .trail import Result, Trail

Tree = Any


def train(task: Task, keep: Keep = "memory", hyper: Tree = None, progress: Progress | None = None) -> Trail:
    """T steps of the task. keep: what is kept of the trajectory, see `hypertrail.keeping`. Cost: T gradients."""
    refuse_no_task(task)
    return trail.train(task, partial(replay.keeper, keep), hyper, progress)


def hypergradient(trained: Trail, method: Method | str = "exact", progress: Progress | None = None) -> Result:
    """df/dλ of a training, by a method or its name ('exact', 'drmad-C4', …). Cost: see the method."""
    method = parse_method(method) if isinstance(method, str) else method
    return trail.hypergradient(trained, replay.way(trained, method), progress)


def refuse_no_task(task: Any) -> None:
    if not isinstance(task, Task):
        raise UsageError(f"{type(task).__name__} is no task, expected a hypertrail.Task")
