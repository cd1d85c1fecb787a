"""What the engine is measured against: a DenseNet and its training with damped momentum, written by hand in plain JAX.

The same function as the engine's problem of problems.py, with the same names of the weights: each new map is normalised once by
the statistics of the batch, the same dropout masks, one L2 penalty. XLA's own convolution, `jax.value_and_grad`, and one
`lax.scan` over T steps in one program. densenet.py checks in float64 that the gradient is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from sizes import DenseNetSize

from hypertrail_nets.noise import dropout_mask

Array = Any
Tree = Any
DROPOUT, EPSILON, L2 = 0.2, 1e-4, 1e-4


def convolution(x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalised(x: Array) -> Array:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(variance + EPSILON)


def logits(size: DenseNetSize, key: tuple[Any, Any], w: Tree, x: Array, step: Array) -> Array:
    """(B, H, W, 3) → (B, classes), with the dropout masks of that step."""
    stream = iter(range(1000))

    def composite(maps: Array, name: str) -> Array:
        h = jax.nn.relu(maps * w[f"{name}.affine/scale"] + w[f"{name}.affine/bias"])
        h = convolution(h, w[f"{name}.conv/W"])
        return h * dropout_mask(jnp, key, next(stream), step, h.shape, DROPOUT, h.dtype)

    last = convolution(x, w["first.conv/W"])
    for block in range(1, size.blocks + 1):
        maps = normalised(last)
        for layer in range(1, (size.depth - 1) // size.blocks):
            maps = jnp.concatenate([maps, normalised(composite(maps, f"block{block}.layer{layer}"))], axis=-1)
        if block < size.blocks:
            h = composite(maps, f"transition{block}")
            last = lax.reduce_window(h, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    h = jax.nn.relu(maps * w["last.affine/scale"] + w["last.affine/bias"]).mean((1, 2))
    return h @ w["logits/W"] + w["logits/b"]


def loss(size: DenseNetSize, key: tuple[Any, Any], w: Tree, x: Array, y: Array, step: Array) -> Array:
    """Mean cross-entropy and one L2 penalty on kernels, scales and the last matrix."""
    scores = jax.nn.log_softmax(logits(size, key, w, x, step))
    cross_entropy = -jnp.take_along_axis(scores, y[:, None], axis=1).mean()
    return cross_entropy + L2 * sum(jnp.sum(one**2) for name, one in w.items() if name.endswith(("/W", "/scale")))


def gradient(size: DenseNetSize, key: tuple[Any, Any]) -> Callable[..., Any]:
    return jax.value_and_grad(partial(loss, size, key))


def trainer(size: DenseNetSize, key: tuple[Any, Any], alpha: float, gamma: float) -> Any:
    """train(w, v, x, y, batches) → (w, v, losses) after T steps; batches (T, B), rows of x and y. Compiled."""

    @jax.jit
    def train(w: Tree, v: Tree, x: Array, y: Array, batches: Array) -> tuple[Tree, Tree, Array]:
        def step(state: tuple, at: tuple) -> tuple:
            (w, v), (t, rows) = state, at
            value, g = gradient(size, key)(w, x[rows], y[rows], t)
            v = jax.tree.map(lambda v, g: gamma * v - (1 - gamma) * g, v, g)
            return (jax.tree.map(lambda w, v: w + alpha * v, w, v), v), value

        (w, v), losses = lax.scan(step, (w, v), (jnp.arange(len(batches), dtype=jnp.int32), batches))
        return w, v, losses

    return train
