"""What only the compiled engine has: OSGM, Clarke's truncated series, and descent along directions that no velocity holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import OSGM, Clarke, Dynamics, HypergradientDescent, LearningRate, NumericalFailure, Problem
from hypertrail.adapting import numpy_state
from hypertrail.outer import GradientDescent
from hypertrail_gpu.online import descent
from hypertrail_nets import softmax_regression


@dataclass(frozen=True, eq=False)
class Quadratic(Problem):
    """L = ½ Σ a w² on every batch, f = ½ Σ (w − 1)²; a = 1 … 8 by parameter."""

    def data_loss(
        self,
        ops: Any,
        weights: Any,
        x: Any,
        y: Any,
        step: Any,
        collect: Any = None,
        values: Any = None,
        key: Any = None,
    ) -> Any:
        return sum(0.5 * (curvature(p.shape) * weights[p.name] ** 2).sum() for p in self.params)

    def valid_loss(self, ops: Any, weights: Any, x: Any, y: Any) -> Any:
        return sum(0.5 * ((weights[p.name] - 1) ** 2).sum() for p in self.params)


def curvature(shape: tuple[int, ...]) -> np.ndarray:
    return np.linspace(1.0, 8.0, int(np.prod(shape))).reshape(shape)


@pytest.fixture(scope="module")
def quadratic() -> Any:
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=20, valid=20, select=0, test=5, seed=1)

    def quadratic(declared: Any, dynamics: Dynamics, steps: int) -> Problem:
        return Quadratic(
            network=softmax_regression((8, 8, 1), init_scale=0.5),
            splits=splits,
            schedule=hypertrail_data.BatchSchedule(20, 10, seed=2),
            steps=steps,
            hyperparameters=(declared,),
            dynamics=dynamics,
            seed=3,
            precision="float64",
        )

    return quadratic


def run(problem: Problem, method: Any) -> list:
    return list(gpu.adapt(problem, problem.initial_hyper(), method))


@pytest.mark.parametrize("level", ["network", "parameter"])
def test_osgm_with_adagrad_and_null_steps(quadratic, level):
    """α₀ is too large for the steepest directions, so that some steps are refused; P moves all the same."""
    declared = LearningRate(level, 0.4, bounds=(1e-3, 1.0))
    problem = quadratic(declared, Dynamics("damped", 0.4, 0.0), 12)
    (block,) = run(problem, OSGM(learning_rate=0.05, block=12))
    w = {p: np.asarray(one) for p, one in problem.initial_weights().items()}
    P: Any = {p: np.full(one.shape, 0.4) for p, one in w.items()}
    G: Any = dict.fromkeys(w, 0.0)
    refused = 0
    for loss in block.losses:
        a = {p: curvature(one.shape) for p, one in w.items()}
        f = sum(0.5 * np.sum(a[p] * w[p] ** 2) for p in w)
        assert loss == pytest.approx(f, rel=1e-12)
        g = {p: a[p] * w[p] for p in w}
        after = {p: w[p] - P[p] * g[p] for p in w}
        size = sum(np.sum(one**2) for one in g.values())
        h = {p: -a[p] * after[p] * g[p] / size for p in w}
        if level == "network":
            h = dict.fromkeys(h, sum(np.sum(one) for one in h.values()))
        G = {p: G[p] + h[p] ** 2 for p in w}
        P = {p: np.clip(P[p] - 0.05 * h[p] / (np.sqrt(G[p]) + 1e-12), 1e-3, 1.0) for p in w}
        if sum(0.5 * np.sum(a[p] * after[p] ** 2) for p in w) < f:
            w = after
        else:
            refused += 1
    assert 0 < refused < 12
    for p in w:
        np.testing.assert_allclose(block.state["w"][p], w[p], rtol=1e-10, atol=1e-14)
        rate = np.exp(block.hyper["learning_rate"]["network" if level == "network" else p])
        np.testing.assert_allclose(np.broadcast_to(rate, w[p].shape), np.broadcast_to(P[p], w[p].shape), rtol=1e-10)


def test_clarke_sums_the_series_at_one_place(quadratic):
    """h = Σ_{j ≤ J} (w − 1) A^j B with A = 1 − α (1−γ) a, B = α (γ v − (1−γ) a w) for ln α, v held; many terms: (1 − A)⁻¹."""
    α, γ = 0.1, 0.6
    for terms in (0, 3, 400):
        problem = quadratic(LearningRate("parameter", α), Dynamics("damped", α, γ), 4)
        method = Clarke(every=4, block=4, terms=terms, outer=GradientDescent(0.01), validation_batches=0)
        (block,) = run(problem, method)
        state = numpy_state(block.state)
        for name, w in state["w"].items():
            v, a = state["v"][name], curvature(w.shape)
            A, B = 1 - α * (1 - γ) * a, α * (γ * v - (1 - γ) * a * w)
            series = sum(A**j for j in range(terms + 1))
            h = block.gradient["learning_rate"][name]
            np.testing.assert_allclose(h, (w - 1) * series * B, rtol=1e-10, atol=1e-15)
            if terms == 400:
                np.testing.assert_allclose(h, (w - 1) / (1 - A) * B, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(block.hyper["learning_rate"][name], np.log(α) - 0.01 * h, rtol=1e-12)


def test_descent_along_the_tangent_of_the_update(quadratic, monkeypatch):
    """Where no velocity is the direction, the update's own derivative is: the same numbers for damped momentum."""
    dynamics = Dynamics("damped", 0.1, 0.6, schedule=((2, 0.5),))
    runs = []
    for known in (descent.VELOCITIES, {}):
        monkeypatch.setattr(descent, "VELOCITIES", known)
        problem = quadratic(LearningRate("layer", 0.1), dynamics, 6)
        runs.append(run(problem, HypergradientDescent("multiplicative", 0.05, block=3)))
    for one, other in zip(*runs, strict=True):
        for name in one.state["w"]:
            np.testing.assert_allclose(one.state["w"][name], other.state["w"][name], rtol=1e-12)
        for name, u in one.hyper["learning_rate"].items():
            np.testing.assert_allclose(u, other.hyper["learning_rate"][name], rtol=1e-12)
    assert all(np.abs(u - np.log(0.1)) > 1e-3 for u in runs[0][-1].hyper["learning_rate"].values())
    assert not runs[0][0].state["memory"]["direction"]
    assert runs[1][0].state["memory"]["direction"].keys() == runs[1][0].state["w"].keys()


def test_osgm_stops_where_a_trial_step_overflows(quadratic):
    """Before, P became NaN for good, every later step was refused, and w stood still without a word."""
    problem = quadratic(LearningRate("network", 1e308, bounds=(1e-3, 1e308)), Dynamics("damped", 0.4, 0.0), 4)
    with pytest.raises(NumericalFailure, match="hypergradient is not finite at step 1"):
        run(problem, OSGM(block=4))
