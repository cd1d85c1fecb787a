"""How a gradient moves the weights. Only the forward rules: their adjoints are taken by `jax.vjp` (functional.py).

The reference engine has the same two rules with adjoints written by hand; that the two agree is what makes either
believable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    """Heavy ball (Polyak 1964; Franceschi et al. 2017, equation 12).

        v ← μ v + g
        w ← w − η v

    One tensor; η and μ broadcast against it. Returns (w, v).
    """
    v = mu * v + g
    w = w - eta * v
    return w, v


DYNAMICS: dict[str, Callable[..., tuple[Array, Array]]] = {"damped": damped, "heavy-ball": heavy_ball}
