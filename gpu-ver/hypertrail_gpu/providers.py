"""Where w_t comes from in the reverse pass. One reverse kernel, fed by any of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import VerificationFailure
from hypertrail.records import Checkpointed, Training

if TYPE_CHECKING:
    from .compiled import Compiled

Array = Any
Tree = Any


class Stored:
    """The true states, from the device, from RAM or from HDF5 segments. Exact. Memory: one chunk (and what the store keeps)."""

    def __init__(self, training: Training, chunk: int, dtype: np.dtype) -> None:
        self.trajectory, self.chunk, self.dtype = training.trajectory, chunk, dtype

    def backwards(self, first: int = 0) -> Iterator[tuple[int, int, Tree]]:
        """(start, stop, states stacked along axis 0) from the last chunk down to step `first`.

        A store cuts its segments by bytes, so pieces of two may have to be joined to a chunk.
        """
        assert self.trajectory is not None
        held: list[tuple[int, Tree]] = []  # pieces in rising order of their first step
        stop = self.trajectory.stop
        start = max(first, first + (stop - 1 - first) // self.chunk * self.chunk)
        for segment in self.trajectory.backwards():
            held.insert(0, (segment.start, segment.states))
            while stop > max(segment.start, first) and start >= segment.start:
                yield start, stop, self.join(held, start, stop)
                held = [(begin, states) for begin, states in held if begin < start]
                stop, start = start, start - self.chunk
            if stop == first > self.trajectory.start:
                return  # a walk that goes all the way ends by itself, and tells whether the disk has all of it

    def join(self, held: list[tuple[int, Tree]], start: int, stop: int) -> Tree:
        pieces = []
        for begin, states in held:
            length = len(next(iter(states.values())))
            lo, hi = max(start - begin, 0), min(stop - begin, length)
            if lo < hi:
                whole = (lo, hi) == (0, length)
                pieces.append(states if whole else {k: one[lo:hi] for k, one in states.items()})
        if len(pieces) > 1:
            pieces = [{k: np.concatenate([np.asarray(p[k]) for p in pieces]) for k in pieces[0]}]
        return {k: jnp.asarray(one, self.dtype) for k, one in pieces[0].items()}


class Recomputed:
    """The true states, each stretch trained again from its checkpoint. Exact: the same loop from the same numbers.

    Not the same program, as this one hands out its states: where the compiler rounds the two differently, the states are those
    of the run to rounding. Each stretch is compared with where the next one begins, and VerificationFailure raised where they
    are further apart than `GAPS` allows. Cost: one more forward run. Memory: the checkpoints and the states of one stretch.
    """

    def __init__(self, training: Training, programs: Compiled, values: Tree) -> None:
        self.training, self.programs, self.values = training, programs, values

    def backwards(self, first: int = 0) -> Iterator[tuple[int, int, Tree]]:
        """(start, stop, states stacked along axis 0) from the last stretch down to the one that holds step `first`."""
        kept, p = self.training.trajectory, self.programs
        assert isinstance(kept, Checkpointed)
        running = jax.tree.map(jnp.asarray, p.problem.initial_running())  # moved along, but not read again
        gap = p.program("gap", lambda: p.jit(relative_distance))
        w_stop, stop = self.training.final, p.problem.steps
        for start, state in zip(reversed(kept.at), reversed(kept.states), strict=True):
            w, v = (
                {k[2:]: jnp.asarray(one) for k, one in state.items() if k.startswith(front)} for front in ("w/", "v/")
            )
            xs = p.steps(start, stop)
            origins = (0, w), (0, w)  # nothing is measured
            after, _, (_, _, states) = p.train_chunk(True, (w, v, running), origins, self.values, p.train_data, xs)
            apart = gap(after[0], w_stop)
            if start < first:
                states = {k: one[first - start :] for k, one in states.items()}
            yield max(start, first), stop, states
            self.check(float(apart), stop, state)  # looked at only now: the device is busy with the reverse steps
            if start <= first:
                return
            w_stop, stop = w, start

    def check(self, apart: float, step: int, state: dict[str, Array]) -> None:
        precision = min(
            [self.programs.problem.dtype, *(one.dtype for one in state.values())], key=lambda d: d.itemsize
        ).name
        if not apart <= GAPS[precision]:
            raise VerificationFailure(
                f"recomputing from a checkpoint arrives at step {step} {apart:.1e} (relative) away from what the run kept, "
                f"allowed {GAPS[precision]:g}; pass problem, hyperparameters and training of one run, or keep the states"
            )


# float64: the same run differs by rounding. float32: so it does, and a long stretch of a wild run makes 1e-4 of it; other
# hyperparameters make 1e-3 and more.
GAPS = {"float64": 1e-6, "float32": 1e-3}


def relative_distance(a: Tree, b: Tree) -> Array:
    """‖a − b‖ / ‖b‖."""
    over, under = (sum(jnp.sum(one**2) for one in t.values()) for t in ({k: a[k] - b[k] for k in b}, b))
    return jnp.sqrt(over / jnp.maximum(under, jnp.finfo(over.dtype).tiny))


class Line(NamedTuple):
    """w_i = (1 − ρ_i) w_0 + ρ_i w_T: two states in place of the trajectory. NOT exact; a NamedTuple, so a JAX pytree.

    v0: the velocity at w_0. rho, rho_step (ρ_i − ρ_{i−1}; damped-old: ρ_{i+1} − ρ_i), t = (batch step, row of per-step rates,
    learning rate factor) and indices are tables with a leading axis of at least N steps: longer ones let one program serve
    every N. end_velocity (): whether v_0 comes from rho_step, as all others do, and not from v0.
    """

    w0: Tree
    wT: Tree
    v0: Tree
    rho: Array
    rho_step: Array
    indices: Array
    t: tuple[Array, Array, Array]
    end_velocity: Array

    def point(self, i: Array, programs: Compiled, values: Tree) -> tuple[Tree, Tree, Array, tuple]:
        """(w_i, v_i, batch indices, t) of line step i. The velocity is the one that carries w_{i−1} to w_i; where the old one
        moves the weights (damped-old), it carries w_i to w_{i+1}, and w_N = w_T:

        v_i = (w_i − w_{i−1}) / α_i   (heavy ball: −(w_i − w_{i−1}) / η_i),   v_0 the true one at w_0
        """
        rho, rho_step = self.rho[i], self.rho_step[i]
        t = tuple(one[i] for one in self.t)
        w = {name: (1 - rho) * self.w0[name] + rho * self.wT[name] for name in self.w0}
        if not programs.keeps_velocity:
            return w, jax.tree.map(jnp.zeros_like, w), self.indices[i], t
        alpha, _ = programs.rates(values, t)
        sign = -1.0 if programs.problem.dynamics.kind == "heavy-ball" else 1.0
        v = {name: sign * rho_step * (self.wT[name] - self.w0[name]) / alpha[name] for name in w}
        true_start = (i == 0) & ~self.end_velocity
        return w, {name: jnp.where(true_start, self.v0[name], one) for name, one in v.items()}, self.indices[i], t
