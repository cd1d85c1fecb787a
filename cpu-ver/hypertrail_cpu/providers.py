"""What hands the states w_t to the reverse pass: the stored truth, a recomputed or undone one, or a straight line.

A provider's `backwards()` yields a `Place` for i = N−1 … 0: the state (w_i, v_i) BEFORE reverse step i undoes it, and which
batch and which rates that step is to use. Everything else (g_i, v_{i+1}) the step computes from it, so a provider that hands
over true states gives the exact hypergradient. A walk that is not finished (truncated methods) just stops asking.

| provider | keeps | exact | gradients of its own |
|---|---|---|---|
| Stored | T states | yes | 0 |
| Recomputed | n states, one stretch | yes | T |
| ExactlyReversed | 1 state, log2(1/γ) bits a number and step | yes | 0, but g of each step, handed over |
| Undone | 1 state | no | 0, but g of each step, handed over |
| Line, Pieces | 2, n + 1 states | no | 0 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from hypertrail.errors import UsageError, VerificationFailure
from hypertrail.problem import Problem, Values
from hypertrail.records import Checkpointed, Params, Undoable
from hypertrail_data import Trajectory

from .losses import elementary_gradient
from .reversal import Integers
from .training import batch, forward, norm, rates, seen


class Place(NamedTuple):
    """Reverse step i: whose batch and masks, whose α and γ, the state before it (v empty where it is not asked for), and g
    where the provider had to compute it anyway."""

    i: int
    batch_step: int
    rate_step: int
    w: Params
    v: Params
    g: Params | None = None


class Provider(Protocol):
    def backwards(self) -> Iterator[Place]: ...


@dataclass(frozen=True)
class Stored:
    """The true states of a trajectory, streamed segment by segment, last to first. Exact.

    velocity: v_t is asked for too; UsageError where the trajectory was kept without it. Memory: one segment.
    """

    trajectory: Trajectory
    velocity: bool = False

    def backwards(self) -> Iterator[Place]:
        for segment in self.trajectory.backwards():
            w, v = (
                {name.removeprefix(front): a for name, a in segment.states.items() if name.startswith(front)}
                for front in ("w/", "v/")
            )
            if self.velocity and not v:
                raise UsageError(
                    "the trajectory holds no velocities, which learning rate and momentum need; "
                    "train again with these hyperparameters declared"
                )
            for t in reversed(range(segment.start, segment.stop)):
                yield Place(t, t, t, self.row(w, t - segment.start), self.row(v, t - segment.start))

    def row(self, arrays: Params, k: int) -> Params:
        return {name: np.asarray(a[k], dtype=np.float64) for name, a in arrays.items()}


@dataclass
class Recomputed:
    """The true states, computed forward again from the checkpoint before each stretch, last stretch first. Exact.

    The states are those of the run to the bit: it is the same loop (`training.forward`) from the same numbers.
    end: the state after the last step, to compare with; each stretch is compared with where the next one begins, and
    VerificationFailure raised where they are further apart than `GAPS` allows. Memory: the checkpoints and the longest stretch.
    Cost: one gradient for each step of each stretch that is entered. Source: Griewank 1992 for the idea; docs/exact.md.
    """

    problem: Problem
    values: Values
    kept: Checkpointed
    end: Params

    def backwards(self) -> Iterator[Place]:
        w_stop, stop = self.end, self.problem.steps
        for start, state in zip(reversed(self.kept.at), reversed(self.kept.states), strict=True):
            w, v = split(state)
            stretch = list(forward(self.problem, self.values, w, v, start, stop))
            precision = np.result_type(*(one.dtype for one in state.values())).name
            self.check(stretch[-1].w_next, w_stop, stop, precision)
            while stretch:
                one = stretch.pop()
                yield Place(one.t, one.t, one.t, one.w, one.v)
            w_stop, stop = w, start

    def check(self, found: Params, expected: Params, step: int, precision: str) -> None:
        gap = norm({p: found[p] - expected[p] for p in found}) / max(norm(expected), 1e-300)
        if not gap <= GAPS[precision]:
            way_out = "" if precision == "float64" else f"; a long {precision} run parts from its float64 recomputation"
            raise VerificationFailure(
                f"recomputing from a checkpoint arrives at step {step} {gap:.1e} (relative) away from what the run kept, "
                f"allowed {GAPS[precision]:g}; pass problem, hyperparameters and training of one run{way_out}; or keep the states"
            )


# By the precision of the kept states; other hyperparameters make 1e-3. float64: the same run differs by nothing, another engine's
# by 1e-12 and more. float32, another engine's: each step was rounded at 6e-8; measured 4e-7 after stretches of 15 steps.
GAPS = {"float64": 1e-6, "float32": 1e-4}


@dataclass
class ExactlyReversed:
    """The true states of a run in fixed point, undone one by one, to the bit (reversal.py). Exact, and it proves it.

        for t = T−1 … 0:    w −= α v;   g = ∇L(w, batch_t);   v += (1−γ) g;   v /= γ
        at the end:         w = w_0, v = 0, every buffer empty, or VerificationFailure

    initial: w_0. problem and values: those of `reversal.rounded`. Memory: the integers and what is left of their digits.
    Cost: one gradient a step, handed over. Source: Maclaurin et al. 2015, algorithm 3. Mirror of `training.forward_in_integers`.
    """

    problem: Problem
    values: Values
    kept: Undoable
    initial: Params

    def backwards(self) -> Iterator[Place]:
        state = Integers.resume(self.kept)
        for t in reversed(range(self.problem.steps)):
            state.back_weights(t, rates(self.problem, self.values, t)[0])
            w = state.weights()
            _, g, _ = elementary_gradient(
                self.problem, w, seen(self.problem, self.values, t), *batch(self.problem, t), t
            )
            state.back_velocity(t, g)
            yield Place(t, t, t, w, state.velocity(), g)
        state.check_start(self.initial)


@dataclass
class Undone:
    """The steps undone in floating point from (w, v) = (w_T, v_T). POOR: each multiplies an error by 1/γ.

        for t = T−1 … 0:    w −= α v;   g = ∇L(w, batch_t);   v ← (v + (1−γ) g) / γ

    Damped dynamics only. dtype: what w and v are rounded to after each line (gradients stay float64), to see what the machine
    precision does: all is lost after about mantissa / log2(1/γ) steps (float32: 158 / 302 / 706 at γ = .9 / .95 / .98).
    Memory: one state. Cost: one gradient a step, handed over. Source: Maclaurin et al. 2015, algorithm 2; thesis (DrMAD2's tail).
    """

    problem: Problem
    values: Values
    w: Params
    v: Params
    dtype: Any = np.float64

    def backwards(self) -> Iterator[Place]:
        w, v = self.cast(self.w), self.cast(self.v)
        for t in reversed(range(self.problem.steps)):
            alpha, gamma = rates(self.problem, self.values, t)
            w = self.cast({p: w[p] - alpha[p] * v[p] for p in w})
            _, g, _ = elementary_gradient(
                self.problem, w, seen(self.problem, self.values, t), *batch(self.problem, t), t
            )
            v = self.cast({p: (v[p] + (1 - gamma[p]) * g[p]) / gamma[p] for p in v})
            yield Place(t, t, t, w, v, g)

    def cast(self, a: Params) -> Params:
        return {p: one.astype(self.dtype).astype(np.float64) for p, one in a.items()}


def split(state: dict[str, Any]) -> tuple[Params, Params]:
    """(w, v) of a kept state {"w/<parameter>": …, "v/<parameter>": …}, float64."""
    w, v = (
        {name[2:]: np.asarray(a, dtype=np.float64) for name, a in state.items() if name.startswith(front)}
        for front in ("w/", "v/")
    )
    return w, v


@dataclass(frozen=True)
class Line:
    """w_i = (1 − ρ_i) w_0 + ρ_i w_T on the straight line from w_0 to w_T (DrMAD). POOR where training did not go straight.

        v_i = (w_i − w_{i−1}) / rate_i,   v_0 = start, the true velocity where the line begins (None: 0)
        v_i = (w_{i+1} − w_i) / rate_i    where `ahead`: v_i moves w_i on, and w_N = w_T

    rho: (N,), rising; batch_steps, rate_steps: (N,) ints, what reverse step i uses. rate: rate step → {name: what one unit of
    velocity moves the weights by}, that is α for damped and −η for heavy ball; None: no velocity is asked for. ahead: for
    damped-old, where w_{i+1} − w_i = α_i v_i. rate_i is the one of rate_steps[i] (docs/drmad.md). At i = 0 the authors'
    code takes w_{−1}, which wraps around to the END of the line; that is only repeated by the choice end_velocity, as
    `start`. Memory: two states. Cost: none in gradients.
    """

    w0: Params
    wT: Params
    rho: np.ndarray
    batch_steps: np.ndarray
    rate_steps: np.ndarray
    rate: Callable[[int], Params] | None = None
    start: Params | None = None
    ahead: bool = False

    def __len__(self) -> int:
        return len(self.rho)

    def at(self, i: int) -> Params:
        rho = self.rho[i] if i < len(self) else 1.0
        return {name: (1 - rho) * self.w0[name] + rho * self.wT[name] for name in self.w0}

    def velocity(self, i: int, w: Params) -> Params:
        if self.rate is None:
            return {}
        if i == 0:
            return self.start or {name: np.zeros_like(one) for name, one in w.items()}
        rate = self.rate(int(self.rate_steps[i]))
        a, b = (w, self.at(i + 1)) if self.ahead else (self.at(i - 1), w)
        return {name: (b[name] - a[name]) / rate[name] for name in w}

    def backwards(self) -> Iterator[Place]:
        for i in reversed(range(len(self))):
            w = self.at(i)
            yield Place(i, int(self.batch_steps[i]), int(self.rate_steps[i]), w, self.velocity(i, w))


@dataclass(frozen=True)
class Pieces:
    """Lines end to end, walked from the last to the first; i counts through all of them (DrMAD, piecewise)."""

    lines: list[Line] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.lines))

    def backwards(self) -> Iterator[Place]:
        i = len(self)
        for line in reversed(self.lines):
            for place in line.backwards():
                i -= 1
                yield place._replace(i=i)
