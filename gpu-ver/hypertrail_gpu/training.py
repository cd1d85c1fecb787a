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
from hypertrail.refusals import refuse_hyper
from hypertrail.runs.midway import Middle, Midway

from .compiled import compiled, precision
from .keeping import Nothing, keeper
from .reversal import train_reversibly
from .tuned import TunedTask

Tree = Any


def train(
    problem: Problem,
    hyper: Hyper,
    keep: Keep = "ends",
    progress: Progress | None = None,
    midway: Midway | None = None,
) -> Training:
    """T elementary steps from the (scaled) w_0. Shapes: as `problem.params`; dtype: problem.precision. Cost: T gradients.

    keep: what is kept of the trajectory, see hypertrail.keeping. Velocities are kept only where the hypergradient needs them.
    Raises NumericalFailure naming the step of the first loss that is not finite; states before it stay in the store.
    midway: where an earlier start left off, and where this one leaves what a later one needs; keep 'ends' or a Path only.
    """
    keeping.check(keep)
    if isinstance(problem, TunedTask):
        return problem.train(hyper, keep, progress, midway)
    refuse_hyper(problem, hyper)
    if isinstance(keep, keeping.Reversible):
        return train_reversibly(problem, hyper, keep, progress)
    started = time.perf_counter()
    with precision(problem):
        programs = compiled(problem)
        midway = midway if keeping.from_middle(keep) else None
        middle = midway.read() if midway else None
        kept = keeper(keep, programs, middle.step if middle else 0, midway.about if midway else {})
        values = programs.values(hyper)
        initial = programs.initial_weights(values)
        w0 = jax.tree.map(jnp.asarray, initial)
        v0, running = jax.tree.map(jnp.asarray, (problem.initial_velocity(), problem.initial_running()))
        state = (w0, v0, running)
        history: list[tuple[np.ndarray, np.ndarray]] = []
        begun, seconds = 0, 0.0
        if middle:
            begun, seconds = middle.step, middle.seconds
            state = jax.tree.map(jnp.asarray, (middle.w, middle.v, middle.running))
            history.append((middle.losses, middle.distances))

        def save(step: int, state: Tree) -> None:
            """Everything before the step, once it is time to."""
            if midway and midway.due():
                kept.flush()
                losses, distances = recorded(history)
                spent = seconds + time.perf_counter() - started
                midway.write(Middle(step, *jax.tree.map(np.asarray, state), losses, distances, spent))

        try:
            waiting: Any = None
            for start, stop, states in kept.spans(programs):
                if stop <= begun:
                    continue
                start, before = max(start, begun), state
                origins = kept.before(start, state, w0)
                xs = programs.steps(start, stop)
                state, size, done = programs.train_chunk(states, state, origins, values, programs.train_data, xs)
                # The device is now busy with this chunk; meanwhile the one before is looked at and written.
                if waiting is not None:
                    history.append(finish(*waiting, kept))
                    save(start, before)
                    if progress:
                        progress(start, problem.steps)
                waiting = start, size, done
            if waiting is not None:
                history.append(finish(*waiting, kept))
                save(problem.steps, state)
            if progress:
                progress(problem.steps, problem.steps)
            trajectory = kept.result()
        except BaseException:
            kept.close()
            raise
        final, velocity, running = jax.tree.map(np.asarray, state)
        weights = jax.tree.map(np.asarray, programs.weights(state[0], values))
    losses, distances = recorded(history)
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
            seconds=seconds + time.perf_counter() - started,
            trajectory_bytes=0 if trajectory is None else trajectory.nbytes,
        ),
        inputs=programs.inputs(values),
    )


def recorded(history: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Losses of all steps so far and distances of the first of them, float64."""
    losses, distances = (np.concatenate(one).astype(np.float64) for one in zip(*history, strict=True))
    return losses, distances[:MEASURED_STEPS]


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
