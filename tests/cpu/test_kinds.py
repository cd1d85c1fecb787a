"""Initial scales, example weights and learned images, by every way back that can give them, and by those that cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hypertrail_cpu as cpu
import hypertrail_data
from hypertrail import (
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    ExampleWeight,
    FloatReversed,
    Forward,
    Implicit,
    InitialScale,
    InitialWeight,
    Momentum,
    Reversible,
    TrainingInput,
    Truncated,
    UsageError,
)
from hypertrail_cpu.losses import hyper_gradient
from hypertrail_cpu.reversal import rounded
from hypertrail_cpu.training import gradient_at
from hypertrail_nets import mlp

EQUAL = 1e-12


def assert_near(a, b, tolerance):
    """Two hypergradients, each array to the largest entry of its kind."""
    for kind, arrays in b.gradient.items():
        size = max(np.abs(one).max() for one in arrays.values())
        assert size > 1e-6, kind
        for key, one in arrays.items():
            np.testing.assert_allclose(
                a.gradient[kind][key], one, rtol=0, atol=tolerance * size, err_msg=f"{kind} {key}"
            )


@pytest.fixture(scope="module")
def solved(make):
    problem = make("tanh", "examples")
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    return problem, hyper, training, cpu.hypergradient(problem, hyper, training, Exact())


def test_training_starts_from_the_scaled_weights(solved):
    problem, _, training, _ = solved
    for name, one in problem.initial_weights().items():
        np.testing.assert_allclose(training.initial[name], 1.3 * one, rtol=1e-15)
        np.testing.assert_array_equal(training.trajectory.read(0)[f"w/{name}"], training.initial[name])


def test_the_scale_of_a_tensor_of_zeros_has_no_gradient(solved):
    gradient = solved[3].gradient["initial_scale"]
    assert not np.any(gradient["dense1/b"])
    assert np.all(gradient["dense1/W"])


def test_examples_that_no_batch_holds_have_no_gradient(solved):
    problem, _, _, result = solved
    rows = problem.schedule.indices(0, problem.steps)
    held = np.zeros(120, dtype=bool)
    held[rows] = True
    assert 12 < held.sum() < 40
    for arrays in (result.gradient["example_weight"]["train"], result.gradient["training_input"]["x"]):
        np.testing.assert_array_equal(np.any(arrays.reshape(120, -1), axis=1), held)


@pytest.mark.parametrize(
    ("keep", "method"),
    [
        (Checkpoints(2), Exact()),
        (Checkpoints(6), DrMAD("C6")),
        ("ends", DrMAD("C5", tail=6)),
        ("ends", FloatReversed()),
        ("memory", Truncated(6)),
    ],
    ids=lambda one: getattr(one, "name", str(one)),
)
def test_ways_back_that_are_exact(solved, keep, method):
    """C6 is the line kernel fed with the true states; six steps undone in floats lose little."""
    problem, hyper, _, exact = solved
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep), method)
    assert_near(result, exact, 1e-9 if isinstance(method, FloatReversed) or method.name == "drmad-C5" else EQUAL)


def test_a_reversible_run_has_the_gradient_of_its_effective_momentum(solved):
    """w_0 is truncated to 2^-52: rounding, which the gradient does not see."""
    problem, hyper, _, _ = solved
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, Reversible()), Exact())
    effective, _ = rounded(problem, hyper)
    assert_near(result, cpu.hypergradient(effective, hyper, cpu.train(effective, hyper, "memory"), Exact()), 1e-8)


@pytest.mark.parametrize("completion", ["C0", "C1", "C2", "C4"])
def test_lines_go_and_see_the_end(make, completion):
    """The gradient of ln σ is what the line leaves at w_0: ⟨dw_0, w_0⟩."""
    declared = (ExampleWeight(), TrainingInput(), InitialScale("network", 1.3))
    problem = make("tanh", hyperparameters=declared, steps=20)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    result = cpu.hypergradient(problem, hyper, training, DrMAD(completion))
    expected = sum(np.sum(result.initial_weights[p] * one) for p, one in training.initial.items())
    assert expected != 0
    assert float(result.gradient["initial_scale"]["network"]) == pytest.approx(expected, rel=1e-10)
    assert result.diagnostics["zero"] == []


@pytest.mark.parametrize("dynamics", ["damped", "heavy-ball"])
def test_forward_equals_reverse(make, dynamics):
    """Six examples of 2 × 2 pixels, each in every second step."""
    whole = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=6, valid=40, select=0, test=0, seed=3)
    small = {name: replace(one, x=one.x[:, 3:5, 3:5]) for name, one in (("train", whole.train), ("valid", whole.valid))}
    problem = make("tanh", dynamics=dynamics).with_(
        network=mlp((2, 2, 1), (5,), dropout=0.2),
        splits=replace(whole, **small),
        schedule=hypertrail_data.BatchSchedule(6, 3, seed=5),
        hyperparameters=(
            ExampleWeight(init=0.7),
            TrainingInput(),
            InitialScale("layer", 1.5),
            Momentum("network", 0.6),
        ),
        steps=5,
    )
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact, result = (cpu.hypergradient(problem, hyper, training, one) for one in (Exact(), Forward()))
    assert result.diagnostics["columns"] == 6 + 6 * 4 + 4 + 1
    assert_near(result, exact, EQUAL)


# -- the initial weights themselves


def test_training_starts_from_the_shifted_weights_and_biases_move(make):
    """w_0 = σ · drawn + u; without u, a tensor that is drawn as zeros stays where it is."""
    problem = make("tanh", hyperparameters=(InitialScale("layer", 1.3), InitialWeight("unit", 0.1)))
    training = cpu.train(problem, problem.initial_hyper())
    for name, one in problem.initial_weights().items():
        np.testing.assert_allclose(training.initial[name], 1.3 * one + 0.1, rtol=1e-15)
    assert not np.any(problem.initial_weights()["dense1/b"])
    assert np.all(training.initial["dense1/b"] == 0.1)
    unmoved = make("tanh", hyperparameters=(InitialWeight(),))
    plain = make("tanh", hyperparameters=(InitialScale(),))
    a, b = (cpu.train(one, one.initial_hyper()) for one in (unmoved, plain))
    for name, one in a.final.items():
        np.testing.assert_array_equal(one, b.final[name])


@pytest.mark.parametrize(
    ("keep", "method"),
    [("memory", Exact()), (Checkpoints(2), Exact()), ("memory", Truncated(6)), ("ends", FloatReversed())],
    ids=str,
)
def test_its_hypergradient_is_the_adjoint_at_the_start(make, keep, method):
    problem = make("tanh", "weights at the start")
    hyper = problem.initial_hyper()
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep), method)
    for name, one in result.gradient["initial_weight"].items():
        np.testing.assert_array_equal(one, result.initial_weights[name])
        assert np.any(one), name  # of the biases too
    shared = make("tanh", hyperparameters=(InitialWeight("layer"),))
    hyper = shared.initial_hyper()
    result = cpu.hypergradient(shared, hyper, cpu.train(shared, hyper, "memory"), Exact())
    for name, one in result.gradient["initial_weight"].items():
        assert float(one) == pytest.approx(result.initial_weights[name].sum(), rel=1e-12)


def test_one_step_in_closed_form(make):
    """T = 1, damped: w_1 = w_0 − α (1−γ) g(w_0), so df/du = (I − α (1−γ) H) ∇f(w_1), H from differences of the gradient."""
    problem = make("tanh", hyperparameters=(InitialWeight(),), steps=1, dynamics=Dynamics("damped", 0.3, 0.6))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, "memory")
    result = cpu.hypergradient(problem, hyper, training, Exact())
    values, w = problem.values(hyper), training.initial
    _, df, _ = hyper_gradient(problem, training.final, values)

    def g(size: float) -> dict:
        return gradient_at(problem, values, {p: w[p] + size * df[p] for p in w}, 0)[1]

    up, down = g(1e-5), g(-1e-5)
    for p, one in result.gradient["initial_weight"].items():
        expected = df[p] - 0.3 * 0.4 * (up[p] - down[p]) / 2e-5
        np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dynamics", ["damped", "heavy-ball", "adam"])
def test_forward_mode_carries_the_shift_of_the_start(make, dynamics):
    declared = (InitialWeight("unit"), InitialScale("layer", 1.2))
    problem = make("tanh", dynamics=dynamics, hyperparameters=declared)
    problem = problem.with_(network=mlp((8, 8, 1), (4,), dropout=0.2))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, "memory")
    exact, result = (cpu.hypergradient(problem, hyper, training, one) for one in (Exact(), Forward()))
    assert_near(result, exact, EQUAL)
    alone = problem.with_(hyperparameters=declared[:1])
    hyper = alone.initial_hyper()
    training = cpu.train(alone, hyper, "memory")
    exact, result = (cpu.hypergradient(alone, hyper, training, one) for one in (Exact(), Forward()))
    assert_near(result, exact, EQUAL)


@pytest.mark.parametrize(
    ("method", "message"),
    [(Truncated(5), "no gradient for initial_weight; use exact"), (Implicit(), "no gradient for initial_weight")],
)
def test_ways_that_do_not_arrive_are_refused_for_the_weights_too(make, method, message):
    problem = make("tanh", hyperparameters=(InitialWeight(),))
    hyper = problem.initial_hyper()
    with pytest.raises(UsageError, match=message):
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, "memory"), method)


def test_linear_weights_of_one_are_a_training_without_weights(make):
    problem = make("tanh", hyperparameters=(ExampleWeight(init=1.0, representation="linear"), InitialScale("network")))
    plain = make("tanh", hyperparameters=(InitialScale("network"),))
    a, b = cpu.train(problem, problem.initial_hyper()), cpu.train(plain, plain.initial_hyper())
    for name, one in a.final.items():
        np.testing.assert_array_equal(one, b.final[name])


def test_images_as_they_are_change_nothing(make):
    plain = make("tanh")
    learned = make("tanh", hyperparameters=(*plain.hyperparameters, TrainingInput()))
    a, b = cpu.train(plain, plain.initial_hyper()), cpu.train(learned, learned.initial_hyper())
    for name, one in a.final.items():
        np.testing.assert_array_equal(one, b.final[name])
    assert a.inputs is None
    assert cpu.evaluate(plain, a, "train") == cpu.evaluate(learned, b, "train")


def test_metrics_on_train_are_those_of_the_learned_images(make):
    problem = make("tanh", hyperparameters=(TrainingInput(init=0.0),))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    assert training.inputs.shape == problem.splits.train.x.shape
    assert not np.any(training.inputs)
    blank = replace(problem.splits, train=replace(problem.splits.train, x=np.zeros_like(problem.splits.train.x)))
    plain = problem.with_(splits=blank)
    assert cpu.evaluate(problem, training, "train") == cpu.evaluate(plain, replace(training, inputs=None), "train")
    assert cpu.evaluate(problem, training, "test") == cpu.evaluate(problem, replace(training, inputs=None), "test")


def test_a_weight_of_one_half_halves_the_data(make):
    problem = make("tanh", hyperparameters=(ExampleWeight(),))
    plain = make("tanh", dynamics=replace(problem.dynamics, learning_rate=0.15))
    without = plain.with_(hyperparameters=(InitialScale("network"),))
    a, b = cpu.train(problem, problem.initial_hyper()), cpu.train(without, without.initial_hyper())
    for name, one in a.final.items():
        np.testing.assert_allclose(one, b.final[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("method", "message"),
    [(Truncated(5), "never reaches w_0"), (Implicit(), "no gradient for initial_scale; use exact")],
)
def test_ways_that_never_see_the_start_are_refused(make, method, message):
    problem = make("tanh", "start")
    with pytest.raises(UsageError, match=message):
        cpu.hypergradient(
            problem, problem.initial_hyper(), cpu.train(problem, problem.initial_hyper(), "memory"), method
        )
