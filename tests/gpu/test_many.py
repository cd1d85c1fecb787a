"""Runs side by side in one program find what they find one by one: in float64 to 1e-10."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import (
    DrMAD,
    Dynamics,
    Exact,
    ExampleWeight,
    Forward,
    InitialScale,
    Noise,
    NumericalFailure,
    TrainingInput,
    Truncated,
    UsageError,
)
from hypertrail_gpu import many
from hypertrail_nets import mlp

TOLERANCE = 1e-10
SEEDS = (3, 4)


def moved(problem, S):
    """Hyperparameters that differ from run to run, and from entry to entry."""
    rng = np.random.default_rng(0)
    first = problem.initial_hyper()
    return [
        {kind: {k: u + 0.1 * rng.normal(size=u.shape) for k, u in arrays.items()} for kind, arrays in first.items()}
        for _ in range(S)
    ]


def compare(problems, hypers, methods, relative, splits=("test",)):
    """Everything one by one and side by side."""
    trainings = many.train(problems, hypers, "memory")
    alone = [gpu.train(p, h, "memory") for p, h in zip(problems, hypers, strict=True)]
    for found, expected in zip(trainings, alone, strict=True):
        for name in ("initial", "final", "weights", "velocity"):
            assert relative(getattr(found, name), getattr(expected, name) or {"none": np.ones(1)}) <= TOLERANCE
        np.testing.assert_allclose(found.losses, expected.losses, rtol=TOLERANCE)
        np.testing.assert_allclose(found.distances, expected.distances, rtol=TOLERANCE)
        assert sorted(found.running) == sorted(expected.running)
        for name, one in expected.running.items():
            np.testing.assert_allclose(found.running[name], one, rtol=TOLERANCE)
    for method in methods:
        results = many.hypergradient(problems, hypers, trainings, method)
        for i, found in enumerate(results):
            expected = gpu.hypergradient(problems[i], hypers[i], alone[i], method)
            assert relative(found.gradient, expected.gradient) <= TOLERANCE, (method.name, i)
            assert relative(found.initial_weights, expected.initial_weights) <= TOLERANCE
            assert found.hyper_loss == pytest.approx(expected.hyper_loss, rel=TOLERANCE)
            np.testing.assert_allclose(found.adjoint_norms, expected.adjoint_norms, rtol=TOLERANCE)
            assert found.diagnostics == expected.diagnostics
            assert (found.method, found.cost.hvps) == (expected.method, expected.cost.hvps)
    for split in splits:
        for i, found in enumerate(many.evaluate(problems, trainings, split)):
            expected = gpu.evaluate(problems[i], alone[i], split)
            assert (found.error, found.examples) == (expected.error, expected.examples)
            assert found.loss == pytest.approx(expected.loss, rel=TOLERANCE)


def test_seeds_and_settings(make, relative):
    problems = many.seeds(make("mlp", "penalties", steps=40), SEEDS)  # dropout: the masks differ with the seed
    compare(problems, moved(problems[0], 2), [Exact()], relative)


def test_second_call_compiles_nothing_and_reads_trajectories_of_single_runs(make, relative):
    problem = make("mlp", "penalties", steps=40)
    problems = (problem, problem)  # two settings of one problem
    seen = []

    def listener(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    def once(hypers):
        trainings = many.train(problems, hypers, "memory")
        return trainings, many.hypergradient(problems, hypers, trainings, Exact())

    hypers = moved(problem, 4)
    once(hypers[:2])
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        _, results = once(hypers[2:])
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert seen == []
    alone = [gpu.train(problem, h, "memory") for h in hypers[2:]]
    again = many.hypergradient(problems, hypers[2:], alone, Exact())
    assert relative(again[1].gradient, results[1].gradient) <= TOLERANCE


def test_refusals(make, monkeypatch):
    problem = make("mlp", "penalties", steps=40)
    hypers = moved(problem, 2)
    with pytest.raises(UsageError, match="differ in dynamics"):
        many.train([problem, problem.with_(dynamics=Dynamics("damped", 0.1, 0.8))], hypers)
    smaller = hypertrail_data.BatchSchedule(160, 8, seed=2)
    with pytest.raises(UsageError, match=r"sizes of splits and batch, \(160, 60, 0, 45, 16\)"):
        many.train([problem, problem.with_(schedule=smaller)], hypers)
    with pytest.raises(UsageError, match="expected 'ends' or 'memory'"):
        many.train([problem, problem], hypers, "host")
    with pytest.raises(UsageError, match="expected exact, truncated"):
        many.hypergradient([problem], hypers[:1], [None], Forward())
    with pytest.raises(UsageError, match="expected exact, truncated"):
        many.hypergradient([problem], hypers[:1], [None], DrMAD("C0"))
    with pytest.raises(UsageError, match="2 / 1 problems and hyperparameters or trainings"):
        many.train([problem, problem], hypers[:1])
    monkeypatch.setattr(many, "free_memory", lambda: (1_000_000, 1_000_000))
    with pytest.raises(UsageError, match=r"2 runs side by side need about .* GB.*; run \d+ at a time"):
        many.train([problem, problem], hypers, "memory")


def test_failure_names_the_run(make):
    problem = make("mlp", "penalties", steps=40)
    hypers = moved(problem, 2)
    hypers[1]["l2"] = {key: u + 9 for key, u in hypers[1]["l2"].items()}  # λ = 10⁷: it diverges at once
    with pytest.raises(NumericalFailure, match="elementary loss of run 1 is not finite at step"):
        many.train((problem, problem), hypers, "memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "declared", "methods"),
    [
        ("lenet", "everything", [Exact(), DrMAD("C1"), DrMAD("C4")]),
        ("densenet", "penalties", [Exact()]),
        ("mlp", "per-step", [Exact(), Truncated(3), DrMAD("C2")]),
    ],
)
def test_every_network_and_kind(make, relative, network, declared, methods):
    problems = many.seeds(make(network, declared), SEEDS)
    compare(problems, moved(problems[0], 2), methods, relative, ("train", "test"))


@pytest.mark.slow
def test_what_lives_at_the_start_and_on_examples(make, relative):
    declared = (InitialScale("layer", 1.1), ExampleWeight(init=0.9), TrainingInput(), Noise("layer", 0.1))
    network = mlp((8, 8, 1), (12,), init_scale=0.3, noise=True)
    problems = many.seeds(make("mlp", "penalties").with_(network=network, hyperparameters=declared), SEEDS)
    compare(problems, moved(problems[0], 2), [Exact()], relative, ("train", "test"))


@pytest.mark.slow
def test_splits_of_their_own(make, relative):
    problem = make("mlp", "penalties")
    digits = hypertrail_data.load("digits")
    problems = [
        problem.with_(
            splits=hypertrail_data.make_splits(digits, train=160, valid=60, select=0, test=45, seed=s),
            schedule=replace(problem.schedule, seed=s),
            seed=s,
        )
        for s in SEEDS
    ]
    compare(problems, moved(problem, 2), [Exact(), DrMAD("C3")], relative, ("train", "test"))
