"""DenseNet: the thesis' parameter counts, a closed formula, and the textbook network written independently."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail_nets import count_params, densenet, get_output, initial_params


@pytest.mark.parametrize(
    ("first_output", "trainable", "regularizable"), [(16, 1_019_722, 1_010_664), (40, 1_139_218, 1_129_224)]
)
def test_the_counts_of_the_thesis(first_output, trainable, regularizable):
    net = densenet(depth=40, growth=12, blocks=3, first_output=first_output)
    assert count_params(net, trainable=True) == trainable
    assert count_params(net, trainable=True, regularizable=True) == regularizable


def closed_formula(depth: int, growth: int, blocks: int, first: int, channels: int, classes: int) -> tuple[int, int]:
    """(all parameters, regularizable ones), summed per block in closed form."""
    n = (depth - blocks - 1) // blocks
    total, biases = 9 * channels * first, 0
    c = first
    for block in range(blocks):
        read = n * c + growth * n * (n - 1) // 2  # channels read by the n layers together
        total += read * (2 + 9 * growth)
        biases += read
        c += n * growth
        if block < blocks - 1:
            total += 2 * c + c * c
            biases += c
    total += 2 * c + (c + 1) * classes
    biases += c + classes
    return total, total - biases


@pytest.mark.parametrize(
    "sizes",
    [
        (40, 12, 3, 16, 3, 10),
        (100, 24, 3, 16, 3, 100),
        (22, 12, 3, 24, 3, 10),
        (11, 5, 2, 7, 4, 6),
        (7, 4, 3, 8, 1, 10),
        (5, 3, 1, 2, 3, 2),
    ],
)
def test_counts_follow_the_closed_formula(sizes):
    depth, growth, blocks, first, channels, classes = sizes
    net = densenet((32, 32, channels), classes, depth, growth, blocks, first)
    assert (count_params(net), count_params(net, regularizable=True)) == closed_formula(*sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": 41}, "depth 41 with 3 blocks.*40 and 43"),
        ({"depth": 4}, "depth 4 .*7 and 10"),
        ({"depth": 2}, "depth 2 .*7 and 10"),
        ({"blocks": 0}, "blocks 0"),
        ({"growth": 0}, "growth 0"),
        ({"first_output": 0}, "first_output 0"),
        ({"input_shape": (30, 30, 3)}, "15×15 is not a whole number of 2×2 tiles"),
        ({"dropout": 1.0}, "probability 1.0"),
    ],
)
def test_sizes_that_cannot_be_are_errors_with_their_numbers(sizes, message):
    with pytest.raises(ValueError, match=message):
        densenet(**sizes)


# The textbook, written from Huang et al. 2017 and sharing nothing with the package: batch norm with its own scale and
# bias on the concatenation of all raw maps, again in every layer; a convolution that loops over the taps of its kernel.


def convolution(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    k = w.shape[0]
    h, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    return sum(padded[:, i : i + h, j : j + width] @ w[i, j] for i in range(k) for j in range(k))


def norm_relu(maps: list[np.ndarray], scale: np.ndarray, bias: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    x = np.concatenate(maps, axis=-1)
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    seen.append(np.stack([mean, variance]))
    return np.maximum(scale * (x - mean) / np.sqrt(variance + 1e-4) + bias, 0)


def textbook(w: dict[str, np.ndarray], x: np.ndarray, blocks: int, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    seen: list[np.ndarray] = []
    h = convolution(x, w["first.conv/W"])
    for block in range(1, blocks + 1):
        maps = [h]
        for i in range(1, n + 1):
            name = f"block{block}.layer{i}"
            read = norm_relu(maps, w[f"{name}.affine/scale"], w[f"{name}.affine/bias"], seen)
            maps.append(convolution(read, w[f"{name}.conv/W"]))
        if block < blocks:
            name = f"transition{block}"
            read = norm_relu(maps, w[f"{name}.affine/scale"], w[f"{name}.affine/bias"], seen)
            h = convolution(read, w[f"{name}.conv/W"])
            h = (h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]) / 4
    h = norm_relu(maps, w["last.affine/scale"], w["last.affine/bias"], seen)
    return h.mean(axis=(1, 2)) @ w["logits/W"] + w["logits/b"], seen


@pytest.mark.parametrize(("depth", "growth", "blocks", "first"), [(13, 4, 3, 6), (9, 3, 2, 5), (6, 2, 1, 3)])
def test_the_once_normalised_net_is_the_textbook_net(ops, depth, growth, blocks, first):
    net = densenet((8, 8, 3), 10, depth, growth, blocks, first, dropout=0.2)
    rng = np.random.default_rng(0)
    w = {name: one + 0.3 * rng.normal(size=one.shape) for name, one in initial_params(net, rng).items()}
    x = rng.normal(size=(6, 8, 8, 3))
    collected: dict[str, np.ndarray] = {}
    ours = get_output(net, w, x, ops, deterministic=True, collect=collected)
    n = (depth - blocks - 1) // blocks
    theirs, seen = textbook(w, x, blocks, n)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())
    # The statistics of the last concatenation are those collected once per feature map.
    once = [[collected[f"block{blocks}.norm{i}/{what}"] for i in range(n + 1)] for what in ("mean", "variance")]
    np.testing.assert_allclose(np.stack([np.concatenate(one) for one in once]), seen[-1], rtol=1e-10, atol=1e-12)


def test_running_averages_replace_batch_statistics(ops):
    """With the batch's own statistics as running averages the output is the same; other examples then do not matter."""
    net = densenet((8, 8, 3), depth=10, growth=3, dropout=0.0)
    rng = np.random.default_rng(1)
    w = initial_params(net, rng)
    x = rng.normal(size=(5, 8, 8, 3))
    running: dict[str, np.ndarray] = {}
    batch = get_output(net, w, x, ops, collect=running)
    np.testing.assert_allclose(get_output(net, w, x, ops, running=running), batch, rtol=1e-12)
    alone = get_output(net, w, x[:1], ops, running=running)
    np.testing.assert_allclose(alone, batch[:1], rtol=1e-10)
    assert not np.allclose(get_output(net, w, x[:1], ops), batch[:1])


def test_float32_stays_float32(ops):
    net = densenet((8, 8, 3), depth=7)
    w = initial_params(net, np.random.default_rng(0), np.float32)
    x = np.zeros((2, 8, 8, 3), np.float32)
    assert get_output(net, w, x, ops, key=(np.uint32(0), np.uint32(1)), step=2).dtype == np.float32
