"""Adam, its adjoint and its tangent, by hand. One tensor at a time, float64; used like the rules of dynamics.py.

    m' = β₁ m + (1−β₁) g        c₁ = 1 − β₁^(t+1)       m̂ = m'/c₁
    s' = β₂ s + (1−β₂) g²       c₂ = 1 − β₂^(t+1)       ŝ = s'/c₂       r = 1/√(ŝ + ε)
    w' = w − α m̂ r

Kingma, Ba 2015, algorithm 1, with ε INSIDE the root: in √ŝ + ε the derivative 1/(2√ŝ) is infinite where no gradient has arrived
yet (a dead pixel, a rectifier that is off), times 0 that is NaN, and it spreads to every hypergradient.
v = (m, s) stacked, shape (2, *shape of w). t: the step, from 0. β₂ and ε are constants. The step is not linear in g, so the
adjoint needs m, s and g even where nobody asks for dα or dβ₁. Where gradients are of the size of √ε or below, a step depends on
their ratio: hypergradients there are large, up to 1/√ε for each step, and rough.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def adam(
    w: Array, v: Array, g: Array, alpha: Array, beta1: Array, *, t: int, beta2: float, epsilon: float
) -> tuple[Array, Array]:
    """One step (see above): w, g of one shape, v (2, …) → (w, v).

    m ← β₁ m + (1−β₁) g
    s ← β₂ s + (1−β₂) g²
    w ← w − α m̂ / √(ŝ + ε)
    """
    m, s = v
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * g**2
    m_hat, s_hat = m / (1 - beta1 ** (t + 1)), s / (1 - beta2 ** (t + 1))
    w = w - alpha * m_hat / np.sqrt(s_hat + epsilon)
    return w, np.stack([m, s])


def adam_adjoint(
    v: Array, g: Array, alpha: Array, beta1: Array, dw: Array, dv: Array, *, t: int, beta2: float, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Adjoint of `adam`: cotangents (dw, dv = (dm, ds)) of its results → (dw, dv, u, dα, dβ₁).

        dα  = −dw m̂ r
        dm ← dm − α r dw / c₁
        ds ← ds + ½ α m̂ r³ dw / c₂
        dβ₁ = dm (m − g) − α m̂ r dw (t+1) β₁^t / c₁        (the second term is the bias correction's)
        u   = (1−β₁) dm + 2 (1−β₂) g ds
        dm ← β₁ dm,  ds ← β₂ ds

    v, g: those that went INTO the step. Shapes and use as in `dynamics.damped_adjoint`; dv (2, …).
    """
    (m, s), (dm, ds) = v, dv
    c1, c2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
    m_hat = (beta1 * m + (1 - beta1) * g) / c1
    r = 1 / np.sqrt((beta2 * s + (1 - beta2) * g**2) / c2 + epsilon)
    dalpha = -dw * m_hat * r
    dm = dm - alpha * r * dw / c1
    ds = ds + 0.5 * alpha * m_hat * r**3 * dw / c2
    dbeta1 = dm * (m - g) - alpha * m_hat * r * dw * (t + 1) * beta1**t / c1
    u = (1 - beta1) * dm + 2 * (1 - beta2) * g * ds
    return dw, np.stack([beta1 * dm, beta2 * ds]), u, dalpha, dbeta1


def adam_tangent(
    v: Array,
    g: Array,
    alpha: Array,
    beta1: Array,
    dot: tuple[Array, Array, Array, Array, Array],
    *,
    t: int,
    beta2: float,
    epsilon: float,
) -> tuple[Array, Array]:
    """Tangent of `adam`, dot = (ẇ, v̇ = (ṁ, ṡ), ġ, α̇, β̇₁) → (ẇ, v̇) after the step; here d marks a change.

    dm' = β₁ ṁ + β̇₁ (m − g) + (1−β₁) ġ
    ds' = β₂ ṡ + 2 (1−β₂) g ġ
    dm̂  = dm'/c₁ + m̂ (t+1) β₁^t β̇₁ / c₁
    ẇ'  = ẇ − α̇ m̂ r − α r dm̂ + ½ α m̂ r³ ds'/c₂
    """
    m, s = v
    w_dot, (m_dot, s_dot), g_dot, alpha_dot, beta1_dot = dot
    c1, c2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
    m_hat = (beta1 * m + (1 - beta1) * g) / c1
    r = 1 / np.sqrt((beta2 * s + (1 - beta2) * g**2) / c2 + epsilon)
    m_dot = beta1 * m_dot + beta1_dot * (m - g) + (1 - beta1) * g_dot
    s_dot = beta2 * s_dot + 2 * (1 - beta2) * g * g_dot
    m_hat_dot = (m_dot + m_hat * (t + 1) * beta1**t * beta1_dot) / c1
    w_dot = w_dot - alpha_dot * m_hat * r - alpha * r * m_hat_dot + 0.5 * alpha * m_hat * r**3 * s_dot / c2
    return w_dot, np.stack([m_dot, s_dot])
