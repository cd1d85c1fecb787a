"""Kinds, representations, sharing levels, bounds; `collapse` is the adjoint of `expand`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail import (
    L1,
    L2,
    ExampleWeight,
    InitialScale,
    InitialWeight,
    LearningRate,
    Momentum,
    TrainingInput,
    UsageError,
    WeightTransform,
)
from hypertrail.hyperparameters import (
    KINDS,
    OF_EXAMPLES,
    Hyperparameter,
    OfExamples,
    collapse,
    count,
    expand,
    initial_hyper,
)
from hypertrail_nets import Parameter, densenet, get_all_params, get_noise_params, mlp

# Kernels, dense weights, scales and biases: every tag and every rank.
PARAMS = get_all_params(densenet((4, 4, 2), classes=3, depth=3, growth=2, blocks=1, first_output=4))
PARAMS += get_noise_params(mlp((4, 4, 2), (3,), noise=True))
STEPS = 3
IMAGES = np.random.default_rng(6).normal(size=(7, 4, 4, 2)).astype(np.float32)
ALL = [
    kind(level=level, per_step=per_step)
    for kind in KINDS.values()
    for level in kind.levels
    for per_step in ((False, True) if kind.steppable else (False,))
]
EPSILON = 1e-5  # central differences of smooth functions near 1: truncation ε², rounding 1e-16 / ε


def names(one: Hyperparameter) -> str:
    return f"{one.kind}-{one.level}{'-per-step' if one.per_step else ''}"


def random_arrays(one: Hyperparameter, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = initial_hyper([one], PARAMS, STEPS, IMAGES)[one.kind]
    return {key: u + 0.3 * rng.normal(size=u.shape) for key, u in arrays.items()}


def spread(one: Hyperparameter, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The value that acts on each scalar of each tensor: (*shape) or (T, *shape); of examples: the values as they are."""
    if one.kind in OF_EXAMPLES:
        return values
    shapes = {p.name: p.shape for p in PARAMS if one.reaches(p)}
    if one.per_step:
        return {n: np.stack([np.broadcast_to(values[n][t], s) for t in range(STEPS)]) for n, s in shapes.items()}
    return {n: np.broadcast_to(values[n], s) for n, s in shapes.items()}


def dot(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return sum(float(np.sum(a[k] * b[k])) for k in a)


@pytest.mark.parametrize("one", ALL, ids=names)
def test_collapse_is_the_adjoint_of_expand(one: Hyperparameter):
    """<expand'(u) δ, d> = <δ, collapse(d)>, the left side by central differences."""
    rng = np.random.default_rng(1)
    u, delta = random_arrays(one, 2), {k: rng.normal(size=a.shape) for k, a in random_arrays(one, 3).items()}
    ahead, behind = (
        spread(one, expand(one, {k: u[k] + sign * EPSILON * delta[k] for k in u}, PARAMS)) for sign in (1, -1)
    )
    d = {name: rng.normal(size=value.shape) for name, value in ahead.items()}
    left = (dot(ahead, d) - dot(behind, d)) / (2 * EPSILON)
    back = collapse(one, u, d)
    assert {k: a.shape for k, a in back.items()} == {k: a.shape for k, a in u.items()}
    np.testing.assert_allclose(dot(delta, back), left, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("one", ALL, ids=names)
def test_collapse_takes_adjoints_that_were_summed_already(one: Hyperparameter):
    """An engine may hand over d in the full shape or in the shape of the value; the result is the same."""
    u = random_arrays(one, 2)
    d = {n: np.random.default_rng(4).normal(size=v.shape) for n, v in spread(one, expand(one, u, PARAMS)).items()}
    front = 1 if one.per_step else 0

    def down(name: str, full: np.ndarray) -> np.ndarray:
        if one.kind in OF_EXAMPLES:
            return full
        shape = one.shape(next(p for p in PARAMS if p.name == name))
        padded = (1,) * (full.ndim - front - len(shape)) + shape
        axes = tuple(front + i for i, size in enumerate(padded) if size == 1)
        return full.sum(axis=axes).reshape(full.shape[:front] + shape)

    summed = collapse(one, u, {name: down(name, full) for name, full in d.items()})
    for key, full in collapse(one, u, d).items():
        np.testing.assert_allclose(summed[key], full, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("one", ALL, ids=names)
def test_expand_is_the_same_under_jax(one: Hyperparameter):
    u = random_arrays(one, 5)
    with jax.enable_x64(True):
        traced = jax.jit(lambda u: expand(one, u, PARAMS, jnp))(u)
        for name, value in expand(one, u, PARAMS).items():
            np.testing.assert_allclose(traced[name], value, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS.values())
def test_representation_inverse_and_slope(kind: type[Hyperparameter]):
    one = kind()
    u = float(one.free(one.init or 0.0 if kind is TrainingInput else one.init)) + np.linspace(-2.0, 2.0, 9)
    value = one.value(u)
    np.testing.assert_allclose(one.free(value), u, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.value(one.free(value)), value, rtol=1e-12)
    slope = (one.value(u + EPSILON) - one.value(u - EPSILON)) / (2 * EPSILON)
    np.testing.assert_allclose(one.slope(value) * np.ones_like(u), slope, rtol=1e-8)


def test_the_units_of_each_representation():
    np.testing.assert_allclose(L2().value(np.array(-4.0)), 1e-4)  # log10, the thesis
    np.testing.assert_allclose(L1().value(np.array(-4.0)), np.exp(-4.0))
    np.testing.assert_allclose(LearningRate().value(np.array(-1.0)), np.exp(-1.0))  # ln α and logit γ, Maclaurin et al.
    np.testing.assert_allclose(Momentum().value(np.array(0.0)), 0.5)
    np.testing.assert_allclose(Momentum().value(np.log(9.0)), 0.9)
    np.testing.assert_array_equal(WeightTransform().value(np.array([-1.0, 2.0])), [-1.0, 2.0])
    np.testing.assert_allclose(InitialScale().value(np.array([0.0, np.log(3.0)])), [1.0, 3.0])
    np.testing.assert_allclose(ExampleWeight().value(np.array([0.0, np.log(9.0)])), [0.5, 0.9])
    np.testing.assert_array_equal(TrainingInput().value(np.array([-1.0, 2.0])), [-1.0, 2.0])


def test_shapes_of_the_arrays_at_each_level():
    kernel = Parameter("c/W", (3, 3, 4, 5), PARAMS[0].initial, 36, frozenset({"trainable", "regularizable"}))
    bias = Parameter("c/b", (5,), PARAMS[0].initial, 36, frozenset({"trainable"}))
    shapes = {
        level: (
            WeightTransform(level=level).shape(kernel),
            LearningRate(level=level).shape(bias) if level != "input" else None,
        )
        for level in ("network", "layer", "unit", "input", "parameter")
    }
    assert shapes == {
        "network": ((), ()),
        "layer": ((), ()),
        "unit": ((5,), (5,)),
        "input": ((1, 1, 4, 1), None),
        "parameter": ((3, 3, 4, 5), (5,)),
    }


def test_penalties_reach_regularizable_tensors_only_and_dynamics_reach_all():
    names = {p.name for p in PARAMS if "noise" not in p.tags}
    weights = {p.name for p in PARAMS if "regularizable" in p.tags}
    matrices = {p.name for p in PARAMS if p.name.endswith("W")}
    assert matrices < weights < names
    for one in ALL:
        reached = set(expand(one, initial_hyper([one], PARAMS, STEPS, IMAGES)[one.kind], PARAMS))
        if one.kind in OF_EXAMPLES:
            assert not any(one.reaches(p) for p in PARAMS)
        elif one.kind == "noise":
            assert reached == {"noise0/std", "noise1/std"}
        elif one.level == "input":
            assert reached == matrices
        else:
            assert reached == (weights if one.penalty else names), one


def test_kinds_of_examples_have_a_row_for_each():
    declared = [ExampleWeight(init=0.2), TrainingInput()]
    hyper = initial_hyper(declared, PARAMS, STEPS, IMAGES)
    assert {kind: {key: u.shape for key, u in arrays.items()} for kind, arrays in hyper.items()} == {
        "example_weight": {"train": (7,)},
        "training_input": {"x": IMAGES.shape},
    }
    np.testing.assert_allclose(hyper["example_weight"]["train"], np.log(0.25))
    np.testing.assert_array_equal(hyper["training_input"]["x"], IMAGES)
    assert all(u.dtype == np.float64 for arrays in hyper.values() for u in arrays.values())
    blank = initial_hyper([TrainingInput(init=0.5)], PARAMS, STEPS, IMAGES)["training_input"]["x"]
    np.testing.assert_array_equal(blank, np.full(IMAGES.shape, 0.5))
    assert [kind for kind, c in KINDS.items() if issubclass(c, OfExamples)] == ["example_weight", "training_input"]
    with pytest.raises(UsageError, match=r"training_input: the images reach from -\d.* its bounds are \[0, 1\]; widen"):
        TrainingInput(bounds=(0.0, 1.0)).start(IMAGES)


def test_counts_of_what_moves():
    declared = [L2(), LearningRate(per_step=True), Momentum(level="layer")]
    hyper = initial_hyper(declared, PARAMS, STEPS)
    weights = sum(p.size for p in PARAMS if "regularizable" in p.tags)
    assert count(hyper) == weights + STEPS + sum("trainable" in p.tags for p in PARAMS)
    assert all(u.dtype == np.float64 for arrays in hyper.values() for u in arrays.values())
    assert set(hyper["learning_rate"]) == {"network"}
    np.testing.assert_allclose(hyper["learning_rate"]["network"], np.full(STEPS, np.log(0.1)))


@pytest.mark.parametrize(
    "one",
    [
        L2(),
        L1(),
        LearningRate(),
        Momentum(),
        WeightTransform(bounds=(-1.0, 2.0)),
        InitialScale(),
        InitialWeight(bounds=(-1.0, 2.0)),
        ExampleWeight(),
        TrainingInput(init=0.1, bounds=(-1.0, 2.0)),
    ],
    ids=names,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_keeps_values_within_bounds_and_leaves_the_rest_alone(one: Hyperparameter, dtype: type):
    free = float(one.free(one.init))
    u = np.array([free - 100.0, free, free + 100.0], dtype)
    clipped = one.project(u)
    assert clipped.dtype == dtype
    np.testing.assert_allclose(
        one.value(clipped.astype(np.float64))[[0, 2]], one.bounds, rtol=1e-5 if dtype is np.float32 else 1e-11
    )
    assert clipped[1] == u[1]


def test_unbounded_transform_is_not_clipped():
    u = np.array([-1e6, 0.0, 1e6])
    np.testing.assert_array_equal(WeightTransform().project(u), u)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: L2(level="tensor"), "'tensor'.*network, layer, unit, input, parameter"),
        (lambda: Momentum(level="parameter"), "momentum: level 'parameter'"),
        (lambda: LearningRate(level="input"), "learning_rate: level 'input'"),
        (lambda: L2(per_step=True), "l2: per_step"),
        (
            lambda: InitialScale(level="input"),
            "initial_scale: level 'input', expected one of network, layer, unit, parameter",
        ),
        (lambda: InitialScale(init=0.0, bounds=(0.0, 1.0)), "no finite representation; expected a positive number"),
        (lambda: ExampleWeight(level="layer"), "example_weight: level 'layer', expected one of example"),
        (lambda: ExampleWeight(init=1.0), r"init 1 lies outside its bounds \[0.0001, 0.9999\]"),
        (lambda: TrainingInput(level="example"), "training_input: level 'example', expected one of pixel"),
        (lambda: TrainingInput(init=2.0, bounds=(0.0, 1.0)), "init 2 lies outside"),
        (lambda: TrainingInput(bounds=(1.0, 0.0)), "expected the lower one first"),
        (lambda: ExampleWeight(per_step=True), "example_weight: per_step"),
        (lambda: L2(init=2.0), r"init 2 lies outside its bounds \[1e-09, 1\]"),
        (lambda: L2(init=0.0), "init 0 lies outside"),
        (lambda: L2(init=float("nan")), "init nan"),
        (lambda: L2(init=0.0, bounds=(0.0, 1.0)), "no finite representation; expected a positive number"),
        (
            lambda: L2(init=0.1, bounds=(-1.0, 1.0)),
            r"bounds \[-1, 1\] have no representation; expected a positive number",
        ),
        (lambda: Momentum(init=1.0, bounds=(0.0, 1.0)), "expected a number between 0 and 1"),
        (lambda: Momentum(init=0.5, bounds=(0.0, 2.0)), r"bounds \[0, 2\]"),
    ],
)
def test_declarations_that_cannot_be(build, message):
    with pytest.raises(UsageError, match=message):
        build()
