"""DrMAD's authors, CPU code under Python 2.7: sgd_meta_only_mad (C1), sgd4_mad and sgd_parsed_mad (C2), and their exact.

A perceptron 64-16-10, T = 100, γ = 58983/2^16, which their fixed point holds. `b_weights`: the fixed penalty of experiment 1 on
the weights. `b_biases`: on the biases too, as in their experiment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hypertrail as h
from hypertrail.methods import AsPublished

T, GAMMA = 100, 58983 / 2**16
FIRST = h.DrMAD("C1", first_batches=True)
# N = T, ρ from .001 to .999, the velocity of step 0 from the end of the line, dα from the line's velocity
SCHEDULES = h.DrMAD("C2", choices=AsPublished(inner_rho=True, end_velocity=True, line_dalpha=True))
# w_T and hypergradient. Their exact one comes from fixed point, ours from floats: they differ by the fill-in digits.
DIGITS = {FIRST: (14.0, 14.0), h.Exact(): (9.0, 8.4)}
METHODS = pytest.mark.parametrize(("key", "method"), [("mad", FIRST), ("exact", h.Exact())])


def log10(problem: Any, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    meta = problem.split(data["meta"])
    return {name: meta[name] / np.log(10) for name in problem.weights}


@METHODS
def test_a_penalty_for_each_weight(engine, perceptron, golden, meets, flat, key, method):
    data = golden("b_weights")
    problem = perceptron(T, (h.L2("parameter", 1e-3),), GAMMA)
    hyper = {"l2": log10(problem, data)}
    training = engine.train(problem, hyper, "memory")
    result = engine.hypergradient(problem, hyper, training, method)
    theirs = flat(problem.split(data[f"{key}_l2"]), problem.weights) * np.log(10)
    ends, gradients = DIGITS[method]
    meets("w_T", flat(training.final, problem.names), data[f"{key}_l2_x"], ends)
    meets("d log10 λ", flat(result.gradient["l2"], problem.weights), theirs, gradients)


@METHODS
@pytest.mark.parametrize(("file", "l2_on"), [("b_weights", "regularizable"), ("b_biases", "all")])
def test_their_experiment_1(engine, perceptron, golden, meets, flat, file, l2_on, key, method):
    """w = z eᵗ for each weight, with a fixed penalty e⁻⁴ on z."""
    data, weights = golden(file), golden("b_weights")
    penalty = float(np.exp(-4))
    problem = perceptron(T, (h.WeightTransform("parameter", 0.2),), GAMMA, l2=penalty, l2_on=l2_on)
    reached = {name for name, one in problem.split(data["l2_fixed"]).items() if np.all(one == penalty)}
    assert reached == set(problem.names if l2_on == "all" else problem.weights)
    start = problem.split(weights["transform"])
    hyper = {"transform": {name: start[name] for name in problem.weights}}
    training = engine.train(problem, hyper, "memory")
    result = engine.hypergradient(problem, hyper, training, method)
    ends, gradients = DIGITS[method]
    meets("w_T", flat(training.final, problem.names), data[f"{key}_t_x"], ends)
    theirs = flat(problem.split(data[f"{key}_t"]), problem.weights)
    meets("dt", flat(result.gradient["transform"], problem.weights), theirs, gradients)


@pytest.mark.parametrize(
    ("name", "level", "prefix", "given"),
    [("sgd4_mad", "network", "mad4", "1"), ("sgd_parsed_mad", "layer", "madp", "s")],
)
def test_schedules_of_rates_and_momenta(engine, perceptron, golden, meets, flat, name, level, prefix, given):
    """On the line to THEIR w_T, which came out of fixed point."""
    data = golden("b_weights")
    problem = perceptron(
        T,
        (
            h.L2("parameter", 1e-3),
            h.LearningRate(level, 0.1, per_step=True),
            h.Momentum(level, 0.9, per_step=True),
        ),
    )
    alphas, gammas = data[f"alpha{given}"].reshape(T, -1), np.nextafter(data[f"beta{given}"], 1).reshape(T, -1)
    keys = problem.names if level == "layer" else ["network"]
    hyper = {
        "l2": log10(problem, data),
        "learning_rate": {key: np.log(alphas[:, j]) for j, key in enumerate(keys)},
        "momentum": {key: np.log(gammas[:, j] / (1 - gammas[:, j])) for j, key in enumerate(keys)},
    }
    result = engine.hypergradient(problem, hyper, problem.given(data[f"{prefix}_x"]), SCHEDULES)
    rates = {kind: np.stack([result.gradient[kind][key] for key in keys], 1) for kind in ("learning_rate", "momentum")}
    slope = {"learning_rate": alphas, "momentum": gammas * (1 - gammas)}
    theirs = {"learning_rate": data[f"{prefix}_dalpha"], "momentum": data[f"{prefix}_dbeta"]}
    penalties = flat(problem.split(data[f"{prefix}_dmeta"]), problem.weights) * np.log(10)
    meets(f"{name} d log10 λ", flat(result.gradient["l2"], problem.weights), penalties, 14.0)
    meets(f"{name} dw_0", flat(result.initial_weights, problem.names), data[f"{prefix}_dx"], 14.0)
    for kind, quantity in (("learning_rate", "d ln α"), ("momentum", "d logit γ")):
        meets(f"{name} {quantity}", rates[kind], theirs[kind].reshape(T, -1) * slope[kind], 14.0)
