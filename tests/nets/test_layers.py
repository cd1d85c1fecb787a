"""The layer vocabulary: shapes, tags, order, first values, errors that give the numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hypertrail_nets import (
    count_params,
    densenet,
    get_all_layers,
    get_all_params,
    get_noise_params,
    get_output,
    initial_params,
    initial_running,
    lenet,
    mlp,
    softmax_regression,
)
from hypertrail_nets.initial import Normal
from hypertrail_nets.layers import (
    AveragePool,
    BatchNorm,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    GlobalAverage,
    Input,
    Layer,
    Nonlinearity,
    Pass,
    ScaleBias,
)
from hypertrail_nets.noise import gaussian_noise


def test_params_come_in_the_order_of_the_layers_with_their_tags():
    net = mlp((4,), (3,), classes=2)
    params = get_all_params(net)
    assert [(p.name, p.shape, p.size, p.fan_in) for p in params] == [
        ("dense1/W", (4, 3), 12, 4),
        ("dense1/b", (3,), 3, 4),
        ("logits/W", (3, 2), 6, 3),
        ("logits/b", (2,), 2, 3),
    ]
    assert [p.name for p in get_all_params(net, regularizable=True)] == ["dense1/W", "logits/W"]
    assert [p.name for p in get_all_params(net, regularizable=False)] == ["dense1/b", "logits/b"]
    assert get_all_params(net, trainable=False) == []
    assert count_params(net, trainable=True, regularizable=False) == 5


def test_scale_is_regularizable_and_bias_is_not():
    net = densenet((8, 8, 3), depth=7)
    regularizable = {p.name.rsplit("/")[-1] for p in get_all_params(net, regularizable=True)}
    assert regularizable == {"W", "scale"}
    assert {p.name.rsplit("/")[-1] for p in get_all_params(net, regularizable=False)} == {"bias", "b"}


def test_an_unknown_tag_is_an_error():
    with pytest.raises(ValueError, match="regularisable"):
        get_all_params(mlp((4,), ()), regularisable=True)


def test_every_layer_comes_after_what_it_reads():
    layers = get_all_layers(densenet((8, 8, 3), depth=10, blocks=3))
    place = {id(layer): i for i, layer in enumerate(layers)}
    assert len(place) == len(layers)
    assert all(place[id(below)] < place[id(layer)] for layer in layers for below in layer.incoming)


def test_a_layer_name_used_twice_is_an_error():
    once = Dense(Input((3,)), 2, "one")
    with pytest.raises(ValueError, match="one"):
        get_all_layers(Dense(once, 2, "one"))


def test_a_net_far_deeper_than_the_recursion_limit(ops):
    depth = 1500
    net = mlp((2,), (1,) * depth, classes=2)
    assert len(get_all_layers(net)) == 2 * depth + 2
    assert count_params(net) == (2 + 1) + (depth - 1) * 2 + (2 + 2)
    params = initial_params(net, np.random.default_rng(0))
    assert get_output(net, params, np.ones((1, 2)), ops).shape == (1, 2)


def test_first_values_are_reproducible_and_cast_from_float64():
    net = lenet((12, 12, 1), size=3)
    first, second = (initial_params(net, np.random.default_rng(7)) for _ in range(2))
    other = initial_params(net, np.random.default_rng(8))
    single = initial_params(net, np.random.default_rng(7), np.float32)
    assert list(first) == [p.name for p in get_all_params(net)]
    for p in get_all_params(net):
        assert first[p.name].shape == p.shape
        assert first[p.name].dtype == np.float64
        np.testing.assert_array_equal(first[p.name], second[p.name])
        assert single[p.name].dtype == np.float32
        np.testing.assert_array_equal(single[p.name], first[p.name].astype(np.float32))
        if p.name.endswith("W"):
            assert not np.array_equal(first[p.name], other[p.name])


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(Dense(Input((300,)), 400, "d"), 300), (Conv2D(Input((8, 8, 64)), 128, 3, "c", bias=True), 9 * 64)],
    ids=["dense", "conv"],
)
def test_he_standard_deviation(layer: Layer, fan_in: int):
    weights = initial_params(layer, np.random.default_rng(0))
    w, b = (next(v for k, v in weights.items() if k.endswith(role)) for role in ("W", "b"))
    expected = np.sqrt(2 / fan_in)
    # The standard error of a sample's standard deviation is σ / √(2n), that of its mean σ / √n; 5 of them are allowed.
    assert abs(w.std() - expected) < 5 * expected / np.sqrt(2 * w.size)
    assert abs(w.mean()) < 5 * expected / np.sqrt(w.size)
    np.testing.assert_array_equal(b, 0.0)


def test_init_scale_draws_weights_and_biases():
    net = mlp((200,), (200,), init_scale=np.exp(-3))
    assert all(p.initial == Normal(np.exp(-3)) for p in get_all_params(net))
    b = initial_params(net, np.random.default_rng(0))["dense1/b"]
    assert abs(b.std() - np.exp(-3)) < 5 * np.exp(-3) / np.sqrt(2 * b.size)


def test_running_averages_start_at_mean_0_variance_1():
    running = initial_running(densenet((8, 8, 3), depth=7, first_output=5), np.float32)
    norms = [f"block{b}.norm{i}" for b in (1, 2, 3) for i in (0, 1)]
    assert sorted(running) == sorted(f"{n}/{what}" for n in norms for what in ("mean", "variance"))
    assert running["block1.norm0/mean"].shape == (5,)
    assert all(v.dtype == np.float32 and np.all(v == (0 if k.endswith("mean") else 1)) for k, v in running.items())


def test_lenet_5_has_its_61706_parameters():
    assert count_params(lenet((28, 28, 1))) == 156 + 2416 + 48120 + 10164 + 850 == 61706


def test_softmax_regression_is_linear(ops):
    net = softmax_regression((4, 4, 1), classes=3)
    w = initial_params(net, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(5, 4, 4, 1))
    np.testing.assert_allclose(get_output(net, w, x, ops), x.reshape(5, 16) @ w["logits/W"], rtol=1e-14)


def test_mlp_by_hand(ops):
    net = mlp((4,), (3, 3), classes=2, nonlinearity="relu")
    w = {k: v + 0.1 for k, v in initial_params(net, np.random.default_rng(0)).items()}
    x = np.random.default_rng(1).normal(size=(5, 4))
    h = x
    for name in ("dense1", "dense2"):
        h = np.clip(h @ w[f"{name}/W"] + w[f"{name}/b"], 0, None)
    np.testing.assert_allclose(get_output(net, w, x, ops), h @ w["logits/W"] + w["logits/b"], rtol=1e-13)


def test_every_layers_output_has_the_shape_it_declares(ops):
    nets = [lenet((12, 10, 2), size=3), densenet((8, 8, 3), depth=10), mlp((2, 3, 1), (5,), dropout=0.1)]
    image = Conv2D(Input((9, 7, 2)), 3, 3, "strided", stride=2)
    nets += [image, Conv2D(Input((9, 7, 2)), 3, 3, "valid", stride=2, padding="valid", bias=True)]
    for net in nets:
        x = np.random.default_rng(0).normal(size=(2, *get_all_layers(net)[0].shape))
        w = initial_params(net, np.random.default_rng(0))
        values = {}
        how = Pass(ops, w, dropout=False, key=None, step=0, running=None, collect=None)
        for layer in get_all_layers(net):
            inputs = [values[id(i)] for i in layer.incoming]
            values[id(layer)] = x if isinstance(layer, Input) else layer.forward(inputs, how)
            assert values[id(layer)].shape == (2, *layer.shape), layer.name


def test_a_batch_of_the_wrong_shape_is_an_error_with_both_shapes(ops):
    net = mlp((4, 4, 1), ())
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(B, 4, 4, 1\)"):
        get_output(net, initial_params(net, np.random.default_rng(0)), np.zeros((2, 4, 4)), ops)


def test_the_constructors_refuse_what_cannot_be():
    flat, image = Input((6,)), Input((6, 6, 2))
    cases = [
        (lambda: Dense(flat, 0, "d"), "0 units"),
        (lambda: Conv2D(flat, 3, 3, "c"), r"\(6,\)"),
        (lambda: Conv2D(image, 3, 3, "c", padding="full"), "'full'"),
        (lambda: Conv2D(image, 0, 3, "c"), "filters 0"),
        (lambda: Conv2D(image, 3, 7, "c", padding="valid"), "7×7 kernel does not fit into 6×6"),
        (lambda: AveragePool(image, 4, "p"), "6×6 is not a whole number of 4×4"),
        (lambda: AveragePool(flat, 2, "p"), r"\(6,\)"),
        (lambda: GlobalAverage(flat, "p"), r"\(6,\)"),
        (lambda: Dropout(flat, 1.0, "d"), "1.0"),
        (lambda: Nonlinearity(flat, "elu", "n"), "'elu'"),
        (lambda: Concatenate((image, Input((6, 5, 2))), "c"), r"\(6, 5, 2\)"),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()


def test_batch_and_running_statistics(ops):
    net = ScaleBias(BatchNorm(Input((3, 3, 2)), "norm"), "affine")
    w = {"affine/scale": np.array([2.0, 3.0]), "affine/bias": np.array([-1.0, 1.0])}
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 3, 3, 2))
    seen: dict[str, np.ndarray] = {}
    y = get_output(net, w, x, ops, collect=seen)
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), w["affine/bias"], atol=1e-12)
    np.testing.assert_allclose(seen["norm/mean"], x.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(seen["norm/variance"], x.var(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), w["affine/scale"], rtol=1e-4)  # ε = 1e-4 beside a variance of 4
    again: dict[str, np.ndarray] = {}
    np.testing.assert_array_equal(get_output(net, w, x, ops, running=seen, collect=again), y)
    assert again == {}, "running averages were used, there are no batch statistics to collect"
    shifted = {"norm/mean": seen["norm/mean"] + 1.0, "norm/variance": seen["norm/variance"]}
    drop = w["affine/scale"] / np.sqrt(seen["norm/variance"] + 1e-4)
    np.testing.assert_allclose(y - get_output(net, w, x, ops, running=shifted), np.broadcast_to(drop, y.shape))


def test_dropout_layers_have_their_own_streams():
    net = densenet((8, 8, 3), depth=10)
    streams = [layer.stream for layer in get_all_layers(net) if isinstance(layer, Dropout)]
    assert streams == list(range(2 * 3 + 2)), "one for each layer of a block and one for each transition"
    assert not any(isinstance(layer, Dropout) for layer in get_all_layers(densenet((8, 8, 3), depth=10, dropout=0.0)))


def test_a_stochastic_pass_needs_a_key_and_a_deterministic_one_ignores_it(ops):
    net = mlp((4,), (50,), dropout=0.5)
    w = initial_params(net, np.random.default_rng(0))
    x = np.ones((3, 4))
    key = (np.uint32(1), np.uint32(2))
    with pytest.raises(ValueError, match="dropout1"):
        get_output(net, w, x, ops)
    off = get_output(net, w, x, ops, deterministic=True)
    np.testing.assert_array_equal(off, get_output(net, w, x, ops, deterministic=True, key=key, step=3))
    on = [get_output(net, w, x, ops, key=key, step=step) for step in (3, 3, 4)]
    np.testing.assert_array_equal(on[0], on[1])
    assert all(not np.array_equal(a, b) for a, b in pairwise([off, on[0], on[2]]))


def test_noise_layers_add_what_their_std_says_in_training_only(ops):
    network = mlp((4,), (3,), dropout=0.2, noise=True)
    layers = {layer.name: layer for layer in get_all_layers(network)}
    assert [layers[name].stream for name in ("noise0", "noise1", "dropout1")] == [0, 1, 2]
    assert [(p.name, p.shape) for p in get_noise_params(network)] == [("noise0/std", (4,)), ("noise1/std", (3,))]
    assert not any("std" in p.name for p in get_all_params(network)), "a std is no parameter"
    w = initial_params(network, np.random.default_rng(0))
    x, key = np.ones((2, 4)), (np.uint32(1), np.uint32(2))
    std = np.array([0.0, 1.0, 2.0, 3.0])

    def first(params, **how):
        return get_output(layers["noise0"], params, x, ops, **how)

    np.testing.assert_array_equal(first(w, key=key, step=5), x)
    np.testing.assert_array_equal(first({**w, "noise0/std": std}, deterministic=True), x)
    noise = gaussian_noise(np, key, 0, 5, (2, 4), np.float64)
    np.testing.assert_array_equal(first({**w, "noise0/std": std}, key=key, step=5), x + std * noise)
    with pytest.raises(ValueError, match="noise0: a stochastic pass needs key"):
        first({"noise0/std": std})
