"""What a trained task is worth: the hyper loss with its gradient, and the means of the metrics, over batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.errors import NumericalFailure
from hypertrail.task import Task

from .batches import CHUNK_STEPS, Inputs, Memory, Pick, ahead, fed, table
from .inner import State, measured, program
from .trees import add, dtype_of, filled, floats, zeros

if TYPE_CHECKING:
    from .trail import Trail

Array = Any
Tree = Any

# (task, w, state, λ, batch) → f
HyperLoss = Callable[..., Array]


def hyper_gradient(trail: Trail, f: HyperLoss) -> tuple[float, tuple]:
    """(f, the adjoint it gives the state after T steps and λ): means over the validation batches, each of which counts alike."""
    task, s = trail.task, trail.end
    valid = validation(task)
    M, length = valid.steps, min(valid.steps, CHUNK_STEPS)
    total = program(task, nothing_yet)(s.w, s.carried, trail.values)
    starts = range(0, M, length)
    for a, (x, payload) in zip(starts, ahead(valid, [table(a, length, M - 1) for a in starts]), strict=True):
        inputs = Inputs(trail.values, payload, x, np.int32(0), np.int32(min(length, M - a)))
        total = program(task, judge, valid.pick, f)(total, s.w, s.carried, inputs)
    value, adjoint = program(task, mean_adjoint)(total, s.v, np.int32(M))
    if not np.isfinite(value):
        raise NumericalFailure("hyper loss", trail.batches.first + trail.steps)
    return float(value), adjoint


def nothing_yet(task: Task, w: Tree, carried: Tree, hyper: Tree) -> Tree:
    """What `judge` adds to. Compiled, because to make every array of zeros by itself takes longer than the whole loss."""
    return jnp.zeros((), dtype_of(w)), *zeros((w, floats(carried), floats(hyper)))


def mean_adjoint(task: Task, total: Tree, v: Tree, M: Any) -> tuple[Array, tuple]:
    """(f, the adjoint of the last state and of λ) of sums over M batches. Nothing of f reads v."""
    value, dw, dcarried, dhyper = jax.tree.map(lambda a: a / M.astype(a.dtype), total)
    return value, (State(dw, zeros(floats(v)), dcarried), dhyper)


def validation(task: Task) -> Memory:
    """The batches that the hyper loss is averaged over."""
    return NoData() if task.valid is None else fed(task, "valid")


def judge(task: Task, pick: Pick, f: HyperLoss, total: Tree, w: Tree, carried: Tree, inputs: Inputs) -> Tree:
    """total += Σ (f, ∂f/∂w, ∂f/∂state, ∂f/∂λ) over the validation batches lo … hi − 1 of a chunk."""
    hyper, payload, x, lo, hi = inputs

    def body(i: Array, total: Tree) -> Tree:
        batch = pick(payload, x["at"][i])

        def of_floats(w: Tree, carried_floats: Tree, hyper_floats: Tree) -> Array:
            return f(task, w, filled(carried, carried_floats), filled(hyper, hyper_floats), batch)

        value, slopes = jax.value_and_grad(of_floats, (0, 1, 2))(w, floats(carried), floats(hyper))
        return add(total, (value.astype(total[0].dtype), *slopes))

    return lax.fori_loop(lo, hi, body, total)


def means(trail: Trail, batches: Memory) -> dict[str, float]:
    """The mean hyper loss ("loss") and the means of the task's metrics at the end of a training, over these batches."""
    task, s = trail.task, trail.end
    n, length = batches.steps, min(batches.steps, CHUNK_STEPS)
    total = {name: jnp.zeros((), dtype_of(s.w)) for name in ("loss", *task.metrics)}
    starts = range(0, n, length)
    for a, (x, payload) in zip(starts, ahead(batches, [table(a, length, n - 1) for a in starts]), strict=True):
        inputs = Inputs(trail.values, payload, x, np.int32(0), np.int32(min(length, n - a)))
        total = program(task, add_measures, batches.pick)(total, s.w, s.carried, inputs)
    return {name: float(added) / n for name, added in total.items()}


def add_measures(task: Task, pick: Pick, total: Tree, w: Tree, carried: Tree, inputs: Inputs) -> Tree:
    """total += the hyper loss and each metric on the batches lo … hi − 1 of a chunk."""
    hyper, payload, x, lo, hi = inputs
    functions = {"loss": task.hyper_loss, **task.metrics}

    def body(i: Array, total: Tree) -> Tree:
        batch = pick(payload, x["at"][i])
        values = {name: measured(task, function, w, carried, hyper, batch) for name, function in functions.items()}
        return {name: total[name] + jnp.asarray(values[name], total[name].dtype) for name in total}

    return lax.fori_loop(lo, hi, body, total)


class NoData(Memory):
    """valid=None: one batch, which is None."""

    def __init__(self) -> None:
        self.tree, self.steps = None, 1

    @staticmethod
    def pick(payload: Tree, i: Any) -> Tree:
        return None

    def look(self, t: int) -> Tree:
        return None
