"""The elementary training: T steps forward. `reverse.py` is its mirror image. float64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hypertrail_data
from hypertrail.engines import Keep, Progress
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.problem import Problem, Values
from hypertrail.records import Cost, Params, Training
from hypertrail_data import MemoryTrajectory, Trajectory

from .dynamics import DYNAMICS
from .losses import elementary_gradient, in_float64

BLOCK = 50  # at most so many steps between two appends to the trajectory, and between two calls of progress
BLOCK_BYTES = 64 * 2**20  # and at most so many bytes of weights


@dataclass(frozen=True)
class Step:
    """Step t: the state (w, v) BEFORE it, its loss and batch statistics, and the state (w_next, v_next) after it."""

    t: int
    loss: float
    w: Params
    v: Params
    statistics: Params
    w_next: Params
    v_next: Params


def batch(problem: Problem, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The training batch of a step: x float64 (B, …), y int (B,). A pure function of the problem and the step."""
    rows = problem.schedule.indices(step, step + 1)[0]
    return problem.splits.train.x[rows].astype(np.float64), problem.splits.train.y[rows]


def rates(problem: Problem, values: Values, step: int) -> tuple[Params, Params]:
    """(α, γ) in force at a step, {parameter name: array that broadcasts against it}; α includes the schedule's factor."""

    def row(kind: str) -> Params:
        declared = problem.declared(kind)
        per_step = declared is not None and declared.per_step
        return {name: value[step] if per_step else value for name, value in values[kind].items()}

    factor = problem.dynamics.factors(problem.steps)[step]
    return {name: factor * value for name, value in row("learning_rate").items()}, row("momentum")


def norm(a: Params) -> float:
    """Euclidean norm over all tensors."""
    return float(np.sqrt(sum(np.sum(np.square(one)) for one in a.values())))


def forward(problem: Problem, values: Values, w: Params, v: Params) -> Iterator[Step]:
    """The T elementary steps from (w_0, v_0): the loop that `reverse.reverse` walks back.

        g_t = ∇_w L(w_t, λ, batch_t)
        w_{t+1}, v_{t+1} = dynamics(w_t, v_t, g_t, α_t, γ_t)

    Cost: T gradients. Raises NumericalFailure("elementary loss", t) before a step whose loss is not finite.
    """
    advance, _ = DYNAMICS[problem.dynamics.kind]
    for t in range(problem.steps):
        x, y = batch(problem, t)
        alpha, gamma = rates(problem, values, t)
        loss, g, statistics = elementary_gradient(problem, w, values, x, y, t)
        if not np.isfinite(loss):
            raise NumericalFailure("elementary loss", t, "a smaller learning rate or initial scale may help")
        w_next, v_next = {}, {}
        for p in w:
            w_next[p], v_next[p] = advance(w[p], v[p], g[p], alpha[p], gamma[p])
        yield Step(t, loss, w, v, statistics, w_next, v_next)
        w, v = w_next, v_next


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what overflows is caught by name, not by a warning
def train(problem: Problem, hyper: Hyper, keep: Keep = "ends", progress: Progress | None = None) -> Training:
    """One training run of T steps in float64 (also where the problem says float32).

    keep: 'ends' keeps w_0 and w_T; 'memory' every state before its step, w_0 … w_{T−1} (and v_t where learning rate or momentum
    is declared), in RAM; a Path the same in HDF5 segments in that folder. progress(steps done, T) at least every 50 steps.
    v_0 = 0. Cost: T gradients; T states of memory or disk.
    Raises NumericalFailure (quantity, step) where a loss or, at the end, a weight is not finite: what was recorded up to then
    stays readable in the folder. UsageError for another `keep`.
    """
    clock = time.perf_counter()
    problem = in_float64(problem)
    trajectory = open_trajectory(keep, problem)
    values = problem.values(hyper)
    initial = problem.initial_weights()
    velocity = {name: np.zeros_like(one) for name, one in initial.items()}
    running = problem.initial_running()
    losses, distances = np.empty(problem.steps), np.empty(problem.steps)
    block = max(1, min(BLOCK, BLOCK_BYTES // sum(one.nbytes for one in initial.values())))
    pending: list[Step] = []
    final = initial
    try:
        for one in forward(problem, values, initial, velocity):
            losses[one.t] = one.loss
            running = problem.update_running(running, one.statistics)
            final, velocity = one.w_next, one.v_next
            distances[one.t] = norm({p: final[p] - initial[p] for p in final})
            if trajectory is not None:
                pending.append(one)
            if (one.t + 1) % block == 0 or one.t == problem.steps - 1:
                record(trajectory, problem, pending)
                if progress:
                    progress(one.t + 1, problem.steps)
        if not np.isfinite(distances[-1]):
            raise NumericalFailure("elementary weights", problem.steps, "a smaller learning rate may help")
        if trajectory is not None:
            trajectory.flush()
    except BaseException:  # an interrupt counts too: the states of all finished steps are put into safety
        if trajectory is not None:
            try:
                record(trajectory, problem, pending)
            finally:
                trajectory.close()
        raise
    return Training(
        initial=initial,
        final=final,
        weights=problem.effective(np, final, values),
        velocity=velocity,
        running=running,
        losses=losses,
        distances=distances,
        steps=problem.steps,
        trajectory=trajectory,
        cost=Cost(
            gradients=problem.steps,
            seconds=time.perf_counter() - clock,
            trajectory_bytes=0 if trajectory is None else trajectory.nbytes,
        ),
    )


def open_trajectory(keep: Keep, problem: Problem) -> Trajectory | None:
    """Where the states go. UsageError for a word that is neither 'ends' nor 'memory'."""
    if isinstance(keep, Path):
        return hypertrail_data.StoredTrajectory.create(
            keep, meta={"engine": "cpu", "steps": problem.steps, "seed": problem.seed}
        )
    if keep not in ("ends", "memory"):
        raise UsageError(f"keep {keep!r}, expected 'ends', 'memory' or a pathlib.Path")
    return MemoryTrajectory() if keep == "memory" else None


def record(trajectory: Trajectory | None, problem: Problem, pending: list[Step]) -> None:
    """Append the states before the pending steps, 'w/<parameter>' and, where it is needed, 'v/<parameter>'; empties pending."""
    block = list(pending)
    pending.clear()  # first: a block whose writing failed must not be appended a second time
    if trajectory is None or not block:
        return
    states = {f"w/{name}": np.stack([one.w[name] for one in block]) for name in block[0].w}
    if problem.needs_velocity():
        states |= {f"v/{name}": np.stack([one.v[name] for one in block]) for name in block[0].v}
    trajectory.append(block[0].t, states)
