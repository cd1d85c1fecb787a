"""DrMAD: the reverse pass along the straight line from w_0 to w_T (Fu, Luo, Feng, Low, Chua, IJCAI 2016).

Algorithm 2 of the paper leaves gaps; a completion fills them (`hypertrail.methods.DrMAD`). POOR on long runs: the thesis
measured a cosine of about .98 with the exact hypergradient at T = 200 and about .09 at T = 20000. Compare with Exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hypertrail.hyperparameters import Hyper
from hypertrail.methods import MEASURED_STEPS, DrMAD, points, speed_matched_steps, stretch_steps
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Params, Training

from .providers import Line, Pieces, split
from .training import forward, norm, rates


def line(problem: Problem, hyper: Hyper, training: Training, method: DrMAD) -> Line:
    """The line that completion C0 … C4 walks; reverse step i = N−1 … 0 uses

            N                    ρ_i                       batch of step         rates of step
        C0  T                    i / T                     i                     i               (paper: β falls by 1/T)
        C1  max(1, ⌊T/10⌋)       linspace(.001, .999, N)   of stretch i, or i    i               (authors' code)
        C2  T                    i / T                     i                     i               (thesis; full recursion)
        C3  min(T, 200)          linspace(0, 1, N+1)[:N]   of stretch i, or i    T − 1           (thesis)
        C4  by the first speed   linspace(0, 1, N+1)[:N]   of stretch i, or i    T − 1           (thesis)

    Batches and ρ are `methods.points`: a step of each of N equal stretches of the run, or (first_batches, as in all the
    original programs) step i, which is only the beginning of the run. N = T gives each step its own. C1 does not rescale α. C2
    walks as long as the run did with the whole curvature of the line, and EXPLODES on long runs.
    method.choices: `hypertrail.methods.AsPublished`.
    Float64 arrays in training order. Cost: none in gradients, or the first 20 steps again (sum_of_norms). Raises UsageError where
    C4 cannot measure a speed (`speed_matched_steps`).
    """
    T, completion = training.steps, method.completion
    w0, wT = float64(training.initial), float64(training.final)
    if completion == "C3":
        return stretch(problem, hyper, w0, wT, 0, T, min(T, 200), method)
    if completion == "C4":
        N = speed_matched_steps(*way(problem, hyper, training, wT, method), T, method)
        return stretch(problem, hyper, w0, wT, 0, T, N, method)
    N = max(1, T // 10) if completion == "C1" else T
    rho, batch_steps = points(method, problem.seed, 0, T, N)
    return made(problem, hyper, Line(w0, wT, rho, batch_steps, np.arange(N)), method)


def line_before_tail(problem: Problem, hyper: Hyper, training: Training, method: DrMAD, w: Params, stop: int) -> Line:
    """C5: C4 on w_0 → w = w_stop, stop = T − K; its batches are of the steps 0 … stop−1, its rates those of stop − 1.

    The speed is that of the run's first steps, over ‖w_stop − w_0‖. N = min(stop, max_steps) where stop < 5.
    """
    distances, total = way(problem, hyper, training, w, method)
    N = stretch_steps(distances, lambda: total, stop, method)
    return stretch(problem, hyper, float64(training.initial), w, 0, stop, N, method)


def way(
    problem: Problem, hyper: Hyper, training: Training, end: Params, method: DrMAD
) -> tuple[Sequence[float] | np.ndarray, float]:
    """(‖w_{t+1} − w_0‖ of the first steps, ‖end − w_0‖). By sum_of_norms each is Σ ‖·‖ over the tensors, as in the thesis' GPU
    code, and the first steps, at most 20, are taken again. Cost: none, or their gradients.
    """
    w0 = float64(training.initial)

    def moved(w: Params) -> Params:
        return {name: w[name] - w0[name] for name in w0}

    if not method.choices.sum_of_norms:
        return training.distances, norm(moved(end))
    values, v0 = problem.values(hyper), problem.initial_velocity()
    first = forward(problem, values, w0, v0, 0, min(MEASURED_STEPS, training.steps))
    return [sum_of_norms(moved(one.w_next)) for one in first], sum_of_norms(moved(end))


def sum_of_norms(params: Params) -> float:
    """Σ ‖a‖ over the tensors a."""
    return float(sum(np.linalg.norm(a) for a in params.values()))


def pieces(problem: Problem, hyper: Hyper, training: Training, method: DrMAD) -> Pieces:
    """C6: C4 on each stretch [a, b) between kept states; reverse step i = N−1 … 0 of a stretch uses

            N                                       ρ_i       batch of step                rates of step
            by the first speed of this stretch      i / N     of part i of a … b − 1       b − 1

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
        N = stretch_steps(d, lambda w=w, w_end=w_end: norm({p: w_end[p] - w[p] for p in w}), b - a, method)
        lines.append(replace(stretch(problem, hyper, w, w_end, a, b, N, method), start=v))
    return Pieces(lines)


def stretch(problem: Problem, hyper: Hyper, w: Params, w_end: Params, a: int, b: int, N: int, method: DrMAD) -> Line:
    """N steps along the line from w = w_a to w_end = w_b: ρ and batches are `methods.points`, rates those of step b − 1."""
    rho, batch_steps = points(method, problem.seed, a, b, N)
    return made(problem, hyper, Line(w, w_end, rho, batch_steps, np.full(len(rho), b - 1)), method)


def made(problem: Problem, hyper: Hyper, line: Line, method: DrMAD) -> Line:
    """The line with its velocities: what moves the weights, and (end_velocity) v_0 = (ρ_0 − ρ_{N−1}) (w_T − w_0) / rate_0."""
    line = replace(line, rate=rate_of(problem, hyper), ahead=old(problem))
    if not method.choices.end_velocity or line.rate is None:
        return line
    first, last = line.at(0), line.at(len(line) - 1)
    rate = line.rate(int(line.rate_steps[0]))
    return replace(line, start={name: (first[name] - last[name]) / rate[name] for name in first})


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
