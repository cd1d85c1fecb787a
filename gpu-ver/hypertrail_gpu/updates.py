"""Updates: what one gradient does to the weights of a task. Any pure function (w, v, g, hyper, t) → (w, v) is one.

An update may offer more, by attributes, and a method that needs one asks for it by name before anything is computed:

    init(w, hyper) → v_0                    how v begins; without it: zeros like w
    undo(w, v, gradient, hyper, t) → (w, v) the step undone in floating point                  FloatReversed, DrMAD C5
    speed(way, hyper, t) → v                the v that moves the weights by `way` in one step   DrMAD C1 … C6
    rates(w, hyper, t) → (α, γ)             trees like w of broadcastable arrays                Reversible, DrMAD C5's tail
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from hypertrail.errors import UsageError

from .dynamics import DYNAMICS
from .trees import zeros

Array = Any
Tree = Any


@dataclass(frozen=True)
class Momentum:
    """One of our dynamics as the update of a task. Every method takes 'damped'; dynamics.py has the equations.

    rate, momentum: (hyper, t) → α and γ: a number, or a tree of arrays that is a prefix of the weights' tree (one for each
    layer) or has the weights' own structure (one for each parameter). t is the step, so schedules are functions of it.
    kind: 'damped', 'heavy-ball', 'nesterov' or 'damped-old'.
    fractions: γ is rounded up to n/2¹⁶, by at most 1.5e-5, as exact reversal needs it; its slope is that of γ.
    """

    rate: Callable[[Tree, Any], Any]
    momentum: Callable[[Tree, Any], Any]
    kind: Literal["damped", "heavy-ball", "nesterov", "damped-old"] = "damped"
    fractions: bool = False

    def __post_init__(self) -> None:
        if self.kind not in DYNAMICS:
            raise UsageError(f"dynamics {self.kind!r}, expected one of {', '.join(DYNAMICS)}")

    def init(self, w: Tree, hyper: Tree) -> Tree:
        return zeros(w)

    def rates(self, w: Tree, hyper: Tree, t: Any) -> tuple[Tree, Tree]:
        """(α_t, γ_t), trees like w."""

        def spread(values: Any) -> Tree:
            return jax.tree.map(lambda value, part: jax.tree.map(lambda _: value, part), values, w)

        alpha, gamma = spread(self.rate(hyper, t)), spread(self.momentum(hyper, t))
        return alpha, jax.tree.map(as_fraction, gamma) if self.fractions else gamma

    def __call__(self, w: Tree, v: Tree, g: Tree, hyper: Tree, t: Any) -> tuple[Tree, Tree]:
        return self.moved(w, v, g, *self.rates(w, hyper, t))

    def moved(self, w: Tree, v: Tree, g: Tree, alpha: Tree, gamma: Tree) -> tuple[Tree, Tree]:
        """(w, v) after a step with these rates."""
        done = jax.tree.map(DYNAMICS[self.kind], w, v, g, alpha, gamma)
        return jax.tree.transpose(jax.tree.structure(w), jax.tree.structure((0, 0)), done)

    @property
    def undo(self) -> Callable[..., tuple[Tree, Tree]] | None:
        return self.undo_damped if self.kind == "damped" else None

    def undo_damped(self, w: Tree, v: Tree, gradient: Callable[[Tree], Tree], hyper: Tree, t: Any) -> tuple[Tree, Tree]:
        """w ← w − α v;   v ← (v + (1−γ) ∇L(w)) / γ.   (Maclaurin et al. 2015, algorithm 2, lines 6 to 8.)"""
        alpha, gamma = self.rates(w, hyper, t)
        w = jax.tree.map(lambda w, v, alpha: w - alpha * v, w, v, alpha)
        return w, jax.tree.map(lambda v, g, gamma: (v + (1 - gamma) * g) / gamma, v, gradient(w), gamma)

    @property
    def speed(self) -> Callable[[Tree, Tree, Any], Tree] | None:
        return None if self.kind == "nesterov" else self.velocity_of

    def velocity_of(self, way: Tree, hyper: Tree, t: Any) -> Tree:
        """way / α, and −way / η where the weights move against the velocity."""
        sign = -1.0 if self.kind == "heavy-ball" else 1.0
        return jax.tree.map(lambda d, alpha: sign * d / alpha, way, self.rates(way, hyper, t)[0])


EXPONENT = 16
DENOMINATOR = 2**EXPONENT


def numerator(gamma: Array) -> Array:
    """n of the smallest n/2¹⁶ that is not below γ, in γ's own dtype. Four roundings are taken off before: logit γ and back must
    not make a .75 the next fraction."""
    hair = 1 - 4 * float(jnp.finfo(jnp.result_type(gamma)).eps)
    return jnp.minimum(jnp.ceil(gamma * DENOMINATOR * hair), DENOMINATOR - 1)


def as_fraction(gamma: Array) -> Array:
    """The fraction that is trained with, with the slope of γ."""
    return gamma + jax.lax.stop_gradient(numerator(gamma) / DENOMINATOR - gamma)


@dataclass(frozen=True)
class Optax:
    """An optax transformation as the update of a task: make(hyper, t) → optax.GradientTransformation.

        updates, v ← make(λ, t).update(g, v, w);    w ← w + updates;    v_0 = make(λ, 0).init(w_0)

    The transformation is built anew inside every step, which costs nothing once it is compiled, so whatever it is given has a
    hypergradient: learning rates and schedules, momenta, weight decay, clipping norms, and a state that is filled from λ. Its
    state is v: floating point leaves are differentiated, the others (counts, random keys) are carried along.
    POOR where the transformation has an infinite slope: optax.adam's ε stands outside the root (eps=0, eps_root=ε puts it
    inside), the norms of optax.lars and of a zero gradient have no derivative. UsageError for what is no transformation of
    gradients alone (line searches ask for the loss).
    """

    make: Callable[[Tree, Any], Any]

    def init(self, w: Tree, hyper: Tree) -> Tree:
        return self.transformation(hyper, jnp.zeros((), jnp.int32)).init(w)

    def transformation(self, hyper: Tree, t: Any) -> Any:
        found = self.make(hyper, t)
        if not (hasattr(found, "init") and hasattr(found, "update")):
            raise UsageError(f"make(hyper, t) gave {type(found).__name__}, expected an optax.GradientTransformation")
        return found

    def __call__(self, w: Tree, v: Tree, g: Tree, hyper: Tree, t: Any) -> tuple[Tree, Tree]:
        updates, v = self.transformation(hyper, t).update(g, v, w)
        return jax.tree.map(lambda w, move: (w + move).astype(w.dtype), w, updates), v
