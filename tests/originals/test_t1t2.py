"""T1–T2, the released code of Luketina et al. 2016 (Theano, float32): one step and one move of L2 and L1, per layer.

Digits, a tanh network 64-12-10 whose first weights have a deviation of .2 or 1.5, a batch of 20 and 60 validation images; plain
gradient descent for weights (.05) and hyperparameters (.001). With 1.5 two of the four hypergradients are longer than 3 and are
cut, and a penalty meets its bound, 0. Recorded is what was added to each penalty: `same` as their program does it, with ∇C₂ at
the θ that a step would start from; `chain` in the order of the paper, with ∇C₂ after the step.
"""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail as h
from hypertrail.outer import GradientDescent
from hypertrail_data import BatchSchedule
from hypertrail_nets import mlp

LAYERS = ("dense1", "logits")
AS_PUBLISHED = {"clip": "each-tensor", "nonfinite": "zero"}


@pytest.mark.fast_on_gpu(deviation="1.5", at="same")
@pytest.mark.parametrize("at", ["after", "same"])
@pytest.mark.parametrize("deviation", ["0.2", "1.5"])
def test_a_step_and_a_move(engine, deviation, at, golden, started, digits_splits, meets, flat):
    recorded = golden(f"f_{deviation}")
    names = [f"{layer}/{letter}" for layer in LAYERS for letter in "Wb"]
    arrays = (recorded[f"{letter}{i}"] for i in range(2) for letter in "Wb")
    # The move stands in the place of the second step; the first takes none here, so that ∇C₂ is at the recorded weights.
    steps, alpha = (1, float(recorded["lr1"])) if at == "after" else (2, 1e-30)
    problem = started(
        dict(zip(names, arrays, strict=True)),
        network=mlp((8, 8, 1), (12,)),
        splits=digits_splits(*(recorded[key] for key in ("x", "y", "xv", "yv"))),
        schedule=BatchSchedule(20, 20, 0),
        steps=steps,
        hyperparameters=(h.L2("layer", 0.002, bounds=(0.0, 1.0)), h.L1("layer", 0.001, bounds=(0.0, 1.0))),
        dynamics=h.Dynamics("heavy-ball", alpha, 0.0),
        precision="float64",
    )
    outer = GradientDescent(float(recorded["lr2"]))
    method = h.T1T2(every=steps, block=steps, outer=outer, validation_batches=0, at=at, **AS_PUBLISHED)
    hyper = problem.initial_hyper()
    (block,) = engine.adapt(problem, hyper, method)
    values, start = ({"l2": lambda u: 10**u, "l1": np.exp}, hyper)
    moved = [
        float(values[kind](block.hyper[kind][f"{layer}/W"]) - values[kind](start[kind][f"{layer}/W"]))
        for kind in ("l2", "l1")
        for layer in LAYERS
    ]
    meets("what was added to the penalties", moved, recorded["chain" if at == "after" else "same"], 6)
    if at == "after":
        after = np.concatenate([recorded[f"after{i}"].ravel() for i in range(4)])
        meets("the weights after the step", flat(block.state["w"], names), after, 6.5)
