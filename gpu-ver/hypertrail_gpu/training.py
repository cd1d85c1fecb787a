"""Training: T elementary steps in compiled chunks. After each chunk: failure check, store, progress."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail import keeping
from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.keeping import Keep
from hypertrail.methods import MEASURED_STEPS
from hypertrail.problem import Problem
from hypertrail.records import Cost, Training

from .compiled import compiled, precision
from .keeping import Nothing, keeper
from .reversal import train_reversibly


def train(problem: Problem, hyper: Hyper, keep: Keep = "ends", progress: Progress | None = None) -> Training:
    """T elementary steps from the (scaled) w_0. Shapes: as `problem.params`; dtype: problem.precision. Cost: T gradients.

    keep: what is kept of the trajectory, see hypertrail.keeping. Velocities are kept only where the hypergradient needs them.
    Raises NumericalFailure naming the step of the first loss that is not finite; states before it stay in the store.
    """
    keeping.check(keep)
    if isinstance(keep, keeping.Reversible):
        return train_reversibly(problem, hyper, keep, progress)
    started = time.perf_counter()
    with precision(problem):
        programs = compiled(problem)
        kept = keeper(keep, programs)
        values = programs.values(hyper)
        initial = programs.initial_weights(values)
        w0 = jax.tree.map(jnp.asarray, initial)
        v0, running = jax.tree.map(jnp.asarray, (problem.initial_velocity(), problem.initial_running()))
        state = (w0, v0, running)
        history: list[tuple[np.ndarray, np.ndarray]] = []
        try:
            waiting: Any = None
            for start, stop, states in kept.spans(programs):
                origins = kept.before(start, state, w0)
                xs = programs.steps(start, stop)
                state, size, done = programs.train_chunk(states, state, origins, values, programs.train_data, xs)
                # The device is now busy with this chunk; meanwhile the one before is looked at and written.
                if waiting is not None:
                    history.append(finish(*waiting, kept))
                    if progress:
                        progress(start, problem.steps)
                waiting = start, size, done
            history.append(finish(*waiting, kept))
            if progress:
                progress(problem.steps, problem.steps)
            trajectory = kept.result()
        except BaseException:
            kept.close()
            raise
        final, velocity, running = jax.tree.map(np.asarray, state)
        weights = jax.tree.map(np.asarray, programs.weights(state[0], values))
    losses, distances = (np.concatenate(one).astype(np.float64) for one in zip(*history, strict=True))
    distances = distances[:MEASURED_STEPS]
    return Training(
        initial=initial,
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
        inputs=programs.inputs(values),
    )


def finish(start: int, size: Any, done: Any, keeper: Nothing) -> tuple[Any, Any]:
    """Look at a finished chunk: raise on a loss that is not finite (or on weights that are not, at its end, ‖w‖ = size),
    store its states, return losses and distances from w_0."""
    losses, distances, kept = done
    losses, distances = np.asarray(losses), np.asarray(distances)
    bad = np.flatnonzero(~np.isfinite(losses))
    good = int(bad[0]) if bad.size else len(losses)
    if good:
        if good < len(losses):
            kept = jax.tree.map(lambda one: np.asarray(one)[:good], kept)
        keeper.after(start, kept, distances)
    hint = "lower the learning rate or its bounds"
    if bad.size:
        raise NumericalFailure("elementary loss", start + good, hint)
    if not np.isfinite(size):  # every step had a loss, but the last of them led nowhere
        raise NumericalFailure("elementary weights", start + len(losses), hint)
    return losses, distances[:, 0]
