"""The completions of DrMAD: which line to walk, with how many steps, which minibatches and which learning rate.

Fu, Luo, Feng, Low, Chua: "DrMAD: distilling reverse-mode automatic differentiation for optimizing hyperparameters of
deep neural networks", IJCAI 2016, algorithm 2. All of these are POOR on long runs; compare with the exact hypergradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.methods import MEASURED_STEPS, DrMAD, points, speed_matched_steps, stretch_steps
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Params, Training

from .providers import Line

if TYPE_CHECKING:
    from .compiled import Compiled

Tree = Any

CONSTANT_STEPS = 200  # of completion C3


def line(problem: Problem, training: Training, method: DrMAD, first: Sequence[float] | None = None) -> tuple[Line, int]:
    """The line of completions C0 to C4 and its number of steps N. Cost: none; memory: w_0 and w_T.

    | id | N | ρ_i | minibatch of step i | learning rate |
    | C0 | T | i/T (β falls from 1 − 1/T by 1/T) | i | none |
    | C1 | T/10 | linspace(.001, .999, N) | of stretch i, or i | of step i, not rescaled |
    | C2 | T | i/T | i | of step i |
    | C3 | min(T, 200) | linspace(0, 1, N + 1)[:N] | of stretch i, or i | of the last step |
    | C4 | methods.speed_matched_steps | linspace(0, 1, N + 1)[:N] | of stretch i, or i | of the last step |

    Minibatches and ρ are `methods.points`: a step of each of N equal stretches of the run, or (first_batches, as in all the
    original programs) step i. first: distances from w_0 in the place of those of the training, `first_distances`.
    method.choices: `hypertrail.methods.AsPublished`.
    """
    T, completion = problem.steps, method.completion
    w0, wT = training.initial, training.final
    if completion == "C3":
        N = capacity = min(T, CONSTANT_STEPS)
        return stretch(problem, w0, wT, 0, T, N, capacity, method), N
    if completion == "C4":
        distances = training.distances if first is None else first
        N = speed_matched_steps(distances, distance(w0, wT, method), T, method)
        return stretch(problem, w0, wT, 0, T, N, min(T, method.max_steps), method), N
    N = max(1, T // 10) if completion == "C1" else T
    rho, batch_steps = points(method, problem.seed, 0, T, N)
    return table(problem, w0, wT, rho, batch_steps, np.arange(N), N, method.choices.end_velocity), N


def line_before_tail(
    problem: Problem, training: Training, method: DrMAD, w: Params, tail: int, first: Sequence[float] | None = None
) -> tuple[Line, int]:
    """Completion C5: the line from w_0 to w = w_{T−tail}, C4's rule on the run that ends there (`methods.stretch_steps`)."""
    T = problem.steps - tail
    distances = training.distances if first is None else first
    N = stretch_steps(distances, lambda: distance(training.initial, w, method), T, method)
    capacity = min(problem.steps, method.max_steps)  # whatever the tail is, which moves with γ
    path = stretch(problem, training.initial, w, 0, T, N, capacity, method)
    return path, max(N - 1, 1) if method.choices.without_last else N


def first_distances(programs: Compiled, training: Training, values: Tree, method: DrMAD) -> list[float] | None:
    """Σ ‖·‖ over the tensors of w_{t+1} − w_0, for the first 20 steps, which are taken again; by the choice sum_of_norms, as
    in the thesis' GPU code. None without it. Cost: at most 20 gradients, and one more compiled program.
    """
    if not method.choices.sum_of_norms:
        return None
    problem = programs.problem
    w0, v0, running = jax.tree.map(
        jnp.asarray, (training.initial, problem.initial_velocity(), problem.initial_running())
    )
    xs = programs.steps(0, min(MEASURED_STEPS, problem.steps))
    after, _, (_, _, states) = programs.train_chunk(
        True, (w0, v0, running), ((0, w0),), values, programs.train_data, xs
    )
    before = {name: np.asarray(states["w/" + name], np.float64) for name in w0}
    path = {name: [*one[1:], np.asarray(after[0][name], np.float64)] for name, one in before.items()}
    return [
        distance(training.initial, dict(zip(path, w, strict=True)), method) for w in zip(*path.values(), strict=True)
    ]


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
        path = stretch(problem, w, w_end, start, stop, N, capacity, method)
        lines.append((path._replace(v0=jax.tree.map(jnp.asarray, part(kept.states[j], "v/"))), N))
    return lines


def stretch(
    problem: Problem, a: Params, b: Params, start: int, stop: int, N: int, capacity: int, method: DrMAD
) -> Line:
    """N steps on the line from a to b, over the steps start … stop − 1: their points, and the learning rate of the last one."""
    rho, batch_steps = points(method, problem.seed, start, stop, N)
    rates = np.full(len(rho), stop - 1)
    return table(problem, a, b, rho, batch_steps, rates, capacity, method.choices.end_velocity)


def table(
    problem: Problem,
    a: Params,
    b: Params,
    rho: np.ndarray,
    batch_step: np.ndarray,
    rate_step: np.ndarray,
    capacity: int,
    end_velocity: bool = False,
) -> Line:
    """The line as arrays, filled up to `capacity` rows: N changes between meta-iterations, the shapes must not.

    end_velocity: v_0 is the way from the END of the line to its beginning, over α_0.
    """
    N = len(rho)
    ahead = problem.dynamics.kind == "damped-old"  # v_i is the way from w_i to w_{i+1}, the last one to w_T
    before = rho[-1:] if end_velocity else rho[:1]
    rho_step = np.diff(rho, append=1.0) if ahead else np.diff(rho, prepend=before)
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
        end_velocity=jnp.asarray(end_velocity),
    )


def part(state: Params, front: str) -> Params:
    """The weights ("w/") or the velocities ("v/") of a kept state."""
    return {k.removeprefix(front): one for k, one in state.items() if k.startswith(front)}


def distance(a: Params, b: Params, method: DrMAD | None = None) -> float:
    """‖b − a‖, summed in float64; by the method's choice sum_of_norms Σ ‖·‖ over the tensors."""
    squares = [float(np.sum((np.asarray(b[k], np.float64) - np.asarray(a[k])) ** 2)) for k in a]
    if method is not None and method.choices.sum_of_norms:
        return float(sum(np.sqrt(squares)))
    return float(np.sqrt(sum(squares)))
