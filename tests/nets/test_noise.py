"""Masks are pure functions of (seed, layer, step): the published bits, the same bits under both array libraries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail_nets.noise import dropout_mask, gaussian_noise, random_bits, threefry

KEY = (np.uint32(0x13198A2E), np.uint32(0x03707344))
ONES = 0xFFFFFFFF


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("rounds", "counter", "key", "expected"),
    [
        (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        (13, (ONES, ONES), (ONES, ONES), (0xFD36D048, 0x2D17272C)),
        (13, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
        (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        (20, (ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
        (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_random123(xp, rounds, counter, key, expected):
    """kat_vectors of Random123 (Salmon et al. 2011), lines `threefry2x32 13` and `threefry2x32 20`."""
    words = [xp.asarray(np.array([n], dtype=np.uint32)) for n in (*key, *counter)]
    x0, x1 = threefry(xp, (words[0], words[1]), (words[2], words[3]), rounds)
    assert x0.dtype == x1.dtype == np.uint32
    assert (int(x0[0]), int(x1[0])) == expected


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 3, 5), (1,)])
@pytest.mark.parametrize("p", [0.2, 0.7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_have_the_same_bits_under_numpy_and_jax(shape, p, dtype):
    """Traced step and untraced one alike."""
    traced = jax.jit(lambda step: dropout_mask(jnp, KEY, 3, step, shape, p, dtype))
    with jax.enable_x64(dtype is np.float64):
        for step in (0, 1, 70_000):
            reference = dropout_mask(np, KEY, 3, step, shape, p, dtype)
            assert reference.dtype == dtype
            assert reference.shape == shape
            for other in (traced(step), dropout_mask(jnp, KEY, 3, step, shape, p, dtype)):
                assert other.dtype == dtype
                np.testing.assert_array_equal(reference, np.asarray(other))
                np.testing.assert_array_equal(
                    random_bits(np, KEY, 3, step, shape), random_bits(jnp, KEY, 3, step, shape)
                )


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9])
def test_inverted_dropout_keeps_the_mean(p):
    n = 200_000
    mask = dropout_mask(np, KEY, 0, 5, (n,), p, np.float64)
    np.testing.assert_allclose(np.unique(mask), [1.0] if p == 0 else [0.0, 1 / (1 - p)])
    dropped = (mask == 0).mean()
    assert abs(dropped - p) <= 5 * np.sqrt(p * (1 - p) / n)  # five standard errors
    assert abs(mask.mean() - 1.0) <= 5 * np.sqrt(p / (1 - p) / n)


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 5), (0, 6)), ((0, 5), (1, 5)), ((0, 1), (1, 0)), ((2, 3), (3, 2))],
    ids=["next step", "next layer", "layer and step exchanged at 0", "exchanged"],
)
def test_masks_of_different_steps_and_layers_are_independent(one, other):
    n = 100_000
    a, b = (random_bits(np, KEY, stream, step, (n,)) / 2**16 - 0.5 for stream, step in (one, other))
    shifts = (0, 1, n // 4, n // 2)  # at the same element, at the neighbour, across the parts of one call
    for shift in shifts:
        correlation = np.mean(a * np.roll(b, shift)) * 12
        assert abs(correlation) < 5 / np.sqrt(n)
    assert np.mean(a == b) < 5 / 2**16


def test_bits_of_one_mask_are_uniform_and_uncorrelated():
    n = 100_000
    bits = random_bits(np, KEY, 0, 0, (n,))
    counts = np.array([(bits >> np.uint32(i) & np.uint32(1)).sum() for i in range(16)])
    assert np.all(np.abs(counts - n / 2) < 5 * np.sqrt(n) / 2)
    assert bits.max() < 2**16
    u = bits / 2**16 - 0.5
    for shift in (1, 2, n // 4, n // 2):
        assert abs(np.mean(u * np.roll(u, shift)) * 12) < 5 / np.sqrt(n)


def test_another_key_gives_another_mask():
    shape = (1000,)
    masks = [random_bits(np, (np.uint32(a), np.uint32(b)), 0, 0, shape) for a, b in ((0, 0), (0, 1), (1, 0))]
    assert len({m.tobytes() for m in masks}) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gaussian_noise_is_standard_normal_and_a_function_of_its_place(dtype):
    z = gaussian_noise(np, KEY, 3, 17, (200, 501), dtype)
    assert z.dtype == dtype
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    flat = z.ravel()
    assert abs(np.corrcoef(flat[: n // 2], flat[n // 2 : 2 * (n // 2)])[0, 1]) < 8 / np.sqrt(n), "the two of one pair"
    np.testing.assert_array_equal(z, gaussian_noise(np, KEY, 3, 17, (200, 501), dtype))
    for other in (gaussian_noise(np, KEY, 4, 17, (200, 501), dtype), gaussian_noise(np, KEY, 3, 18, (200, 501), dtype)):
        assert abs(np.corrcoef(flat, other.ravel())[0, 1]) < 4 / np.sqrt(n)


def test_gaussian_noise_under_jax_and_in_both_precisions():
    z = gaussian_noise(np, KEY, 3, 17, (7, 5), np.float64)
    with jax.enable_x64(True):
        traced = jax.jit(lambda step: gaussian_noise(jnp, KEY, 3, step, (7, 5), jnp.float64))(17)
    np.testing.assert_allclose(traced, z, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gaussian_noise(np, KEY, 3, 17, (7, 5), np.float32), z, rtol=1e-4, atol=1e-5)
