"""One elementary step of a task, and its adjoint. Everything else in this package calls these two.

`step` and `reverse_step` are mirror images: what the first computes from (w, v, state), the second takes back to
(dw, dv, dstate) and to the step's share of dλ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from hypertrail.task import Start, Task

from .declared import marks
from .trees import add, filled, floats, scaled, strong, zeros

Array = Any
Tree = Any


class State(NamedTuple):
    """What a step moves: the weights, the update's own (velocities, moments, counts), and the state that the loss hands on."""

    w: Tree
    v: Tree
    carried: Tree


def program(task: Task, function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """function(task, *static, …) compiled, once for each task and static arguments, which must be hashable and long-lived:
    a function that is made anew for every call would be compiled anew."""
    key = (function, *static)
    if key not in task.programs:
        jit = getattr(task, "jit", jax.jit)
        task.programs[key] = jit(partial(function, task, *static))
    return task.programs[key]


def begin(task: Task, hyper: Tree, given: Start) -> State:
    """The state before step 0. Everything in it may depend on λ: w_0 by `start`, v_0 by the update's `init`.

    given: the task's weights and state. They are arguments of the compiled program and not constants of it: a program would
    keep a copy of its constants, and a NumPy array that was one keeps the x64 mode in which it was (jax 0.10.2).
    """
    w, carried = task.start(hyper) if task.start else given
    init = getattr(task.update, "init", None)
    return State(w, init(w, hyper) if init else zeros(w), carried)


def elementary_loss(task: Task, w: Tree, carried: Tree, hyper: Tree, batch: Tree, t: Any) -> tuple[Array, Tree]:
    """(L, the next state), whichever of its two forms the loss of the task has."""
    if carried is None:
        return task.loss(w, hyper, batch, t), None
    # Flax NNX lets a variable be written only at the trace level at which its container was made: map makes it anew here.
    return task.loss(w, jax.tree.map(lambda a: a, carried), hyper, batch, t)


def measured(task: Task, function: Callable[..., Array], w: Tree, carried: Tree, hyper: Tree, batch: Tree) -> Array:
    """The hyper loss, or a metric, on one batch."""
    if carried is None:
        return function(w, hyper, batch)
    return function(w, jax.tree.map(lambda a: a, carried), hyper, batch)


def hyper_loss(task: Task, w: Tree, carried: Tree, hyper: Tree, batch: Tree) -> Array:
    """f on one validation batch."""
    return measured(task, task.hyper_loss, w, carried, hyper, batch)


def step(task: Task, s: State, hyper: Tree, batch: Tree, t: Array, t_update: Array) -> tuple[State, Array]:
    """One elementary step: the state after it, and L before it. Cost: one gradient.

        g ← ∇_w L(w, state, λ, batch),   state ← S(w, state, λ, batch)
        (w, v) ← update(w, v, g, λ)

    t_update: the step whose learning rate the update takes, which is another one than t on a line.
    """
    (loss, carried), g = jax.value_and_grad(partial(elementary_loss, task), has_aux=True)(
        s.w, s.carried, hyper, batch, t
    )
    w, v = task.update(s.w, s.v, g, hyper, t_update)
    return State(w, v, carried), loss


def reverse_step(
    task: Task, s: State, hyper: Tree, batch: Tree, t: Array, t_update: Array, after: State
) -> tuple[State, Tree, Array]:
    """The adjoint of `step` at s: `after`, that of its result → (that of s, this step's share of dλ, L).

        dw, dv, u, dλ ← adjoint of update                                                (u: the adjoint of g)
        (dw, dstate, dλ) += d/dτ ∇_(w, state, λ) [L + τ ⟨dstate', S⟩] (w + τ u)  at τ = 0

    The second line is (∂²L/∂w²) u, (∂²L/∂state∂w)ᵀ u, (∂²L/∂λ∂w)ᵀ u and the adjoint of S, all from ONE linearisation.
    Cost: one gradient with its HVP. Source: Maclaurin et al. 2015, algorithm 2; Franceschi et al. 2017, algorithm 1.

    The Hessian of a loss with a `custom_vjp` need not be symmetric, and then that line is wrong: such a loss (`is_symmetric`)
    takes `jax.vjp` of the whole step, which is right for every loss and needs more memory.
    """
    if not task.programs.get("symmetric", True):
        return reverse_whole_step(task, s, hyper, batch, t, t_update, after)

    def gradients(w: Tree, tau: Array) -> tuple[Tree, Array]:
        def both(w: Tree, carried: Tree, hyper_floats: Tree) -> tuple[Array, Tree]:
            loss, carried = elementary_loss(task, w, filled(s.carried, carried), filled(hyper, hyper_floats), batch, t)
            return loss, floats(carried)

        (loss, _), pull = jax.vjp(both, w, floats(s.carried), floats(hyper))
        return pull((jnp.ones_like(loss), scaled(tau, after.carried))), loss

    def update(w: Tree, v: Tree, g: Tree, hyper_floats: Tree) -> tuple[Tree, Tree]:
        w, v = task.update(w, filled(s.v, v), g, filled(hyper, hyper_floats), t_update)
        return w, floats(v)

    zero = jnp.zeros((), jax.tree.leaves(s.w)[0].dtype)
    (g, _, _), tangent, loss = jax.linearize(gradients, s.w, zero, has_aux=True)
    dw, dv, u, dhyper = jax.vjp(update, s.w, floats(s.v), g, floats(hyper))[1]((after.w, after.v))
    hvp, dcarried, mixed = tangent(u, jnp.ones_like(zero))
    return State(add(dw, hvp), dv, dcarried), add(dhyper, mixed), loss


def reverse_whole_step(
    task: Task, s: State, hyper: Tree, batch: Tree, t: Array, t_update: Array, after: State
) -> tuple[State, Tree, Array]:
    """`reverse_step` as the vector-Jacobian product of the step as a whole."""

    def whole(moving: State, hyper_floats: Tree) -> tuple[State, Array]:
        done, loss = step(task, filled(s, moving), filled(hyper, hyper_floats), batch, t, t_update)
        return floats(done), loss

    _, pull, loss = jax.vjp(whole, floats(s), floats(hyper), has_aux=True)
    before, dhyper = pull(after)
    return before, dhyper, loss


def is_symmetric(task: Task, s: State, hyper: Tree, batch: Tree) -> bool:
    """Whether the loss is free of functions whose derivative its author has replaced (jax.custom_vjp)."""
    rows = seen(task, hyper, batch)
    traced = jax.make_jaxpr(partial(elementary_loss, task))(s.w, s.carried, rows, batch, jnp.zeros((), jnp.int32))
    return not has_custom_vjp(traced.jaxpr)


def has_custom_vjp(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("custom_vjp"):
            return True
        for inside in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            inside = inside.jaxpr if isinstance(inside, ClosedJaxpr) else inside
            if hasattr(inside, "eqns") and has_custom_vjp(inside):
                return True
    return False


# -- hyperparameters with a row for each training example -------------------------------------------------------------------


def seen(task: Task, hyper: Tree, batch: Tree) -> Tree:
    """λ as this batch sees it: of a leaf with a row per example, the rows of the batch."""
    marked = marks(task)
    if marked is None:
        return hyper
    rows = task.rows(batch)
    return jax.tree.map(lambda of_examples, part: gather(part, rows) if of_examples else part, marked, hyper)


def collect(task: Task, total: Tree, share: Tree, batch: Tree) -> Tree:
    """total += share, the adjoint of `seen`. The compiler scatters in place: a step costs the rows of its batch."""
    marked = marks(task)
    if marked is None:
        return add(total, share)
    rows = task.rows(batch)

    def both(of_examples: bool, total: Tree, share: Tree) -> Tree:
        return jax.tree.map(lambda a, b: a.at[rows].add(b), total, share) if of_examples else add(total, share)

    return jax.tree.map(both, marked, total, share)


def gather(part: Tree, rows: Array) -> Tree:
    return jax.tree.map(lambda a: a[rows], part)


__all__ = [
    "State",
    "begin",
    "collect",
    "elementary_loss",
    "hyper_loss",
    "program",
    "reverse_step",
    "seen",
    "step",
    "strong",
]
