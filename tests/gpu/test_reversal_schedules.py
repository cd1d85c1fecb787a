"""Exact reversal with a momentum for each step: Maclaurin et al.'s own combination, section 3.1 by way of section 2.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import hypertrail_gpu as gpu
from hypertrail import (
    L2,
    Dynamics,
    Exact,
    LearningRate,
    Momentum,
    NumericalFailure,
    Problem,
    Reversible,
    UsageError,
    VerificationFailure,
    tolerances,
)
from hypertrail_gpu import reversal
from hypertrail_nets import mlp

pytestmark = pytest.mark.optimised

STEPS = 40
DECLARED = (
    L2("layer", 1e-2),
    LearningRate("layer", 0.1, per_step=True),
    Momentum("layer", 0.5, per_step=True),
)
DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "sixteenths": lambda rng, shape: rng.integers(1, 16, shape) / 16,
    "any": lambda rng, shape: rng.uniform(0.3, 0.95, shape),
    "some low": lambda rng, shape: np.where(rng.uniform(size=shape) < 0.2, 0.01, 0.9),
}


@pytest.fixture(scope="module")
def problem(make) -> Problem:
    changes = {"hyperparameters": DECLARED, "steps": STEPS, "dynamics": Dynamics("damped", 0.3, 0.5, ((20, 0.5),))}
    return make("mlp", "penalties", **changes).with_(network=mlp((8, 8, 1), (6,), dropout=0.2))


def at(problem: Problem, gammas: Any) -> Any:
    """The initial hyperparameters with other momenta, {tensor: (T,)} or one draw for all tensors."""
    if callable(gammas):
        rng = np.random.default_rng(5)
        gammas = {name: gammas(rng, (STEPS,)) for name in problem.initial_hyper()["momentum"]}
    return problem.initial_hyper() | {"momentum": {name: np.log(g) - np.log1p(-g) for name, g in gammas.items()}}


@pytest.mark.parametrize("draw", DRAWS)
def test_reversed_is_stored_at_the_effective_momenta(problem, relative, draw):
    """The pass itself asserts that it is back at w_0, v_0 = 0 and empty buffers, to the bit."""
    hyper = at(problem, DRAWS[draw])
    training = gpu.train(problem, hyper, Reversible())
    result = gpu.hypergradient(problem, hyper, training, Exact())
    kept = training.trajectory
    for name, u in hyper["momentum"].items():
        gamma = 1 / (1 + np.exp(-u))
        assert kept.momentum[name].shape == (STEPS,)
        assert np.all((kept.momentum[name] - gamma > -1e-15) & (kept.momentum[name] - gamma < 2.0**-16))
        if draw == "sixteenths":
            np.testing.assert_allclose(kept.momentum[name], gamma, rtol=1e-15)
    effective = at(problem, kept.momentum)
    stored = gpu.train(problem, effective, "memory")
    truth = gpu.hypergradient(problem, effective, stored, Exact())
    allowed = 1e-10 if draw == "sixteenths" else tolerances.reversible(STEPS, 0.95, 0.1).epsilon
    assert relative(training.final, stored.final) < allowed
    for kind in hyper:
        assert 0 < relative(result.gradient[kind], truth.gradient[kind]) < allowed, kind
    if draw == "some low":
        plain = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, "memory"), Exact())
        assert relative(result.gradient, plain.gradient) > 1e-6, "other momenta were asked for"


def test_nothing_compiles_when_the_momenta_move(problem):
    hyper = at(problem, DRAWS["any"])
    gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, Reversible()), Exact())
    seen = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        hyper = at(problem, DRAWS["some low"])
        training = gpu.train(problem, hyper, Reversible())
        gpu.hypergradient(problem, hyper, training, Exact())
        assert seen == []
        jax.jit(lambda x: x + 1.25)(1.0)
        assert seen != [], "or this test sees nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize("draw", DRAWS)
def test_buffers_are_put_aside_before_they_are_full_and_not_long_before(draw):
    """On Python's integers, which cannot overflow: B·d + (V mod d) stays below 2^62; one step more would pass 2^44."""
    rng = np.random.default_rng(6)
    n = np.ceil(DRAWS[draw](rng, (400,)) * 2**16).astype(np.int64)
    found = reversal.spans(400, {"a": n, "b": np.int64(58983)})
    assert [stop for _, stop in found[:-1]] == [start for start, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, 400)
    d = 2**16
    for start, stop in found:
        V, B = 2**60 - 1, 0
        for t in range(start, stop):
            wide = B * d + V % d
            assert wide < 2**62
            V, B = int(rng.integers(2**60)), wide // int(n[t])
        assert B < 2**45
        if stop < 400:
            b = 0.0
            for t in range(start, stop + 1):
                b = (b + 1) * d / n[t]
            assert b > 2**44


def test_one_momentum_for_all_steps_fills_a_buffer_by_the_formula():
    for gamma in (0.5, 0.9, 0.95):
        n = np.int64(np.ceil(gamma * 2**16))
        used = float(n) / 2**16
        K = int((62 - 16 - np.log2(1 / (1 - used)) - 1) / np.log2(1 / used))
        assert reversal.spans(1000, {"a": n})[0] == (0, K)


def test_a_momentum_that_was_changed_at_one_step_is_noticed(problem):
    hyper = at(problem, DRAWS["any"])
    training = gpu.train(problem, hyper, Reversible())
    training.trajectory.momentum["dense1/W"][7] += 2.0**-16
    with pytest.raises(VerificationFailure, match="did not come back"):
        gpu.hypergradient(problem, hyper, training, Exact())


def test_overflow_still_raises(problem):
    hyper = at(problem, DRAWS["any"])
    hyper["learning_rate"] = {name: u + np.log(1e6) for name, u in hyper["learning_rate"].items()}
    with pytest.raises(NumericalFailure, match=r"fixed point range|elementary loss"):
        gpu.train(problem, hyper, Reversible())


def test_a_momentum_of_one_step_that_rounds_up_to_one_is_refused(problem):
    hyper = at(problem, DRAWS["any"])
    hyper["momentum"]["dense1/W"][11] = 14.0
    with pytest.raises(UsageError, match=r"between 2\^-16 and 1 − 2\^-16, got 0\.999999"):
        gpu.train(problem, hyper, Reversible())
