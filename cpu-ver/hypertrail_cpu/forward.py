"""Forward mode: the tangents of all hyperparameters, carried along with the training. The tangents of the dynamics by hand.

    Z_{t+1} = A_t Z_t + B_t,   Z_0 = ∂(w_0, v_0)/∂λ,   df/dλ = ∇f(w_T) Z_T + ∂f/∂λ

A_t, B_t: derivatives of step t with respect to the state (w, v) and to λ; Z_0 is 0 but for an initial scale. One column of Z
per scalar hyperparameter: a dot marks what it holds. Source: Franceschi, Donini, Frasconi, Pontil 2017, section 3.2 and
algorithm 2. float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure
from hypertrail.hyperparameters import NETWORK, Hyper, Hyperparameter
from hypertrail.methods import Forward
from hypertrail.problem import Dynamics, Problem, Values
from hypertrail.records import Hypergradient, Params, Training, hypergradient_cost

from .adam import adam_tangent
from .losses import gradient_tangents, hyper_gradient
from .training import BLOCK, batch, forward, norm, rates, seen

Array = Any


def damped_tangent(
    v: Array, g: Array, alpha: Array, gamma: Array, dot: tuple[Array, Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """Tangent of `dynamics.damped`, dot = (ẇ, v̇, ġ, α̇, γ̇) → (ẇ, v̇) after the step. One tensor, as there.

    v̇' = γ v̇ + γ̇ (v + g) − (1−γ) ġ
    ẇ' = ẇ + α v̇' + α̇ v'
    """
    w_dot, v_dot, g_dot, alpha_dot, gamma_dot = dot
    v_new = gamma * v - (1 - gamma) * g
    v_dot = gamma * v_dot + gamma_dot * (v + g) - (1 - gamma) * g_dot
    return w_dot + alpha * v_dot + alpha_dot * v_new, v_dot


def heavy_ball_tangent(
    v: Array, g: Array, eta: Array, mu: Array, dot: tuple[Array, Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """Tangent of `dynamics.heavy_ball`, dot = (ẇ, v̇, ġ, η̇, μ̇) → (ẇ, v̇) after the step.

    v̇' = μ v̇ + μ̇ v + ġ
    ẇ' = ẇ − η v̇' − η̇ v'
    """
    w_dot, v_dot, g_dot, eta_dot, mu_dot = dot
    v_new = mu * v + g
    v_dot = mu * v_dot + mu_dot * v + g_dot
    return w_dot - eta * v_dot - eta_dot * v_new, v_dot


def nesterov_tangent(
    v: Array, g: Array, eta: Array, mu: Array, dot: tuple[Array, Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """Tangent of `dynamics.nesterov`, dot = (ẇ, v̇, ġ, η̇, μ̇) → (ẇ, v̇) after the step.

    v̇' = μ v̇ + μ̇ v + ġ
    ẇ' = ẇ − η (ġ + μ v̇' + μ̇ v') − η̇ (g + μ v')
    """
    w_dot, v_dot, g_dot, eta_dot, mu_dot = dot
    v_new = mu * v + g
    v_dot = mu * v_dot + mu_dot * v + g_dot
    return w_dot - eta * (g_dot + mu * v_dot + mu_dot * v_new) - eta_dot * (g + mu * v_new), v_dot


def damped_old_tangent(
    v: Array, g: Array, alpha: Array, gamma: Array, dot: tuple[Array, Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """Tangent of `dynamics.damped_old`, dot = (ẇ, v̇, ġ, α̇, γ̇) → (ẇ, v̇) after the step.

    ẇ' = ẇ + α v̇ + α̇ v
    v̇' = γ v̇ + γ̇ (v + g) − (1−γ) ġ
    """
    w_dot, v_dot, g_dot, alpha_dot, gamma_dot = dot
    w_dot = w_dot + alpha * v_dot + alpha_dot * v
    return w_dot, gamma * v_dot + gamma_dot * (v + g) - (1 - gamma) * g_dot


TANGENTS = {
    "damped": damped_tangent,
    "heavy-ball": heavy_ball_tangent,
    "nesterov": nesterov_tangent,
    "damped-old": damped_old_tangent,
}


def tangent_rule(dynamics: Dynamics, t: int) -> Callable[..., tuple[Array, Array]]:
    """The tangent of the rule of step t (`dynamics.rule`): (v, g, α, γ, dot) → (ẇ, v̇)."""
    if dynamics.kind != "adam":
        return TANGENTS[dynamics.kind]
    return partial(adam_tangent, t=t, beta2=dynamics.second_momentum, epsilon=dynamics.epsilon_beside_corrected(t))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what overflows is caught by name, not by a warning
def forward_mode(
    problem: Problem, hyper: Hyper, training: Training, method: Forward, progress: Progress | None = None
) -> Hypergradient:
    """Exact hypergradient by Z ← A Z + B beside a training that is done again from the w_0 of `training` (and v_0 = 0).

        ẇ_0 = σ̇ · (drawn w_0) + u̇, v̇_0 = 0
        for t = 0 … T−1, for each column:    ġ = H ẇ + (∂²L/∂λ∂w) λ̇;   (ẇ, v̇) = tangent of the step
        df/dλ_j = ⟨∇f(w_T), ẇ⟩ + ⟨∂f/∂λ, λ̇⟩

    Shapes as in `hyper`. f, and where it is taken, are those of this training again. initial_weights, initial_velocity: {},
    adjoint_norms: (0,): forward mode has no adjoint. diagnostics: N = T, and columns = m.
    Cost: T gradients (taken twice here: apart, and for the tangents), T · m products, one gradient per validation batch;
    memory: m states. Raises NumericalFailure where a loss, a tangent or f is not finite.
    """
    clock = time.perf_counter()
    values = problem.values(hyper)
    w0 = {p: np.asarray(one, dtype=np.float64) for p, one in training.initial.items()}
    zero = {p: np.zeros_like(one) for p, one in w0.items()}
    columns = list(directions(problem, hyper, values))
    drawn = problem.initial_weights()
    v0 = problem.initial_velocity()
    # The start is linear in σ and u together, so its tangent is the start itself with σ̇ and u̇; not declared, they are 0.
    still = {"initial_scale": zero, "initial_weight": zero}
    Z = [
        (problem.scaled(drawn, still | {kind: dot[kind] for kind in still if kind in dot}), v0) for _, _, dot in columns
    ]
    final, T = w0, problem.steps
    for one in forward(problem, values, w0, v0):
        t = one.t
        advance = tangent_rule(problem.dynamics, t)
        g, tangent = gradient_tangents(problem, one.w, seen(problem, values, t), *batch(problem, t), t)
        alpha, gamma = rates(problem, values, t)
        for j, (w_dot, v_dot) in enumerate(Z):
            values_dot = columns[j][2]
            g_dot = tangent(w_dot, seen(problem, values_dot, t))
            alpha_dot, gamma_dot = rates(problem, values_dot, t)
            dot = {p: (w_dot[p], v_dot[p], g_dot[p], alpha_dot[p], gamma_dot[p]) for p in g}
            moved = {p: advance(one.v[p], g[p], alpha[p], gamma[p], dot[p]) for p in g}
            Z[j] = {p: w for p, (w, _) in moved.items()}, {p: v for p, (_, v) in moved.items()}
        final = one.w_next
        if not all(np.isfinite(norm(one)) for column in Z for one in column):
            raise NumericalFailure(
                "forward derivative (‖Z‖)", t + 1, "the run is chaotic or diverged; lower the learning rate"
            )
        if progress and ((t + 1) % BLOCK == 0 or t == T - 1):
            progress(t + 1, T)
    f, dw, direct = hyper_gradient(problem, final, values)
    if not np.isfinite(f):
        raise NumericalFailure("hyper loss", T)
    gradient = {kind: {key: np.zeros(np.shape(u)) for key, u in arrays.items()} for kind, arrays in hyper.items()}
    for (kind, (key, index), dot), (w_dot, _) in zip(columns, Z, strict=True):
        total = sum(np.sum(dw[p] * w_dot[p]) for p in dw)
        for one_kind, arrays in direct.items():
            total += sum(np.sum(d * dot[one_kind][p]) for p, d in arrays.items())
        gradient[kind][key][index] = total
    m = len(columns)
    return Hypergradient(
        gradient=gradient,
        initial_weights={},
        initial_velocity={},
        hyper_loss=f,
        adjoint_norms=np.empty(0),
        method=method.name,
        cost=hypergradient_cost(problem, training, method, T * m, time.perf_counter() - clock),
        diagnostics={
            "N": T,
            "zero": [kind for kind, arrays in gradient.items() if not any(np.any(d) for d in arrays.values())],
            "columns": m,
        },
    )


def directions(
    problem: Problem, hyper: Hyper, values: Values
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]], Values]]:
    """(kind, (key, index), values_dot) for each scalar u: how all values change with it, {kind: {name: shape of the value}}.

    Kinds and tensors that do not change are there too, with zeros; learning rate and momentum even where they are constants.
    """
    rest = {kind: {p: np.zeros(np.shape(one)) for p, one in arrays.items()} for kind, arrays in values.items()}
    for one in problem.hyperparameters:
        for key, u in hyper[one.kind].items():
            slope = np.broadcast_to(one.slope(one.value(np.asarray(u, dtype=np.float64))), np.shape(u))
            for index in np.ndindex(*np.shape(u)):
                u_dot = np.zeros(np.shape(u))
                u_dot[index] = slope[index]
                yield one.kind, (key, index), rest | {one.kind: rest[one.kind] | spread(one, problem, key, u_dot)}


def spread(one: Hyperparameter, problem: Problem, key: str, value_dot: np.ndarray) -> Params:
    """A change of one held value, for each tensor that it acts on."""
    if one.level == NETWORK:
        return {p.name: value_dot for p in problem.targets if one.reaches(p)}
    return {key: value_dot}
