"""Reference against compiled engine: two derivations of the same numbers, in float64, to 1e-10 relative.

The reference's adjoints are written by hand; the compiled engine takes them from jax.vjp and one linearisation of the gradient.
Only the network definitions and the statement of the losses are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import hypertrail_cpu as cpu
import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import (
    L1,
    L2,
    DrMAD,
    Dynamics,
    Exact,
    ExampleWeight,
    Forward,
    Implicit,
    InitialScale,
    InitialWeight,
    LearningRate,
    Momentum,
    Problem,
    TrainingInput,
    WeightTransform,
)
from hypertrail.hyperparameters import unbroadcast
from hypertrail.tolerances import tolerance
from hypertrail_cpu import losses as cpu_losses
from hypertrail_cpu.ops import OPS as CPU_OPS
from hypertrail_gpu import losses as gpu_losses
from hypertrail_gpu.compiled import precision
from hypertrail_gpu.ops import OPS as GPU_OPS
from hypertrail_nets import densenet, get_output, initial_running, lenet, mlp

TOLERANCE = tolerance("engines", "float64").epsilon

NETWORKS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: mlp((8, 8, 1), (20, 15), dropout=0.2),
    "lenet": lambda: lenet((8, 8, 1), maps=(4, 6), hidden=(16,), size=3, dropout=0.2),
    "densenet": lambda: densenet((8, 8, 1), depth=7, growth=4, blocks=2, first_output=6, dropout=0.2),
}
DECLARED = {
    "mlp": (
        L2("unit", 1e-2),
        L1("parameter", 1e-3),
        LearningRate("network", 0.2, per_step=True),
        Momentum("layer", 0.7),
    ),
    "lenet": (L2("network", 1e-2), L1("layer", 1e-3), LearningRate("parameter", 0.2), WeightTransform("input", 0.1)),
    "densenet": (L2("parameter", 1e-2), LearningRate("layer", 0.2), Momentum("network", 0.7, per_step=True)),
}


@pytest.fixture(scope="module")
def make() -> Callable[..., Problem]:
    splits = hypertrail_data.make_splits(
        hypertrail_data.load("digits"), train=200, valid=64, select=20, test=70, seed=4
    )

    @cache
    def make(network: str, kind: str = "damped") -> Problem:
        rate, schedule = {"damped": 0.4, "heavy-ball": 0.1}[kind], ((6, 0.5),)
        return Problem(
            NETWORKS[network](),
            splits,
            hypertrail_data.BatchSchedule(200, 20, seed=1, order="reshuffled"),
            steps=12,
            hyperparameters=DECLARED[network],
            dynamics=Dynamics(kind, rate, 0.7, schedule),
            valid_batch=32,
            seed=6,
            precision="float64",
        )

    return make


def assert_agree(a: Any, b: Any, what: str = "") -> None:
    """Nested dicts of arrays, each array to TOLERANCE of the norm of the larger whole it belongs to."""
    assert a.keys() == b.keys(), what
    if any(isinstance(one, dict) for one in a.values()):
        for key in a:
            assert_agree(a[key], b[key], f"{what} {key}")
        return
    whole = np.sqrt(sum(np.sum(np.square(one)) for one in b.values()))
    for key in a:
        assert np.shape(a[key]) == np.shape(b[key])
        difference = np.linalg.norm(np.ravel(a[key]) - np.ravel(b[key]))
        assert difference <= TOLERANCE * whole, f"{what} {key}: {difference / whole:.1e}"


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_in_all_three_passes(make, network):
    problem = make(network)
    w, x = problem.initial_weights(), problem.splits.train.x[:16].astype(np.float64)
    rng = np.random.default_rng(0)
    running = {k: v + rng.uniform(0, 0.5, v.shape) for k, v in initial_running(problem.network).items()}
    passes = (
        {"key": problem.noise_key, "step": 5},
        {"deterministic": True},
        {"deterministic": True, "running": running},
    )
    outputs = []
    for how in passes:
        a = get_output(problem.network, w, x, CPU_OPS, **how)
        with precision(problem):
            b = jax.jit(lambda w, x, how=how: get_output(problem.network, w, x, GPU_OPS, **how))(w, x)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        outputs.append(np.asarray(a))
    assert not np.allclose(outputs[0], outputs[1]), "dropout should make a difference here"


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_and_second_order_products(make, network):
    problem = make(network)
    w, values = problem.initial_weights(), problem.values(problem.initial_hyper())
    rng = np.random.default_rng(0)
    u = {name: rng.normal(size=one.shape) for name, one in w.items()}
    x, y = problem.splits.train.x[:16].astype(np.float64), problem.splits.train.y[:16]
    loss, g, statistics = cpu_losses.elementary_gradient(problem, w, values, x, y, 5)
    hvp, mixed = cpu_losses.second_order(problem, w, values, x, y, 5, u)
    with precision(problem):
        loss_c, g_c, statistics_c = jax.jit(lambda w: gpu_losses.elementary_gradient(problem, w, values, x, y, 5))(w)
        hvp_c, mixed_c = jax.jit(lambda w: gpu_losses.second_order(problem, w, values, x, y, 5, u))(w)
    assert loss == pytest.approx(float(loss_c), rel=TOLERANCE)
    assert_agree(g, g_c, "gradient")
    assert_agree(hvp, hvp_c, "HVP")
    # The reference hands out the terms of each weight, the compiled engine their sum over what shares a value.
    summed = {k: {n: unbroadcast(d, np.shape(mixed_c[k][n])) for n, d in one.items()} for k, one in mixed.items()}
    assert_agree(summed, {kind: mixed_c[kind] for kind in mixed}, "mixed")
    if statistics:
        assert_agree(statistics, statistics_c, "batch statistics")


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("mlp", "damped"),
        pytest.param("mlp", "heavy-ball", marks=pytest.mark.slow),
        pytest.param("lenet", "damped", marks=pytest.mark.slow),
        pytest.param("densenet", "damped", marks=pytest.mark.slow),
    ],
)
def test_training_and_hypergradients(make, network, kind):
    problem = make(network, kind)
    hyper = problem.initial_hyper()
    a, b = cpu.train(problem, hyper, "memory"), gpu.train(problem, hyper, "memory")
    np.testing.assert_allclose(a.losses, b.losses, rtol=TOLERANCE)
    np.testing.assert_allclose(a.distances, b.distances, rtol=TOLERANCE)
    for what in ("final", "weights", "velocity", "running"):
        if getattr(a, what):
            assert_agree(getattr(a, what), getattr(b, what), what)
    for t in (0, 7, 11):
        mine, theirs = a.trajectory.read(t), b.trajectory.read(t)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=TOLERANCE, atol=1e-12)
    assert cpu.hyper_loss(problem, a) == pytest.approx(gpu.hyper_loss(problem, b), rel=TOLERANCE)
    for split in ("train", "valid", "select", "test"):
        mine, theirs = cpu.evaluate(problem, a, split), gpu.evaluate(problem, b, split)
        assert (mine.error, mine.examples) == (theirs.error, theirs.examples)
        assert mine.loss == pytest.approx(theirs.loss, rel=TOLERANCE)

    # What each completion has no gradient for is refused by both engines alike; the rest must agree.
    methods = [Exact(), DrMAD("C1"), DrMAD("C4", multiplier=0.7)]
    if any(one.per_step for one in problem.hyperparameters):
        methods.pop()
    for method in methods:
        mine, theirs = (engine.hypergradient(problem, hyper, t, method) for engine, t in ((cpu, a), (gpu, b)))
        assert mine.diagnostics["N"] == theirs.diagnostics["N"]
        assert mine.hyper_loss == pytest.approx(theirs.hyper_loss, rel=TOLERANCE)
        assert_agree(mine.gradient, theirs.gradient, f"{method.name} hypergradient")
        assert_agree(mine.initial_weights, theirs.initial_weights, f"{method.name} dw_0")
        assert_agree(mine.initial_velocity, theirs.initial_velocity, f"{method.name} dv_0")
        np.testing.assert_allclose(mine.adjoint_norms, theirs.adjoint_norms, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=() if name == "mlp" else pytest.mark.slow) for name in NETWORKS]
)
def test_completions_on_penalties(make, network):
    """Penalties alone: every completion goes, C0 among them, and no velocity is kept."""
    problem = make(network).with_(hyperparameters=(L2("parameter", 1e-2), L1("layer", 1e-3)))
    hyper = problem.initial_hyper()
    a, b = cpu.train(problem, hyper), gpu.train(problem, hyper)
    methods = [DrMAD("C0"), DrMAD("C1"), DrMAD("C4")]
    if network == "mlp":
        methods.append(DrMAD("C1", first_batches=True))
    for method in methods:
        mine, theirs = cpu.hypergradient(problem, hyper, a, method), gpu.hypergradient(problem, hyper, b, method)
        assert mine.diagnostics["N"] == theirs.diagnostics["N"]
        assert np.any(mine.gradient["l2"]["logits/W"])
        assert_agree(mine.gradient, theirs.gradient, f"{method.name} hypergradient")


def test_initial_scales_example_weights_and_learned_images(make):
    """Exact, along lines and at a minimum; 200 images of 64 pixels, a weight for each, a scale for each unit."""
    declared = (InitialScale("unit", 1.2), ExampleWeight(init=0.7), TrainingInput(), L2("layer", 1e-2))
    problem = make("mlp").with_(network=mlp((8, 8, 1), (9,), dropout=0.2), hyperparameters=declared)
    hyper = problem.initial_hyper()
    a, b = cpu.train(problem, hyper, "memory"), gpu.train(problem, hyper, "memory")
    assert_agree(a.initial, b.initial, "w_0")
    np.testing.assert_allclose(a.inputs, b.inputs, rtol=TOLERANCE)
    assert cpu.evaluate(problem, a, "train").loss == pytest.approx(
        gpu.evaluate(problem, b, "train").loss, rel=TOLERANCE
    )
    for method in (Exact(), DrMAD("C1"), DrMAD("C4", multiplier=0.7)):
        mine, theirs = cpu.hypergradient(problem, hyper, a, method), gpu.hypergradient(problem, hyper, b, method)
        assert_agree(mine.gradient, theirs.gradient, f"{method.name} hypergradient")
        assert theirs.diagnostics["zero"] == []
    data = problem.with_(hyperparameters=declared[1:])
    hyper = data.initial_hyper()
    method = Implicit(damping=1.0, tolerance=1e-12)
    mine, theirs = cpu.hypergradient(data, hyper, a, method), gpu.hypergradient(data, hyper, b, method)
    assert_agree(mine.gradient, theirs.gradient, "implicit hypergradient")


def test_initial_weights_and_linear_example_weights(make):
    """Exact, along lines, forward and undone; the initial weights of every tensor, scaled and shifted."""
    declared = (InitialScale("layer", 1.2), InitialWeight("parameter", 0.05), ExampleWeight(representation="linear"))
    problem = make("mlp").with_(network=mlp((8, 8, 1), (9,), dropout=0.2), hyperparameters=declared)
    hyper = problem.initial_hyper()
    a, b = cpu.train(problem, hyper, "memory"), gpu.train(problem, hyper, "memory")
    assert_agree(a.initial, b.initial, "w_0")
    for method in (Exact(), DrMAD("C1"), DrMAD("C5", tail=3)):
        mine, theirs = cpu.hypergradient(problem, hyper, a, method), gpu.hypergradient(problem, hyper, b, method)
        assert_agree(mine.gradient, theirs.gradient, f"{method.name} hypergradient")
        assert np.any(theirs.gradient["initial_weight"]["dense1/b"])
        assert_agree(theirs.initial_weights, theirs.gradient["initial_weight"], "dw_0")
    few = problem.with_(hyperparameters=(InitialWeight("layer"), InitialScale("layer", 1.2)))
    hyper = few.initial_hyper()
    a, b = cpu.train(few, hyper), gpu.train(few, hyper)
    mine, theirs = cpu.hypergradient(few, hyper, a, Forward()), gpu.hypergradient(few, hyper, b, Forward())
    assert_agree(mine.gradient, theirs.gradient, "forward hypergradient")
