"""What hands the states w_t to the reverse pass: the stored truth, or a straight line.

A provider's `backwards()` yields a `Place` for i = N−1 … 0: the state (w_i, v_i) BEFORE reverse step i undoes it, and which
batch and which rates that step is to use. Everything else (g_i, v_{i+1}) the step computes from it, so a provider that hands
over true states gives the exact hypergradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from hypertrail.errors import UsageError
from hypertrail.records import Params
from hypertrail_data import Trajectory


class Place(NamedTuple):
    """Reverse step i: whose batch and masks, whose α and γ, and the state before it (v empty where it is not asked for)."""

    i: int
    batch_step: int
    rate_step: int
    w: Params
    v: Params


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


@dataclass(frozen=True)
class Line:
    """w_i = (1 − ρ_i) w_0 + ρ_i w_T on the straight line from w_0 to w_T (DrMAD). POOR where training did not go straight.

        v_i = (w_i − w_{i−1}) / rate_i,   v_0 = 0, the true initial velocity

    rho: (N,), rising; batch_steps, rate_steps: (N,) ints, what reverse step i uses. rate: rate step → {name: what one unit of
    velocity moves the weights by}, that is α for damped and −η for heavy ball; None: no velocity is asked for. rate_i is the
    one of rate_steps[i] (reference section 3.2). At i = 0 the authors' code takes w_{−1}, which wraps around to the END of
    the line; that is not repeated here. Memory: two states. Cost: none in gradients.
    """

    w0: Params
    wT: Params
    rho: np.ndarray
    batch_steps: np.ndarray
    rate_steps: np.ndarray
    rate: Callable[[int], Params] | None = None

    def __len__(self) -> int:
        return len(self.rho)

    def at(self, i: int) -> Params:
        rho = self.rho[i]
        return {name: (1 - rho) * self.w0[name] + rho * self.wT[name] for name in self.w0}

    def velocity(self, i: int, w: Params) -> Params:
        if self.rate is None:
            return {}
        if i == 0:
            return {name: np.zeros_like(one) for name, one in w.items()}
        before, rate = self.at(i - 1), self.rate(int(self.rate_steps[i]))
        return {name: (w[name] - before[name]) / rate[name] for name in w}

    def backwards(self) -> Iterator[Place]:
        for i in reversed(range(len(self))):
            w = self.at(i)
            yield Place(i, int(self.batch_steps[i]), int(self.rate_steps[i]), w, self.velocity(i, w))
