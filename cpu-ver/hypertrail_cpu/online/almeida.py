"""Almeida, Langlois, Amaral, Plakhov 1998: a learning rate for each parameter, moved by two gradients in a row. float64."""

from __future__ import annotations

import numpy as np

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper
from hypertrail.records import Params

from ..training import gradient_at
from .rule import Report, Rule


class AlmeidaRule(Rule):
    """Each step:

        v ← γ v + (1−γ) g²
        p ← clip(p · max(½, 1 + k g g_last / v))        unmoved where v = 0
        x ← x − p g                                     (times the schedule's factor)

    Cost: one gradient a step.
    """

    def start(self, hyper: Hyper, w: Params, v: Params) -> State:
        zero = {name: np.zeros_like(one) for name, one in w.items()}
        return {"gradient": zero, "square": zero}

    def block(self, state: State) -> tuple[State, Report]:
        problem, method, report = self.problem, self.method, Report()
        one, k, γ = problem.declared("learning_rate"), method.k, method.average
        factors = problem.dynamics.factors(problem.steps)
        x, running = state["w"], state["running"]
        last, v = state["memory"]["gradient"], state["memory"]["square"]
        values = problem.values(state["hyper"])
        p = {name: one.value(u) for name, u in state["hyper"]["learning_rate"].items()}
        start = int(state["step"])
        for t in range(start, start + method.block):
            loss, g, statistics = gradient_at(problem, values, x, t)
            report.losses.append(loss)
            running = problem.update_running(running, statistics)
            v = {name: γ * v[name] + (1 - γ) * g[name] ** 2 for name in x}
            for name in x:
                agreement = np.divide(g[name] * last[name], v[name], out=np.zeros_like(v[name]), where=v[name] > 0)
                p[name] = np.clip(p[name] * np.maximum(0.5, 1 + k * agreement), *one.bounds)
            x = {name: x[name] - factors[t] * p[name] * g[name] for name in x}
            last = g
        rate = {name: unconstrained("learning_rate", one) for name, one in p.items()}
        velocity = {name: (-g[name] if problem.dynamics.kind == "damped" else g[name]) for name in x}
        memory = {"gradient": last, "square": v}
        hyper = state["hyper"] | {"learning_rate": rate}
        return {"w": x, "v": velocity, "running": running, "hyper": hyper, "memory": memory}, report
