"""T1–T2: L2, L1 and noise moved by one elementary step's effect on the validation loss. float64."""

from __future__ import annotations

import numpy as np

from hypertrail.adapting import State, moved_kinds, unconstrained
from hypertrail.hyperparameters import Hyper, collapse, sum_shared
from hypertrail.problem import Values
from hypertrail.records import Params

from ..losses import second_order
from ..training import Step, batch, forward, seen
from .rule import Report, Rule, diverged, move_outer, size_of, start_outer, validation_gradient


class T1T2Rule(Rule):
    """Every `every` steps:

        u  = −∇C₂(w_{t+1})
        h₂ = Σ 2 w_t u,   h₁ = Σ sign(w_t) u,   h_σ = ∂/∂σ ⟨∇D, u⟩          (∂_λ∇_w C̃₁)ᵀ u, summed over what shares a λ
        λ ← clip(λ − outer(h))

    Cost: one gradient a step, M for each move; with noise one product more for each move.
    """

    def start(self, hyper: Hyper, w: Params, v: Params) -> State:
        return start_outer(self.method.outer, self.moved(hyper))

    def moved(self, hyper: Hyper) -> Hyper:
        return {kind: hyper[kind] for kind in moved_kinds(self.problem, self.method)}

    def block(self, state: State) -> tuple[State, Report]:
        problem, method, report = self.problem, self.method, Report()
        w, v, running, hyper, memory = (state[key] for key in ("w", "v", "running", "hyper", "memory"))
        start = int(state["step"])
        for begin in range(start, start + method.block, method.every):
            values = problem.values(hyper)
            for one in forward(problem, values, w, v, begin, begin + method.every):
                report.losses.append(one.loss)
                running = problem.update_running(running, one.statistics)
            w, v = one.w_next, one.v_next
            f, h = self.gradient(one, values, hyper)
            report.hyper_losses.append(f)
            report.gradient = h
            size = size_of(h)
            if np.isfinite(size):
                hyper, memory = self.move(hyper, h, min(1.0, method.clip_norm / size) if size else 1.0, memory)
            elif method.skip:
                report.skipped += 1
            else:
                raise diverged(one.t + 1)
        return {"w": w, "v": v, "running": running, "hyper": hyper, "memory": memory}, report

    def gradient(self, one: Step, values: Values, hyper: Hyper) -> tuple[float, Hyper]:
        """(C₂, h) of the step that was just taken; h in the representation that moves."""
        t, problem = one.t, self.problem
        f, d, _ = validation_gradient(problem, one.w_next, values, self.method.validation_batches, t, t + 1)
        u = {name: -x for name, x in d.items()}
        noise: Params = {}
        if "noise" in hyper:
            of_batch = seen(problem, values, t)
            noise = second_order(problem, one.w, of_batch, *batch(problem, t), t, u)[1]["noise"]
        rules = {"l2": lambda p: 2 * one.w[p] * u[p], "l1": lambda p: np.sign(one.w[p]) * u[p], "noise": noise.get}
        h: Hyper = {}
        for kind, arrays in self.moved(hyper).items():
            # In λ itself no slope enters: at λ = 0, where the published bound lies, it is 0 and log λ infinite.
            gather = sum_shared if self.method.representation == "value" else collapse
            h[kind] = gather(problem.declared(kind), arrays, {p: rules[kind](p) for p in values[kind]})
        return f, h

    def move(self, hyper: Hyper, h: Hyper, factor: float, memory: State) -> tuple[Hyper, State]:
        """The outer step on λ or on its logarithm; then the bounds, which keep λ positive."""
        h = {kind: {key: factor * d for key, d in arrays.items()} for kind, arrays in h.items()}
        here, problem, values = self.moved(hyper), self.problem, self.method.representation == "value"
        if values:
            here = {kind: {key: problem.declared(kind).value(u) for key, u in a.items()} for kind, a in here.items()}
        moved, memory = move_outer(self.method.outer, here, h, memory)
        after = dict(hyper)
        for kind, arrays in moved.items():
            one = problem.declared(kind)
            if values:
                arrays = {key: unconstrained(kind, np.clip(x, *one.bounds)) for key, x in arrays.items()}
            after[kind] = {key: one.project(u) for key, u in arrays.items()}
        return after, memory
