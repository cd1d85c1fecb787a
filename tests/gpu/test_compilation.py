"""Nothing is compiled twice: not in a second meta-iteration, not for another N, not for other hyperparameter values."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

import hypertrail_gpu as gpu
from hypertrail import L2, DrMAD, Dynamics, Exact, Momentum, Reversible
from hypertrail_gpu import compiled as compiled_module


@pytest.fixture
def compilations():
    """A list that grows by one entry for every program XLA compiles."""
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


def meta_iteration(problem, hyper, methods, tmp_path):
    training = gpu.train(problem, hyper, "memory")
    results = [gpu.hypergradient(problem, hyper, training, method) for method in methods]
    gpu.evaluate(problem, training, "train")
    gpu.hyper_loss(problem, training)
    return results


def test_second_meta_iteration_compiles_nothing(make, compilations, tmp_path):
    problem = make("mlp", "penalties", steps=40)
    hyper = problem.initial_hyper()
    methods = [Exact(), DrMAD("C0"), DrMAD("C4")]
    first = meta_iteration(problem, hyper, methods, tmp_path)
    assert compilations, "the first call compiles, or this test sees nothing"
    compilations.clear()
    moved = {kind: {name: u + 1.3 for name, u in arrays.items()} for kind, arrays in hyper.items()}
    second = meta_iteration(problem, moved, methods, tmp_path)
    assert first[2].diagnostics["N"] != second[2].diagnostics["N"], "the line should change its length here"
    assert compilations == []


def test_other_seeds_and_examples_compile_nothing(make, compilations, tmp_path, relative):
    """A new problem object that differs in what it draws alone: the same numbers as from programs of its own."""
    problem = make("mlp", "penalties", steps=40)  # with dropout: the masks have the new seed as well
    hyper = problem.initial_hyper()
    methods = [Exact(), DrMAD("C0"), DrMAD("C4"), DrMAD("C5", tail=6)]
    first = meta_iteration(problem, hyper, methods, tmp_path)
    turned = {
        n: replace(getattr(problem.splits, n), x=getattr(problem.splits, n).x[::-1].copy()) for n in ("train", "valid")
    }
    for other in (problem.reseeded(91), problem.with_(splits=replace(problem.splits, **turned))):
        compilations.clear()
        results = meta_iteration(other, hyper, methods, tmp_path)
        assert compilations == []
        again = other.with_(valid_batch=other.valid_batch)  # once more, with nothing remembered
        compiled_module._remembered.clear()
        alone = meta_iteration(again, hyper, methods, tmp_path)
        assert compilations != []
        for one, expected, unlike in zip(results, alone, first, strict=True):
            assert relative(one.gradient, expected.gradient) == 0.0
            assert relative(one.gradient, unlike.gradient) > 1e-3, "another seed, another gradient"
        meta_iteration(problem, hyper, methods, tmp_path)  # remembered again


def moved(hyper, by):
    return {kind: {name: u + by for name, u in arrays.items()} for kind, arrays in hyper.items()}


@pytest.mark.parametrize(("keep", "method"), [("ends", DrMAD("C5")), (Reversible(), Exact())], ids=["C5", "reversible"])
def test_another_momentum_compiles_nothing(make, compilations, keep, method):
    """γ decides how long the tail is that is undone, and how long a buffer lasts."""
    declared = (L2("layer", 1e-2), Momentum("network", 0.7))
    problem = make("mlp", "penalties", steps=60, hyperparameters=declared, dynamics=Dynamics("damped", 0.1, 0.5))
    seen = []
    for by in (0.0, -1.2, -2.2):
        hyper = moved(problem.initial_hyper(), by)
        training = gpu.train(problem, hyper, keep)
        result = gpu.hypergradient(problem, hyper, training, method)
        spans = len(training.trajectory.lost) if keep != "ends" else result.diagnostics["tail"]
        seen.append((spans, len(compilations)))
    assert len({spans for spans, _ in seen}) == 3, "or γ decides nothing here"
    assert seen[0][1] > 0
    assert [n for _, n in seen] == [seen[0][1]] * 3
