"""The two losses of a problem and what is differentiated of them. JAX does the differentiating.

`values` of an elementary loss are as the batch sees them (`Problem.seen`): of what lives on the examples, the rows of the batch.
So are its derivatives: nothing here has the size of the whole train split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hypertrail.problem import Problem, Values

from .ops import OPS

Array = Any


def elementary_loss(
    problem: Problem, w: Mapping[str, Array], values: Values, x: Array, y: Array, step: Any, key: Any = None
) -> tuple[Array, dict[str, Array]]:
    """L(w, λ, batch) with penalties and that step's dropout masks, and the batch statistics. Scalar, {name: (C,)}.

    key: of the masks, where it is not the problem's.
    """
    collect: dict[str, Array] = {}
    w_eff = problem.effective(jnp, w, values)
    loss = problem.data_loss(OPS, w_eff, x, y, step=step, collect=collect, values=values, key=key)
    return loss + problem.penalty(jnp, w, values), collect


def elementary_gradient(
    problem: Problem, w: Mapping[str, Array], values: Values, x: Array, y: Array, step: Any
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """(L, ∇_w L, batch statistics). Cost: one gradient."""
    (loss, collect), g = jax.value_and_grad(lambda w: elementary_loss(problem, w, values, x, y, step), has_aux=True)(w)
    return loss, g, collect


def second_order(
    problem: Problem,
    w: Mapping[str, Array],
    values: Values,
    x: Array,
    y: Array,
    step: Any,
    u: Mapping[str, Array],
    key: Any = None,
) -> tuple[dict[str, Array], Values]:
    """((∂²L/∂w²) u, (∂²L/∂value∂w)ᵀ u), the second for every kind in `values` (zero for those L does not contain).

    Full Hessian. Cost: one forward-over-reverse call, about 2.1 gradients.
    """

    def gradients(w: Mapping[str, Array]) -> tuple[Any, Any]:
        return jax.grad(lambda w, values: elementary_loss(problem, w, values, x, y, step, key)[0], (0, 1))(w, values)

    return jax.jvp(gradients, (w,), (u,))[1]


def hyper_loss(problem: Problem, w: Mapping[str, Array], values: Values, xs: Array, ys: Array) -> Array:
    """f = mean over the validation batches xs (n, B, …), ys (n, B) of problem.valid_loss. Scalar."""
    weights = problem.effective(jnp, w, values)
    return lax.map(lambda batch: problem.valid_loss(OPS, weights, *batch), (xs, ys)).mean()


def hyper_gradient(
    problem: Problem, w: Mapping[str, Array], values: Values, xs: Array, ys: Array
) -> tuple[Array, dict[str, Array], Values]:
    """(f, ∂f/∂w, ∂f/∂value): the start of every reverse pass, direct term included. Cost: n gradients, memory of one.

    f sees the values through the weight transform alone; the others' zeros, which can be as large as the data, are not carried
    along.
    """
    direct = {kind: one for kind, one in values.items() if kind == "transform"}

    def accumulate(total: Any, batch: tuple[Array, Array]) -> tuple[Any, None]:
        def one(w: Any, direct: Values) -> Array:
            return problem.valid_loss(OPS, problem.effective(jnp, w, direct), *batch) / xs.shape[0]

        f, d = jax.value_and_grad(one, (0, 1))(w, direct)
        return jax.tree.map(jnp.add, total, (f, *d)), None

    start = jax.tree.map(jnp.zeros_like, (jnp.zeros((), xs.dtype), w, direct))
    f, dw, ddirect = lax.scan(accumulate, start, (xs, ys))[0]
    return f, dw, {**jax.tree.map(jnp.zeros_like, values), **ddirect}
