"""Evaluation with the deterministic forward and running averages; and the engine as `hypertrail.load` finds it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import UsageError, load
from hypertrail_cpu import evaluation
from hypertrail_cpu.ops import OPS
from hypertrail_nets import get_output


@pytest.fixture(scope="module")
def finished(make):
    problem = make("densenet", "coarse", steps=8)
    return problem, cpu.train(problem, problem.initial_hyper())


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("size", [7, 500])
def test_whole_split(finished, split, size, monkeypatch):
    """In batches that do not divide the split: the same as all examples at once, dropout off, running averages on."""
    monkeypatch.setattr(evaluation, "BATCH", size)
    problem, training = finished
    examples = getattr(problem.splits, split)
    x, y = examples.x.astype(np.float64), examples.y
    logits = get_output(problem.network, training.weights, x, OPS, deterministic=True, running=training.running)
    metrics = cpu.evaluate(problem, training, split)
    assert metrics.examples == len(y)
    assert metrics.error == pytest.approx(np.mean(logits.argmax(axis=1) != y), abs=1e-12)
    assert metrics.loss == pytest.approx(np.mean(OPS.cross_entropy(logits, y)), rel=1e-12)


def test_running_averages_are_used(finished):
    problem, training = finished
    metrics = cpu.evaluate(problem, training, "test")
    training_running, training.running = training.running, problem.initial_running()
    assert cpu.evaluate(problem, training, "test").loss != metrics.loss
    training.running = training_running


def test_empty_and_unknown_splits_are_refused(finished):
    with pytest.raises(UsageError, match="the select split is empty"):
        cpu.evaluate(*finished, "select")
    with pytest.raises(UsageError, match="split 'validation', expected one of train, valid, select, test"):
        cpu.evaluate(*finished, "validation")


def test_hyper_loss_is_that_of_the_effective_weights(finished):
    """Mean over equal batches, each normalised by its own statistics, at z eᵗ."""
    problem, training = finished
    losses = []
    for part in (slice(0, 20), slice(20, 40)):
        x, y = problem.splits.valid.x[part].astype(np.float64), problem.splits.valid.y[part]
        logits = get_output(problem.network, training.weights, x, OPS, deterministic=True)
        losses.append(np.mean(OPS.cross_entropy(logits, y)))
    assert cpu.hyper_loss(problem, training) == pytest.approx(np.mean(losses), rel=1e-12)


def test_engine_is_found_by_name():
    assert load("cpu") is cpu
    assert cpu.name == "cpu"
    assert cpu.describe()["precision"] == "float64"
    assert set(cpu.describe()) >= {"engine", "device", "python", "numpy", "autograd"}


def test_engine_imports_neither_jax_nor_the_other_engine():
    code = "import sys, hypertrail_cpu; print([m for m in ('jax', 'hypertrail_gpu', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
