"""A problem on the device: its data, and its programs, compiled once.

Everything that changes between meta-iterations (weights, hyperparameters, data, the key of the masks, batch indices,
learning rate factors, the number of line steps) is an argument of a program; everything that does not (network, dynamics,
shapes) is compiled in. So the second meta-iteration compiles nothing, and neither does a problem that differs from an earlier
one in its seed, its batches or its examples alone. In this package "compiled Theano function" means one of these.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.hyperparameters import OF_EXAMPLES, OF_THE_START, Hyper
from hypertrail.methods import MEASURED_STEPS, LineStep
from hypertrail.problem import Problem, Values

from . import devices, losses
from .dynamics import VELOCITIES, rule
from .functional import Inner, add, linearise, pull, reverse_step, zeros
from .ops import OPS
from .stepping import large, step

Array = Any
Tree = Any
Batch = tuple[Array, Array, tuple[Array, Array]]  # images, labels, and the two words that key the masks

CHUNK_STEPS = 250  # long enough that the host is not waited for, short enough for progress and early failure
CHUNK_BYTES = 256 << 20
DISK_BYTES = 8 << 20  # of the states that go to HDF5: as much as a segment, of which several are in memory at a time


@contextmanager
def precision(problem: Problem) -> Iterator[None]:
    """Scoped x64 mode: float64 (and int64) exist for JAX inside, the user's process is left as it was."""
    with jax.enable_x64(problem.precision == "float64"):
        yield


REMEMBERED = 4  # problems whose programs and data stay on the device
_remembered: OrderedDict[tuple[Problem, devices.Layout], Compiled] = OrderedDict()


def compiled(problem: Problem) -> Compiled:
    """The programs of this very problem object on the devices in use; the last four are remembered, with their data there.

    A problem that differs from a remembered one in nothing but its data and seeds (`unlike`) gets that one's programs.
    """
    key = problem, devices.layout()
    if key not in _remembered:
        relative = next((one for one in reversed(_remembered.values()) if one.serves(*key)), None)
        _remembered[key] = Compiled(*key) if relative is None else relative.for_data_of(problem)
        if len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)
    _remembered.move_to_end(key)
    return _remembered[key]


FREE = ("seed", "splits", "schedule")  # in which two problems may differ that share their programs


def unlike(a: Problem, b: Problem) -> list[str]:
    """What keeps two problems from sharing compiled programs: the names of the fields that differ, or the sizes of the data."""
    if type(a) is not type(b):
        return ["type"]
    names = [
        name for name in a.__dataclass_fields__ if name not in FREE and not equal(getattr(a, name), getattr(b, name))
    ]
    if sizes(a) != sizes(b):
        names.append(f"sizes of splits and batch, {sizes(a)} and {sizes(b)}")
    return names


def equal(a: Any, b: Any) -> bool:
    """Whether two fields are equal. Arrays, which have no single truth value, are equal only where they are the same object."""
    try:
        return a is b or bool(a == b)
    except ValueError:
        return False


def sizes(problem: Problem) -> tuple[int, ...]:
    s = problem.splits
    return (len(s.train), len(s.valid), len(s.select), len(s.test), problem.schedule.batch)


class Compiled:
    """Data on the device and compiled programs of one problem. Call everything inside `precision(problem)`."""

    def __init__(self, problem: Problem, layout: devices.Layout) -> None:
        layout.refuse(problem.schedule.batch)
        self.problem, self.layout, self.jit, self.put = problem, layout, layout.jit, layout.put
        self.kinds = [h.kind for h in problem.hyperparameters]
        self.per_step = {h.kind for h in problem.hyperparameters if h.per_step}
        self.keeps_velocity = problem.needs_velocity()
        self.inner = Inner(self.loss, self.update, has_aux=True)
        self.large = large(problem, layout)
        self.train_data, self.valid_data = self.data_of(problem)
        self.chunk = chunk_length(problem)
        self.disk_chunk = chunk_length(problem, DISK_BYTES)
        self.state_bytes = state_bytes(problem)
        # Compiled per object, not per class: when the object goes, its programs and the data they hold go too.
        self.others: dict[str, Any] = {}
        self.values = self.jit(self._values)
        self.pull_back = self.jit(self._pull_back)
        self.pull_start = self.jit(self._pull_start)
        self.weights = self.jit(self._weights)
        self.train_chunk = self.jit(self._train_chunk, static_argnums=0)
        self.reverse_chunk = self.jit(self._reverse_chunk)
        self.undo_chunk = self.jit(self._undo_chunk)
        self.reverse_line = self.jit(self._reverse_line, static_argnums=0)
        self.hyper_gradient = self.jit(self._hyper_gradient)
        self.hyper_loss = self.jit(self._hyper_loss)
        self.metrics = self.jit(self._metrics)

    def data_of(self, problem: Problem) -> tuple[Tree, Tree]:
        """What the programs read of a problem, on the device: (images, labels, key of the masks) of the train split, and the
        validation batches (x, y)."""
        train = problem.splits.train
        return (
            (self.put(train.x, problem.dtype), self.put(train.y), self.put(problem.noise_key)),
            self.put(problem.valid_batches()),
        )

    def serves(self, problem: Problem, layout: devices.Layout) -> bool:
        """Whether these programs are what would be compiled for the other problem."""
        same = layout == self.layout and not unlike(self.problem, problem)
        return same and (self.large, self.chunk) == (large(problem, layout), chunk_length(problem))

    def for_data_of(self, problem: Problem) -> Compiled:
        """The same programs for another problem that they serve. Splits that are the same object are on the
        device once. Programs that other modules have built (`program`) are not shared: forward mode, implicit differentiation,
        exact reversal and the online methods compile anew."""
        other = copy.copy(self)
        other.problem, other.others = problem, {}
        if problem.splits is self.problem.splits:
            other.train_data = *self.train_data[:2], self.put(problem.noise_key)
        else:
            other.train_data, other.valid_data = other.data_of(problem)
        return other

    # -- the elementary problem, in the form functional.py takes: hyper = the values of the declared kinds as the batch
    #    sees them, and t = (step, row of per-step values, learning rate factor)

    def loss(self, w: Tree, values: Values, batch: Batch, t: tuple) -> tuple[Array, Tree]:
        x, y, key = batch
        return losses.elementary_loss(self.problem, w, self.complete(values), x, y, t[0], key)

    def update(self, w: Tree, v: Tree, g: Tree, values: Values, t: tuple) -> tuple[Tree, Tree]:
        advance = rule(self.problem.dynamics, t[0])
        alpha, gamma = self.rates(values, t)
        moved = {name: advance(w[name], v[name], g[name], alpha[name], gamma[name]) for name in w}
        return {name: one[0] for name, one in moved.items()}, {name: one[1] for name, one in moved.items()}

    def rates(self, values: Values, t: tuple) -> tuple[dict[str, Array], dict[str, Array]]:
        """α_t and γ_t by parameter name. The schedule's factor multiplies α."""
        _, row, factor = t
        values = self.complete(values)

        def at(kind: str) -> dict[str, Array]:
            return {name: one[row] if kind in self.per_step else one for name, one in values[kind].items()}

        return {name: factor * one for name, one in at("learning_rate").items()}, at("momentum")

    def complete(self, values: Values) -> Values:
        """The declared values and the constants of the kinds that are not declared."""
        return {**self.problem.constants(jnp), **values}

    def batch(self, values: Values, data: Tree, indices: Array) -> tuple[Values, Batch]:
        """(values as these rows of the train split see them, (x, y, key of the masks)).

        What is differentiated is the batch's own rows of an example weight or learned image, never the whole array.
        """
        indices = self.layout.share(indices)
        x, y, key = data
        return self.problem.seen(values, indices), (*self.layout.share((x[indices], y[indices])), key)

    def collect(self, dvalues: Values, more: Values, indices: Array) -> Values:
        """dvalues += more, the derivatives of a batch's rows into these rows (repeated ones add up).

        XLA does the scatter in place in the carry of a loop: a step costs the rows of its batch.
        """
        return {
            kind: {key: one.at[indices].add(self.layout.whole(more[kind][key])) for key, one in arrays.items()}
            if kind in OF_EXAMPLES
            else add(arrays, more[kind])
            for kind, arrays in dvalues.items()
        }

    def initial_weights(self, values: Values) -> dict[str, np.ndarray]:
        """w_0 of these values, on the host: one product and sum per scalar, rounded alike wherever it is asked for."""
        return self.problem.scaled(self.problem.initial_weights(), jax.tree.map(np.asarray, of_the_start(values)))

    def inputs(self, values: Values) -> np.ndarray | None:
        """The learned images of these values, on the host; None where none are learned."""
        return np.asarray(values["training_input"]["x"]) if "training_input" in values else None

    def program(self, key: str, build: Callable[[], Any]) -> Any:
        """A compiled program of another module, built once for this problem."""
        if key not in self.others:
            self.others[key] = build()
        return self.others[key]

    # -- programs ---------------------------------------------------------------------------------------------------

    def _values(self, hyper: Hyper) -> Values:
        """Values of the declared kinds. Cost: one exponential per hyperparameter."""
        return self.problem.declared_values(hyper, jnp)

    def _pull_back(self, hyper: Hyper, dvalues: Values) -> Hyper:
        """Adjoint of `values`: d/d value → d/d unconstrained array."""
        return jax.vjp(lambda h: self.problem.declared_values(h, jnp), hyper)[1](dvalues)[0]

    def _pull_start(self, dvalues: Values, values: Values, drawn: Tree, dw: Tree) -> Values:
        """Adjoint of w_0 = σ · (drawn w_0) + u, for the end of the reverse pass: dvalues with dσ += dw_0 · (drawn w_0) and
        du += dw_0."""
        more = jax.vjp(lambda start: self.problem.scaled(drawn, start), of_the_start(values))[1](dw)[0]
        return dvalues | {kind: add(dvalues[kind], one) for kind, one in more.items()}

    def _weights(self, w: Tree, values: Values) -> Tree:
        return self.problem.effective(jnp, w, self.complete(values))

    def _train_chunk(self, keep: bool, state: Tree, origins: tuple, values: Values, data: Tree, xs: Tree) -> tuple:
        """Some steps forward. state = (w, v, running); xs = (batch indices, t), each with a leading axis of steps.
        origins: (a, w_a) for each a from which distances are measured.

        Returns the state after them, ‖w‖ there, and per step (loss, ‖w_{t+1} − w_a‖ for each origin, the state before
        where kept). A distance costs a fifth of a step on a small network, so only the steps that a line looks at have it.
        """

        def forward(state: tuple, x: tuple) -> tuple:
            w, v, running = state
            indices, t = x
            w_next, v_next, loss, statistics = step(self, w, v, values, data, indices, t)
            kept = {"w/" + name: one for name, one in w.items()} if keep else {}
            if keep and self.keeps_velocity:
                kept |= {"v/" + name: one for name, one in v.items()}
            running = self.problem.update_running(running, statistics)
            return (w_next, v_next, running), (loss, jnp.stack([moved(t[0], w_next, *one) for one in origins]), kept)

        state, record = lax.scan(forward, state, xs)
        return state, norm(state[0]), record

    def _reverse_chunk(self, adjoint: Tree, states: Tree, values: Values, data: Tree, xs: Tree) -> tuple:
        """The same steps backward, over the states that `train_chunk` kept. adjoint = (dw, dv, dvalues).

        Returns the adjoint before them and ‖dw‖ as it stood before each reverse step, in the order of the steps.
        """

        def backward(adjoint: tuple, x: tuple) -> tuple:
            kept, (indices, t) = x
            w = {name: kept["w/" + name] for name in adjoint[0]}
            v = {name: kept["v/" + name] for name in w} if self.keeps_velocity else zeros(w)
            return self.backward(adjoint, w, v, values, data, indices, t), norm(adjoint[0])

        return lax.scan(backward, adjoint, (states, xs), reverse=True)

    def _reverse_line(
        self, how: LineStep, adjoint: Tree, line: Tree, values: Values, data: Tree, span: tuple[Array, Array]
    ) -> tuple:
        """Steps span[1]−1 … span[0] backward along a line; see providers.Line. The span is an argument, so one program
        serves every N. how: what the steps do otherwise than the adjoint of a step; regularized_only keeps dw = 0 for the
        parameters that are not regularizable. Returns the adjoint and ‖dw‖ before each step, an array as long as the line's
        tables."""
        lo, hi = span
        advance = self.backward_literal if how.literal else partial(self.backward, inner=self.inner_of(how))
        left_out = self.problem.unregularized if how.regularized_only else ()

        def kept(dw: Tree) -> Tree:
            return {name: jnp.zeros_like(one) if name in left_out else one for name, one in dw.items()}

        def backward(k: Array, carry: tuple) -> tuple:
            (dw, dv, dvalues), norms = carry
            i = hi - 1 - (k - lo)
            w, v, indices, t = line.point(i, self, values)
            norms = norms.at[i].set(norm(dw))
            dw, dv, dvalues = advance((dw, dv, dvalues), w, v, values, data, indices, t)
            return (kept(dw), dv, dvalues), norms

        dw, dv, dvalues = adjoint
        norms = jnp.zeros(line.rho.shape, self.problem.dtype)
        return lax.fori_loop(lo, hi, backward, ((kept(dw), dv, dvalues), norms))

    def inner_of(self, how: LineStep) -> Inner:
        """The elementary problem as a step on a line differentiates it: its own, or with dα from the line's velocity."""
        return Inner(self.loss, self.update_of_line, has_aux=True) if how.line_dalpha else self.inner

    def update_of_line(self, w: Tree, v: Tree, g: Tree, values: Values, t: tuple) -> tuple[Tree, Tree]:
        """The numbers of `update`, another derivative: dα = ± dw v, v the velocity that goes in, in place of ± dw v'.

        w ← w ± α v',  with α held, ± (α − α) v:  the last term is 0, and all that is differentiated with respect to α.
        """
        held = {**values, "learning_rate": lax.stop_gradient(self.complete(values)["learning_rate"])}
        w, v_next = self.update(w, v, g, held, t)
        sign = VELOCITIES[self.problem.dynamics.kind]
        alpha, _ = self.rates(values, t)
        moved = {name: (one - lax.stop_gradient(one)) * lax.stop_gradient(v[name]) for name, one in alpha.items()}
        return {name: one + sign * moved[name] for name, one in w.items()}, v_next

    def backward(
        self,
        adjoint: Tree,
        w: Tree,
        v: Tree,
        values: Values,
        data: Tree,
        indices: Array,
        t: tuple,
        inner: Inner | None = None,
    ) -> Tree:
        """One reverse step at (w, v). Exact, unless another `inner` than the problem's own is given."""
        dw, dv, dvalues = adjoint
        dw, dv, more = reverse_step(inner or self.inner, w, v, *self.batch(values, data, indices), t, dw, dv)
        return dw, dv, self.collect(dvalues, more, indices)

    def _undo_chunk(self, state: Tree, values: Values, data: Tree, xs: Tree, span: Any = None) -> tuple:
        """Steps undone in floating point, and taken backward at the states this leads to. state = (w, v, dw, dv, dvalues).
        Of xs, the steps span[1]−1 … span[0], by default all: an argument, so one program serves every tail.

            w −= α v;   g = ∇L(w);   v = (v + (1−γ) g) / γ        (Maclaurin et al. 2015, algorithm 2, lines 6 to 8)

        Every step back multiplies the rounding error by 1/γ. Returns the state before the steps and ‖dw‖ before each.
        """
        steps = len(xs[0])
        lo, hi = (0, steps) if span is None else span

        def backward(k: Array, carry: tuple) -> tuple:
            (w, v, dw, dv, dvalues), norms = carry
            i = hi - 1 - (k - lo)
            indices, t = jax.tree.map(lambda one: one[i], xs)
            alpha, gamma = self.rates(values, t)
            w = {name: one - alpha[name] * v[name] for name, one in w.items()}
            seen, batch = self.batch(values, data, indices)
            g, tangent = linearise(self.inner, w, seen, batch, t)
            v = {name: (one + (1 - gamma[name]) * g[name]) / gamma[name] for name, one in v.items()}
            norms = norms.at[i].set(norm(dw))
            dw, dv, more = pull(self.inner, w, v, g, tangent, seen, t, dw, dv)
            return (w, v, dw, dv, self.collect(dvalues, more, indices)), norms

        norms = jnp.zeros(steps, self.problem.dtype)
        return lax.fori_loop(lo, hi, backward, (state, norms))

    def backward_literal(
        self, adjoint: Tree, w: Tree, v: Tree, values: Values, data: Tree, indices: Array, t: tuple
    ) -> Tree:
        """One step of DrMAD's algorithm 2 to the letter (completion C0): no velocity, no learning rate.

        dλ −= (1−γ) (∂²L/∂λ∂w)ᵀ dw,   dw −= (1−γ) (∂²L/∂w²) dw       (dλ takes dw before its own update)
        """
        dw, dv, dvalues = adjoint
        _, gamma = self.rates(values, t)
        u = {name: -(1 - gamma[name]) * one for name, one in dw.items()}
        seen, (x, y, key) = self.batch(values, data, indices)
        hvp, mixed = losses.second_order(self.problem, w, self.complete(seen), x, y, t[0], u, key)
        return add(dw, hvp), dv, self.collect(dvalues, mixed, indices)

    def _hyper_gradient(self, w: Tree, values: Values, batches: Tree) -> tuple:
        f, dw, dvalues = losses.hyper_gradient(self.problem, w, self.complete(values), *self.layout.share(batches, 1))
        return f, dw, {kind: dvalues[kind] for kind in self.kinds}

    def _hyper_loss(self, weights: Tree, batches: Tree) -> Array:
        """f at effective weights (any transform already applied)."""
        return lax.map(
            lambda batch: self.problem.valid_loss(OPS, weights, *batch), self.layout.share(batches, 1)
        ).mean()

    def _metrics(self, weights: Tree, running: Tree, batches: Tree) -> Array:
        """(n, 2, B): loss and error of every example of the batches."""
        return lax.map(lambda batch: self.problem.metrics(OPS, weights, running, *batch), self.layout.share(batches, 1))

    def steps(self, start: int, stop: int) -> tuple:
        """What the programs read for the steps start … stop−1: batch indices and t, with a leading axis of steps."""
        t = np.arange(start, stop, dtype=np.int32)
        factors = self.problem.dynamics.factors(self.problem.steps)[start:stop].astype(self.problem.dtype)
        return self.problem.schedule.indices(start, stop), (t, t, factors)


def of_the_start(values: Values) -> Values:
    """The values that act on w_0 alone; none of them: {}."""
    return {kind: one for kind, one in values.items() if kind in OF_THE_START}


def norm(tree: Tree) -> Array:
    """Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def distance(a: Tree, b: Tree) -> Array:
    return norm(jax.tree.map(jnp.subtract, a, b))


def moved(t: Array, w_next: Tree, a: Array, w_a: Tree) -> Array:
    """‖w_{t+1} − w_a‖ for the first steps from a, NaN (unmeasured) for the others."""
    nan = jnp.full((), jnp.nan, jax.tree.leaves(w_a)[0].dtype)
    return lax.cond(t - a < MEASURED_STEPS, lambda: distance(w_next, w_a), lambda: nan)


def state_bytes(problem: Problem) -> int:
    """Bytes of one kept state: the weights, and the velocities where the hypergradient needs them."""
    numbers = 1 + problem.dynamics.moments * problem.needs_velocity()
    return sum(p.size for p in problem.params) * problem.dtype.itemsize * numbers


def chunk_length(problem: Problem, most: int = CHUNK_BYTES) -> int:
    """Steps per compiled chunk: a divisor of T (else of an epoch) near the target, so that no odd rest compiles again."""
    target = min(problem.steps, CHUNK_STEPS, max(1, most // state_bytes(problem)))
    for whole in (problem.steps, problem.schedule.steps_per_epoch):
        divisors = [k for k in range(1, target + 1) if whole % k == 0]
        if divisors[-1] * 2 > target:
            return divisors[-1]
    return target
