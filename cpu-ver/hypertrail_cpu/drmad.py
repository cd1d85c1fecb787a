"""DrMAD: the reverse pass along the straight line from w_0 to w_T (Fu, Luo, Feng, Low, Chua, IJCAI 2016).

Algorithm 2 of the paper leaves gaps; a completion fills them (`hypertrail.methods.DrMAD`). POOR on long runs: the thesis
measured a cosine of about .98 with the exact hypergradient at T = 200 and about .09 at T = 20000. Compare with Exact.
"""

from __future__ import annotations

import numpy as np

from hypertrail.hyperparameters import Hyper
from hypertrail.methods import DrMAD, speed_matched_steps
from hypertrail.problem import Problem
from hypertrail.records import Params, Training

from .providers import Line
from .training import norm, rates


def line(problem: Problem, hyper: Hyper, training: Training, method: DrMAD) -> Line:
    """The line that a completion walks; reverse step i = N−1 … 0 uses

            N                    ρ_i                       batch of step     rates of step
        C0  T                    i / T                     i                 i               (paper: β falls from 1−1/T by 1/T)
        C1  max(1, ⌊T/10⌋)       linspace(.001, .999, N)   i                 i               (authors' code)
        C4  by the first speed   linspace(0, 1, N+1)[:N]   ⌊i T / N⌋         T − 1           (thesis)

    C1 sees only the first tenth of the batches and does not rescale α, as the authors' code. Which batch a step of C4 sees is
    NOT in the source: here the N batches are spread evenly over the run, so that N = T gives each step its own.
    Float64 arrays in training order. Cost: none in gradients. Raises UsageError where C4 cannot measure a speed
    (`speed_matched_steps`).
    """
    T = training.steps
    w0, wT = float64(training.initial), float64(training.final)
    if method.completion == "C0":
        N = T
        rho = np.arange(T) / T
        batch_steps = rate_steps = np.arange(T)
    elif method.completion == "C1":
        N = max(1, T // 10)
        rho = np.linspace(0.001, 0.999, N)
        batch_steps = rate_steps = np.arange(N)
    else:
        total = norm({name: wT[name] - w0[name] for name in w0})
        N = speed_matched_steps([float(d) for d in training.distances], total, method)
        rho = np.linspace(0.0, 1.0, N + 1)[:N]
        batch_steps, rate_steps = np.arange(N) * T // N, np.full(N, T - 1)

    values = problem.values(hyper)
    sign = 1.0 if problem.dynamics.kind == "damped" else -1.0

    def rate(step: int) -> Params:
        return {name: sign * alpha for name, alpha in rates(problem, values, step)[0].items()}

    return Line(w0, wT, rho, batch_steps, rate_steps, rate if problem.needs_velocity() else None)


def float64(params: Params) -> Params:
    """The same arrays in float64: the run to be walked back may be another engine's."""
    return {name: np.asarray(one, dtype=np.float64) for name, one in params.items()}
