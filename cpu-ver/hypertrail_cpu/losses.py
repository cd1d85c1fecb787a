"""The two losses and the derivatives that training and the reverse pass ask for. float64.

    L(w) = D(w_eff) + Σ λ₂ w² + Σ λ₁ |w|,   w_eff = w eᵗ where a weight transform is declared, else w

D = mean_i a_i cross-entropy_i is the data loss of one batch, a function of w_eff and, where they are declared, of the example
weights a and the images x: its gradient and its Hessian-vector product come from autograd. All around it is written
by hand: the penalties, the mixed derivatives, and the chain through the transform.
Parameters, gradients and u are {parameter name: array}; `values` is what `Problem.values` gives, as `Problem.seen` by the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from autograd import grad, make_vjp, value_and_grad
from autograd.tracer import getval

from hypertrail.hyperparameters import OF_EXAMPLES
from hypertrail.problem import Problem, Values

from .ops import OPS

Params = dict[str, np.ndarray]
BESIDE = (*OF_EXAMPLES, "noise")  # the kinds that D takes beside the weights
MIXED = ("l2", "l1", "transform")  # the kinds that act through the elementary loss


def in_float64(problem: Problem) -> Problem:
    """The problem as this engine solves it: in float64, whatever precision it was declared with. Cost: nothing."""
    return problem if problem.precision == "float64" else problem.with_(precision="float64")


def scales(params: Mapping[str, np.ndarray], values: Values) -> Params:
    """∂w_eff/∂w: eᵗ where a transform acts, 1 elsewhere; broadcasts against each parameter."""
    t = values.get("transform", {})
    return {name: np.exp(t[name]) if name in t else np.ones(()) for name in params}


def data_loss(
    problem: Problem, x: np.ndarray, y: np.ndarray, step: int | None, collect: dict | None = None
) -> Callable[[Params, Values], Any]:
    """D as a function of (w_eff, {kind of examples: {key: rows of this batch}}): with the dropout masks of a step, or (None)
    with dropout off.

    Batch norm takes the statistics of x either way; `collect` receives them where there is a step.
    """
    return lambda weights, examples: problem.data_loss(OPS, weights, x, y, step=step, collect=collect, values=examples)


def of_examples(values: Values) -> Values:
    """The kinds among the values that D takes beside the weights."""
    return {kind: arrays for kind, arrays in values.items() if kind in BESIDE}


def elementary_gradient(
    problem: Problem, w: Params, values: Values, x: np.ndarray, y: np.ndarray, step: int | None
) -> tuple[float, Params, Params]:
    """(L, g = ∇_w L, statistics of this batch for the running averages) at w, on the batch x, y, with the masks of `step`.

        g = eᵗ ∇D(w_eff) + 2 λ₂ w + λ₁ sign(w),   sign(0) = 0

    x (B, …), y (B,) int. Cost: one gradient. Raises nothing: the caller looks at L.
    """
    weights, s = problem.effective(np, w, values), scales(w, values)
    statistics: dict[str, np.ndarray] = {}
    loss, g_eff = value_and_grad(data_loss(problem, x, y, step, statistics))(weights, of_examples(values))
    g = {name: s[name] * g_eff[name] for name in w}
    for name, l2 in values.get("l2", {}).items():
        g[name] = g[name] + 2 * l2 * w[name]
    for name, l1 in values.get("l1", {}).items():
        g[name] = g[name] + l1 * np.sign(w[name])
    loss = float(loss) + float(problem.penalty(np, w, values))
    return loss, g, {key: getval(one) for key, one in statistics.items()}


def second_order(
    problem: Problem, w: Params, values: Values, x: np.ndarray, y: np.ndarray, step: int | None, u: Params
) -> tuple[Params, dict[str, Params]]:
    """(H u, mixed): the full Hessian of L in w times u, and (∂²L/∂value ∂w)ᵀ u for each declared kind of `MIXED`.

        H u        = eᵗ H_D (eᵗ u) + 2 λ₂ u          H_D: Hessian of D at w_eff, all layers together
        l2         = 2 w u
        l1         = sign(w) u
        transform  = [H_D (eᵗ u)] w_eff + ∇D eᵗ u    (∂/∂t of ⟨eᵗ ∇D(w eᵗ), u⟩, with ∂w_eff/∂t = w_eff)
        example_weight, training_input, noise:  ∂/∂a, ∂/∂x, ∂/∂σ of ⟨∇D, eᵗ u⟩, the rest of the pull that gives H_D (eᵗ u)

    mixed[kind][name] has the full shape of the parameter, or one row for each example of the batch; the caller sums over what
    shares a value.
    Never the Hessian of one layer alone: the block diagonal is another matrix. |w| has no curvature here (its kink is ignored).
    Cost: one gradient and one Hessian-vector product (reverse over reverse, about 3 gradients in all). Raises nothing.
    """
    weights, s = problem.effective(np, w, values), scales(w, values)
    pull, g_eff = make_vjp(grad(data_loss(problem, x, y, step)), (0, 1))(weights, of_examples(values))
    su = {name: s[name] * u[name] for name in w}
    H_su, examples = pull(su)  # uᵀH = H u: the Hessian is symmetric
    Hu = {name: s[name] * H_su[name] for name in w}
    for name, l2 in values.get("l2", {}).items():
        Hu[name] = Hu[name] + 2 * l2 * u[name]
    rules = {
        "l2": lambda name: 2 * w[name] * u[name],
        "l1": lambda name: np.sign(w[name]) * u[name],
        "transform": lambda name: H_su[name] * weights[name] + g_eff[name] * su[name],
    }
    mixed = {kind: {name: rules[kind](name) for name in values[kind]} for kind in MIXED if problem.declared(kind)}
    return Hu, mixed | examples


def gradient_tangents(
    problem: Problem, w: Params, values: Values, x: np.ndarray, y: np.ndarray, step: int
) -> tuple[Params, Callable[[Params, Values], Params]]:
    """(g, (ẇ, λ̇) → ġ): the gradient at w and how it changes with the weights and the values; λ̇ has all kinds of `values`.

        ẇ_eff = eᵗ ẇ + w_eff ṫ
        ġ     = eᵗ Ḋ' + eᵗ ṫ ∇D + 2 λ₂ ẇ + 2 λ̇₂ w + λ̇₁ sign(w)
        Ḋ'    = H_D ẇ_eff + (∂²D/∂w∂a) ȧ + (∂²D/∂w∂x) ẋ = ∂/∂w_eff of ⟨(∂D/∂w_eff, ∂D/∂a, ∂D/∂x), (ẇ_eff, ȧ, ẋ)⟩

    The mirror of `second_order`, for forward mode: one linearisation serves all directions. Cost: one gradient, and one
    Hessian-vector product (about 2 gradients) per direction. Raises nothing.
    """
    weights, s = problem.effective(np, w, values), scales(w, values)
    pull, (g_eff, _) = make_vjp(grad(data_loss(problem, x, y, step), (0, 1)))(weights, of_examples(values))
    g = {name: s[name] * g_eff[name] for name in w}
    for name, l2 in values.get("l2", {}).items():
        g[name] = g[name] + 2 * l2 * w[name]
    for name, l1 in values.get("l1", {}).items():
        g[name] = g[name] + l1 * np.sign(w[name])

    def tangent(w_dot: Params, values_dot: Values) -> Params:
        t_dot = values_dot.get("transform", {})
        w_eff_dot = {name: s[name] * w_dot[name] + weights[name] * t_dot.get(name, 0.0) for name in w}
        H_dot = pull((w_eff_dot, of_examples(values_dot)))  # second derivatives are symmetric
        g_dot = {name: s[name] * (H_dot[name] + t_dot.get(name, 0.0) * g_eff[name]) for name in w}
        for name, l2 in values.get("l2", {}).items():
            g_dot[name] = g_dot[name] + 2 * l2 * w_dot[name] + 2 * values_dot["l2"][name] * w[name]
        for name, l1_dot in values_dot.get("l1", {}).items():
            g_dot[name] = g_dot[name] + l1_dot * np.sign(w[name])
        return g_dot

    return g, tangent


def hyper_loss(problem: Problem, weights: Params) -> float:
    """f: the mean of the validation batches' losses, deterministic forward, at the EFFECTIVE weights.

    Cost: one forward pass over the validation batches. Raises nothing.
    """
    return float(
        np.mean([problem.valid_loss(OPS, weights, x, y) for x, y in zip(*problem.valid_batches(), strict=True)])
    )


def hyper_gradient(
    problem: Problem, w: Params, values: Values, batches: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[float, Params, dict[str, Params]]:
    """(f, df/dw, direct) at w: direct = {"transform": ∂f/∂t} is what λ does to f at fixed w (empty without a transform).

        df/dw = eᵗ ∇f(w_eff)        ∂f/∂t = w_eff ∇f(w_eff)   (full shape, to be summed over what shares a t)

    batches: x (n, B, …), y (n, B) in place of the problem's own validation batches.
    Cost: one gradient per validation batch. Raises nothing: the caller looks at f.
    """
    weights, s = problem.effective(np, w, values), scales(w, values)
    pairs = list(zip(*(problem.valid_batches() if batches is None else batches), strict=True))
    f, df = 0.0, {name: np.zeros_like(one) for name, one in weights.items()}
    for x, y in pairs:
        loss, g = value_and_grad(lambda p, x=x, y=y: problem.valid_loss(OPS, p, x, y))(weights)
        f += float(loss) / len(pairs)
        df = {name: df[name] + g[name] / len(pairs) for name in df}
    dw = {name: s[name] * df[name] for name in df}
    if not problem.declared("transform"):
        return f, dw, {}
    return f, dw, {"transform": {name: weights[name] * df[name] for name in values["transform"]}}
