"""The operations: values against literal loops, derivatives against finite differences, first and second."""

from __future__ import annotations

import itertools

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

from hypertrail_cpu.ops import OPS, conv2d, conv2d_dw, conv2d_dx

# (stride, padding, image, kernel, channels): odd and even sizes, kernels of one tap and beyond the image, gaps between windows
CASES = [
    (stride, padding, image, kernel)
    for stride, padding, image, kernel in itertools.product(
        (1, 2, 3), ("same", "valid"), ((5, 4), (6, 7)), ((3, 3), (1, 1), (2, 3))
    )
]
EPS = 1e-5  # central differences in float64: error about eps² f‴ and 1e-16/eps


def literal(x: np.ndarray, w: np.ndarray, stride: int, padding: str) -> np.ndarray:
    """Cross-correlation, one multiplication at a time, with the padding rule of TensorFlow's documentation."""
    (b, h, width, c), (kh, kw, _, d) = x.shape, w.shape
    if padding == "same":
        out = [int(np.ceil(n / stride)) for n in (h, width)]
        lost = [max((o - 1) * stride + k - n, 0) // 2 for o, k, n in zip(out, (kh, kw), (h, width), strict=True)]
    else:
        out, lost = [int(np.ceil((n - k + 1) / stride)) for n, k in zip((h, width), (kh, kw), strict=True)], [0, 0]
    y = np.zeros((b, *out, d))
    for p, q, i, j in itertools.product(range(out[0]), range(out[1]), range(kh), range(kw)):
        row, column = p * stride + i - lost[0], q * stride + j - lost[1]
        if 0 <= row < h and 0 <= column < width:
            for one, f, channel in itertools.product(range(b), range(d), range(c)):
                y[one, p, q, f] += x[one, row, column, channel] * w[i, j, channel, f]
    return y


def arrays(image: tuple[int, int], kernel: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return 0.5 * rng.standard_normal((2, *image, 3)), rng.standard_normal((*kernel, 3, 2))


def slope(f, x: np.ndarray, direction: np.ndarray) -> float:
    return (f(x + EPS * direction) - f(x - EPS * direction)) / (2 * EPS)


def assert_gradient(f, x: np.ndarray, rel: float = 1e-6) -> None:
    """grad(f)(x) against a central difference in a random direction."""
    direction = np.random.default_rng(1).standard_normal(x.shape)
    expected = slope(f, x, direction)
    assert abs(expected) > 1e-5  # or the comparison would say nothing
    assert np.sum(grad(f)(x) * direction) == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize(("stride", "padding", "image", "kernel"), CASES)
def test_convolution_is_the_literal_sum(stride, padding, image, kernel):
    x, w = arrays(image, kernel)
    np.testing.assert_allclose(conv2d(x, w, stride, padding), literal(x, w, stride, padding), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("stride", "padding", "image", "kernel"), CASES)
def test_the_trio_are_adjoints_of_each_other(stride, padding, image, kernel):
    x, w = arrays(image, kernel)
    y = conv2d(x, w, stride, padding)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    form = np.sum(y * dy)
    assert np.sum(x * conv2d_dx(dy, w, x.shape, stride, padding)) == pytest.approx(form, rel=1e-12)
    assert np.sum(w * conv2d_dw(x, dy, w.shape, stride, padding)) == pytest.approx(form, rel=1e-12)


@pytest.mark.parametrize(("stride", "padding", "image", "kernel"), CASES)
def test_derivatives_of_convolution_first_second_and_third(stride, padding, image, kernel):
    """tanh between two convolutions by the same kernel makes every higher derivative different from zero."""
    x, w = arrays(image, kernel)
    w = w[..., :1] @ np.ones((1, 3)) / 3 + 0.1  # as many maps out as in, so that it can be applied twice

    def f(x, w):
        h = anp.tanh(conv2d(x, w, stride, padding))
        back = conv2d_dx(h, w, x.shape, stride, padding)
        return anp.mean(conv2d_dw(anp.tanh(back), h, w.shape, stride, padding) ** 3)

    u, r = np.random.default_rng(3).standard_normal(x.shape), np.random.default_rng(4).standard_normal(w.shape)
    assert_gradient(lambda x: f(x, w), x)
    assert_gradient(lambda w: f(x, w), w)
    assert_gradient(lambda w: anp.sum(grad(f, 0)(x, w) * u), w)  # mixed second
    assert_gradient(lambda x: anp.sum(grad(f, 0)(x, w) * u), x)
    assert_gradient(lambda w: anp.sum(grad(lambda v: anp.sum(grad(f, 0)(x, v) * u))(w) * r), w)


def test_same_padding_puts_the_smaller_half_first():
    """TensorFlow's rule: 4 pixels, kernel 3, stride 2: one zero, and it comes after."""
    x, w = np.arange(1.0, 5.0).reshape(1, 1, 4, 1), np.ones((1, 3, 1, 1))
    np.testing.assert_array_equal(conv2d(x, w, 2, "same").ravel(), [1 + 2 + 3, 3 + 4])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: OPS.average_pool(x, 2),
        OPS.global_average,
        OPS.tanh,
        OPS.flatten,
        lambda x: OPS.matmul(OPS.flatten(x), np.ones((48, 2)) / 48),
        lambda x: OPS.normalize(x, *OPS.moments(x), 1e-4),
        lambda x: OPS.concatenate([x, OPS.relu(x)]),
        lambda x: OPS.cross_entropy(OPS.global_average(x), np.array([0, 2])),
    ],
    ids=["average_pool", "global_average", "tanh", "flatten", "matmul", "normalize", "relu", "cross_entropy"],
)
def test_derivatives_of_the_other_operations(f):
    x = np.random.default_rng(5).standard_normal((2, 4, 4, 3))
    u = np.random.default_rng(6).standard_normal(x.shape)
    weigh = np.random.default_rng(7).standard_normal(f(x).shape)

    def scalar(x):
        return anp.sum(weigh * anp.exp(f(x)))

    assert_gradient(scalar, x)
    assert_gradient(lambda x: anp.sum(grad(scalar)(x) * u), x)


def test_moments_are_mean_and_biased_variance():
    x = np.random.default_rng(8).standard_normal((3, 2, 2, 4))
    mean, variance = OPS.moments(x)
    np.testing.assert_allclose(mean, x.reshape(-1, 4).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(variance, x.reshape(-1, 4).var(axis=0), rtol=1e-14)


def test_relu_has_derivative_zero_at_zero_and_keeps_nan():
    x = np.array([-1.0, 0.0, -0.0, 2.0])
    np.testing.assert_array_equal(grad(lambda x: anp.sum(OPS.relu(x)))(x), [0, 0, 0, 1])
    np.testing.assert_array_equal(OPS.relu(x), [0, 0, 0, 2])
    assert np.isnan(OPS.relu(np.array([np.nan])))[0]


def test_cross_entropy_is_stable_and_right():
    logits, y = np.array([[1.0, 2.0, 0.5], [1e4, 0.0, -1e4]]), np.array([2, 1], dtype=np.int32)
    expected = -0.5 + np.log(np.exp(1.0) + np.exp(2.0) + np.exp(0.5))
    np.testing.assert_allclose(OPS.cross_entropy(logits, y), [expected, 1e4], rtol=1e-14)
    slope = grad(lambda z: anp.sum(OPS.cross_entropy(z, y)))(logits)
    softmax = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(slope, [softmax - [0, 0, 1], [1, -1, 0]], atol=1e-15)


def test_second_derivative_of_a_saturated_tanh_is_zero():
    """Where cosh overflows, above 710."""
    x = np.array([-1e3, 0.5, 711.0])
    second = grad(lambda x: anp.sum(grad(lambda x: anp.sum(OPS.tanh(x)))(x)))(x)
    y = np.tanh(0.5)
    np.testing.assert_allclose(second, [0, -2 * y * (1 - y**2), 0], rtol=1e-14)
