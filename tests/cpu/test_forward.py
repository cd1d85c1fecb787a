"""Forward mode against reverse mode: two derivations by hand, one for tangents, one for adjoints."""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L1,
    L2,
    Dynamics,
    Exact,
    Forward,
    LearningRate,
    Momentum,
    NumericalFailure,
    Reversible,
    UsageError,
    WeightTransform,
)
from hypertrail_cpu.losses import elementary_gradient, gradient_tangents
from hypertrail_cpu.training import batch

EQUAL = 1e-12
MIXTURES = {
    "coarse": (
        L2("layer", 2e-2),
        L1("network", 3e-3),
        LearningRate("network", 0.2, per_step=True),
        Momentum("network", 0.6),
        WeightTransform("layer", 0.1),
    ),
    "fine": (
        L2("network", 2e-2),
        L1("layer", 3e-3),
        LearningRate("layer", 0.2),
        Momentum("layer", 0.6, per_step=True),
        WeightTransform("network", -0.1),
    ),
    "unit": (L2("unit", 1e-2), LearningRate("unit", 0.2)),
}


@pytest.mark.parametrize(
    ("network", "mixture", "dynamics"),
    [
        *(("tanh", mixture, dynamics) for mixture in MIXTURES for dynamics in ("damped", "heavy-ball")),
        *(("tanh", "fine", dynamics) for dynamics in ("nesterov", "damped-old", "adam")),
        ("tanh", "coarse", "adam"),
        ("densenet", "coarse", "damped"),
        ("densenet", "coarse", "heavy-ball"),
    ],
)
def test_forward_equals_reverse(make, network, mixture, dynamics):
    problem = make(network, dynamics=dynamics, hyperparameters=MIXTURES[mixture], steps=4)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact = cpu.hypergradient(problem, hyper, training, Exact())
    result = cpu.hypergradient(problem, hyper, training, Forward(most=500))
    assert result.hyper_loss == exact.hyper_loss
    for kind, arrays in exact.gradient.items():
        size = max(np.abs(one).max() for one in arrays.values())
        assert size > 1e-6
        assert {key: one.shape for key, one in result.gradient[kind].items()} == {k: u.shape for k, u in arrays.items()}
        for key, one in arrays.items():
            np.testing.assert_allclose(result.gradient[kind][key], one, rtol=0, atol=EQUAL * size, err_msg=key)


def test_record(make):
    """Nothing of the run is kept, and none of it is needed."""
    problem = make("tanh", hyperparameters=(L2("layer"), Momentum("network", 0.6)))
    hyper = problem.initial_hyper()
    calls = []
    training = cpu.train(problem, hyper)
    result = cpu.hypergradient(problem, hyper, training, Forward(), progress=lambda *c: calls.append(c))
    assert result.method == "forward"
    assert result.diagnostics == {"N": 6, "zero": [], "columns": 4}
    assert result.cost.hvps == 6 * 4
    assert result.cost.gradients == 6 + 2
    assert (result.initial_weights, result.initial_velocity) == ({}, {})
    assert result.adjoint_norms.shape == (0,)
    assert calls == [(6, 6)]


def test_many_columns_are_refused(make):
    problem = make("tanh", "penalties")
    hyper = problem.initial_hyper()
    with pytest.raises(UsageError, match="too many"):
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Forward())


def test_forward_of_a_reversible_run_has_its_effective_momentum(make):
    problem = make("tanh", hyperparameters=(L2("layer"), Momentum("network", 0.6)))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep=Reversible())
    a, b = (cpu.hypergradient(problem, hyper, training, one) for one in (Exact(), Forward()))
    for kind, arrays in a.gradient.items():
        for key, one in arrays.items():
            np.testing.assert_allclose(b.gradient[kind][key], one, rtol=1e-8)  # integers against floats, γ the same


def test_tangents_that_explode_are_caught(make):
    problem = make(
        "tanh", hyperparameters=(L2("network", 1.0, bounds=(1e-9, 1e300)),), dynamics=Dynamics("damped", 0.3, 0.6)
    )
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    hyper["l2"]["network"] = np.asarray(150.0)
    with pytest.raises(NumericalFailure) as caught:
        cpu.hypergradient(problem, hyper, training, Forward())
    assert caught.value.step <= 2


@pytest.mark.parametrize("network", ["tanh", "densenet"])
def test_tangent_of_the_gradient(make, scatter, network):
    """Weights, both penalties and the transform move at once."""
    problem = make(network, "fine")
    rng = np.random.default_rng(0)
    w = scatter(problem.initial_weights(), rng, 0.05)
    values = problem.values(scatter(problem.initial_hyper(), rng, 0.3))
    x, y = batch(problem, 2)
    w_dot = scatter({p: 0.0 * one for p, one in w.items()}, rng, 1.0)
    values_dot = scatter({kind: {p: 0.0 * one for p, one in a.items()} for kind, a in values.items()}, rng, 0.1)
    g, tangent = gradient_tangents(problem, w, values, x, y, 2)
    expected = elementary_gradient(problem, w, values, x, y, 2)[1]
    eps = 1e-6

    def moved(s):
        at = {kind: {p: one + s * eps * values_dot[kind][p] for p, one in a.items()} for kind, a in values.items()}
        return elementary_gradient(problem, {p: w[p] + s * eps * w_dot[p] for p in w}, at, x, y, 2)[1]

    up, down = moved(1), moved(-1)
    found = tangent(w_dot, values_dot)
    for p in w:
        np.testing.assert_allclose(g[p], expected[p], rtol=1e-12, atol=1e-15)
        slope = (up[p] - down[p]) / (2 * eps)
        np.testing.assert_allclose(found[p], slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max() + 1e-9)
