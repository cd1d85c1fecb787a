"""Plain training, block by block: nothing moves. What the methods are measured against, in the same loop."""

from __future__ import annotations

from typing import Any

from hypertrail.records import Cost
from hypertrail.task import Task

from ..declared import values
from .block import Look, Place, Read, Report, Rule, Setting, nothing_remembered, report, steps


def moves(look: Look) -> tuple[str, ...]:
    return ()


def block(task: Task, setting: Setting, place: Place, read: Read, valid: Read) -> tuple[Place, None, Report]:
    """n steps:  (w, v, state) ← step(w, v, state, λ)

    Cost: one gradient a step.
    """
    given = values(task, setting.steps, place.hyper)
    s, losses, _ = steps(task, setting, place.s, given, read)
    return place._replace(s=s), None, report(s, place.hyper, losses)


def cost(method: Any, M: int, m: int) -> Cost:
    return Cost(method.block)


RULE = Rule(moves, nothing_remembered, (block,), cost)
