"""The completions of DrMAD: which line to walk, with how many steps, which minibatches and which learning rate.

Fu, Luo, Feng, Low, Chua: "DrMAD: distilling reverse-mode automatic differentiation for optimizing hyperparameters of
deep neural networks", IJCAI 2016, algorithm 2. All of these are POOR on long runs; compare with the exact hypergradient.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.methods import DrMAD, speed_matched_steps, stretch_steps
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Params, Training

from .providers import Line

CONSTANT_STEPS = 200  # of completion C3


def line(problem: Problem, training: Training, method: DrMAD) -> tuple[Line, int]:
    """The line of completions C0 to C4 and its number of steps N. Cost: none; memory: w_0 and w_T.

    | id | N | ρ_i | minibatch of step i | learning rate |
    | C0 | T | i/T (β falls from 1 − 1/T by 1/T) | i | none |
    | C1 | T/10 | linspace(.001, .999, N) | floor(i T / N); first_batches: i, the first tenth | of step i, not rescaled |
    | C2 | T | i/T | i | of step i |
    | C3 | min(T, 200) | linspace(0, 1, N + 1)[:N] | floor(i T / N) (*) | of the last step |
    | C4 | methods.speed_matched_steps | linspace(0, 1, N + 1)[:N] | floor(i T / N) (*) | of the last step |

    (*) The thesis does not say; spread evenly, the line with N = T meets every minibatch at its own place.
    """
    T = problem.steps
    steps = np.arange(T)
    if method.completion in ("C0", "C2"):
        return table(problem, training.initial, training.final, steps / T, steps, steps, T), T
    if method.completion == "C1":
        N = max(1, T // 10)
        batch_step = steps[:N] if method.first_batches else steps[:N] * T // N
        rho = np.linspace(0.001, 0.999, N)
        return table(problem, training.initial, training.final, rho, batch_step, steps[:N], N), N
    if method.completion == "C3":
        N = capacity = min(T, CONSTANT_STEPS)
        return stretch(problem, training.initial, training.final, 0, T, N, capacity), N
    N = speed_matched_steps(training.distances, distance(training.initial, training.final), T, method)
    return stretch(problem, training.initial, training.final, 0, T, N, min(T, method.max_steps)), N


def line_before_tail(problem: Problem, training: Training, method: DrMAD, w: Params, tail: int) -> tuple[Line, int]:
    """Completion C5: the line from w_0 to w = w_{T−tail}, C4's rule on the run that ends there (`methods.stretch_steps`)."""
    T = problem.steps - tail
    N = stretch_steps(training.distances, lambda: distance(training.initial, w), T, method)
    capacity = min(problem.steps, method.max_steps)  # whatever the tail is, which moves with γ
    return stretch(problem, training.initial, w, 0, T, N, capacity), N


def pieces(problem: Problem, training: Training, method: DrMAD) -> list[tuple[Line, int]]:
    """Completion C6: a line for each stretch between kept states, first to last, each with C4's rule on its own steps.

    A stretch too short for that rule (under 5 steps) takes as many line steps as it has steps, at most max_steps. The thesis
    left this completion unfinished; the rule is ours. With a state kept at every step it is exact.
    """
    kept = training.trajectory
    assert isinstance(kept, Checkpointed)
    ends = [part(state, "w/") for state in kept.states] + [training.final]
    stops = [*kept.at[1:], problem.steps]
    capacity = min(max(b - a for a, b in zip(kept.at, stops, strict=True)), method.max_steps)
    lines = []
    for j, (start, stop) in enumerate(zip(kept.at, stops, strict=True)):
        w, w_end = ends[j], ends[j + 1]
        N = stretch_steps(kept.distances[j], partial(distance, w, w_end), stop - start, method)
        path = stretch(problem, w, w_end, start, stop, N, capacity)
        lines.append((path._replace(v0=jax.tree.map(jnp.asarray, part(kept.states[j], "v/"))), N))
    return lines


def stretch(problem: Problem, a: Params, b: Params, start: int, stop: int, N: int, capacity: int) -> Line:
    """N steps on the line from a to b, minibatches spread over start … stop − 1, the learning rate of the last of these."""
    batch_step = start + np.arange(N) * (stop - start) // N
    return table(problem, a, b, np.linspace(0, 1, N + 1)[:N], batch_step, np.full(N, stop - 1), capacity)


def table(
    problem: Problem,
    a: Params,
    b: Params,
    rho: np.ndarray,
    batch_step: np.ndarray,
    rate_step: np.ndarray,
    capacity: int,
) -> Line:
    """The line as arrays, filled up to `capacity` rows: N changes between meta-iterations, the shapes must not."""
    N = len(rho)
    ahead = problem.dynamics.kind == "damped-old"  # v_i is the way from w_i to w_{i+1}, the last one to w_T
    rho_step = np.diff(rho, append=1.0) if ahead else np.diff(rho, prepend=rho[:1])
    factors = problem.dynamics.factors(problem.steps)[rate_step]
    indices = np.concatenate([problem.schedule.indices(int(t), int(t) + 1) for t in batch_step])

    def padded(one: np.ndarray, dtype: np.dtype | type) -> jax.Array:
        return jnp.asarray(np.pad(one, [(0, capacity - N)] + [(0, 0)] * (one.ndim - 1)), dtype)

    return Line(
        w0=jax.tree.map(jnp.asarray, a),
        wT=jax.tree.map(jnp.asarray, b),
        v0=jax.tree.map(jnp.asarray, problem.initial_velocity()),
        rho=padded(rho, problem.dtype),
        rho_step=padded(rho_step, problem.dtype),
        indices=padded(indices, np.int32),
        t=(padded(batch_step, np.int32), padded(rate_step, np.int32), padded(factors, problem.dtype)),
    )


def part(state: Params, front: str) -> Params:
    """The weights ("w/") or the velocities ("v/") of a kept state."""
    return {k.removeprefix(front): one for k, one in state.items() if k.startswith(front)}


def distance(a: Params, b: Params) -> float:
    """‖b − a‖, summed in float64."""
    return float(np.sqrt(sum(float(np.sum((np.asarray(b[k], np.float64) - np.asarray(a[k])) ** 2)) for k in a)))
