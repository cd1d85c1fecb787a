"""RFHO, the released code of Franceschi et al. 2017 (TensorFlow): ReverseHG, ForwardHG and RTHO.

Digits, tanh networks 64-10 and 64-12-10, T = 40 steps of gradient descent, momentum and Adam; an L2 penalty per weight (reverse)
or one for the network (forward, and RTHO with a move every 10 steps), the learning rate, and μ where there is one. ε of the
elementary Adam is 1e-60, too small for its place to matter; the last test is about the place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hypertrail as h
from hypertrail.outer import Adam, GradientDescent
from hypertrail_cpu.training import gradient_at
from hypertrail_data import BatchSchedule
from hypertrail_nets import mlp

STEPS, EVERY = 40, 10
DYNAMICS = {"gd": ("heavy-ball", 0.1, 0.0), "momentum": ("heavy-ball", 0.1, 0.8), "adam": ("adam", 0.005, 0.9)}
NAMES = {"learning_rate": "lr", "l2": "lam", "momentum": "mu"}  # ours: theirs, in the order of their rows
# They ran the larger network with another ε of the outer Adam, which stands in its place as that of the elementary one.
OUTER = {
    ("64-10", "descent"): GradientDescent(0.05),
    ("64-12-10", "descent"): GradientDescent(0.05),
    ("64-10", "adam"): Adam(0.05, epsilon=1e-60, epsilon_place="uncorrected"),
    ("64-12-10", "adam"): Adam(0.05, epsilon=1e-14, epsilon_place="uncorrected"),
}


CASES = [(network, kind) for network in ("64-10", "64-12-10") for kind in DYNAMICS]


@pytest.fixture(scope="module")
def problem_of(golden, started, digits_splits) -> Callable[..., tuple[h.Problem, dict[str, np.ndarray]]]:
    """problem_of(network, kind, level of the penalty) → (the problem, what was recorded for it by their name)."""

    def problem_of(network: str, kind: str, level: str, **adam: Any) -> tuple[h.Problem, dict[str, np.ndarray]]:
        recorded = golden(f"d_{network}")
        dynamics, alpha, momentum = DYNAMICS[kind]
        declared: tuple = (h.L2(level, 1e-3), h.LearningRate("network", alpha))
        if kind == "momentum":
            declared += (h.Momentum("network", momentum),)
        schedule = BatchSchedule(160, 20, 2, order="reshuffled")
        np.testing.assert_array_equal(schedule.indices(0, STEPS), recorded["idx"])
        problem = started(
            recorded["x0"],
            network=mlp((8, 8, 1), tuple(recorded["sizes"][1:-1].tolist())),
            splits=digits_splits(*(recorded[key] for key in ("X", "T", "Xv", "Tv"))),
            schedule=schedule,
            steps=STEPS,
            hyperparameters=declared,
            dynamics=h.Dynamics(dynamics, alpha, momentum, **({"epsilon": 1e-60} | adam)),
            precision="float64",
        )
        front = f"{kind}_"
        of_kind = {key.removeprefix(front): one for key, one in recorded.items() if key.startswith(front)}
        return problem, recorded | of_kind

    return problem_of


@pytest.mark.fast_on_gpu(network="64-12-10", kind="momentum")
@pytest.mark.parametrize(("network", "kind"), CASES)
def test_reverse(engine, network, kind, problem_of, by_name, meets, flat):
    problem, theirs = problem_of(network, kind, "parameter")
    names = [p.name for p in problem.params]
    hyper = problem.initial_hyper() | {"l2": by_name(problem, theirs["lam_parameter"], "W")}
    training = engine.train(problem, hyper, "memory")
    result = engine.hypergradient(problem, hyper, training, h.Exact())
    meets("w_T", flat(training.final, names), theirs["rev_w"], 15)
    meets("f", result.hyper_loss, theirs["rev_f"], 15)
    meets("d log10 λ", flat(result.gradient["l2"], hyper["l2"]), theirs["rev_lam"], 14)
    meets("d ln α", result.gradient["learning_rate"]["network"], theirs["rev_lr"], 14)
    meets("dw_0", flat(result.initial_weights, names), theirs["rev_dw0"], 14)
    if kind == "momentum":
        meets("d logit μ", result.gradient["momentum"]["network"], theirs["rev_mu"], 14)


@pytest.mark.fast_on_gpu(network="64-12-10", kind="adam")
@pytest.mark.parametrize(("network", "kind"), CASES)
def test_forward(engine, network, kind, problem_of, meets, flat):
    problem, theirs = problem_of(network, kind, "network")
    hyper = problem.initial_hyper()
    training = engine.train(problem, hyper)
    gradient = engine.hypergradient(problem, hyper, training, h.Forward()).gradient
    meets("w_T", flat(training.final, [p.name for p in problem.params]), theirs["fwd_w"], 15)
    for ours, other in NAMES.items():
        if ours in gradient:
            meets(ours, gradient[ours]["network"], theirs[f"fwd_{other}"], 14)


@pytest.mark.fast_on_gpu(network="64-12-10", kind="adam", outer="adam")
@pytest.mark.parametrize("outer", ["descent", "adam"])
@pytest.mark.parametrize(("network", "kind"), CASES)
def test_rtho(engine, network, kind, outer, problem_of, meets, flat):
    """Four moves: the path of the hyperparameters, the hypergradients, and where the weights end."""
    problem, theirs = problem_of(network, kind, "network")
    method = h.RTHO(every=EVERY, block=EVERY, outer=OUTER[network, outer], validation_batches=0)
    blocks = list(engine.adapt(problem, problem.initial_hyper(), method))
    held = [ours for ours in NAMES if ours in blocks[0].hyper]
    path = [[float(block.hyper[ours]["network"]) for ours in held] for block in blocks]
    gradients = [[float(block.gradient[ours]["network"]) for ours in held] for block in blocks]
    meets("path of λ", path, theirs[f"rtho_{outer}_path"], 14)
    meets("hypergradients", gradients, theirs[f"rtho_{outer}_g"], 14)
    meets("w", flat(blocks[-1].state["w"], [p.name for p in problem.params]), theirs[f"rtho_{outer}_w"], 14)


def test_their_place_of_epsilon(engine, problem_of, meets, flat):
    """At their default ε = 1e-6 the two places are percents apart. With theirs switched on, the weights are those of their
    formula, α √(1−β₂^t) / (1−β₁^t) m / √(s + ε), written out here; and the two exact methods agree on the hypergradient."""
    problem, theirs = problem_of("64-10", "adam", "network", epsilon=1e-6, epsilon_place="uncorrected")
    hyper, names = problem.initial_hyper(), [p.name for p in problem.params]
    values, w = problem.values(hyper), problem.initial_weights()
    m = s = dict.fromkeys(names, 0.0)
    for t in range(STEPS):
        g = gradient_at(problem, values, w, t)[1]
        m = {name: 0.9 * m[name] + 0.1 * g[name] for name in names}
        s = {name: 0.999 * s[name] + 0.001 * g[name] ** 2 for name in names}
        rate = 0.005 * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        w = {name: w[name] - rate * m[name] / np.sqrt(s[name] + 1e-6) for name in names}
    training = engine.train(problem, hyper, "memory")
    meets("w_T", flat(training.final, names), flat(w, names), 14)
    reverse, forward = (
        engine.hypergradient(problem, hyper, training, method).gradient for method in (h.Exact(), h.Forward())
    )
    for kind in ("l2", "learning_rate"):
        meets(kind, reverse[kind]["network"], forward[kind]["network"], 11)
    ours, _ = problem_of("64-10", "adam", "network", epsilon=1e-6)
    apart = flat(engine.train(ours, hyper).final, names) - flat(w, names)
    assert np.linalg.norm(apart) > 0.01 * np.linalg.norm(flat(w, names) - theirs["x0"])
