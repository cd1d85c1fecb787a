"""Exact reversal: training in int64 fixed point, so that every step can be undone to the bit.

Maclaurin, Duvenaud, Adams: "Gradient-based hyperparameter optimization through reversible learning", ICML 2015, section 2.3 and
algorithm 3. Additions of integers can be undone; the multiplication of v by γ cannot, because it loses log2(1/γ) bits. It
is written as a multiplication by a fraction n/d, whose lost digits go into a buffer B:

    B ← B·d + (V mod d);  V ← ⌊V/d⌋·n + (B mod n);  B ← ⌊B/n⌋          (undone by the same with n and d exchanged)

Where the paper keeps B as one integer of any length per number, here it is an int64 that is put aside, and started anew
from 0, before it can overflow: when, the momenta alone tell, no branch per element, bit exact all the same. A momentum for each
step is a table of n, looked up inside the loop: nothing compiles when the momenta move.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, OutOfRange, UsageError, VerificationFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.keeping import Reversible
from hypertrail.methods import MEASURED_STEPS
from hypertrail.problem import Problem
from hypertrail.records import Cost, Training, Undoable
from hypertrail.refusals import refuse_momenta, refuse_reversible

from .compiled import Compiled, compiled, moved, norm
from .functional import linearise, pull, zeros

Array = Any
Tree = Any

FRACTION_BITS = 52  # value = i / 2^52: all of float64's mantissa for values near 1
LARGEST = 2.0 ** (62 - FRACTION_BITS)  # a value past it could not be doubled in int64
HOLDS = f"int64 fixed point holds |x| < {LARGEST:g} only"
EXPONENT = 16
DENOMINATOR = 2**EXPONENT  # of γ = n/d; the paper's d = 2^16 // fix(γ + 1) is this for every γ < 1
MOST = 2.0 ** (62 - EXPONENT - 1)  # that B may be
DETERMINISTIC = "XLA_FLAGS=--xla_gpu_deterministic_ops=true"


def train_reversibly(problem: Problem, hyper: Hyper, keep: Reversible, progress: Progress | None) -> Training:
    """`train` in fixed point; Training.trajectory is an Undoable. Cost: T gradients and some integer arithmetic.

    The dynamics are those of damped momentum with the effective γ = n/d, rounded up by at most 1.5e-5 (1/2^16); it is reported
    in Undoable.momentum, (T,) where it is declared per step. Raises UsageError for what cannot be reversed, NumericalFailure
    where a loss is not finite or a weight leaves the range of the fixed point (|w| < 1024).
    """
    refuse(problem, keep)
    started = time.perf_counter()
    with jax.enable_x64(True):
        programs = compiled(problem)
        values = programs.values(hyper)
        fractions = fractions_of(programs, values)
        values = effective(problem, values, fractions)
        initial = programs.initial_weights(values)
        refuse_start(initial)
        w0 = jax.tree.map(jnp.asarray, initial)
        running = jax.tree.map(jnp.asarray, problem.initial_running())
        W = to_fixed(w0)
        state = (W, zeros(W), running)
        probe(programs, w0, values)
        forward = programs.program("forward in fixed point", lambda: programs.jit(chunk_forward(programs)))
        lost, losses, distances = [], [], []
        for start, end in spans(problem.steps, fractions):
            B = zeros(W)
            for begin, stop, base in cuts(programs, start, end):
                xs, some = programs.steps(base, base + programs.chunk), (np.int32(begin - base), np.int32(stop - base))
                state, B, record = forward(state, B, w0, fractions, values, programs.train_data, xs, some)
                loss, way, peak = (np.asarray(one)[begin - base : stop - base] for one in record)
                refuse_failure(loss, peak, begin)
                losses.append(loss)
                distances.append(way)
                if progress:
                    progress(stop, problem.steps)
            lost.append((start, B))
        W, V, running = state
        final, velocity = to_float(W, problem.dtype), to_float(V, problem.dtype)
        weights = programs.weights(final, values)
        final, velocity, weights, running = jax.tree.map(np.asarray, (final, velocity, weights, running))
        digits, integers = ([one.nbytes for one in jax.tree.leaves(some)] for some in ([B for _, B in lost], (W, V)))
        trajectory = Undoable(
            w=W,
            v=V,
            lost=lost,
            bits=8 * sum(digits) / (sum(one.size for one in W.values()) * problem.steps),
            momentum={name: as_momentum(n) for name, n in fractions.items()},
            nbytes=sum(digits) + sum(integers),
        )
    return Training(
        initial=initial,
        final=final,
        weights=weights,
        velocity=velocity,
        running=running,
        losses=np.concatenate(losses).astype(np.float64),
        distances=np.concatenate(distances)[:MEASURED_STEPS].astype(np.float64),
        steps=problem.steps,
        trajectory=trajectory,
        cost=Cost(problem.steps, 0, time.perf_counter() - started, trajectory.nbytes),
        inputs=programs.inputs(values),
    )


def reverse_undone(
    programs: Compiled, adjoint: Tree, training: Training, values: Tree, first: int, progress: Progress | None
) -> tuple[Tree, np.ndarray]:
    """Backward over the undone states, from T to step `first`: the mirror image of the loop in train_reversibly.

    Where it goes all the way, it ends by asserting that it has arrived at w_0, v_0 = 0 and empty buffers, to the bit. A walk
    that ends inside a span meets no empty buffer that would prove it; there the gradient is computed apart.
    Call inside x64 mode.
    """
    kept = training.trajectory
    assert isinstance(kept, Undoable)
    if not isinstance(kept.lost, list):
        raise UsageError(
            "this reversible run is another engine's, whose digits only it can read; go back with that one"
        )
    T = programs.problem.steps
    fractions = {name: jnp.asarray(np.rint(g * DENOMINATOR), jnp.int64) for name, g in kept.momentum.items()}
    values = effective(programs.problem, values, fractions)
    starts = {start for start, _ in kept.lost}  # where the buffers must have come back to 0
    state = (kept.w, kept.v, *adjoint)
    norms = np.empty(T)
    stop, apart = T, False
    for start, lost in reversed(kept.lost):
        start = max(start, first)
        apart = apart or start not in starts
        while True:
            backward = programs.program(
                f"undo, gradient apart: {apart}", lambda a=apart: programs.jit(chunk_backward(programs, a))
            )
            undone, B = state, lost
            for begin, end, base in reversed(cuts(programs, start, stop)):
                xs, some = programs.steps(base, base + programs.chunk), (np.int32(begin - base), np.int32(end - base))
                undone, B, sizes = backward(undone, B, fractions, values, programs.train_data, xs, some)
                norms[begin:end] = np.asarray(sizes)[begin - base : end - base]
            if start in starts and any(bool(jnp.any(one)) for one in B.values()):
                if apart:
                    raise VerificationFailure(not_reproduced(start))
                apart = True  # from here on, this span once more
                continue
            break
        state = undone
        bad = np.flatnonzero(~np.isfinite(norms[start:stop]))
        if bad.size:
            raise NumericalFailure("adjoint of the weights (‖dw‖)", start + int(bad[-1]), "the reverse pass diverged")
        if progress:
            progress(T - start, T - first)
        stop = start
        if start == first:
            break
    W, V, *adjoint = state
    if first == 0:
        W0 = to_fixed(jax.tree.map(jnp.asarray, training.initial))
        if not all(bool(jnp.all(W[k] == W0[k])) and not bool(jnp.any(V[k])) for k in W):
            raise VerificationFailure(not_reproduced(0))
    return tuple(adjoint), norms[first:]


def not_reproduced(step: int) -> str:
    return (
        f"exact reversal did not come back to the bits it started from at step {step}: the gradients of the two passes "
        f"differ. On a GPU set {DETERMINISTIC}, or keep the states ('memory', a folder, Checkpoints())"
    )


def cuts(programs: Compiled, start: int, stop: int) -> list[tuple[int, int, int]]:
    """The steps start … stop−1 cut where the programs' tables of `chunk` steps end: (begin, end, first step of its table).

    Spans change with γ; tables of one length, of which a program does the steps it is told to, let it serve them all.
    """
    length, T = programs.chunk, programs.problem.steps
    first = start // length * length
    return [(max(at, start), min(at + length, stop), min(at, T - length)) for at in range(first, stop, length)]


def chunk_forward(programs: Compiled) -> Any:
    """The steps span[0] … span[1]−1 of xs forward in fixed point: state (W, V, running), B → state, B, per-step records."""

    def forward(
        state: tuple, B: Tree, w0: Tree, fractions: Tree, values: Tree, data: Tree, xs: Tree, span: tuple
    ) -> tuple:
        def one(i: Array, carry: tuple) -> tuple:
            (W, V, running), B, record = carry
            indices, t = jax.tree.map(lambda one: one[i], xs)
            w = to_float(W, programs.problem.dtype)
            (loss, statistics), g = isolated_gradient(programs, w, *programs.batch(values, data, indices), t)
            alpha, gamma = programs.rates(values, t)
            V, B = scale_all(V, B, at_step(programs, fractions, t))
            V = {k: V[k] - fixed((1 - gamma[k]) * g[k]) for k in V}
            v = to_float(V, programs.problem.dtype)
            W = {k: W[k] + fixed(alpha[k] * v[k]) for k in W}
            w = to_float(W, programs.problem.dtype)
            peak = jnp.max(jnp.stack([jnp.max(jnp.abs(one)) for tree in (w, v) for one in tree.values()]))
            running = programs.problem.update_running(running, statistics)
            found = loss, moved(t[0], w, 0, w0), peak
            record = tuple(table.at[i].set(number) for table, number in zip(record, found, strict=True))
            return (W, V, running), B, record

        return lax.fori_loop(*span, one, (state, B, (jnp.zeros(len(xs[0]), programs.problem.dtype),) * 3))

    return forward


def chunk_backward(programs: Compiled, apart: bool) -> Any:
    """The same steps undone, and taken backward at the states this leads to: (W, V, dw, dv, dvalues), B → the same, ‖dw‖.

    The g that undoes the step must be the forward pass's to the bit. It comes for nothing with the linearisation, and on a
    small net it is; where the compiler fuses the two programs differently it is not. apart: compute it by itself, in the
    same isolation as in the forward pass, for one more gradient a step.
    """

    def backward(state: tuple, B: Tree, fractions: Tree, values: Tree, data: Tree, xs: Tree, span: tuple) -> tuple:
        lo, hi = span

        def one(k: Array, carry: tuple) -> tuple:
            (W, V, dw, dv, dvalues), B, norms = carry
            i = hi - 1 - (k - lo)
            indices, t = jax.tree.map(lambda one: one[i], xs)
            alpha, gamma = programs.rates(values, t)
            v = to_float(V, programs.problem.dtype)
            W = {k: W[k] - fixed(alpha[k] * v[k]) for k in W}
            w = to_float(W, programs.problem.dtype)
            seen, batch = programs.batch(values, data, indices)
            g, tangent = linearise(programs.inner, w, seen, batch, t)
            undoing = isolated_gradient(programs, w, seen, batch, t)[1] if apart else g
            V = {k: V[k] + fixed((1 - gamma[k]) * undoing[k]) for k in V}
            V, B = unscale_all(V, B, at_step(programs, fractions, t))
            v = to_float(V, programs.problem.dtype)
            norms = norms.at[i].set(norm(dw))
            dw, dv, more = pull(programs.inner, w, v, g, tangent, seen, t, dw, dv)
            return (W, V, dw, dv, programs.collect(dvalues, more, indices)), B, norms

        return lax.fori_loop(lo, hi, one, (state, B, jnp.zeros(len(xs[0]), programs.problem.dtype)))

    return backward


def isolated_gradient(programs: Compiled, w: Tree, values: Tree, batch: Tree, t: Tree) -> tuple[tuple, Tree]:
    """((loss, batch statistics), g), walled off so that the compiler rounds it alike wherever it stands."""
    w, values, batch = lax.optimization_barrier((w, values, batch))
    return lax.optimization_barrier(jax.value_and_grad(programs.loss, has_aux=True)(w, values, batch, t))


# -- the arithmetic -----------------------------------------------------------------------------------------------------


def fixed(x: Array) -> Array:
    """Floating point to fixed point, truncated toward zero: then −fixed(x) = fixed(−x), and subtraction undoes addition."""
    return (x * 2.0**FRACTION_BITS).astype(jnp.int64)


def to_fixed(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: fixed(x.astype(jnp.float64)), tree)


def to_float(tree: Tree, dtype: np.dtype) -> Tree:
    return jax.tree.map(lambda i: (i * 2.0**-FRACTION_BITS).astype(dtype), tree)


def divide(a: Array, n: Array) -> tuple[Array, Array]:
    """⌊a/n⌋ and a mod n for int64 |a| < 2^62 and 0 < n < 2^17, by way of float64.

    Processors divide int64 one at a time, float64 eight at a time. The relative error of a floating quotient is 3 · 2^−53: of
    2^62 at most 1536, which leaves a remainder below 2^28, whose quotient is off by less than one; the correction removes that.
    """
    reciprocal = 1.0 / n.astype(jnp.float64)
    q = jnp.floor(a.astype(jnp.float64) * reciprocal).astype(jnp.int64)
    r = a - q * n
    more = jnp.floor(r.astype(jnp.float64) * reciprocal).astype(jnp.int64)
    r = r - more * n
    off = (r >= n).astype(jnp.int64) - (r < 0).astype(jnp.int64)
    return q + more + off, r - off * n


def lowest(n: Array) -> tuple[Array, Array]:
    """n/2^16 in lowest terms → (n, log2 d). `scale` is exact to n units in the last place: ¾ must not be 49152/65536."""
    common = lax.population_count((n & -n) - 1)  # how often 2 divides n
    return n >> common, EXPONENT - common


def scale(V: Array, B: Array, n: Array, shift: Array) -> tuple[Array, Array]:
    """V ← V·n/d without losing bits: what the division takes away goes into B. int64; d = 2^shift, B ≥ 0."""
    B = (B << shift) + (V & ((1 << shift) - 1))  # V mod d; the shift of a negative number rounds down, as it must
    B, rest = divide(B, n)
    return (V >> shift) * n + rest, B


def unscale(V: Array, B: Array, n: Array, shift: Array) -> tuple[Array, Array]:
    """Undoes `scale`: V ← V·d/n, with n and d exchanged."""
    quotient, rest = divide(V, n)
    B = B * n + rest
    return (quotient << shift) + (B & ((1 << shift) - 1)), B >> shift


def scale_all(V: Tree, B: Tree, fractions: Tree) -> tuple[Tree, Tree]:
    done = {k: scale(V[k], B[k], *lowest(fractions[k])) for k in V}
    return {k: one[0] for k, one in done.items()}, {k: one[1] for k, one in done.items()}


def unscale_all(V: Tree, B: Tree, fractions: Tree) -> tuple[Tree, Tree]:
    done = {k: unscale(V[k], B[k], *lowest(fractions[k])) for k in V}
    return {k: one[0] for k, one in done.items()}, {k: one[1] for k, one in done.items()}


def fractions_of(programs: Compiled, values: Tree) -> dict[str, Array]:
    """γ of each tensor as n of n/2^16, the smallest fraction that is not below it; int64, () or, per step, (T,).

    Four roundings of the problem's precision are taken off before: logit γ and back must not make a .75 the next fraction.
    """
    momentum = programs.complete(values)["momentum"]
    hair = 1 - 4 * float(np.finfo(programs.problem.dtype).eps)
    gammas = {name: np.asarray(one, np.float64) for name, one in momentum.items()}
    refuse_momenta(gammas.values())
    numerators = {name: np.ceil(gamma * DENOMINATOR * hair) for name, gamma in gammas.items()}
    return {name: jnp.asarray(np.minimum(n, DENOMINATOR - 1), jnp.int64) for name, n in numerators.items()}


def at_step(programs: Compiled, fractions: Tree, t: Tree) -> Tree:
    """The n of one step; t = (step, row of per-step values, learning rate factor)."""
    return {name: n[t[1]] if "momentum" in programs.per_step else n for name, n in fractions.items()}


def as_momentum(n: Array) -> float | np.ndarray:
    """n/2^16 as it is reported: a number, or (T,) float64."""
    gamma = np.asarray(n) / DENOMINATOR
    return gamma if gamma.ndim else float(gamma)


def capacity(gammas: np.ndarray) -> int:
    """For so many steps B lasts, at the momenta gammas (tensors, steps); where γ is the same at every step, for

        K = ⌊(62 − 16 − log2(1/(1−γ)) − 1) / log2(1/γ)⌋:   274, 549, 1350 at γ = .9, .95, .98

    A step makes B at most b ← (b + 1)/γ, and the next one's B·d must stay below 2^62; one bit is to spare.
    """
    b = np.zeros(len(gammas))
    for k in range(gammas.shape[1]):
        b = (b + 1) / gammas[:, k]
        if np.any(b + 1 > MOST):
            return k
    return gammas.shape[1]


def spans(steps: int, fractions: Tree) -> list[tuple[int, int]]:
    """(start, stop) of the steps that share a buffer. All tensors begin anew together, when the first of them must."""
    gammas = np.stack([np.broadcast_to(np.asarray(n) / DENOMINATOR, steps) for n in fractions.values()])
    found, start = [], 0
    while start < steps:
        found.append((start, start + capacity(gammas[:, start:])))
        start = found[-1][1]
    return found


def effective(problem: Problem, values: Tree, fractions: Tree) -> Tree:
    """The values with γ replaced by the fraction that is really used."""
    gamma = {name: (n / DENOMINATOR).astype(problem.dtype) for name, n in fractions.items()}
    return {**values, "momentum": gamma}


def with_effective_momentum(problem: Problem, hyper: Hyper, values: Tree, kept: Undoable) -> tuple[Hyper, Tree]:
    """Hyperparameters and values as the run really used them: γ is the fraction, also in the slope of logit γ."""
    gamma = {name: jnp.asarray(one, problem.dtype) for name, one in kept.momentum.items()}
    values = {**values, "momentum": gamma}
    declared = problem.declared("momentum")
    if declared is None:
        return hyper, values
    first = next(iter(kept.momentum))
    used = {key: np.asarray(kept.momentum[key if key in kept.momentum else first]) for key in hyper["momentum"]}
    return {**hyper, "momentum": {k: np.asarray(declared.free(g), problem.dtype) for k, g in used.items()}}, values


# -- what must hold -----------------------------------------------------------------------------------------------------


def refuse(problem: Problem, keep: Reversible) -> None:
    if keep.unbounded:
        raise UsageError(
            "the unbounded buffer is the reference engine's; use Reversible() here, the same run until a buffer is full"
        )
    refuse_reversible(problem)


def probe(programs: Compiled, w0: Tree, values: Tree) -> None:
    """The gradient of one batch, taken twice, must be equal to the bit, or nothing can be undone."""

    def gradient(w: Tree, values: Tree, data: Tree, indices: Array, t: Tree) -> Tree:
        return jax.grad(programs.loss, has_aux=True)(w, *programs.batch(values, data, indices), t)[0]

    compiled_gradient = programs.program("probe", lambda: programs.jit(gradient))
    indices, t = jax.tree.map(lambda one: one[0], programs.steps(0, 1))
    first, second = (compiled_gradient(w0, values, programs.train_data, indices, t) for _ in range(2))
    if any(np.any(np.asarray(first[k]) != np.asarray(second[k])) for k in first):
        raise UsageError(
            f"exact reversal needs gradients that repeat to the bit, this device's do not; set {DETERMINISTIC}, "
            "or keep the states"
        )


def refuse_start(w0: Tree) -> None:
    if not all(np.all(np.abs(one) < LARGEST) for one in w0.values()):
        raise OutOfRange("w_0", 0, f"{HOLDS}; lower the initial scale, or keep the states")


def refuse_failure(losses: np.ndarray, peaks: np.ndarray, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise NumericalFailure("elementary loss", start + int(bad[0]), "lower the learning rate or its bounds")
    over = np.flatnonzero(~(peaks < LARGEST))
    if over.size:
        hint = f"{HOLDS}; lower the learning rate, or keep the states"
        raise OutOfRange("elementary weights or velocity", start + int(over[0]), hint)
