"""The adaptive method of the thesis: n steps, M validation batches, K steps back, one step by signs. float64."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from hypertrail.adapting import State, output_weights
from hypertrail.errors import NumericalFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.records import Params

from ..methods import collapsed
from ..providers import Place, Provider, Undone
from ..reverse import Adjoint, add, reverse, zeros
from ..training import Step, forward
from .rule import Report, Rule, diverged, size_of, validation_gradient


class Kept:
    """The last K states of the block, as they were: a provider. Exact."""

    def __init__(self, steps: deque[Step]) -> None:
        self.steps = steps

    def backwards(self) -> Iterator[Place]:
        for one in reversed(self.steps):
            yield Place(one.t, one.t, one.t, one.w, one.v)


class Watched:
    """A provider, and the last place that it handed over: where look-ahead goes on from."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.last: Place | None = None

    def backwards(self) -> Iterator[Place]:
        for place in self.provider.backwards():
            self.last = place
            yield place


class AdaptiveRule(Rule):
    """One block is one move of every declared hyperparameter.

        n steps forward from (w, v);   dw = ∇f(w_T), dv = 0 on M random validation batches
        for i = T−1 … T−K:   dr += dw v eʳ;  dv ← dv + eʳ dw;  u = −(1−γ) dv;  dλ += 2 λ ln 10 w u;  dw += H u;  dv ← γ dv
        of the output layer's W:  dr, dλ ← their means over the classes
        r ← clip(r − s_r sign(dr)),  λ ← clip(λ − s_λ sign(dλ))

    Cost: n + M gradients and K products (K gradients more are taken here, apart, where a rate is declared).
    """

    def start(self, hyper: Hyper, w: Params, v: Params) -> State:
        if not self.method.mass:
            return {}
        return {"u": {kind: {key: np.zeros_like(u) for key, u in arrays.items()} for kind, arrays in hyper.items()}}

    def block(self, state: State) -> tuple[State, Report]:
        problem, method, hyper = self.problem, self.method, state["hyper"]
        n, K, start = method.steps, method.last, int(state["step"])
        T = start + n
        values, running = problem.values(hyper), state["running"]
        report, kept, before = Report(), deque(maxlen=K), running
        for one in forward(problem, values, state["w"], state["v"], start, T):
            if one.t == T - K:
                before = running  # batch norm's averages at w_{T−K}
            report.losses.append(one.loss)
            running = problem.update_running(running, one.statistics)
            kept.append(one)
        w, v = kept[-1].w_next, kept[-1].v_next

        f, dw, direct = validation_gradient(problem, w, values, method.validation_batches, int(state["block"]), T)
        dvalues = zeros(problem, values)
        add(dvalues, direct)
        begun = Adjoint(dw, problem.initial_velocity(), dvalues, f, np.empty(0), w)
        undone = method.states == "undone"
        provider = Watched(Undone(problem.with_(steps=T), values, w, v) if undone else Kept(kept))
        try:
            result = reverse(problem, hyper, provider, K, final=w, to=T - K, begun=begun)
        except NumericalFailure as failure:  # of the adjoint, inside the block; the block names its move
            raise diverged(T) from failure
        h = collapsed(problem, hyper, result.dvalues)
        if not np.isfinite(size_of(h)):
            raise diverged(T)

        moved, memory = self.move(hyper, h, state["memory"])
        if method.mode != "restore":
            assert provider.last is not None
            w, v, running = provider.last.w, provider.last.v, before
        report.hyper_losses.append(f)
        report.gradient = h
        return {"w": w, "v": v, "running": running, "hyper": moved, "memory": memory}, report

    def move(self, hyper: Hyper, h: Hyper, memory: State) -> tuple[Hyper, State]:
        """λ ← clip(λ − s sign(h)), or with mass m:  u ← m u − (1−m) sign(h),  λ ← clip(λ + s u)."""
        h, m, moved, u = self.averaged(h), self.method.mass, {}, {}
        for one in self.problem.hyperparameters:
            s, kind = self.method.move(one.kind), one.kind
            direction = {key: -np.sign(d) for key, d in h[kind].items()}
            if m:
                direction = {key: m * memory["u"][kind][key] + (1 - m) * d for key, d in direction.items()}
                u[kind] = direction
            if s == 0:
                moved[kind] = hyper[kind]
                continue
            moved[kind] = {key: one.project(x + s * direction[key]) for key, x in hyper[kind].items()}
        return moved, {"u": u} if m else {}

    def averaged(self, h: Hyper) -> Hyper:
        """The hypergradient as its signs are taken: that of the output layer's W averaged over the classes."""
        names = {p.name for p in output_weights(self.problem.network)} if self.method.average_output else set()
        return {
            kind: {key: over_classes(d) if key in names else d for key, d in arrays.items()}
            for kind, arrays in h.items()
        }


def over_classes(u: np.ndarray) -> np.ndarray:
    """The mean over the last axis, which holds the classes in an array of the output layer's W. Same shape; a scalar stays."""
    return np.broadcast_to(u.mean(axis=-1, keepdims=True), u.shape).copy() if u.ndim else u
