"""The operations of the shared network definitions, on jax.numpy.

Two of them are written for speed, both exact (measured in benchmarks/densenet.py): the 3×3 convolution on a CPU, whose
derivatives XLA computes several times slower than the matrix products they are; and the 1×1 convolution, which is one.
Batch statistics are needed once per feature map: that is in the network definition.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import devices

Array = Any


def plain_conv2d(x: Array, w: Array, stride: int, padding: Any) -> Array:
    """XLA's own convolution, (B, H, W, C) with (kh, kw, C, D) → (B, H', W', D)."""
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def conv2d_cpu(x: Array, w: Array) -> Array:
    """Convolution of stride 1 and padding 'same', written for XLA on a CPU as matrix products. The same function.

    XLA's own kernels are avoided where they are slow: the weight gradient takes 5 to 7 times as long as the one product in
    `_conv2d_backward`; the input gradient, as JAX derives it, swaps the kernel's axes, which inside a loop (every
    training step is inside one) misses the fast path and takes 12 times as long; and a forward pass from many channels to
    few takes 1.3 to 3 times as long as `from_products`.
    Reverse mode, and any mode over it (HVPs, forward mode over training steps); `jax.jvp` of the bare
    function is refused by JAX.
    """
    return _conv2d_forward(x, w)[0]


def _conv2d_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    kh, kw, c, d = w.shape
    # All taps at once make kh·kw·d numbers of each pixel's c: worth it while they are not many more (crossover measured).
    many_to_few = kh * kw * d <= 2 * c
    return from_products(x, w) if many_to_few else plain_conv2d(x, w, 1, same_padding(w.shape)), (x, w)


def _conv2d_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """dx[·, i, j, c] = Σ dy[·, i − a + low, j − e + low, d] w[a, e, c, d]   and
    dw[a, e, c, d] = Σ x[·, i, j, c] dy[·, i − a + low, j − e + low, d]: one product each, with the same shifted copies of dy.
    """
    x, w = saved
    kh, kw, c, d = w.shape
    shifted = side_by_side(dy, w.shape)
    dx = shifted @ w.transpose(0, 1, 3, 2).reshape(-1, c)
    dw = x.reshape(-1, c).T @ shifted
    return dx.reshape(x.shape), dw.reshape(c, kh, kw, d).transpose(1, 2, 0, 3)


conv2d_cpu.defvjp(_conv2d_forward, _conv2d_backward)


def same_padding(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros before and after each spatial axis, for stride 1 and output as large as input."""
    return [((k - 1) // 2, k - 1 - (k - 1) // 2) for k in shape[:2]]


def from_products(x: Array, w: Array) -> Array:
    """The convolution as one product of every pixel with all kernel taps, (BHW × C) with (C × taps·D), and the sum of its
    narrow columns, each shifted by its tap."""
    kh, kw, c, d = w.shape
    b, h, width, _ = x.shape
    products = (x.reshape(-1, c) @ w.transpose(2, 0, 1, 3).reshape(c, -1)).reshape(b, h, width, -1)
    padded = jnp.pad(products, [(0, 0), *same_padding(w.shape), (0, 0)])
    taps = [(a, e) for a in range(kh) for e in range(kw)]
    return sum(padded[:, a : a + h, e : e + width, n * d : (n + 1) * d] for n, (a, e) in enumerate(taps))


def side_by_side(dy: Array, shape: tuple[int, ...]) -> Array:
    """(B, H, W, D) → (BHW, taps·D): dy shifted once for each kernel tap, the narrow copies laid side by side."""
    kh, kw, _, d = shape
    h, width = dy.shape[1:3]
    padded = jnp.pad(dy, [(0, 0), *((high, low) for low, high in same_padding(shape)), (0, 0)])
    taps = [padded[:, kh - 1 - a :, kw - 1 - e :][:, :h, :width] for a in range(kh) for e in range(kw)]
    return jnp.concatenate(taps, axis=-1).reshape(-1, kh * kw * d)


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
        return jnp.where(x <= 0, jnp.zeros_like(x), x)  # the condition is written so that NaN stays NaN

    def tanh(self, x: Array) -> Array:
        return jnp.tanh(x)

    def concatenate(self, xs: list[Array]) -> Array:
        return jnp.concatenate(xs, axis=-1)

    def flatten(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1)

    def cross_entropy(self, logits: Array, y: Array) -> Array:
        picked = jnp.take_along_axis(logits, y[:, None].astype(jnp.int32), axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - picked

    def drawn(self, x: Array) -> Array:
        # Whole on every device: made in parts, its bits would be sent around, four bytes for each number and step.
        return devices.layout().whole(x)


OPS = JaxOps()
