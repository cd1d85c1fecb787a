"""The operations that the network layers ask an engine for, on NumPy with HIPS autograd. float64.

Convolution is a trio of primitives, each linear in each of its two arguments:

    y  = conv2d(x, w)        dx = conv2d_dx(dy, w)        dw = conv2d_dw(x, dy)

All three are faces of the one trilinear form ⟨conv2d(x, w), dy⟩: freeing one of its arguments gives a member of the trio. So the
derivatives of each member are the other two, and derivatives of every order (Hessian-vector products) stay inside the trio.
Everything else is composed of autograd's own operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import getval

Array = Any
Shape = tuple[int, ...]


def padding_of(n: int, k: int, stride: int, padding: str) -> tuple[int, int, int]:
    """(output size, zeros before, zeros after) along one axis of n pixels under a kernel of k taps.

    'same': ⌈n/s⌉ outputs and max((⌈n/s⌉ − 1) s + k − n, 0) zeros, the smaller half before (TensorFlow and XLA "SAME");
    'valid': ⌈(n − k + 1)/s⌉ outputs and no zeros.
    """
    if padding == "valid":
        return -(-(n - k + 1) // stride), 0, 0
    out = -(-n // stride)
    total = max((out - 1) * stride + k - n, 0)
    return out, total // 2, total - total // 2


def taps(size: tuple[int, int], out: tuple[int, int], stride: int) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """(i, j, window): the pixels of the padded image that kernel tap (i, j) meets, one for each output pixel."""
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i, i + (out[0] - 1) * stride + 1, stride)
            columns = slice(j, j + (out[1] - 1) * stride + 1, stride)
            yield i, j, (slice(None), rows, columns)


def geometry(x_shape: Shape, w_shape: Shape, stride: int, padding: str) -> tuple[tuple[int, int], tuple, tuple]:
    """(H', W'), the zeros to pad x with on its four axes, and the slices that take the padded image back to x."""
    (h, above, below), (w, left, right) = (
        padding_of(n, k, stride, padding) for n, k in zip(x_shape[1:3], w_shape[:2], strict=True)
    )
    inner = (slice(None), slice(above, above + x_shape[1]), slice(left, left + x_shape[2]))
    return (h, w), ((0, 0), (above, below), (left, right), (0, 0)), inner


@primitive
def conv2d(x: Array, w: Array, stride: int, padding: str) -> Array:
    """y[b, p, q, d] = Σ_{i, j, c} x̂[b, p s + i, q s + j, c] w[i, j, c, d], x̂ = x with zeros around (cross-correlation).

    x (B, H, W, C), w (kh, kw, C, D) → (B, H', W', D), float64. Cost: one matrix product (B H' W', C) (C, D) per tap.
    """
    out, zeros, _ = geometry(x.shape, w.shape, stride, padding)
    padded = np.pad(x, zeros)
    y = np.zeros((x.shape[0] * out[0] * out[1], w.shape[3]))
    for i, j, window in taps(w.shape[:2], out, stride):
        y += padded[window].reshape(-1, x.shape[3]) @ w[i, j]
    return y.reshape(x.shape[0], *out, w.shape[3])


@primitive
def conv2d_dx(dy: Array, w: Array, x_shape: Shape, stride: int, padding: str) -> Array:
    """The dx with ⟨dx, x⟩ = ⟨dy, conv2d(x, w)⟩ for every x. dy (B, H', W', D), w (kh, kw, C, D) → (B, H, W, C)."""
    out, zeros, inner = geometry(x_shape, w.shape, stride, padding)
    padded = np.zeros([n + sum(z) for n, z in zip(x_shape, zeros, strict=True)])
    rows = dy.reshape(-1, w.shape[3])
    for i, j, window in taps(w.shape[:2], out, stride):
        padded[window] += (rows @ w[i, j].T).reshape(x_shape[0], *out, x_shape[3])
    return padded[inner]


@primitive
def conv2d_dw(x: Array, dy: Array, w_shape: Shape, stride: int, padding: str) -> Array:
    """The dw with ⟨dw, w⟩ = ⟨dy, conv2d(x, w)⟩ for every w. x (B, H, W, C), dy (B, H', W', D) → (kh, kw, C, D)."""
    out, zeros, _ = geometry(x.shape, w_shape, stride, padding)
    padded = np.pad(x, zeros)
    dw = np.empty(w_shape)
    rows = dy.reshape(-1, w_shape[3])
    for i, j, window in taps(w_shape[:2], out, stride):
        dw[i, j] = padded[window].reshape(-1, x.shape[3]).T @ rows
    return dw


# Each vector-Jacobian product frees another argument of the same trilinear form.
defvjp(
    conv2d,
    lambda y, x, w, stride, padding: lambda dy: conv2d_dx(dy, w, x.shape, stride, padding),
    lambda y, x, w, stride, padding: lambda dy: conv2d_dw(x, dy, w.shape, stride, padding),
)
defvjp(
    conv2d_dx,
    lambda dx, dy, w, x_shape, stride, padding: lambda x: conv2d(x, w, stride, padding),
    lambda dx, dy, w, x_shape, stride, padding: lambda x: conv2d_dw(x, dy, w.shape, stride, padding),
    argnums=(0, 1),
)
defvjp(
    conv2d_dw,
    lambda dw, x, dy, w_shape, stride, padding: lambda w: conv2d_dx(dy, w, x.shape, stride, padding),
    lambda dw, x, dy, w_shape, stride, padding: lambda w: conv2d(x, w, stride, padding),
    argnums=(0, 1),
)


@primitive
def tanh(x: Array) -> Array:
    return np.tanh(x)


# Not autograd's own, which divides by cosh²: that overflows for |x| > 710, and its derivative there is NaN.
defvjp(tanh, lambda y, x: lambda dy: dy * ((1.0 + y) * (1.0 - y)))


class AutogradOps:
    """`hypertrail_nets.layers.Ops` on autograd.numpy: twice differentiable, float64 in, float64 out."""

    xp = np  # constants (dropout masks) need no derivative

    def conv2d(self, x: Array, w: Array, stride: int, padding: str) -> Array:
        return conv2d(x, w, stride, padding)

    def matmul(self, x: Array, w: Array) -> Array:
        return anp.matmul(x, w)

    def average_pool(self, x: Array, size: int) -> Array:
        b, h, w, c = x.shape
        return anp.mean(anp.reshape(x, (b, h // size, size, w // size, size, c)), axis=(2, 4))

    def global_average(self, x: Array) -> Array:
        return anp.mean(x, axis=(1, 2))

    def moments(self, x: Array) -> tuple[Array, Array]:
        axes = tuple(range(x.ndim - 1))
        mean = anp.mean(x, axis=axes)
        return mean, anp.mean((x - mean) ** 2, axis=axes)

    def normalize(self, x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        return (x - mean) / anp.sqrt(variance + epsilon)

    def relu(self, x: Array) -> Array:
        # Not maximum(x, 0): its derivative at 0 would be ½. The condition is written so that NaN stays NaN.
        return anp.where(x <= 0.0, 0.0, x)

    def tanh(self, x: Array) -> Array:
        return tanh(x)

    def concatenate(self, xs: list[Array]) -> Array:
        return anp.concatenate(xs, axis=-1)

    def flatten(self, x: Array) -> Array:
        return anp.reshape(x, (x.shape[0], -1))

    def cross_entropy(self, logits: Array, y: Array) -> Array:
        # The largest logit is taken off as a constant: the result does not depend on it, so its derivative is exactly 0.
        z = logits - getval(logits).max(axis=-1, keepdims=True)
        return anp.log(anp.sum(anp.exp(z), axis=-1)) - z[np.arange(len(y)), y]

    def drawn(self, x: Array) -> Array:
        return x


OPS = AutogradOps()
