"""The ways to a hypergradient, as the caller names them. The engines do the work; these say which and with what settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Exact:
    """Exact reverse pass over the stored trajectory (Maclaurin et al. 2015, algorithm 2, with the states kept).

    Cost: T gradients with Hessian-vector products, about 2 T gradients on top of the T of training; memory: T states.
    """

    name = "exact"


@dataclass(frozen=True)
class DrMAD:
    """Reverse pass along the straight line from w_0 to w_T (Fu et al. 2016). POOR on long runs: measure it against Exact.

    completion: what fills the gaps of the printed algorithm:
      C0  algorithm 2 to the letter: T steps, no velocity, no learning rate
      C1  the authors' code: N = T/10, β = linspace(.001, .999, N), step i uses minibatch i, full recursion
      C4  the thesis: N from the speed of the first steps, ρ = linspace(0, 1, N+1)[:N], learning rate at the end
    multiplier, max_steps: C4 only: N = min(ceil(multiplier / b), max_steps, T). The thesis' CPU code has multiplier .1
    and no bound, its GPU code 1 and 600.
    Cost: N gradients with Hessian-vector products; memory: two states.
    """

    completion: str = "C4"
    multiplier: float = 1.0
    max_steps: int = 600

    def __post_init__(self) -> None:
        if self.completion not in COMPLETIONS:
            raise UsageError(f"completion {self.completion!r}, expected one of {', '.join(COMPLETIONS)}")
        if not (self.multiplier > 0 and math.isfinite(self.multiplier)):
            raise UsageError(f"multiplier {self.multiplier}, expected a positive number")
        if self.max_steps < 1:
            raise UsageError(f"max_steps {self.max_steps}, expected at least 1")

    @property
    def name(self) -> str:
        return f"drmad-{self.completion}"


COMPLETIONS = ("C0", "C1", "C4")
Method = Exact | DrMAD


def parse_method(word: str) -> Method:
    """'exact', 'drmad-C0', 'drmad-C1', 'drmad-C4' → the method with its default settings."""
    if word == "exact":
        return Exact()
    if word.startswith("drmad-"):
        return DrMAD(word.removeprefix("drmad-"))
    raise UsageError(f"method {word!r}, expected exact, {', '.join('drmad-' + c for c in COMPLETIONS)}")


def speed_matched_steps(distances: list[float], total: float, method: DrMAD) -> int:
    """N of completion C4: as many steps as the line has at the speed of the first steps.

        s_k = ‖w_{k+1} − w_0‖ / (k+1),  k = 4 … min(20, T) − 1
        q_i = 2^−(i+1) for i ≥ 1,  q_0 = 1 − Σ q_i
        b = Σ q_i s_{4+i} / ‖w_T − w_0‖,   N = min(ceil(multiplier / b), max_steps, T)

    distances: ‖w_{t+1} − w_0‖ for t = 0 … T−1; total: ‖w_T − w_0‖. Raises UsageError for T < 5 or a run that did not move.
    """
    T = len(distances)
    if T < 5:
        raise UsageError(f"completion C4 measures the speed of steps 5 to 20, this run has {T}; train longer or use C0")
    if not total > 0.0:
        raise UsageError("completion C4: w_T equals w_0, there is no line to follow; check the learning rate")
    s = [distances[k] / (k + 1) for k in range(4, min(20, T))]
    q = [2.0 ** -(i + 1) for i in range(len(s))]
    q[0] = 1.0 - sum(q[1:])
    b = sum(qi * si for qi, si in zip(q, s, strict=True)) / total
    if not b > 0.0:
        raise UsageError("completion C4: the first steps did not move the weights; check the learning rate")
    # A hair is taken off before rounding up, so that a constant speed gives ceil(multiplier · T) and not one more.
    return max(1, min(math.ceil(method.multiplier / b * (1 - 1e-12)), method.max_steps, T))
