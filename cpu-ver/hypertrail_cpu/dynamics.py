"""How a gradient moves the weights, and the adjoint of that move, written by hand. One tensor at a time, float64.

Symbols: w weights, v velocity, g elementary gradient, α learning rate, γ momentum (η and μ for heavy ball); a prime marks what
the step gives. dX is the derivative of the hyper loss with respect to X; u is the cotangent of g.
A step sees w twice: as itself and inside g = ∇L(w, λ). An adjoint here does the first; the caller does the second with u:

    dw += (∂²L/∂w²) u        dλ += (∂²L/∂λ∂w)ᵀ u

α and γ broadcast against the tensor (shape (), or one value per unit, or one per parameter). Each function costs a few
operations per scalar and raises nothing. Adam is in adam.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from hypertrail.problem import Dynamics

from .adam import adam, adam_adjoint

Array = Any


class Rule(NamedTuple):
    """advance(w, v, g, α, γ) → (w, v);  adjoint(v, g, α, γ, dw, dv) → (dw, dv, u, dα, dγ)."""

    advance: Callable[..., tuple[Array, Array]]
    adjoint: Callable[..., tuple[Array, Array, Array, Array, Array]]


def damped(w: Array, v: Array, g: Array, alpha: Array, gamma: Array) -> tuple[Array, Array]:
    """Damped momentum; the NEW velocity moves the weights.

        v ← γ v − (1−γ) g
        w ← w + α v

    All arrays of the shape of w → (w, v). Source: Maclaurin, Duvenaud, Adams 2015, algorithm 1, with the velocity index of
    their code (the printed one moves w by the old v); docs/dynamics.md.
    """
    v = gamma * v - (1 - gamma) * g
    w = w + alpha * v
    return w, v


def damped_adjoint(
    v: Array, g: Array, alpha: Array, gamma: Array, dw: Array, dv: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Adjoint of `damped`: cotangents (dw, dv) of its results → (dw, dv, u, dα, dγ).

        v' = γ v − (1−γ) g
        dα = dw v'
        dv ← dv + α dw
        dγ = dv (v + g)
        u  = −(1−γ) dv
        dv ← γ dv

    v, g: those that went INTO the step. dα, dγ have the full shape of the tensor, one term per scalar: their sum over what
    shares an α or a γ is the gradient. dw passes through (the caller adds H u). Source: Maclaurin et al. 2015, algorithm 2.
    """
    v_new = gamma * v - (1 - gamma) * g
    dalpha = dw * v_new
    dv = dv + alpha * dw
    dgamma = dv * (v + g)
    u = -(1 - gamma) * dv
    dv = gamma * dv
    return dw, dv, u, dalpha, dgamma


def heavy_ball(w: Array, v: Array, g: Array, eta: Array, mu: Array) -> tuple[Array, Array]:
    """Heavy ball; the NEW velocity moves the weights.

        v ← μ v + g
        w ← w − η v

    All arrays of the shape of w → (w, v). Source: Polyak 1964, equation 9, in the form of today's SGD with momentum.
    """
    v = mu * v + g
    w = w - eta * v
    return w, v


def heavy_ball_adjoint(
    v: Array, g: Array, eta: Array, mu: Array, dw: Array, dv: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Adjoint of `heavy_ball`: cotangents (dw, dv) of its results → (dw, dv, u, dη, dμ).

        v' = μ v + g
        dη = −dw v'
        dv ← dv − η dw
        dμ = dv v
        u  = dv
        dv ← μ dv

    Shapes and use as in `damped_adjoint`. Source: docs/dynamics.md.
    """
    v_new = mu * v + g
    deta = -dw * v_new
    dv = dv - eta * dw
    dmu = dv * v
    u = dv
    dv = mu * dv
    return dw, dv, u, deta, dmu


def nesterov(w: Array, v: Array, g: Array, eta: Array, mu: Array) -> tuple[Array, Array]:
    """Nesterov's momentum, the look-ahead written as a second use of g: today's SGD with nesterov=True.

        v ← μ v + g
        w ← w − η (g + μ v)

    All arrays of the shape of w → (w, v). Source: Nesterov 1983; Sutskever, Martens, Dahl, Hinton 2013, equations 3 and 4, with
    w the point they look ahead to and v divided by −η.
    """
    v = mu * v + g
    w = w - eta * (g + mu * v)
    return w, v


def nesterov_adjoint(
    v: Array, g: Array, eta: Array, mu: Array, dw: Array, dv: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Adjoint of `nesterov`: cotangents (dw, dv) of its results → (dw, dv, u, dη, dμ).

        v' = μ v + g
        dη = −dw (g + μ v')
        dv ← dv − η μ dw
        dμ = dv v − η dw v'
        u  = dv − η dw
        dv ← μ dv

    Shapes and use as in `damped_adjoint`.
    """
    v_new = mu * v + g
    deta = -dw * (g + mu * v_new)
    dv = dv - eta * mu * dw
    dmu = dv * v - eta * dw * v_new
    u = dv - eta * dw
    dv = mu * dv
    return dw, dv, u, deta, dmu


def damped_old(w: Array, v: Array, g: Array, alpha: Array, gamma: Array) -> tuple[Array, Array]:
    """Damped momentum as printed; the OLD velocity moves the weights.

        w ← w + α v
        v ← γ v − (1−γ) g

    All arrays of the shape of w → (w, v). From v_0 = 0 the first step moves nothing, and the last gradient never arrives.
    Source: Maclaurin, Duvenaud, Adams 2015, algorithm 1 to the letter; their code is `damped`.
    """
    w = w + alpha * v
    v = gamma * v - (1 - gamma) * g
    return w, v


def damped_old_adjoint(
    v: Array, g: Array, alpha: Array, gamma: Array, dw: Array, dv: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Adjoint of `damped_old`: cotangents (dw, dv) of its results → (dw, dv, u, dα, dγ).

        dα = dw v
        dγ = dv (v + g)
        u  = −(1−γ) dv
        dv ← γ dv + α dw

    Shapes and use as in `damped_adjoint`. The printed algorithm 2 is the adjoint of `damped`, not of this.
    """
    dalpha = dw * v
    dgamma = dv * (v + g)
    u = -(1 - gamma) * dv
    dv = gamma * dv + alpha * dw
    return dw, dv, u, dalpha, dgamma


DYNAMICS = {
    "damped": Rule(damped, damped_adjoint),
    "heavy-ball": Rule(heavy_ball, heavy_ball_adjoint),
    "nesterov": Rule(nesterov, nesterov_adjoint),
    "damped-old": Rule(damped_old, damped_old_adjoint),
}


def rule(dynamics: Dynamics, t: int) -> Rule:
    """The rule of step t. Adam's alone knows the step, for its bias correction, and has constants of its own."""
    if dynamics.kind != "adam":
        return DYNAMICS[dynamics.kind]
    constants = {"t": t, "beta2": dynamics.second_momentum, "epsilon": dynamics.epsilon_beside_corrected(t)}
    return Rule(partial(adam, **constants), partial(adam_adjoint, **constants))
