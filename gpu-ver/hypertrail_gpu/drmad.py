"""The completions of DrMAD: which line to walk, with how many steps, which minibatches and which learning rate.

Fu, Luo, Feng, Low, Chua: "DrMAD: distilling reverse-mode automatic differentiation for optimizing hyperparameters of
deep neural networks", IJCAI 2016, algorithm 2. All of these are POOR on long runs; compare with the exact hypergradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.methods import DrMAD, speed_matched_steps
from hypertrail.problem import Problem
from hypertrail.records import Training

from .providers import Line


def line(problem: Problem, training: Training, method: DrMAD) -> tuple[Line, int]:
    """The line of a completion and its number of steps N. Cost: none; memory: w_0 and w_T.

    | id | N | ρ_i | minibatch of step i | learning rate |
    | C0 | T | i/T (β falls from 1 − 1/T by 1/T) | i | none |
    | C1 | T/10 | linspace(.001, .999, N) | i: the first tenth of the run | of step i, not rescaled |
    | C4 | methods.speed_matched_steps | linspace(0, 1, N + 1)[:N] | floor(i T / N) (*) | of the last step |

    (*) The thesis does not say; spread evenly, the line with N = T meets every minibatch at its own place.
    """
    T, last = problem.steps, problem.steps - 1
    if method.completion == "C0":
        N = capacity = T
        rho, batch_step, rate_step = np.arange(N) / T, np.arange(N), np.arange(N)
    elif method.completion == "C1":
        N = capacity = max(1, T // 10)
        rho, batch_step, rate_step = np.linspace(0.001, 0.999, N), np.arange(N), np.arange(N)
    else:
        moved = sum(float(np.sum((training.final[k] - training.initial[k]) ** 2.0)) for k in training.final)
        N = speed_matched_steps(list(training.distances), float(np.sqrt(moved)), method)
        capacity = min(T, method.max_steps)  # N changes between meta-iterations, the shapes of the tables must not
        rho, batch_step = np.linspace(0, 1, N + 1)[:N], np.arange(N) * T // N
        rate_step = np.full(N, last)
    factors = problem.dynamics.factors(T)[rate_step]
    rho_step = np.diff(rho, prepend=rho[:1])
    indices = np.concatenate([problem.schedule.indices(int(t), int(t) + 1) for t in batch_step])

    def table(a: np.ndarray, dtype: np.dtype | type) -> jax.Array:
        return jnp.asarray(np.pad(a, [(0, capacity - N)] + [(0, 0)] * (a.ndim - 1)), dtype)

    return Line(
        w0=jax.tree.map(jnp.asarray, training.initial),
        wT=jax.tree.map(jnp.asarray, training.final),
        rho=table(rho, problem.dtype),
        rho_step=table(rho_step, problem.dtype),
        indices=table(indices, np.int32),
        t=(table(batch_step, np.int32), table(rate_step, np.int32), table(factors, problem.dtype)),
    ), N
