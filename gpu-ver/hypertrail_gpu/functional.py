"""The machinery on plain functions: any loss over any pytree, any pure update, any pytree of hyperparameters.

The smallest public face, for people who bring their own model and their own loss:

    inner = Inner(loss, update)                       # loss(w, hyper, batch, t),  update(w, v, g, hyper, t)
    run = train(inner, w0, v0, hyper, batches)        # batches: a pytree with a leading axis of T steps
    result = hypergradient(inner, hyper_loss, run, hyper, batches)
    result.hyper                                      # d hyper_loss(w_T, hyper) / d hyper, exact
    slopes(inner, hyper_loss, w0, v0, hyper, batches) # is it right? beside differences of whole trainings

Both loops are those of `trail`: an Inner is a Task without data. What a Task has beyond it (a state such as running statistics,
validation batches, declared hyperparameters) is in `hypertrail.task`. The second half of this file is one step there and back for
loops of one's own: what `step` computes from (w, v), its mirror image `reverse_step` takes back to (dw, dv).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from hypertrail.differences import measured
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.keeping import Checkpoints, Keep, Reversible
from hypertrail.methods import Method, parse_method
from hypertrail.task import Arrays, Rows, Stream, Task
from hypertrail.verify import LEVELS, START

from . import trail
from .batches import feed, refuse_no_arrays
from .beginning import Begin, Beginning, begin_task
from .inner import State, program
from .refusals import refuse_leaves, refuse_weights
from .same_training import Given, refuse_other_batches, refuse_other_hyper, refuse_other_inner, steps_of
from .trail import Trail, train_from
from .trees import add, filled, floats, is_float, named, norm, strong, zeros

Tree = Any


@dataclass(frozen=True)
class Inner:
    """An elementary problem. Both functions must be pure and traceable by JAX. Keep the object: programs are compiled once for
    each, and released with it.

    loss(w, hyper, batch, t) → scalar, or (scalar, aux) with has_aux. Twice differentiable in w. t: the step. `train` drops the
        aux; what a step hands to the next (running statistics) is the state of a `Task`.
    update(w, v, g, hyper, t) → (w, v): what one gradient g does; w, v, g are pytrees of floating point arrays. v may also hold
        other leaves (counters, keys): they are carried along and nothing is differentiated with respect to them. It may offer
        init(w_0, hyper) → v_0, through which `train` sees what the hyperparameters do to v_0; see also `updates`.
    For an optax transformation: `transformation.from_optax`.
    """

    loss: Callable[..., Any]
    update: Callable[..., tuple[Tree, Tree]]
    has_aux: bool = False

    @cached_property
    def task(self) -> Task:
        """The task that this is, with its compiled programs."""

        def loss_alone(w: Tree, hyper: Tree, batch: Tree, t: Any) -> Any:
            return self.loss(w, hyper, batch, t)[0]

        loss = loss_alone if self.has_aux else self.loss
        given_later: Any = None
        return Task(loss=loss, update=self.update, hyper_loss=given_later, hyper=given_later, batches=given_later)


class Run(NamedTuple):
    """w, v: the state after T steps; losses: (T,) float64, L before each step; trail: the training with what it kept of its
    states; given: what the caller gave it."""

    w: Tree
    v: Tree
    losses: Any
    trail: Trail
    given: Given


class Result(NamedTuple):
    """value: the hyper loss; hyper, w0, v0: its gradient with respect to λ, w_0 and v_0, same structure as those (None in the
    place of what is not floating point).

    Where v_0 is update.init(w_0, λ), what reaches λ and w_0 through it is in `hyper` and `w0`. w0 and v0 are None for a method
    that does not go back to step 0.
    """

    value: Any
    hyper: Tree
    w0: Tree
    v0: Tree


def train(
    inner: Inner,
    w0: Tree,
    v0: Tree,
    hyper: Tree,
    batches: Any,
    *,
    every: int = 1,
    keep: Keep = "memory",
    start: int = 0,
) -> Run:
    """T elementary steps, T the length of the leading axis of `batches`, in compiled chunks.

    batches: a pytree of arrays, or `hypertrail.Arrays`, `Rows` or `Stream`.
    keep: what is kept of the states, see `hypertrail.keeping`. every=n: the state of each n-th step, which is
        Checkpoints(T // n); the reverse pass computes the others again, for one more training. √T is the least.
    start: the step of the first batch; loss and update are told t = start … start + T − 1.
    Raises UsageError, before anything is computed, for what cannot be trained, and inside jit, grad or vmap. Raises
    NumericalFailure, naming the step, for the first loss that is not finite.
    Cost: T gradients; memory: T states, or what is kept. Compiles once for each `inner`, way of keeping and set of shapes.
    """
    # Here, because the replays share their arithmetic with the engine's own problems, which import `step` from this module.
    from . import replay

    refuse_tracing("train", w0, v0, hyper, batches)
    refuse_no_start(w0, v0, hyper)
    make_keeper = replay.making(keep_of(every, keep, batches))
    first = first_step(start, keep)
    fed = feed(batches, "batches")
    fed.first = first
    s, λ = strong(State(w0, v0, None)), strong(hyper)
    begin = beginning(inner.task, s, λ)
    found = train_from(inner.task, Beginning(λ, λ, s, begin), fed, make_keeper)
    end, given = found.end, Given(inner, batches, jax.config.read("jax_enable_x64"))
    return Run(end.w, end.v, found.losses, found, given)


def hypergradient(
    inner: Inner,
    hyper_loss: Callable[..., Any],
    run: Run,
    hyper: Tree,
    batches: Any,
    *,
    method: Method | str = "exact",
) -> Result:
    """Gradient of hyper_loss(w_T, hyper) through all T steps; by the exact method equal to `jax.grad` through the unrolled loop.

    method: of `hypertrail.methods`, or its name.
    Raises UsageError where inner, hyper or batches are not those of `run`, and for a method that needs more than was kept or than
    the update offers. Raises NumericalFailure, naming quantity and step, for a hypergradient that is not finite; v0 alone may
    have infinite entries, where an update takes the root of a v_0 = 0.
    Cost: T gradients with their HVPs, one gradient of the hyper loss; T gradients more where states are computed again.
    Compiles once for each `hyper_loss`: keep that object too.
    """
    from . import replay  # here: see `train`

    refuse_tracing("hypergradient", hyper, batches)
    trained = run.trail
    refuse_other_inner(inner, run.given.inner)
    refuse_other_hyper(hyper, trained.hyper)
    refuse_other_batches(batches, run.given.batches, trained.batches)
    method = parse_method(method) if isinstance(method, str) else method
    with jax.enable_x64(run.given.x64):  # in another mode random numbers, and perhaps dtypes, would be others
        found = trail.hypergradient(trained, replay.way(trained, method), f=OfWeights(hyper_loss))
        if found.start is None:
            return Result(found.value, found.hyper, None, None)
        dw, size = program(trained.task, first_gradient, trained.begun.begin)(
            trained.values, trained.start, found.start
        )
    if not np.isfinite(size):
        raise NumericalFailure("hypergradient of w0", trained.batches.first, trail.DIVERGED)
    return Result(found.value, found.hyper, dw, found.start.v)


@dataclass(frozen=True)
class OfWeights:
    """hyper_loss(w_T, λ), which reads neither state nor batches, as the trail calls it. Equal where the functions are."""

    hyper_loss: Callable[..., Any]

    def __call__(self, task: Task, w: Tree, carried: Tree, hyper: Tree, batch: Tree) -> Any:
        return self.hyper_loss(w, hyper)


def first_gradient(task: Task, begin: Begin | None, hyper: Tree, s: State, ds: State) -> tuple[Tree, Any]:
    """(the gradient with respect to w_0, its norm): dw_0, and what reaches w_0 through v_0 where `begin` makes it of w_0."""
    dw = ds.w
    if begin is not None:
        dw = add(dw, jax.vjp(lambda w: floats(begin(task, hyper, s._replace(w=w)).v), s.w)[1](ds.v)[0])
    return dw, norm(dw)


# -- the state before step 0 --------------------------------------------------------------------------------------------------


def beginning(task: Task, s: State, hyper: Tree) -> Begin | None:
    """How v_0 depends on λ and w_0: as the update's own `init` has it, or None where v_0 is a constant.

    UsageError where init reads λ and v_0 is another: what λ does to v_0 would be missing from the hypergradient.
    """
    read = read_by_init(task, s, hyper)
    if not read:
        return None
    if program(task, is_from_init)(s, hyper):
        return begin_task
    tuned = [name for name in read if name.startswith("hyper")]
    if tuned:
        raise UsageError(
            f"v0 is not update.init(w0, hyper), which reads {', '.join(tuned)}, so the hypergradient would miss what they do to "
            "v0; give v0 = update.init(w0, hyper) of these very hyperparameters, or an update without init if v0 shall not move"
        )
    return None


def read_by_init(task: Task, s: State, hyper: Tree) -> list[str]:
    """The floating point leaves of w_0 and λ on which floating point leaves of update.init(w_0, λ) depend. Traced once."""
    if not hasattr(task.update, "init"):
        return []
    key = "read by init", jax.tree.structure((s.w, hyper))
    if key not in task.programs:
        traced = jax.make_jaxpr(lambda w, hyper: floats(task.update.init(w, hyper)))(s.w, hyper).jaxpr
        _, used = dce_jaxpr(traced, [True] * len(traced.outvars))
        leaves = [
            (f"{word}{name}", a) for word, tree in (("w0", s.w), ("hyper", hyper)) for name, a in named(tree).items()
        ]
        task.programs[key] = [name for (name, a), reads in zip(leaves, used, strict=True) if reads and is_float(a)]
    names: list[str] = task.programs[key]
    return names


ROUNDINGS = 16  # between init as the caller ran it and init as it is compiled here


def is_from_init(task: Task, s: State, hyper: Tree) -> Any:
    """Whether v_0 is update.init(w_0, λ), to some roundings of the largest number of each leaf."""
    v = task.update.init(s.w, hyper)
    made: Any = jax.tree.structure(v)
    same_tree = made == jax.tree.structure(s.v)
    pairs = list(zip(jax.tree.leaves(s.v), map(jnp.asarray, jax.tree.leaves(v)), strict=True)) if same_tree else []
    if not same_tree or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
        return jnp.asarray(False)

    def same(a: Any, b: Any) -> Any:
        if not is_float(a):
            return jnp.all(a == b)
        largest = jnp.max(jnp.where(jnp.isfinite(b), jnp.abs(b), 0), initial=0)
        near = jnp.abs(a - b) <= ROUNDINGS * jnp.finfo(a.dtype).eps * largest
        return jnp.all(near | (a == b) | (jnp.isnan(a) & jnp.isnan(b)))

    return jnp.all(jnp.stack([jnp.asarray(True), *(same(a, b) for a, b in pairs)]))


# -- what is refused, and what is meant ---------------------------------------------------------------------------------------


def refuse_tracing(what: str, *trees: Any) -> None:
    """UsageError inside a transformation of JAX, whose tracers have no numbers that could be looked at."""
    opened = [vars(tree) if isinstance(tree, Arrays | Rows) else tree for tree in trees]
    here = jnp.zeros((), jnp.int32)  # inside jit even a constant is a tracer
    leaves = jax.tree.leaves((here, opened), is_leaf=lambda one: isinstance(one, Iterator))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise UsageError(
            f"{what} inside jax.jit, grad or vmap; jit belongs to loss, update and hyper_loss, not around {what}, which compiles "
            "its own programs and looks at their numbers: call it outside"
        )


def refuse_no_start(w0: Tree, v0: Tree, hyper: Tree) -> None:
    for word, tree in (("w0", w0), ("v0", v0), ("hyper", hyper)):
        refuse_leaves(word, tree)
    refuse_weights(w0, "w0")


def first_step(start: Any, keep: Keep) -> int:
    if not isinstance(start, int | np.integer) or start < 0:
        raise UsageError(f"train: start {start!r}, expected a whole number from 0 on, the step of the first batch")
    if start and isinstance(keep, Reversible):
        raise UsageError(
            f"train: start={start} with keep=Reversible(), which takes its momenta from step 0 on; keep the states"
        )
    return int(start)


def keep_of(every: int, keep: Keep, batches: Any) -> Keep:
    """`keep`, or the Checkpoints that `every` means."""
    if every == 1:
        return keep
    if keep != "memory":
        raise UsageError(f"train: every={every} and keep={keep!r}, expected one of them")
    steps = steps_of(batches)
    if not isinstance(every, int | np.integer) or every < 1 or steps % every:
        raise UsageError(
            f"train: a state every {every} steps, expected a divisor of the {steps} steps; keep=Checkpoints(n) takes any number "
            "of states"
        )
    return Checkpoints(steps // int(every))


# -- is the hypergradient right? -----------------------------------------------------------------------------------------------


class Slopes(NamedTuple):
    """The derivative of the hyper loss along one direction: by the hypergradient, and by differences of whole trainings."""

    hypergradient: float
    differences: float


def slopes(
    inner: Inner,
    hyper_loss: Callable[..., Any],
    w0: Tree,
    v0: Tree,
    hyper: Tree,
    batches: Any,
    seed: int = 0,
    *,
    start: int = 0,
) -> Slopes:
    """Is the hypergradient right? Its slope along a random direction d beside the differences of whole trainings.

        d: ±1 for each number of λ;   ⟨df/dλ, d⟩   and   (f(λ + ε d) − f(λ − ε d)) / 2ε,  extrapolated to ε = 0

    In float64, whatever the arrays are: the two agree to 1e-6 of the larger where the loss is smooth. They do not where the
    functions have kinks (relu), cast to float32 themselves, or where a tree of `batches` or `w0` holds what λ should reach.
    Where v0 is update.init(w0, hyper) it moves with λ; otherwise it is a constant, as in `train`.
    Raises NumericalFailure where this training fails, and where all those beside it do: nothing could be measured then.
    Cost: one hypergradient, up to 28 trainings, mostly 4 to 8, and the compilation of both for float64.
    """
    refuse_tracing("slopes", w0, v0, hyper, batches)
    refuse_no_start(w0, v0, hyper)
    begin = beginning(inner.task, strong(State(w0, v0, None)), strong(hyper))
    with jax.enable_x64(True):
        w0, v0, hyper = jax.tree.map(doubled, (w0, v0, hyper))
        batches = in_float64(batches)
        rng = np.random.default_rng(seed)
        signs = jax.tree.map(lambda u: jnp.asarray(rng.choice([-1.0, 1.0], size=u.shape)), floats(hyper))

        def trained(hyper: Tree) -> Run:
            s = strong(State(w0, v0, None))
            v = s.v if begin is None else program(inner.task, begin)(strong(hyper), s).v
            return train(inner, w0, v, hyper, batches, start=start)

        def f(epsilon: float) -> float:
            moved = filled(hyper, jax.tree.map(lambda u, d: u + epsilon * d, floats(hyper), signs))
            try:
                return float(hyper_loss(trained(moved).w, moved))
            except NumericalFailure:
                return nan

        run = trained(hyper)
        gradient = hypergradient(inner, hyper_loss, run, hyper, batches).hyper
        slope = float(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, signs))))
        differences = measured(f, START, LEVELS, abs(slope) * 1e-7).value
        if isnan(differences):
            last = run.trail.batches.first + run.trail.steps
            raise NumericalFailure("hyper loss of every training beside this one", last, "nothing could be measured")
        return Slopes(slope, differences)


def doubled(leaf: Any) -> Any:
    """The same numbers in float64; what is not floating point (indices, keys) as it is."""
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf


def in_float64(batches: Any) -> Any:
    """The same batches in float64, of the same kind."""
    if isinstance(batches, Rows):
        return Rows(jax.tree.map(doubled, batches.data), batches.indices)
    if isinstance(batches, Stream):
        return Stream(lambda t: jax.tree.map(doubled_on_host, batches.read(t)), batches.steps)
    tree = batches.tree if isinstance(batches, Arrays) else batches
    refuse_no_arrays(tree, "batches")
    tree = jax.tree.map(doubled, tree)
    return Arrays(tree) if isinstance(batches, Arrays) else tree


def doubled_on_host(leaf: Any) -> Any:
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if is_float(leaf) else leaf


# -- one step, there and back, for loops of one's own ---------------------------------------------------------------------------


def step(inner: Inner, w: Tree, v: Tree, hyper: Tree, batch: Tree, t: Any) -> tuple[Tree, Tree, Any, Tree]:
    """One elementary step: (w_t, v_t) → (w_{t+1}, v_{t+1}), loss at w_t, aux. Cost: one gradient.

    g ← ∇_w L(w, λ, batch)
    (w, v) ← update(w, v, g, λ)
    """
    out, g = jax.value_and_grad(inner.loss, has_aux=inner.has_aux)(w, hyper, batch, t)
    loss, aux = out if inner.has_aux else (out, None)
    w, v = inner.update(w, v, g, hyper, t)
    return w, v, loss, aux


def reverse_step(
    inner: Inner, w: Tree, v: Tree, hyper: Tree, batch: Tree, t: Any, dw: Tree, dv: Tree
) -> tuple[Tree, Tree, Tree]:
    """The adjoint of `step` at (w_t, v_t): (dw_{t+1}, dv_{t+1}) → (dw_t, dv_t) and this step's share of dλ.

        u, dw, dv, dλ ← adjoint of update            (u: cotangent of g)
        dw += (∂²L/∂w²) u,   dλ += (∂²L/∂λ∂w)ᵀ u

    Cost: one gradient with its HVP. Source: Maclaurin et al. 2015, algorithm 2; Franceschi et al. 2017, algorithm 1.
    """
    g, tangent = linearise(inner, w, hyper, batch, t)
    return pull(inner, w, v, g, tangent, hyper, t, dw, dv)


def linearise(
    inner: Inner, w: Tree, hyper: Tree, batch: Tree, t: Any
) -> tuple[Tree, Callable[[Tree], tuple[Tree, Tree]]]:
    """g = ∇_w L, and the map u ↦ ((∂²L/∂w²) u, (∂²L/∂λ∂w)ᵀ u).

    ONE forward-over-reverse linearisation of w ↦ (∇_w L, ∇_λ L): its value is g, its tangent both products, since
    the Hessian is symmetric and ∂(∇_λ L)/∂w · u is the mixed term. Cost: one gradient, and one HVP when the map is used.
    """

    def gradients(w: Tree) -> Tree:
        out = jax.grad(inner.loss, argnums=(0, 1), has_aux=inner.has_aux)(w, hyper, batch, t)
        return out[0] if inner.has_aux else out

    (g, _), tangent = jax.linearize(gradients, w)
    return g, tangent


def pull(
    inner: Inner, w: Tree, v: Tree, g: Tree, tangent: Callable[..., Any], hyper: Tree, t: Any, dw: Tree, dv: Tree
) -> tuple[Tree, Tree, Tree]:
    """The rest of `reverse_step`, once g is there: for providers that need g to find v_t."""

    def update(w: Tree, moving: Tree, g: Tree, hyper: Tree) -> tuple[Tree, Tree]:
        w, v_next = inner.update(w, filled(v, moving), g, hyper, t)
        return w, floats(v_next)

    _, update_pull = jax.vjp(update, w, floats(v), g, hyper)
    dw, dv, u, dhyper = update_pull((dw, dv))
    hvp, mixed = tangent(u)
    return add(dw, hvp), dv, add(dhyper, mixed)


__all__ = [
    "Inner",
    "Result",
    "Run",
    "Slopes",
    "add",
    "doubled",
    "filled",
    "floats",
    "hypergradient",
    "linearise",
    "pull",
    "reverse_step",
    "slopes",
    "step",
    "train",
    "zeros",
]
