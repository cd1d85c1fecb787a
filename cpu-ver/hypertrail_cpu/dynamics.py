"""How a gradient moves the weights, and the adjoint of that move, written by hand. One tensor at a time, float64.

Symbols: w weights, v velocity, g elementary gradient, α learning rate, γ momentum (η and μ for heavy ball); a prime marks what
the step gives. dX is the derivative of the hyper loss with respect to X; u is the cotangent of g.
A step sees w twice: as itself and inside g = ∇L(w, λ). An adjoint here does the first; the caller does the second with u:

    dw += (∂²L/∂w²) u        dλ += (∂²L/∂λ∂w)ᵀ u

α and γ broadcast against the tensor (shape (), or one value per unit, or one per parameter). Each function costs a few
operations per scalar and raises nothing.
"""

from __future__ import annotations

from typing import Any

Array = Any


def damped(w: Array, v: Array, g: Array, alpha: Array, gamma: Array) -> tuple[Array, Array]:
    """Damped momentum; the NEW velocity moves the weights.

        v ← γ v − (1−γ) g
        w ← w + α v

    All arrays of the shape of w → (w, v). Source: Maclaurin, Duvenaud, Adams 2015, algorithm 1, with the velocity index of
    their code (the printed one moves w by the old v); reference offline.md, section 2.
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

    Shapes and use as in `damped_adjoint`. Source: reference offline.md, section 2 (a = dw, b = dv).
    """
    v_new = mu * v + g
    deta = -dw * v_new
    dv = dv - eta * dw
    dmu = dv * v
    u = dv
    dv = mu * dv
    return dw, dv, u, deta, dmu


DYNAMICS = {"damped": (damped, damped_adjoint), "heavy-ball": (heavy_ball, heavy_ball_adjoint)}
