"""Exact reversal: training in int64 fixed point, so that every step can be undone to the bit. Exact, in almost no memory.

Maclaurin, Duvenaud, Adams: "Gradient-based hyperparameter optimization through reversible learning", ICML 2015, section 2.3 and
algorithm 3. The arithmetic, and what the buffers B are, stand in `hypertrail_gpu.reversal`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from hypertrail.errors import OutOfRange, UsageError, VerificationFailure
from hypertrail.refusals import refuse_momenta
from hypertrail.task import Task

from ..inner import State, elementary_loss, program
from ..keeper import LOWER, Ends
from ..reversal import (
    DENOMINATOR,
    HOLDS,
    LARGEST,
    capacity,
    fixed,
    lowest,
    not_reproduced,
    scale,
    to_fixed,
    to_float,
    unscale,
)
from ..trail import Pass, chunks_back, walk
from ..trees import named, zeros
from ..updates import Momentum

Array = Any
Tree = Any


class Integers(NamedTuple):
    """The position of a training in fixed point: weights and velocities in units of 2⁻⁵², and the digits that γ took from v."""

    W: Tree
    V: Tree
    B: Tree


class Digits(Ends):
    """Integers at the end, and the digits of each span of steps that share a buffer.

    Memory: one state, and log2(1/γ) bits a number and step, in steps of 64.
    """

    quantity = f"elementary loss (or |w| or |v| left fixed point, |x| < {LARGEST:g})"
    hint = f"{LOWER}, or keep the states"

    def __init__(self, steps: int, dtype: np.dtype, gammas: np.ndarray) -> None:
        super().__init__(steps)
        self.dtype = dtype
        self.starts = [0]
        while self.starts[-1] < steps:
            self.starts.append(self.starts[-1] + capacity(gammas[:, self.starts[-1] :]))
        self.starts.pop()
        self.lost: list[Tree] = []

    def precision(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(True)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.lost))

    def close(self) -> None:
        self.lost.clear()

    def cuts(self) -> list[int]:
        return [*self.starts, self.steps]

    def enter(self, task: Task, s: State, hyper: Tree) -> Integers:
        with self.precision():
            W = to_fixed(s.w)
            return Integers(W, zeros(W), zeros(W))

    def leave(self, position: Integers) -> State:
        with self.precision():
            return State(to_float(position.W, self.dtype), to_float(position.V, self.dtype), None)

    @property
    def advance(self) -> Advance:
        return Advance(self.dtype.name)

    def before(self, start: int, position: Integers) -> tuple[Integers, tuple]:
        if start == 0 or start not in self.starts:
            return position, ()
        self.lost.append(position.B)
        return position._replace(B=zeros(position.B)), ()

    def after(self, start: int, stop: int, path: Tree, distances: np.ndarray, position: Integers) -> None:
        if stop == self.steps:
            self.lost.append(position.B)


def digits_keeper(task: Task, steps: int, hyper: Tree, s: State) -> tuple[Task, Digits]:
    """The keeper, and the task with an effective momentum n/2¹⁶. UsageError for what cannot be reversed."""
    refuse_integers(task, s)
    refuse_large(s)
    if "reversible" not in task.programs:
        update = replace(
            task.update, fractions=True, rate=Frozen(task.update.rate), momentum=Frozen(task.update.momentum)
        )
        copy = replace(task, loss=Frozen(task.loss), update=update)
        copy.programs["symmetric"] = task.programs["symmetric"]
        task.programs["reversible"] = copy
    task = task.programs["reversible"]
    found = program(task, momenta)(s.w, hyper, np.arange(steps, dtype=np.int32))
    gammas = [np.asarray(one, np.float64).reshape(steps, -1) for one in jax.tree.leaves(found)]
    refuse_momenta(gammas)
    return task, Digits(steps, jax.tree.leaves(s.w)[0].dtype, np.stack([one.min(axis=1) for one in gammas]))


def momenta(task: Task, w: Tree, hyper: Tree, t: Array) -> Tree:
    """γ of every tensor at these steps, (steps, …)."""
    return jax.vmap(lambda t: jax.tree.map(jnp.asarray, task.update.rates(w, hyper, t)[1]))(t)


@dataclass(frozen=True)
class Advance:
    """One step in fixed point. dtype: that of the weights as the loss sees them."""

    dtype: str

    def __call__(
        self, task: Task, position: Integers, hyper: Tree, batch: Tree, t: Array
    ) -> tuple[Integers, Array, Tree]:
        W, V, B = position
        w = to_float(W, self.dtype)
        loss, g = isolated_gradient(task, w, hyper, batch, t)
        alpha, gamma = task.update.rates(w, hyper, t)
        V, B = both(lambda V, B, n: scale(V, B, *lowest(n)), V, B, numerators(gamma))
        V = jax.tree.map(lambda V, g, gamma: V - fixed((1 - gamma) * g), V, g, gamma)
        v = to_float(V, self.dtype)
        W = jax.tree.map(lambda W, v, alpha: W + fixed(alpha * v), W, v, alpha)
        w = to_float(W, self.dtype)
        peak = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves((w, v))]))
        return Integers(W, V, B), jnp.where(peak < LARGEST, loss, jnp.nan), w


@dataclass(frozen=True)
class Undo:
    """The same step undone, to the bit. apart: g is computed by itself, in the same isolation as in `Advance`, for one more
    gradient a step; without it the compiler may take the g of the reverse step, which on a small network is the same."""

    dtype: str
    apart: bool

    def __call__(
        self, task: Task, position: Integers, none: Any, x: Tree, i: Any, hyper: Tree, batch: Tree
    ) -> tuple[Integers, State]:
        W, V, B = position
        alpha, gamma = task.update.rates(to_float(W, self.dtype), hyper, x["t"])
        v = to_float(V, self.dtype)
        W = jax.tree.map(lambda W, v, alpha: W - fixed(alpha * v), W, v, alpha)
        w = to_float(W, self.dtype)
        _, g = (isolated_gradient if self.apart else plain_gradient)(task, w, hyper, batch, x["t"])
        V = jax.tree.map(lambda V, g, gamma: V + fixed((1 - gamma) * g), V, g, gamma)
        V, B = both(lambda V, B, n: unscale(V, B, *lowest(n)), V, B, numerators(gamma))
        return Integers(W, V, B), State(w, to_float(V, self.dtype), None)


def undone_integers(run: Pass, adjoint: tuple, first: int = 0) -> tuple[tuple, int]:
    """Back over the undone states, span by span, to step `first`. VerificationFailure where the bits do not come back.

    A walk that ends inside a span meets no empty buffer that would prove it; there the gradient is computed apart.
    """
    trail, kept = run.trail, run.trail.kept
    position, apart, stop = trail.position, False, trail.steps
    for start, B in zip(reversed(kept.starts), reversed(kept.lost), strict=True):
        lo = max(start, first)
        apart = apart or lo != start
        taken = len(run.norms)
        while True:
            at = Undo(kept.dtype.name, apart)
            after, there = walk(run, at, chunks_back(run, lo, stop), adjoint, position._replace(B=B))
            if lo != start or not any(bool(jnp.any(one)) for one in jax.tree.leaves(there.B)):
                break
            if apart:
                raise VerificationFailure(not_reproduced(start))
            apart = True  # from here on, this span once more
            del run.norms[taken:]
        adjoint, position, stop = after, there, lo
        if lo == first:
            break
    if first == 0:
        began = kept.enter(trail.task, trail.start, trail.values)
        with kept.precision():
            same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), position, began)
        if not all(jax.tree.leaves(same)):
            raise VerificationFailure(not_reproduced(0))
    return adjoint, first


def plain_gradient(task: Task, w: Tree, hyper: Tree, batch: Tree, t: Array) -> tuple[Array, Tree]:
    (loss, _), g = jax.value_and_grad(partial(elementary_loss, task), has_aux=True)(w, None, hyper, batch, t)
    return loss, g


def isolated_gradient(task: Task, w: Tree, hyper: Tree, batch: Tree, t: Array) -> tuple[Array, Tree]:
    """(L, g), walled off so that the compiler rounds it alike wherever it stands."""
    w, hyper, batch = lax.optimization_barrier((w, hyper, batch))
    return lax.optimization_barrier(plain_gradient(task, w, hyper, batch, t))


def numerators(gamma: Tree) -> Tree:
    return jax.tree.map(lambda one: jnp.round(jnp.asarray(one, jnp.float64) * DENOMINATOR).astype(jnp.int64), gamma)


def both(f: Any, V: Tree, B: Tree, n: Tree) -> tuple[Tree, Tree]:
    """f of every tensor's (V, B, n) → (V, B)."""
    done = jax.tree.map(f, V, B, n)
    return jax.tree.transpose(jax.tree.structure(V), jax.tree.structure((0, 0)), done)


class Frozen:
    """A function traced in the x64 mode in which this object was made, and called in another one as it was traced.

    Exact reversal needs int64, so x64 mode; there jax.random draws other numbers from the same key, and new arrays are float64.
    Frozen, a float32 model has the masks and the dtypes that it has without exact reversal.
    """

    def __init__(self, function: Any) -> None:
        self.function, self.x64 = function, jax.config.read("jax_enable_x64")

    def __call__(self, *args: Any) -> Any:
        if jax.config.read("jax_enable_x64") == self.x64:
            return self.function(*args)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), args)
        with jax.enable_x64(self.x64):
            traced, out = jax.make_jaxpr(self.function, return_shape=True)(*shapes)
        return jax.tree.unflatten(jax.tree.structure(out), jaxpr_as_fun(traced)(*jax.tree.leaves(args)))


def refuse_integers(task: Task, s: State) -> None:
    """UsageError for a task whose steps cannot be undone in integers."""
    update = task.update
    if not isinstance(update, Momentum) or update.kind != "damped":
        raise UsageError(
            f"exact reversal undoes damped momentum alone, not {type(update).__name__}"
            f"{f' ({update.kind})' if isinstance(update, Momentum) else ''}; keep the states ('memory', a folder, Checkpoints())"
        )
    if s.carried is not None:
        raise UsageError(f"the state of the task ({', '.join(named(s.carried))}) cannot be undone; keep the states")
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(s.w)}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        raise UsageError(
            f"exact reversal needs weights of one dtype, float32 or float64, found {', '.join(sorted(dtypes))}"
        )


def refuse_large(s: State) -> None:
    if not all(bool(np.all(np.abs(np.asarray(leaf)) < LARGEST)) for leaf in jax.tree.leaves(s.w)):
        raise OutOfRange("w_0", 0, f"{HOLDS}; lower the initial scale, or keep the states")
