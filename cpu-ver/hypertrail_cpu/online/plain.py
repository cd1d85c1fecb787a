"""Plain training, block by block: nothing moves. What the methods are measured against, in the same loop. float64."""

from __future__ import annotations

from hypertrail.adapting import State

from ..training import forward
from .rule import Report, Rule


class PlainRule(Rule):
    """n steps forward from (w, v). Cost: one gradient a step."""

    def block(self, state: State) -> tuple[State, Report]:
        problem, report, start = self.problem, Report(), int(state["step"])
        w, v, running = (state[key] for key in ("w", "v", "running"))
        for one in forward(problem, problem.values(state["hyper"]), w, v, start, start + self.method.block):
            report.losses.append(one.loss)
            w, v, running = one.w_next, one.v_next, problem.update_running(running, one.statistics)
        return state | {"w": w, "v": v, "running": running}, report
