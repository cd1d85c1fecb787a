"""Initial scales, example weights and learned images: against autodiff of the unrolled loop, and by every way back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import (
    L2,
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    ExampleWeight,
    Forward,
    Implicit,
    InitialScale,
    LearningRate,
    Momentum,
    NumericalFailure,
    Reversible,
    TrainingInput,
    Truncated,
    UsageError,
)
from hypertrail_gpu.ops import OPS
from hypertrail_nets import get_output, mlp, softmax_regression

DECLARED = (
    ExampleWeight(init=0.7),
    TrainingInput(),
    InitialScale("unit", 1.3),
    L2("layer", 2e-2),
    LearningRate("network", 0.3),
    Momentum("layer", 0.8),
)


@dataclass(frozen=True)
class Repeating:
    """Batches of 4 rows with one of them twice; the next step shares two with this one."""

    examples: int = 6
    batch: int = 4
    steps_per_epoch: int = 3

    def indices(self, start: int, stop: int) -> np.ndarray:
        return np.stack([(2 * t + np.array([0, 1, 3, 1])) % 6 for t in range(start, stop)]).astype(np.int32)


@pytest.fixture(scope="module")
def problem(make):
    """Six examples of 2 × 2 pixels: few columns for forward mode, and a network with dropout that compiles fast."""
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=6, valid=60, select=0, test=20, seed=1)
    small = {n: replace(getattr(splits, n), x=getattr(splits, n).x[:, 3:5, 3:5]) for n in ("train", "valid", "test")}
    return make("mlp").with_(
        network=mlp((2, 2, 1), (5,), dropout=0.2, init_scale=0.3),
        splits=replace(splits, **small),
        schedule=Repeating(),
        hyperparameters=DECLARED,
        steps=6,
    )


@pytest.fixture(scope="module")
def exact(problem):
    hyper = problem.initial_hyper()
    training = gpu.train(problem, hyper, "memory")
    return hyper, training, gpu.hypergradient(problem, hyper, training, Exact())


def test_training_starts_from_the_scaled_weights(problem, exact):
    _, training, _ = exact
    for name, one in problem.initial_weights().items():
        np.testing.assert_allclose(training.initial[name], 1.3 * one, rtol=1e-15)
        np.testing.assert_array_equal(training.trajectory.read(0)[f"w/{name}"], training.initial[name])


def test_equals_autodiff_through_the_unrolled_loop(problem, exact, relative):
    hyper, _, result = exact

    def f(hyper: Any) -> Any:
        values = problem.values(hyper, jnp)
        w = {n: jnp.exp(hyper["initial_scale"][n]) * one for n, one in problem.initial_weights().items()}
        v = jax.tree.map(jnp.zeros_like, w)
        for t in range(problem.steps):
            rows = problem.schedule.indices(t, t + 1)[0]
            x, a = hyper["training_input"]["x"][rows], jax.nn.sigmoid(hyper["example_weight"]["train"][rows])

            def loss(w: Any, rows: Any = rows, x: Any = x, a: Any = a, t: int = t) -> Any:
                logits = get_output(problem.network, w, x, OPS, key=problem.noise_key, step=t)
                data = jnp.sum(a * OPS.cross_entropy(logits, problem.splits.train.y[rows])) / 4
                return data + problem.penalty(jnp, w, {"l2": values["l2"]})

            g = jax.grad(loss)(w)
            factor = problem.dynamics.factors(problem.steps)[t]
            for n in w:
                gamma = values["momentum"][n]
                v = v | {n: gamma * v[n] - (1 - gamma) * g[n]}
                w = w | {n: w[n] + factor * values["learning_rate"][n] * v[n]}
        xs, ys = problem.valid_batches()
        return sum(problem.valid_loss(OPS, w, x, y) for x, y in zip(xs, ys, strict=True)) / len(ys)

    with jax.enable_x64(True):
        value, expected = jax.jit(jax.value_and_grad(f))(jax.tree.map(jnp.asarray, hyper))
    assert result.hyper_loss == pytest.approx(float(value), rel=1e-12)
    for kind, one in expected.items():
        assert np.linalg.norm(np.concatenate([np.ravel(a) for a in one.values()])) > 1e-6
        assert relative(result.gradient[kind], one) < 1e-10, kind


@pytest.mark.parametrize(
    ("keep", "method", "tolerance"),
    [
        (Checkpoints(2), Exact(), 1e-12),
        # A state at every step: the line kernel fed with the true states
        pytest.param(Checkpoints(6), DrMAD("C6"), 1e-12, marks=pytest.mark.slow),
        ("ends", DrMAD("C5", tail=6), 1e-9),
        pytest.param("memory", Truncated(6), 1e-12, marks=pytest.mark.slow),
        ("ends", Forward(most=100), 1e-12),
        (Reversible(), Exact(), 1e-4),  # γ is rounded up to a fraction, by at most 1.5e-5
    ],
    ids=lambda one: getattr(one, "name", str(one)),
)
def test_every_way_back(problem, exact, relative, keep, method, tolerance):
    hyper, _, expected = exact
    result = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, keep), method)
    for kind, one in expected.gradient.items():
        assert relative(result.gradient[kind], one) < tolerance, kind


def test_second_meta_iteration_compiles_nothing(problem):
    hyper = problem.initial_hyper()

    def meta_iteration(hyper: Any) -> None:
        training = gpu.train(problem, hyper, "memory")
        for method in (Exact(), DrMAD("C4")):
            gpu.hypergradient(problem, hyper, training, method)
        gpu.evaluate(problem, training, "train")
        gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, Reversible()), Exact())

    meta_iteration(hyper)
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        meta_iteration({kind: {key: u + 0.1 for key, u in arrays.items()} for kind, arrays in hyper.items()})
        assert seen == []
        jax.jit(lambda x: 3 * x + 1)(1.0)
        assert seen, "this compiles, or the test sees nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize(
    ("method", "message"),
    [(Truncated(5), "never reaches w_0"), (Implicit(), "learning_rate and momentum and initial_scale")],
)
def test_ways_that_never_see_the_start_are_refused(problem, exact, method, message):
    hyper, training, _ = exact
    with pytest.raises(UsageError, match=message):
        gpu.hypergradient(problem, hyper, training, method)


@pytest.fixture(scope="module")
def without(problem):
    """Without rates, and with a momentum that is a fraction of 2^16 already."""
    return problem.with_(hyperparameters=DECLARED[:4], dynamics=Dynamics("damped", 0.3, 0.75, schedule=((4, 0.5),)))


def test_a_reversible_run_equals_a_stored_one_of_its_momentum(without, relative):
    hyper = without.initial_hyper()
    a, b = (gpu.hypergradient(without, hyper, gpu.train(without, hyper, k), Exact()) for k in (Reversible(), "memory"))
    for kind, one in b.gradient.items():
        assert relative(a.gradient[kind], one) < 1e-9, kind


@pytest.mark.parametrize("completion", ["C0", "C4"])
def test_lines_see_the_end(without, completion):
    """The gradient of ln σ is what the line leaves at w_0: ⟨dw_0, w_0⟩, unit by unit."""
    training = gpu.train(without, without.initial_hyper())
    result = gpu.hypergradient(without, without.initial_hyper(), training, DrMAD(completion))
    for name, one in training.initial.items():
        expected = (result.initial_weights[name] * one).reshape(-1, one.shape[-1]).sum(axis=0)
        np.testing.assert_allclose(result.gradient["initial_scale"][name], expected, rtol=1e-10)
    assert result.diagnostics["zero"] == []


def test_metrics_on_train_are_those_of_the_learned_images(problem):
    blank = problem.with_(hyperparameters=(TrainingInput(init=0.0),))
    training = gpu.train(blank, blank.initial_hyper())
    assert training.inputs.shape == problem.splits.train.x.shape
    assert not np.any(training.inputs)
    own = replace(training, inputs=None)
    assert gpu.evaluate(blank, training, "train") != gpu.evaluate(blank, own, "train")
    assert gpu.evaluate(blank, training, "test") == gpu.evaluate(blank, own, "test")


def test_a_start_beyond_the_fixed_point_is_caught(problem):
    large = problem.with_(hyperparameters=(InitialScale("network", 1e4, bounds=(1e-3, 1e5)),))
    with pytest.raises(NumericalFailure, match="w_0 left the fixed point range at step 0; int64 fixed point holds"):
        gpu.train(large, large.initial_hyper(), Reversible())


def test_implicit_by_the_formula(problem, relative):
    """−(∂²L/∂λ∂w)ᵀ (H + damping)⁻¹ ∇f with dense derivatives of L, written out; L has all examples, each with its weight."""
    softmax = problem.with_(
        network=softmax_regression((2, 2, 1)), hyperparameters=(ExampleWeight(init=0.7), TrainingInput()), l2=2e-2
    )
    hyper = softmax.initial_hyper()
    training = gpu.train(softmax, hyper)
    result = gpu.hypergradient(softmax, hyper, training, Implicit(damping=0.1, tolerance=1e-12))

    with jax.enable_x64(True):
        flat, restore = ravel_pytree(jax.tree.map(jnp.asarray, training.final))
        xs, ys = softmax.valid_batches()

        def loss(flat: Any, hyper: Any) -> Any:
            w, (x, a) = restore(flat), (hyper["training_input"]["x"], hyper["example_weight"]["train"])
            losses = OPS.cross_entropy(get_output(softmax.network, w, x, OPS), softmax.splits.train.y)
            return jnp.mean(jax.nn.sigmoid(a) * losses) + 2e-2 * jnp.sum(w["logits/W"] ** 2)

        def valid(flat: Any) -> Any:
            return sum(softmax.valid_loss(OPS, restore(flat), x, y) for x, y in zip(xs, ys, strict=True)) / len(ys)

        @jax.jit
        def formula(flat: Any, hyper: Any) -> Any:
            H = jax.hessian(loss)(flat, hyper) + 0.1 * jnp.eye(flat.size)
            p = jnp.linalg.solve(H, jax.grad(valid)(flat))
            return jax.grad(lambda hyper: -jnp.vdot(jax.grad(loss)(flat, hyper), p))(hyper)

        expected = formula(flat, hyper)
    for kind, one in expected.items():
        assert relative(result.gradient[kind], one) < 1e-10, kind
