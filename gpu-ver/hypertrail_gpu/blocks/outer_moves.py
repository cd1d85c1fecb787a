"""How the hyperparameters move once their gradient is known: a rule of `hypertrail.outer`, or any optax transformation."""

from __future__ import annotations

from typing import Any

import jax

from hypertrail import outer
from hypertrail.errors import UsageError
from hypertrail.task import Task

from ..inner import State
from ..online.rule import move_outer, start_outer
from ..trees import filled
from .block import Setting
from .entries import chosen, clipped

Tree = Any


def is_optax(rule: Any) -> bool:
    return hasattr(rule, "init") and hasattr(rule, "update")


def remembered(task: Task, setting: Setting, s: State, hyper: Tree) -> Tree:
    """The memory of the outer rule before its first move."""
    rule, moving = setting.method.outer, chosen(task, setting.moves, hyper)
    return rule.init(moving) if is_optax(rule) else start_outer(rule, moving)


def moved(task: Task, setting: Setting, hyper: Tree, h: Tree, memory: Tree) -> tuple[Tree, Tree]:
    """λ ← clip(λ − outer(h)), to the declared bounds → (hyper, the memory of the rule). What does not move is not clipped."""
    rule, moving = setting.method.outer, chosen(task, setting.moves, hyper)
    if is_optax(rule):
        updates, memory = rule.update(h, memory, moving)
        moving = jax.tree.map(lambda u, d: (u + d).astype(u.dtype), moving, updates)
    else:
        moving, memory = move_outer(rule, moving, h, memory)
    return filled(hyper, clipped(task, moving)), memory


def refuse_outer(method: Any) -> None:
    """UsageError for what is neither an optax transformation nor a rule that can be traced."""
    if is_optax(method.outer):
        return
    if not isinstance(method.outer, outer.Rule):
        raise UsageError(
            f"{method.name} outer={method.outer!r}, expected a rule of hypertrail.outer or an optax.GradientTransformation"
        )
    start_outer(method.outer, ())
