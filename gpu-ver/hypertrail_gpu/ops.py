"""The operations of the shared network definitions, on jax.numpy.

Two of them are written for speed, both exact (reference: performance.md, measured again in benchmarks/densenet.py):
the 3×3 convolution on a CPU, whose weight gradient XLA computes 5 to 7 times slower than a matrix product; and the 1×1
convolution, which is one. Batch statistics are needed once per feature map: that is in the network definition.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = Any


def plain_conv2d(x: Array, w: Array, stride: int, padding: Any) -> Array:
    """XLA's own convolution, (B, H, W, C) with (kh, kw, C, D) → (B, H', W', D)."""
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def conv2d_cpu(x: Array, w: Array) -> Array:
    """Convolution of stride 1 and padding 'same' whose derivatives are written for XLA on a CPU. The same function.

    Two of XLA's choices are avoided. The weight gradient as a convolution takes 5 to 7 times as long as the one
    matrix product it is in `weight_gradient`. The input gradient, as JAX derives it, is a convolution with swapped
    kernel axes, which inside a loop (every training step here is inside one) misses XLA's fast path and takes 12 times as
    long; with a kernel flipped and transposed beforehand it does not.
    Reverse mode, and any mode over it (HVPs, forward mode over training steps); `jax.jvp` of the bare
    function is refused by JAX.
    """
    return plain_conv2d(x, w, 1, same_padding(w.shape))


def _conv2d_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain_conv2d(x, w, 1, same_padding(w.shape)), (x, w)


def _conv2d_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    flipped = w[::-1, ::-1].transpose(0, 1, 3, 2)
    mirrored = [(high, low) for low, high in same_padding(w.shape)]
    return plain_conv2d(dy, flipped, 1, mirrored), weight_gradient(x, dy, w.shape)


conv2d_cpu.defvjp(_conv2d_forward, _conv2d_backward)


def same_padding(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros before and after each spatial axis, for stride 1 and output as large as input."""
    return [((k - 1) // 2, k - 1 - (k - 1) // 2) for k in shape[:2]]


def weight_gradient(x: Array, dy: Array, shape: tuple[int, ...]) -> Array:
    """dw[a, e, c, d] = Σ x[·, i + a − low, j + e − low, c] dy[·, i, j, d], as one matrix product.

    The narrow dy is shifted once for each kernel tap and the shifted copies are laid side by side: (C × BHW) with
    (BHW × taps·D).
    """
    kh, kw, c, d = shape
    h, width = x.shape[1:3]
    pad = [(0, 0), *[(high, low) for low, high in same_padding(shape)], (0, 0)]
    z = jnp.pad(dy, pad)
    taps = [z[:, kh - 1 - a :, kw - 1 - e :][:, :h, :width] for a in range(kh) for e in range(kw)]
    dw = x.reshape(-1, c).T @ jnp.concatenate(taps, axis=-1).reshape(-1, kh * kw * d)
    return dw.reshape(c, kh, kw, d).transpose(1, 2, 0, 3)


class JaxOps:
    """Implements `hypertrail_nets.Ops`; shapes, dtypes and meanings are stated there."""

    xp = jnp

    def conv2d(self, x: Array, w: Array, stride: int, padding: str) -> Array:
        kh, kw, c, d = w.shape
        if (kh, kw, stride) == (1, 1, 1):
            return (x.reshape(-1, c) @ w.reshape(c, d)).reshape(*x.shape[:3], d)
        # Decided when the program is traced: cuDNN has its own good kernels for the weight gradient.
        if jax.default_backend() == "cpu" and stride == 1 and padding == "same":
            return conv2d_cpu(x, w)
        return plain_conv2d(x, w, stride, padding.upper())

    def matmul(self, x: Array, w: Array) -> Array:
        return x @ w

    def average_pool(self, x: Array, size: int) -> Array:
        b, h, w, c = x.shape
        return x.reshape(b, h // size, size, w // size, size, c).mean(axis=(2, 4))

    def global_average(self, x: Array) -> Array:
        return x.mean(axis=(1, 2))

    def moments(self, x: Array) -> tuple[Array, Array]:
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes)
        return mean, ((x - mean) ** 2).mean(axis=axes)

    def normalize(self, x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        return (x - mean) * lax.rsqrt(variance + epsilon)

    def relu(self, x: Array) -> Array:
        return jnp.where(x > 0, x, jnp.zeros_like(x))

    def tanh(self, x: Array) -> Array:
        return jnp.tanh(x)

    def concatenate(self, xs: list[Array]) -> Array:
        return jnp.concatenate(xs, axis=-1)

    def flatten(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1)

    def cross_entropy(self, logits: Array, y: Array) -> Array:
        picked = jnp.take_along_axis(logits, y[:, None].astype(jnp.int32), axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - picked


OPS = JaxOps()
