"""RTHO and MARTHE(μ): forward-mode derivatives carried along with the training, the hyperparameters moving by them. float64."""

from __future__ import annotations

import numpy as np

from hypertrail.adapting import State
from hypertrail.hyperparameters import Hyper, count
from hypertrail.problem import Values
from hypertrail.records import Params

from ..forward import directions, tangent_rule
from ..losses import gradient_tangents
from ..training import batch, forward, norm, rates, seen
from .rule import Report, Rule, diverged, move_outer, size_of, start_outer, validation_gradient


class TangentRule(Rule):
    """Each step, for each column (ẇ, v̇) of Z, with λ̇ its direction:

        (ẇ, v̇) ← tangent of the step at (μ ẇ, μ v̇, λ̇)            that is Z ← μ A Z + B
        every `every` steps:   h_j = ⟨∇f(w), ẇ_j⟩ + ⟨∂f/∂λ, λ̇_j⟩,   λ ← clip(λ − outer(h))

    Cost of a step: one gradient (taken twice here: apart, and for the tangents) and m products; of a move: M gradients.
    """

    def start(self, hyper: Hyper, w: Params, v: Params) -> State:
        m = count(hyper)
        Zw, Zv = ({p: np.zeros((m, *np.shape(one))) for p, one in a.items()} for a in (w, v))
        return {"w": Zw, "v": Zv, "outer": start_outer(self.method.outer, hyper)}

    def block(self, state: State) -> tuple[State, Report]:
        problem, method, report = self.problem, self.method, Report()
        w, v, running, hyper = (state[key] for key in ("w", "v", "running", "hyper"))
        m, memory = count(hyper), state["memory"]["outer"]
        Z = [({p: state["memory"]["w"][p][j] for p in w}, {p: state["memory"]["v"][p][j] for p in w}) for j in range(m)]
        zero = tuple({p: np.zeros_like(one) for p, one in a.items()} for a in (w, v))
        start = int(state["step"])
        for begin in range(start, start + method.block, method.every):
            values = problem.values(hyper)
            columns = sorted(directions(problem, hyper, values), key=lambda one: one[:2])  # as JAX orders them
            for one in forward(problem, values, w, v, begin, begin + method.every):
                report.losses.append(one.loss)
                running = problem.update_running(running, one.statistics)
                Z = self.carried(one, values, columns, Z)
            w, v = one.w_next, one.v_next
            f, dw, direct = validation_gradient(problem, w, values, method.validation_batches, one.t, one.t + 1)
            h = {kind: {key: np.zeros(np.shape(u)) for key, u in arrays.items()} for kind, arrays in hyper.items()}
            for (kind, (key, index), dot), (w_dot, _) in zip(columns, Z, strict=True):
                total = sum(np.sum(dw[p] * w_dot[p]) for p in dw)
                for one_kind, arrays in direct.items():
                    total += sum(np.sum(d * dot[one_kind][p]) for p, d in arrays.items())
                h[kind][key][index] = total
            if not np.isfinite(size_of(h) + sum(norm(w_dot) for w_dot, _ in Z)):
                raise diverged(one.t + 1)
            moved, memory = move_outer(method.outer, hyper, h, memory)
            clip = {declared.kind: declared.project for declared in problem.hyperparameters}
            hyper = {kind: {key: clip[kind](u) for key, u in arrays.items()} for kind, arrays in moved.items()}
            if method.restart:
                Z = [zero] * m
            report.hyper_losses.append(f)
            report.gradient = h
        stacked = [{p: np.stack([z[i][p] for z in Z]) for p in w} for i in range(2)]
        after = {"w": stacked[0], "v": stacked[1], "outer": memory}
        return {"w": w, "v": v, "running": running, "hyper": hyper, "memory": after}, report

    def carried(self, one, values: Values, columns: list, Z: list[tuple[Params, Params]]) -> list:
        """Z one step later."""
        problem, t, mu = self.problem, one.t, self.method.mu
        g, tangent = gradient_tangents(problem, one.w, seen(problem, values, t), *batch(problem, t), t)
        alpha, gamma = rates(problem, values, t)
        advance = tangent_rule(problem.dynamics, t)
        after = []
        for (_, _, values_dot), (w_dot, v_dot) in zip(columns, Z, strict=True):
            w_dot, v_dot = ({p: mu * x for p, x in a.items()} for a in (w_dot, v_dot))
            g_dot = tangent(w_dot, seen(problem, values_dot, t))
            alpha_dot, gamma_dot = rates(problem, values_dot, t)
            dot = {p: (w_dot[p], v_dot[p], g_dot[p], alpha_dot[p], gamma_dot[p]) for p in g}
            moved = {p: advance(one.v[p], g[p], alpha[p], gamma[p], dot[p]) for p in g}
            after.append(({p: x for p, (x, _) in moved.items()}, {p: x for p, (_, x) in moved.items()}))
        return after
