"""Training: T elementary steps in compiled chunks. After each chunk: failure check, store, progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.engines import Keep, Progress
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.problem import Problem
from hypertrail.records import Cost, Training
from hypertrail_data import MemoryTrajectory, StoredTrajectory

from .compiled import compiled, precision
from .functional import zeros


def train(problem: Problem, hyper: Hyper, keep: Keep = "ends", progress: Progress | None = None) -> Training:
    """T elementary steps from w_0. Shapes: as `problem.params`; dtype: problem.precision. Cost: T gradients.

    keep: "ends" (w_0 and w_T), "memory" (every state, on the device), or a Path (every state, HDF5 segments there,
    written beside the training). Velocities are kept only where the hypergradient needs them.
    Raises NumericalFailure naming the step of the first loss that is not finite; states before it stay in the store.
    """
    started = time.perf_counter()
    with precision(problem):
        programs = compiled(problem)
        w0 = jax.tree.map(jnp.asarray, problem.initial_weights())
        state = (w0, zeros(w0), jax.tree.map(jnp.asarray, problem.initial_running()))
        values = programs.values(hyper)
        trajectory = open_trajectory(keep)
        history: list[tuple[np.ndarray, np.ndarray]] = []
        try:
            waiting: Any = None
            for start in range(0, problem.steps, programs.chunk):
                stop = min(start + programs.chunk, problem.steps)
                state, done = programs.train_chunk(
                    trajectory is not None, state, w0, values, programs.train_data, programs.steps(start, stop)
                )
                # The device is now busy with this chunk; meanwhile the one before is looked at and written.
                if waiting is not None:
                    history.append(finish(*waiting, trajectory))
                    if progress:
                        progress(start, problem.steps)
                waiting = start, done
            history.append(finish(*waiting, trajectory))
            if progress:
                progress(problem.steps, problem.steps)
            if isinstance(trajectory, StoredTrajectory):
                trajectory.flush()
        except BaseException:
            if trajectory is not None:
                trajectory.close()
            raise
        final, velocity, running = jax.tree.map(np.asarray, state)
        weights = jax.tree.map(np.asarray, programs.weights(state[0], values))
    losses, distances = (np.concatenate(one).astype(np.float64) for one in zip(*history, strict=True))
    return Training(
        initial=problem.initial_weights(),
        final=final,
        weights=weights,
        velocity=velocity,
        running=running,
        losses=losses,
        distances=distances,
        steps=problem.steps,
        trajectory=trajectory,
        cost=Cost(
            gradients=problem.steps,
            seconds=time.perf_counter() - started,
            trajectory_bytes=0 if trajectory is None else trajectory.nbytes,
        ),
    )


def open_trajectory(keep: Keep) -> MemoryTrajectory | StoredTrajectory | None:
    if isinstance(keep, Path):
        return StoredTrajectory.create(keep)
    if keep not in ("ends", "memory"):
        raise UsageError(f"keep {keep!r}, expected 'ends', 'memory' or a Path")
    return MemoryTrajectory() if keep == "memory" else None


def finish(start: int, done: Any, trajectory: MemoryTrajectory | StoredTrajectory | None) -> tuple[Any, Any]:
    """Look at a finished chunk: raise on a loss that is not finite, store its states, return losses and distances."""
    losses, distances, kept = done
    losses, distances = np.asarray(losses), np.asarray(distances)
    bad = np.flatnonzero(~np.isfinite(losses) | ~np.isfinite(distances))
    if trajectory is not None:
        good = int(bad[0]) + bool(np.isfinite(losses[bad[0]])) if bad.size else len(losses)
        if good < len(losses):
            kept = jax.tree.map(lambda one: np.asarray(one)[:good], kept)
        if good:
            stored = isinstance(trajectory, StoredTrajectory)
            trajectory.append(start, jax.tree.map(np.asarray, kept) if stored else kept)
    if bad.size:
        first = int(bad[0])
        hint = "lower the learning rate or its bounds"
        if np.isfinite(losses[first]):  # w_t gave a loss, but its step led nowhere
            raise NumericalFailure("elementary weights", start + first + 1, hint)
        raise NumericalFailure("elementary loss", start + first, hint)
    return losses, distances
