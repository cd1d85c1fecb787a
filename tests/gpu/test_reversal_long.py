"""Exact reversal over 20,000 steps of DrMAD's experiment 1 on real MNIST: back at w_0, v_0 and empty buffers, to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import hypertrail_gpu as gpu
from hypertrail import Exact, Reversible
from hypertrail.experiments import drmad_mnist


@pytest.mark.slow
@pytest.mark.data
def test_twenty_thousand_steps_of_mnist(root):
    folders = (os.environ.get("HYPERTRAIL_DATA"), root.parent / "shared" / "datasets")
    folder = next((Path(f) for f in folders if f and Path(f).is_dir()), None)
    if folder is None:
        pytest.skip("no MNIST at hand: set HYPERTRAIL_DATA")
    problem = drmad_mnist.problem(drmad_mnist.Config(steps=20_000, precision="float64", data_dir=folder))
    hyper = problem.initial_hyper()
    training = gpu.train(problem, hyper, Reversible())
    kept = training.trajectory
    gamma = next(iter(kept.momentum.values()))
    assert 0 <= gamma - 0.95 <= 1.5e-5
    assert kept.bits <= 64 / 500  # K = 549 at γ = .95, or a divisor of T near it
    stored = 20_000 * 4 * sum(p.size for p in problem.params)
    assert kept.nbytes < stored / 200
    result = gpu.hypergradient(problem, hyper, training, Exact())  # raises unless it arrives to the bit
    assert np.all(np.isfinite(result.adjoint_norms))
    assert len(result.adjoint_norms) == 20_000
