"""Plain training, block by block: nothing moves. What the methods are measured against, in the same loop."""

from __future__ import annotations

from typing import Any

from hypertrail.adapting import State
from hypertrail.hyperparameters import Hyper

from .rule import Rule

Array = Any
Tree = Any


class PlainRule(Rule):
    """n steps forward from (w, v). Cost: one gradient a step."""

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        values = self.programs._values(state["hyper"])
        (w, v, running), losses, _ = self.steps((state["w"], state["v"], state["running"]), values, data, inputs)
        return state | {"w": w, "v": v, "running": running}, {}, self.report(w, losses)
