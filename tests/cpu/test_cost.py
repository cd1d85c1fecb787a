"""What a method costs by definition, beside the calls that the reference engine makes for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L2,
    MARTHE,
    T1T2,
    Adaptive,
    Almeida,
    Checkpoints,
    Dynamics,
    Exact,
    FloatReversed,
    Forward,
    HypergradientDescent,
    Implicit,
    LearningRate,
    Momentum,
    Noise,
    Plain,
    Reversible,
    Truncated,
)
from hypertrail_cpu import forward, implicit, losses, providers, reverse, training
from hypertrail_cpu.online import rule, t1t2, tangents
from hypertrail_nets import mlp

SGD = Dynamics("damped", 0.2, 0.0)
DAMPED = Dynamics("damped", 0.2, 0.6)
NOISY = mlp((8, 8, 1), (6,), noise=True)


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often a step's gradient, a gradient apart from steps, a validation batch's and a product were asked for."""
    found: Counter[str] = Counter()

    def counted(module: Any, name: str, what: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            found[what] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    counted(training, "elementary_gradient", "step")
    for module in (reverse, providers, implicit):
        counted(module, "elementary_gradient", "apart")
    for module in (reverse, t1t2, implicit):
        counted(module, "second_order", "product")

    def tangents_of(*arguments: Any) -> Any:
        g, tangent = losses.gradient_tangents(*arguments)

        def counting(*way: Any) -> Any:
            found["product"] += 1
            return tangent(*way)

        return g, counting

    def hyper_gradient(problem: Any, w: Any, values: Any, batches: Any = None) -> Any:
        found["validation"] += len((problem.valid_batches() if batches is None else batches)[0])
        return losses.hyper_gradient(problem, w, values, batches)

    for module in (tangents, forward):
        monkeypatch.setattr(module, "gradient_tangents", tangents_of)
    for module in (rule, reverse, forward):
        monkeypatch.setattr(module, "hyper_gradient", hyper_gradient)
    return found


@pytest.mark.parametrize(
    ("declared", "dynamics", "method"),
    [
        ((L2(), LearningRate()), DAMPED, Plain(6)),
        ((L2(), LearningRate()), DAMPED, Adaptive(6, 2, 3)),
        ((L2(), LearningRate()), DAMPED, Adaptive(6, 0, 3, states="undone")),
        ((L2(),), DAMPED, T1T2(every=3, block=6)),
        ((L2(), Noise("unit", 0.3)), DAMPED, T1T2(every=3, block=6)),
        ((LearningRate(),), DAMPED, HypergradientDescent(block=6)),
        ((LearningRate("parameter"),), SGD, Almeida(block=6)),
        ((L2("network"), LearningRate()), DAMPED, MARTHE(every=2, block=6, validation_batches=0)),
    ],
    ids=str,
)
def test_a_block(make, calls, declared, dynamics, method):
    problem = make(dynamics=dynamics, steps=6).with_(network=NOISY, hyperparameters=declared)
    (block,) = cpu.adapt(problem, problem.initial_hyper(), method)
    assert block.cost.gradients == calls["step"] + calls["validation"]
    assert block.cost.hvps == calls["product"]
    assert calls["step"] == 6


@pytest.mark.parametrize(
    ("keep", "method"),
    [
        ("memory", Exact()),
        (Checkpoints(3), Exact()),
        (Checkpoints(3), Truncated(3)),
        (Reversible(), Exact()),
        ("memory", Truncated(2)),
        ("ends", FloatReversed()),
        ("ends", Forward()),
        ("ends", Implicit(damping=5.0)),
        ("ends", Implicit("neumann", damping=5.0)),
        ("ends", Implicit("dense", damping=5.0)),
    ],
    ids=str,
)
def test_a_hypergradient(make, calls, keep, method):
    """Gradients apart (for dα and dγ, to undo a step) are left out: each stands where a product stands too."""
    declared: tuple = (L2("layer", 1e-2),)
    if not isinstance(method, Implicit):
        declared += (LearningRate("network", 0.2), Momentum("network", 0.6))
    problem = make(dynamics=DAMPED, hyperparameters=declared).with_(network=mlp((8, 8, 1), (4,)))
    hyper = problem.initial_hyper()
    run = cpu.train(problem, hyper, keep)
    assert (run.cost.gradients, run.cost.hvps) == (6, 0)
    calls.clear()
    cost = cpu.hypergradient(problem, hyper, run, method).cost
    assert cost.gradients == calls["step"] + calls["validation"]
    assert cost.hvps == calls["product"] >= calls["apart"]
