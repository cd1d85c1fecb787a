"""Hypergradient descent: learning rates that follow ⟨this gradient, the last direction⟩. float64."""

from __future__ import annotations

import numpy as np

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper
from hypertrail.records import Params

from ..dynamics import rule
from ..forward import tangent_rule
from ..training import gradient_at, rates
from .rule import Arrays, Report, Rule, by_name, shared


class DescentRule(Rule):
    """Each step:

        h = Σ g ⊙ D over what shares an α                D = ∂w/∂α of the step before, 0 at the first
        α ← clip(α − β h),   or   α ← clip(α (1 − β h / (‖g‖ ‖D‖)))
        (w, v) ← dynamics with the new α;   D ← ∂w/∂α of it

    Cost: one gradient a step.
    """

    def start(self, hyper: Hyper, w: Params, v: Params) -> State:
        return {"direction": {name: np.zeros_like(one) for name, one in w.items()}}

    def block(self, state: State) -> tuple[State, Report]:
        problem, report = self.problem, Report()
        one = problem.declared("learning_rate")
        factors = problem.dynamics.factors(problem.steps)
        w, v, running, D = state["w"], state["v"], state["running"], state["memory"]["direction"]
        values = problem.values(state["hyper"])
        alphas = {key: one.value(u) for key, u in state["hyper"]["learning_rate"].items()}
        start = int(state["step"])
        for t in range(start, start + self.method.block):
            loss, g, statistics = gradient_at(problem, values, w, t)
            report.losses.append(loss)
            running = problem.update_running(running, statistics)
            alphas = self.move(alphas, g, D)
            values = values | {"learning_rate": by_name(one, alphas, w)}
            alpha, gamma = rates(problem, values, t)
            advance, tangent = rule(problem.dynamics, t).advance, tangent_rule(problem.dynamics, t)
            dot = {
                p: (0.0, 0.0 * v[p], 0.0, factors[t], 0.0) for p in w
            }  # α in force is factor times the value that moves
            D = {p: tangent(v[p], g[p], alpha[p], gamma[p], dot[p])[0] for p in w}
            moved = {p: advance(w[p], v[p], g[p], alpha[p], gamma[p]) for p in w}
            w, v = {p: x for p, (x, _) in moved.items()}, {p: x for p, (_, x) in moved.items()}
        rate = {key: unconstrained("learning_rate", x) for key, x in alphas.items()}
        hyper = state["hyper"] | {"learning_rate": rate}
        return {"w": w, "v": v, "running": running, "hyper": hyper, "memory": {"direction": D}}, report

    def move(self, alphas: Arrays, g: Params, D: Params) -> Arrays:
        one, beta = self.problem.declared("learning_rate"), self.method.beta
        h = shared(one, {p: g[p] * D[p] for p in g})
        if self.method.rule == "additive":
            moved = {key: x - beta * h[key] for key, x in alphas.items()}
        else:
            g2, D2 = (shared(one, {p: x**2 for p, x in a.items()}) for a in (g, D))
            moved = {}
            for key, x in alphas.items():
                sizes = np.sqrt(g2[key]) * np.sqrt(D2[key])
                moved[key] = x * (1 - beta * h[key] / np.where(sizes > 0, sizes, 1.0))
        return {key: np.clip(x, *one.bounds) for key, x in moved.items()}
