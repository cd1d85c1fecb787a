"""DrMAD: the reverse pass along the straight line from w_0 to w_T (Fu, Luo, Feng, Low, Chua, IJCAI 2016).

Algorithm 2 of the paper leaves gaps; a completion fills them (`hypertrail.methods.DrMAD`). POOR on long runs: the thesis
measured a cosine of about .98 with the exact hypergradient at T = 200 and about .09 at T = 20000. Compare with Exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hypertrail.hyperparameters import Hyper
from hypertrail.methods import DrMAD, speed_matched_steps, stretch_steps
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Params, Training

from .providers import Line, Pieces, split
from .training import norm, rates


def line(problem: Problem, hyper: Hyper, training: Training, method: DrMAD) -> Line:
    """The line that completion C0 … C4 walks; reverse step i = N−1 … 0 uses

            N                    ρ_i                       batch of step     rates of step
        C0  T                    i / T                     i                 i               (paper: β falls from 1−1/T by 1/T)
        C1  max(1, ⌊T/10⌋)       linspace(.001, .999, N)   ⌊i T / N⌋, or i   i               (authors' code)
        C2  T                    i / T                     i                 i               (thesis; full recursion)
        C3  min(T, 200)          linspace(0, 1, N+1)[:N]   ⌊i T / N⌋         T − 1           (thesis)
        C4  by the first speed   linspace(0, 1, N+1)[:N]   ⌊i T / N⌋         T − 1           (thesis)

    C1 does not rescale α and, with first_batches, sees batch i, so only the first tenth of them: both as the authors' code.
    C2 walks as long as the run did with the whole curvature of the line, and EXPLODES on long runs. Which batch a step of C3 and
    C4 sees is NOT in the source: here, and in C1 without first_batches, the N batches are spread evenly over the run, so that
    N = T gives each step its own.
    Float64 arrays in training order. Cost: none in gradients. Raises UsageError where C4 cannot measure a speed
    (`speed_matched_steps`).
    """
    T = training.steps
    w0, wT = float64(training.initial), float64(training.final)
    if method.completion == "C3":
        return stretch(problem, hyper, w0, wT, 0, T, min(T, 200))
    if method.completion == "C4":
        total = norm({name: wT[name] - w0[name] for name in w0})
        return stretch(problem, hyper, w0, wT, 0, T, speed_matched_steps(training.distances, total, T, method))
    if method.completion == "C1":
        N = max(1, T // 10)
        rho = np.linspace(0.001, 0.999, N)
    else:
        N = T
        rho = np.arange(T) / T
    batch_steps = np.arange(N) if method.first_batches else np.arange(N) * T // N
    return Line(w0, wT, rho, batch_steps, np.arange(N), rate_of(problem, hyper), ahead=old(problem))


def line_before_tail(problem: Problem, hyper: Hyper, training: Training, method: DrMAD, w: Params, stop: int) -> Line:
    """C5: C4 on w_0 → w = w_stop, stop = T − K; its batches are spread over the steps 0 … stop−1, its rates those of stop − 1.

    The speed is that of the run's first steps, over ‖w_stop − w_0‖. N = min(stop, max_steps) where stop < 5.
    """
    w0 = float64(training.initial)
    return stretch(problem, hyper, w0, w, 0, stop, steps_of(training.distances, w0, w, stop, method))


def pieces(problem: Problem, hyper: Hyper, training: Training, method: DrMAD) -> Pieces:
    """C6: C4 on each stretch [a, b) between kept states; reverse step i = N−1 … 0 of a stretch uses

            N                                       ρ_i       batch of step           rates of step
            by the first speed of this stretch      i / N     a + ⌊i (b − a) / N⌋     b − 1

    N = min(b − a, max_steps) where b − a is below 5. The line begins with the velocity that was kept at a. So one stretch is
    C4, and a state at every step (n = T) is exact. UsageError for a stretch in which the weights did not move.
    """
    kept = training.trajectory
    assert isinstance(kept, Checkpointed)
    starts = [split(one) for one in kept.states]
    ends = [*(w for w, _ in starts[1:]), float64(training.final)]
    lines = []
    for (w, v), w_end, a, b, d in zip(
        starts, ends, kept.at, [*kept.at[1:], training.steps], kept.distances, strict=True
    ):
        N = steps_of(d, w, w_end, b - a, method)
        lines.append(stretch(problem, hyper, w, w_end, a, b, N, v))
    return Pieces(lines)


def steps_of(distances: np.ndarray, w: Params, w_end: Params, steps: int, method: DrMAD) -> int:
    """N for a stretch of `steps` steps from w to w_end."""
    return stretch_steps(distances, lambda: norm({p: w_end[p] - w[p] for p in w}), steps, method)


def stretch(
    problem: Problem, hyper: Hyper, w: Params, w_end: Params, a: int, b: int, N: int, v: Params | None = None
) -> Line:
    """N steps along the line from w = w_a to w_end = w_b: ρ = linspace(0, 1, N+1)[:N], batches spread evenly, rates of b − 1."""
    rho = np.linspace(0.0, 1.0, N + 1)[:N]
    batch_steps = a + np.arange(N) * (b - a) // N
    return Line(w, w_end, rho, batch_steps, np.full(N, b - 1), rate_of(problem, hyper), v, old(problem))


def rate_of(problem: Problem, hyper: Hyper) -> Callable[[int], Params] | None:
    """step → what one unit of velocity moves the weights by at that step; None where no velocity is asked for."""
    if not problem.needs_velocity():
        return None
    values = problem.values(hyper)
    sign = -1.0 if problem.dynamics.kind == "heavy-ball" else 1.0
    return lambda step: {name: sign * alpha for name, alpha in rates(problem, values, step)[0].items()}


def old(problem: Problem) -> bool:
    """Whether the old velocity moves the weights, so that v_i is the way from w_i to w_{i+1} and not the one to w_i."""
    return problem.dynamics.kind == "damped-old"


def float64(params: Params) -> Params:
    """The same arrays in float64: the run to be walked back may be another engine's."""
    return {name: np.asarray(one, dtype=np.float64) for name, one in params.items()}
