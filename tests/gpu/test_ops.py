"""The two hand-shaped convolutions are the same functions as XLA's plain one, to second order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail_gpu.ops import OPS, conv2d_cpu, plain_conv2d


@pytest.mark.parametrize("channels", [3, 60], ids=["by-xla", "by-products"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_convolution_and_derivatives_equal_plain_ones(size, channels):
    rng = np.random.default_rng(size)
    with jax.enable_x64(True):
        x, w, dy = (
            jnp.array(rng.normal(size=s)) for s in ((2, 6, 7, channels), (size, size, channels, 4), (2, 6, 7, 4))
        )
        x_dot, w_dot = jnp.array(rng.normal(size=x.shape)), jnp.array(rng.normal(size=w.shape))

        def second_order(conv):
            def gradients(x, w):
                return jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w)) * dy), (0, 1))(x, w)

            return conv(x, w), *jax.jvp(gradients, (x, w), (x_dot, w_dot))

        ours = second_order(conv2d_cpu)
        theirs = second_order(lambda x, w: plain_conv2d(x, w, 1, "SAME"))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(1, 1, "valid"), (3, 2, "same"), (3, 1, "valid"), (1, 2, "same")]
)
def test_other_convolutions_are_xla_s(size, stride, padding):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 6, 6, 3)).astype("f"), rng.normal(size=(size, size, 3, 4)).astype("f")
    np.testing.assert_allclose(
        OPS.conv2d(x, w, stride, padding), plain_conv2d(x, w, stride, padding.upper()), rtol=1e-5, atol=1e-5
    )


def test_no_swapped_kernel_axes_inside_a_training_loop():
    """The slow form on a CPU is a convolution whose kernel axes are exchanged; none may be left in a loop of HVPs."""
    x, w = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 3))

    def f(w, x):
        return jnp.sum(jnp.tanh(OPS.conv2d(jnp.tanh(OPS.conv2d(x, w, 1, "same")), w, 1, "same")))

    def body(w, _):
        _, tangent = jax.linearize(lambda w: jax.grad(f)(w, x), w)
        return w + tangent(w), None

    compiled = jax.jit(lambda w: jax.lax.scan(body, w, None, length=4)[0]).lower(w).compile().as_text()
    assert "convolution(" in compiled
    assert "01oi" not in compiled


def test_relu_has_derivative_zero_at_zero_and_keeps_nan():
    x = jnp.array([-1.0, 0.0, -0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(OPS.relu(x), [0, 0, 0, 2, np.nan])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(OPS.relu(x)[:4]))(x), [0, 0, 0, 1, 0])
