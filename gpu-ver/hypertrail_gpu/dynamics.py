"""How a gradient moves the weights. Only the forward rules: their adjoints are taken by `jax.vjp` (functional.py).

The reference engine has the same rules with adjoints written by hand; that the two agree is what makes either
believable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from hypertrail.problem import Dynamics

Array = Any


def damped(w: Array, v: Array, g: Array, alpha: Array, gamma: Array) -> tuple[Array, Array]:
    """Damped momentum (Maclaurin et al. 2015, algorithm 1, with the NEW velocity moving the weights, as in their code).

        v ← γ v − (1 − γ) g
        w ← w + α v

    One tensor; α and γ broadcast against it. Returns (w, v).
    """
    v = gamma * v - (1 - gamma) * g
    w = w + alpha * v
    return w, v


def heavy_ball(w: Array, v: Array, g: Array, eta: Array, mu: Array) -> tuple[Array, Array]:
    """Heavy ball (Polyak 1964).

        v ← μ v + g
        w ← w − η v

    One tensor; η and μ broadcast against it. Returns (w, v).
    """
    v = mu * v + g
    w = w - eta * v
    return w, v


def nesterov(w: Array, v: Array, g: Array, eta: Array, mu: Array) -> tuple[Array, Array]:
    """Nesterov's momentum (1983) in the form of optax.sgd(nesterov=True); Sutskever et al. 2013, equations 3 and 4, with w the
    point they look ahead to.

        v ← μ v + g
        w ← w − η (g + μ v)

    One tensor; η and μ broadcast against it. Returns (w, v).
    """
    v = mu * v + g
    w = w - eta * (g + mu * v)
    return w, v


def damped_old(w: Array, v: Array, g: Array, alpha: Array, gamma: Array) -> tuple[Array, Array]:
    """Damped momentum as printed (Maclaurin et al. 2015, algorithm 1 to the letter): the OLD velocity moves the weights.

        w ← w + α v
        v ← γ v − (1 − γ) g

    One tensor; α and γ broadcast against it. Returns (w, v).
    """
    w = w + alpha * v
    v = gamma * v - (1 - gamma) * g
    return w, v


def adam(
    w: Array, v: Array, g: Array, alpha: Array, beta1: Array, *, t: Array, beta2: float, epsilon: float
) -> tuple[Array, Array]:
    """Adam (Kingma, Ba 2015, algorithm 1), ε INSIDE the root; optax.adam(…, eps=0, eps_root=ε). v = (m, s), shape (2, …).

        m ← β₁ m + (1 − β₁) g,      m̂ = m / (1 − β₁^(t+1))
        s ← β₂ s + (1 − β₂) g²,     ŝ = s / (1 − β₂^(t+1))
        w ← w − α m̂ / √(ŝ + ε)

    Outside the root, ε would leave d√ŝ at ŝ = 0 infinite: one weight without a gradient makes every hypergradient NaN.
    One tensor; t: the step, from 0. Returns (w, v).
    """
    m, s = v
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * g**2
    m_hat, s_hat = m / (1 - beta1 ** (t + 1)), s / (1 - beta2 ** (t + 1))
    w = w - alpha * m_hat / jnp.sqrt(s_hat + epsilon)
    return w, jnp.stack([m, s])


DYNAMICS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "damped": damped,
    "heavy-ball": heavy_ball,
    "nesterov": nesterov,
    "damped-old": damped_old,
}


# Where the new velocity moves the weights: ± in w ← w ± α v. So ∂w/∂α is ± the velocity, which the state holds already.
VELOCITIES = {"damped": 1.0, "heavy-ball": -1.0}


def rule(dynamics: Dynamics, t: Array) -> Callable[..., tuple[Array, Array]]:
    """The rule of step t: (w, v, g, α, γ) → (w, v). Adam's alone knows the step, and has constants of its own."""
    if dynamics.kind != "adam":
        return DYNAMICS[dynamics.kind]
    return partial(adam, t=t, beta2=dynamics.second_momentum, epsilon=dynamics.epsilon_beside_corrected(t))
