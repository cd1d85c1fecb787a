"""The task: anything that can be trained and tuned, as plain functions over the user's own trees of arrays.

    task = Task(
        loss=loss,                      # loss(w, hyper, batch, t) → the elementary loss L of step t
        update=update,                  # update(w, v, g, hyper, t) → (w, v): what one gradient does
        hyper_loss=hyper_loss,          # hyper_loss(w, hyper, batch) → f on one validation batch
        weights=w0, hyper=hyper,        # where training and tuning begin
        batches=Rows(data, indices),    # what step t reads
        valid=Arrays(batches),          # what f is averaged over
    )

w, v, hyper and a batch are trees: any nesting of dicts, lists, tuples and registered classes with arrays at the leaves. This
module imports no JAX: it says what a task is, an engine says how it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

Tree = Any


class Start(NamedTuple):
    """Where training begins: the weights w_0, and the state that the loss hands from step to step (None: there is none)."""

    weights: Tree
    state: Tree = None


@dataclass(frozen=True, eq=False)
class Arrays:
    """Batches that are there already. tree: every leaf has a leading axis, whose index is the number of the batch."""

    tree: Tree


@dataclass(frozen=True, eq=False)
class Rows:
    """Batches that are rows of a data set in memory: batch t is the rows indices[t] of every leaf of `data`.

    data: a tree of arrays with the examples along the first axis. indices: (T, B) whole numbers.
    """

    data: Tree
    indices: Any


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches that are read when they are needed, for data larger than memory. One thread reads ahead of the device.

    read(t) → batch t, a tree of NumPy arrays of the same shapes for every t. It must be a pure function of t, because the
    reverse pass asks for the same batches again, from the last to the first. steps: how many batches there are.
    """

    read: Callable[[int], Tree]
    steps: int


Batches = Arrays | Rows | Stream


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained, what is tuned and what it is for. All functions must be pure, and JAX must be able to trace them.

    loss(w, hyper, batch, t) → L, twice differentiable in w; or loss(w, state, hyper, batch, t) → (L, next state) where the
        task carries a state, such as running statistics. Random masks belong to (key, t): `jax.random.fold_in(key, t)`.
    update(w, v, g, hyper, t) → (w, v), and optionally update.init(w_0, hyper) → v_0 (without it, v_0 is zeros like w_0).
        An update may offer more, which some methods need: see `hypertrail_gpu.updates`.
    hyper_loss(w, hyper, batch) → f, or hyper_loss(w, state, hyper, batch) → f; averaged over the batches of `valid`.
    hyper: the hyperparameters, a tree of arrays and of declarations (`hypertrail.hyper`: Log, Logit, Linear, with bounds,
        schedules and sharing). The functions are given the values. Leaves that are not floating point are passed on and
        have no derivative.
    values(hyper) → what the functions are given, in the place of declarations. It is computed once for each training.
    batches, valid: `Arrays`, `Rows` or `Stream`; any other tree is taken as Arrays(tree). valid=None: f reads no data, and
        `hyper_loss` is given None as its batch.
    weights, state: where training begins; or start(hyper) → `Start`, where the hyperparameters reach the beginning (weights
        then say the shapes to share a hyperparameter over).
    per_example: a prefix of the values' tree, True where a leaf has one row per training example; rows(batch) → the numbers of
        the rows that a batch reads. The loss is then given these rows alone, and a step costs no more than they do.
    splits: {name: batches} that are measured and never tuned on, such as {"select": …, "test": …}.
    metrics: {name: function}, called as hyper_loss is, each → one number; they are averaged over the batches of every split.
    whole_loss(w, hyper), or whole_loss(w, state, hyper) → L over all training data: for `Implicit` alone.
    seed: of the batches that a line of DrMAD draws.

    Keep the object: an engine compiles its programs and moves the data to the device once for each task; both are released
    with it. Arrays that change afterwards are not read again.
    """

    loss: Callable[..., Any]
    update: Any
    hyper_loss: Callable[..., Any]
    hyper: Tree
    batches: Batches | Tree
    valid: Batches | Tree = None
    weights: Tree = None
    state: Tree = None
    start: Callable[[Tree], Start] | None = None
    per_example: Tree = None
    rows: Callable[[Tree], Any] | None = None
    values: Callable[[Tree], Tree] | None = None
    splits: Mapping[str, Batches | Tree] = field(default_factory=dict)
    metrics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    whole_loss: Callable[..., Any] | None = None
    seed: int = 0
    programs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)


class Trained(Protocol):
    """A training of a task, as an engine gives it: its `Trail`."""

    @property
    def steps(self) -> int:
        """T."""

    @property
    def losses(self) -> np.ndarray:
        """(T,) float64, the elementary loss before each step."""

    @property
    def end(self) -> Any:
        """w (the weights), v (the update's state) and carried (the state that the loss hands on) after T steps."""


class Gradient(Protocol):
    """A hypergradient, as an engine gives it."""

    @property
    def value(self) -> float:
        """f, the mean hyper loss at the end of training."""

    @property
    def hyper(self) -> Tree:
        """df/dλ, in the tree of the task's hyperparameters; None in the place of what is not floating point."""

    @property
    def start(self) -> Any:
        """The gradient with respect to the state before step 0 (w, v, carried); None where the method does not go there."""

    @property
    def norms(self) -> np.ndarray:
        """‖dw‖ before each reverse step, in the order in which they are taken."""

    @property
    def diagnostics(self) -> dict[str, Any]:
        """The method's own numbers."""


__all__ = ["Arrays", "Batches", "Gradient", "Rows", "Start", "Stream", "Task", "Trained"]
