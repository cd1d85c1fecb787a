"""HIPS/hypergrad (Maclaurin, Duvenaud, Adams 2015): its optimisers sgd_parsed, sgd3 and sgd4, under Python 2.7.

A perceptron 64-16-10, T = 60, a learning rate and a momentum for each step and tensor, an L2 penalty for each weight. Every
momentum is a fraction n/2^16, which their fixed point and ours hold alike: they were given the float below it, as their
conversion adds 1 to n (docs/exact.md, deviation 2). Their derivatives are with respect to α, γ and ln λ; ours to ln α, logit γ
and log10 λ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hypertrail as h

T = 60
SCALE = 2.0**52  # of their fixed point


def asked(problem: Any, data: dict[str, np.ndarray], gammas: np.ndarray) -> h.Hyper:
    """The hyperparameters of a file, in our representation."""
    log10 = {name: one / np.log(10) for name, one in problem.split(data["meta"]).items()}
    return {
        "l2": {name: log10[name] for name in problem.weights},
        "learning_rate": {name: np.log(data["alphas"][:, j]) for j, name in enumerate(problem.names)},
        "momentum": {name: np.log(gammas[:, j] / (1 - gammas[:, j])) for j, name in enumerate(problem.names)},
    }


def states(problem: Any, data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(w, v), each (T, 1210), that their run went through. The file has v alone: w ← w + trunc(α v), in units of 2^-52."""
    x = (np.concatenate([a.ravel() for a in problem.initial_weights().values()]) * SCALE).astype(np.int64)
    path, sizes = [x], [p.size for p in problem.params]
    for alphas, v in zip(data["alphas"], [*data["vs"][1:], data["v_T"]], strict=True):
        path.append(path[-1] + (np.repeat(alphas, sizes) * v * SCALE).astype(np.int64))
    return np.array(path) / SCALE, data["vs"]


@pytest.fixture(scope="module")
def problem(perceptron) -> Any:
    return perceptron(
        T,
        (
            h.L2("parameter", 1e-3),
            h.LearningRate("layer", 0.1, per_step=True),
            h.Momentum("layer", 0.9, per_step=True),
        ),
    )


def compared(problem: Any, data: dict[str, np.ndarray], result: Any, flat: Any) -> dict[str, tuple[Any, Any]]:
    """{quantity: (ours, theirs)}, theirs taken to our representation."""
    alphas, gammas = data["alphas"], data["betas"]
    ours = {
        kind: np.stack([a[name] for name in problem.names], 1) for kind, a in result.gradient.items() if kind != "l2"
    }
    penalties = flat(problem.split(data["dmeta"]), problem.weights)
    return {
        "f": (result.hyper_loss, data["f"]),
        "dw_0": (flat(result.initial_weights, problem.names), data["dx"]),
        "d ln α": (ours["learning_rate"], data["dalpha"] * alphas),
        "d logit γ": (ours["momentum"], data["dbeta"] * gammas * (1 - gammas)),
        "d log10 λ": (flat(result.gradient["l2"], problem.weights), penalties * np.log(10)),
    }


# Their dα takes the velocity out of the fixed point, with the digits that the division by γ filled in; ours computes it from
# v and g. So d ln α has fewer digits, at their states too.
AT_THEIR_STATES = {"f": 14.0, "dw_0": 14.0, "d ln α": 9.5, "d logit γ": 14.0, "d log10 λ": 14.0}
OWN_RUN = {"f": 10.0, "dw_0": 8.5, "d ln α": 8.5, "d logit γ": 8.5, "d log10 λ": 8.5}


@pytest.mark.parametrize("file", ["a_fraction", "a_one_schedule"])
def test_exact_at_the_states_of_their_run(engine, problem, golden, meets, flat, file):
    data = golden(file)
    assert data["home"].all()  # their run came back to its beginning
    w, v = states(problem, data)
    result = engine.hypergradient(
        problem, asked(problem, data, data["betas"]), problem.given(w[T], w[:T], v), h.Exact()
    )
    for quantity, (ours, theirs) in compared(problem, data, result, flat).items():
        meets(quantity, ours, theirs, AT_THEIR_STATES[quantity])
    if file == "a_one_schedule":  # one α and one γ for all tensors: sgd4 and sgd3 give their sums
        rates = {k: np.stack([a[n] for n in problem.names], 1).sum(1) for k, a in result.gradient.items() if k != "l2"}
        alphas, gammas = data["alphas"][:, 0], data["betas"][:, 0]
        penalties = flat(result.gradient["l2"], problem.weights)
        for name, keys in (("sgd4", "four_d{}"), ("sgd3", "three_dMd_{}")):
            plural = "s" if name == "sgd3" else ""
            theirs = {key: data[keys.format(key)] for key in ("x", f"alpha{plural}", f"beta{plural}", "meta")}
            meets(f"{name} dw_0", flat(result.initial_weights, problem.names), theirs["x"], 14.0)
            meets(f"{name} d ln α", rates["learning_rate"], theirs[f"alpha{plural}"] * alphas, 9.5)
            meets(f"{name} d logit γ", rates["momentum"], theirs[f"beta{plural}"] * gammas * (1 - gammas), 14.0)
            meta = flat(problem.split(theirs["meta"]), problem.weights) * np.log(10)
            meets(f"{name} d log10 λ", penalties, meta, 14.0)
        meets("sgd3 dv_0", flat(result.initial_velocity, problem.names), data["three_dMd_v"], 14.0)
        assert data["four_home"].all()


@pytest.mark.parametrize("keep", ["memory", h.Reversible()], ids=["floats", "fixed point"])
@pytest.mark.parametrize("file", ["a_fraction", "a_one_schedule"])
def test_our_own_run(engine, problem, golden, meets, flat, file, keep):
    """In floats, and in fixed point, whose digits are filled in at other steps than theirs: both end 1e-10 from their w_T."""
    data = golden(file)
    gammas = np.nextafter(data["betas"], 1)  # the fraction itself
    hyper = asked(problem, data, gammas)
    training = engine.train(problem, hyper, keep)
    w, _ = states(problem, data)
    meets("w_T", flat(training.final, problem.names), w[T], 9.5)
    result = engine.hypergradient(problem, hyper, training, h.Exact())
    for quantity, (ours, theirs) in compared(problem, data, result, flat).items():
        meets(quantity, ours, theirs, OWN_RUN[quantity])
