"""T1–T2: L2, L1 and noise moved by one elementary step's effect on the validation loss. float64."""

from __future__ import annotations

import numpy as np

from hypertrail.adapting import State, moved_kinds, unconstrained
from hypertrail.hyperparameters import Hyper, collapse, sum_shared
from hypertrail.problem import Values
from hypertrail.records import Params

from ..losses import second_order
from ..training import batch, forward, seen
from .rule import Report, Rule, diverged, move_outer, size_of, start_outer, validation_gradient


class T1T2Rule(Rule):
    """Every `every` steps:

        u  = −∇C₂(w_{t+1})                                                   at='same': −∇C₂(w_t), and no step is taken
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
            for one in forward(problem, values, w, v, begin, begin + method.steps_before_move):
                report.losses.append(one.loss)
                running = problem.update_running(running, one.statistics)
            w, v, t = one.w_next, one.v_next, begin + method.every - 1
            f, h = self.gradient(one.w if method.at == "after" else w, w, t, values, hyper)
            report.hyper_losses.append(f)
            report.gradient = h
            if np.isfinite(size_of(h)):
                hyper, memory = self.move(hyper, self.held_short(h), memory)
            elif method.nonfinite == "skip":
                report.skipped += 1
            else:
                raise diverged(t + 1)
        return {"w": w, "v": v, "running": running, "hyper": hyper, "memory": memory}, report

    def gradient(self, w: Params, w_valid: Params, t: int, values: Values, hyper: Hyper) -> tuple[float, Hyper]:
        """(C₂ at w_valid, h with C̃₁ at w and on the batch of step t); h in the representation that moves."""
        problem = self.problem
        f, d, _ = validation_gradient(problem, w_valid, values, self.method.validation_batches, t, t + 1)
        u = self.each_cut({name: -x for name, x in d.items()})
        noise: Params = {}
        if "noise" in hyper:
            noise = second_order(problem, w, seen(problem, values, t), *batch(problem, t), t, u)[1]["noise"]
        rules = {"l2": lambda p: 2 * w[p] * u[p], "l1": lambda p: np.sign(w[p]) * u[p], "noise": noise.get}
        h: Hyper = {}
        for kind, arrays in self.moved(hyper).items():
            # In λ itself no slope enters: at λ = 0, where the published bound lies, it is 0 and log λ infinite.
            gather = sum_shared if self.method.representation == "value" else collapse
            h[kind] = self.each_cut(gather(problem.declared(kind), arrays, {p: rules[kind](p) for p in values[kind]}))
        return f, h

    def each_cut(self, arrays: Params) -> Params:
        """With nonfinite='zero': 0 for what is not finite. With clip='each-tensor': no array longer than clip_norm."""
        if self.method.nonfinite == "zero":
            arrays = {key: np.nan_to_num(d, nan=0.0, posinf=0.0, neginf=0.0) for key, d in arrays.items()}
        if self.method.clip == "each-tensor":
            arrays = {key: d * shortening(float(np.linalg.norm(d)), self.method.clip_norm) for key, d in arrays.items()}
        return arrays

    def held_short(self, h: Hyper) -> Hyper:
        """With clip='all': h no longer than clip_norm, over all hyperparameters together."""
        factor = shortening(size_of(h), self.method.clip_norm) if self.method.clip == "all" else 1.0
        return {kind: {key: factor * d for key, d in arrays.items()} for kind, arrays in h.items()}

    def move(self, hyper: Hyper, h: Hyper, memory: State) -> tuple[Hyper, State]:
        """The outer step on λ or on its logarithm; then the bounds, which keep λ positive."""
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


def shortening(size: float, limit: float) -> float:
    """What a vector of this norm is multiplied by so that it is no longer than `limit`."""
    return limit / size if size > limit else 1.0
