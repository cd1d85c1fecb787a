"""A `Problem` of the suite as a task: the only room that knows networks, splits and declared kinds.

    task = task_of(problem)          # then h.train(task), h.hypergradient(task, "drmad-C4"), h.adapt(task, …)

values = what the declared kinds say of each parameter; a batch = (images, labels, key of the masks, rows of the train split).
The engine's own functions on problems (`train`, `hypergradient`) do not go this way yet: `compiled.py` has their programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.hyperparameters import OF_EXAMPLES, OF_THE_START
from hypertrail.problem import Problem, Values
from hypertrail.task import Start, Task

from . import devices, losses
from .batches import Memory
from .dynamics import VELOCITIES, rule
from .ops import OPS
from .trees import strong, zeros

Array = Any
Tree = Any
Batch = tuple[Array, Array, tuple[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class ProblemTask(Task):
    """A task with the hooks of this engine: how its programs are compiled."""

    jit: Callable[..., Any] = jax.jit


class Scheduled(Memory):
    """The batches of a schedule: rows of the train split, which lies on the device."""

    def __init__(self, problem: Problem, layout: devices.Layout, data: Tree) -> None:
        self.tree, self.steps = data, problem.steps
        self.schedule, self.pick = problem.schedule, Picked(layout)

    def load(self, steps: np.ndarray) -> tuple[Tree, np.ndarray]:
        """The data, and the rows of each of these steps."""
        first, stop = int(steps.min()), int(steps.max()) + 1
        if stop - first <= 2 * len(steps):
            return self.tree, self.schedule.indices(first, stop)[steps - first]
        return self.tree, np.concatenate([self.schedule.indices(int(t), int(t) + 1) for t in steps])

    def look(self, t: int) -> Batch:
        return self.pick(self.tree, self.schedule.indices(t, t + 1)[0])

    def like(self) -> Tree:
        return jax.eval_shape(lambda: self.look(0))


@dataclass(frozen=True)
class Picked:
    """(x, y, key of the masks, rows) of a step; each device has its part of the batch."""

    layout: devices.Layout

    def __call__(self, data: Tree, rows: Array) -> Batch:
        x, y, key = data
        rows = self.layout.share(rows)
        return (*self.layout.share((x[rows], y[rows])), key, rows)


@dataclass(frozen=True)
class Update:
    """The dynamics of a problem."""

    problem: Problem

    @property
    def kind(self) -> str:
        return self.problem.dynamics.kind

    def init(self, w: Tree, values: Values) -> Tree:
        moments = self.problem.dynamics.moments
        return zeros(w) if moments == 1 else jax.tree.map(lambda one: jnp.zeros((moments, *one.shape), one.dtype), w)

    def complete(self, values: Values) -> Values:
        return {**self.problem.constants(jnp), **values}

    def rates(self, w: Tree, values: Values, t: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """α_t and γ_t by parameter name. The schedule's factor multiplies α."""
        values, problem = self.complete(values), self.problem
        factors = problem.dynamics.factors(problem.steps).astype(problem.dtype)
        factor = jnp.asarray(factors)[t]
        per_step = {h.kind for h in problem.hyperparameters if h.per_step}

        def at(kind: str) -> dict[str, Array]:
            return {name: one[t] if kind in per_step else one for name, one in values[kind].items()}

        return {name: factor * one for name, one in at("learning_rate").items()}, at("momentum")

    def __call__(self, w: Tree, v: Tree, g: Tree, values: Values, t: Array) -> tuple[Tree, Tree]:
        advance = rule(self.problem.dynamics, t)
        alpha, gamma = self.rates(w, values, t)
        moved = {name: advance(w[name], v[name], g[name], alpha[name], gamma[name]) for name in w}
        return {name: one[0] for name, one in moved.items()}, {name: one[1] for name, one in moved.items()}

    @property
    def undo(self) -> Callable[..., tuple[Tree, Tree]] | None:
        return self.undo_damped if self.kind == "damped" else None

    def undo_damped(
        self, w: Tree, v: Tree, gradient: Callable[[Tree], Tree], values: Values, t: Array
    ) -> tuple[Tree, Tree]:
        alpha, gamma = self.rates(w, values, t)
        w = {name: one - alpha[name] * v[name] for name, one in w.items()}
        g = gradient(w)
        return w, {name: (one + (1 - gamma[name]) * g[name]) / gamma[name] for name, one in v.items()}

    @property
    def speed(self) -> Callable[..., Tree] | None:
        return self.velocity_of if self.kind in (*VELOCITIES, "damped-old") else None

    def velocity_of(self, way: Tree, values: Values, t: Array) -> Tree:
        alpha, _ = self.rates(way, values, t)
        sign = -1.0 if self.kind == "heavy-ball" else 1.0
        return {name: sign * one / alpha[name] for name, one in way.items()}


def task_of(problem: Problem) -> ProblemTask:
    """Loss, update and data of a problem. Running averages are carried along; nothing that is differentiated reads them.

    To be called, and the task to be used, in the x64 mode of the problem's precision. Keep the object: it compiles once.
    """
    update, layout = Update(problem), devices.layout()
    running = problem.initial_running()

    def data_loss(w: Tree, values: Values, batch: Batch, t: Array) -> tuple[Array, Tree]:
        x, y, key, _ = batch
        return losses.elementary_loss(problem, w, update.complete(values), x, y, t, key)

    def without(w: Tree, values: Values, batch: Batch, t: Array) -> Array:
        return data_loss(w, values, batch, t)[0]

    def with_running(w: Tree, running: Tree, values: Values, batch: Batch, t: Array) -> tuple[Array, Tree]:
        loss, statistics = data_loss(w, values, batch, t)
        return loss, problem.update_running(*lax.stop_gradient((running, statistics)))

    def valid_loss(w: Tree, values: Values, batch: Tree) -> Array:
        direct = {kind: one for kind, one in values.items() if kind == "transform"}
        return problem.valid_loss(OPS, problem.effective(jnp, w, direct), *layout.share(batch))

    def start(values: Values) -> Start:
        at_start = {kind: one for kind, one in values.items() if kind in OF_THE_START}
        return Start(problem.scaled(problem.initial_weights(), at_start), strong(running) or None)

    marks = {h.kind: h.kind in OF_EXAMPLES for h in problem.hyperparameters}
    of_start = any(h.kind in OF_THE_START for h in problem.hyperparameters)
    return ProblemTask(
        loss=with_running if running else without,
        update=update,
        hyper_loss=(lambda w, running, values, batch: valid_loss(w, values, batch)) if running else valid_loss,
        hyper=jax.tree.map(lambda u: np.asarray(u, problem.dtype), problem.initial_hyper()),
        values=lambda hyper: problem.declared_values(hyper, jnp),
        weights=problem.initial_weights(),
        state=running or None,
        start=start if of_start else None,
        batches=Scheduled(problem, layout, data_of(problem, layout)),
        valid=problem.valid_batches(),
        per_example=marks if any(marks.values()) else None,
        rows=lambda batch: batch[3],
        seed=problem.seed,
        jit=layout.jit,
    )


def data_of(problem: Problem, layout: devices.Layout) -> Tree:
    """(images, labels, key of the masks) of the train split, on the device."""
    train = problem.splits.train
    return layout.put(train.x, problem.dtype), layout.put(train.y), layout.put(problem.noise_key)
