"""The authors' release of hypergradient descent (PyTorch): weights and learning rate over 30 steps.

Digits, a tanh network 64-16-10, batches of 20; SGD, momentum, Nesterov and Adam. `whole` is their optimiser on one tensor that
holds all weights: what the paper defines. On several tensors their AdamHD moves the common α once for each, by its share alone
(gpu-ver/README.md, deviation 19). `decay`: their weight decay .02, half of which times Σ w² is in the loss, biases included;
`decayW`: the same decay on the weight matrices alone.
"""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail as h
from hypertrail_data import BatchSchedule
from hypertrail_nets import mlp

STEPS, DECAY = 30, 0.02
# Theirs: our dynamics, α at the start, momentum, β, ε inside the root.
CASES = {
    "sgd": ("heavy-ball", 0.05, 0.0, 2e-3, 1e-60),
    "momentum": ("heavy-ball", 0.05, 0.9, 2e-4, 1e-60),
    "nesterov": ("nesterov", 0.05, 0.9, 2e-4, 1e-60),
    "adam": ("adam", 2e-3, 0.9, 2e-7, 1e-60),
}


@pytest.mark.fast_on_gpu(case="adam", decay="decay")
@pytest.mark.parametrize("decay", ["whole", "decay", "decayW"])
@pytest.mark.parametrize("case", CASES)
def test_thirty_steps(engine, case, decay, golden, started, digits_splits, meets, flat):
    """decayW: their decay on weight matrices alone, which is our default."""
    recorded = golden("e")
    kind, alpha, momentum, beta, epsilon = CASES[case]
    schedule = BatchSchedule(160, 20, 2, order="reshuffled")
    np.testing.assert_array_equal(schedule.indices(0, STEPS), recorded["idx"])
    problem = started(
        recorded["x0"],
        network=mlp((8, 8, 1), (16,)),
        splits=digits_splits(*(recorded[key] for key in ("X", "y", "X", "y"))),
        schedule=schedule,
        steps=STEPS,
        hyperparameters=(h.LearningRate("network", alpha, bounds=(1e-12, 1e3)),),
        dynamics=h.Dynamics(kind, alpha, momentum, epsilon=epsilon),
        l2=0.0 if decay == "whole" else DECAY / 2,
        l2_on="all" if decay == "decay" else "regularizable",
        precision="float64",
    )
    method = h.HypergradientDescent("additive", beta, block=1)
    blocks = list(engine.adapt(problem, problem.initial_hyper(), method))
    rates = [np.exp(float(block.hyper["learning_rate"]["network"])) for block in blocks]
    meets("α", rates, recorded[f"{case}_{decay}_lr"], 14)
    meets("w", flat(blocks[-1].state["w"], [p.name for p in problem.params]), recorded[f"{case}_{decay}_w"], 14)
