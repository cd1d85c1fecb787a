"""Nothing is compiled twice: not in a second meta-iteration, not for another N, not for other hyperparameter values."""

from __future__ import annotations

import jax
import pytest

import hypertrail_gpu as gpu
from hypertrail import DrMAD, Exact


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
