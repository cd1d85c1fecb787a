"""What section 1 compares: small problems in float64, the same for both engines, and their hypergradients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import problems
from sizes import DenseNetSize

DENSENET = DenseNetSize(depth=5, growth=4, image=16, batch=8, steps=6, blocks=2)
STEPS = 20  # T of the perceptron
METHODS = ("exact", "drmad-C4")
DEFINITION = (
    "mlp: tanh perceptron 64-12-10 on 1200 digits, batch 64, T = 20. densenet: DenseNet-5-4 of two blocks on 256 "
    "random images 16×16×3, dropout .2, batch 8, T = 6. Damped momentum α .1, γ .9. Declared: L2 per parameter "
    "1e-3, learning rate per tensor .1, momentum .9, and for mlp a weight .9 for each example. Hypergradients: "
    "exact, DrMAD C4, and for mlp the one of the first block of the adaptive method (learning rate and L2 per "
    "parameter, n = 6, K = 3, M = 2, validation batch 8). Numbers: d f / d (log10 λ, ln α, logit γ, a), float64."
)


def problem(case: str, precision: str = "float64") -> Any:
    from hypertrail import L2, ExampleWeight, LearningRate, Momentum

    declared = (L2("parameter", 1e-3), LearningRate("layer", 0.1), Momentum("network", 0.9))
    if case == "mlp":
        return problems.perceptron(12, STEPS, (*declared, ExampleWeight(init=0.9)), precision=precision)
    return problems.densenet(DENSENET, declared, precision=precision)


def hypergradients(
    engine: Any, case: str, precision: str = "float64", methods: tuple[str, ...] = METHODS
) -> Iterator[tuple[str, Any]]:
    """(method, {kind: {name: array}}) of one training, by this engine."""
    from hypertrail.methods import parse_method

    one = problem(case, precision)
    hyper = one.initial_hyper()
    training = engine.train(one, hyper, "memory")
    for method in methods:
        yield method, engine.hypergradient(one, hyper, training, parse_method(method)).gradient


def adaptive(engine: Any) -> tuple[str, Any]:
    """The same of the perceptron's first block of the adaptive method."""
    from hypertrail import L2, Adaptive, LearningRate

    declared = (L2("parameter", 1e-3), LearningRate("parameter", 0.1))
    one = problem("mlp").with_(hyperparameters=declared, valid_batch=8, steps=6)
    block = next(engine.adapt(one, one.initial_hyper(), Adaptive(6, 2, 3)))
    return "adaptive 6-3-2", block.gradient


def all_hypergradients(engine: Any, case: str) -> Iterator[tuple[str, Any]]:
    yield from hypergradients(engine, case)
    if case == "mlp":
        yield adaptive(engine)


def inputs(case: str) -> dict[str, Any]:
    """What both engines start from: w_0, and a digest of images, labels and batches."""
    one = problem(case)
    digest = hashlib.sha256()
    for split in (one.splits.train, one.splits.valid):
        digest.update(np.ascontiguousarray(split.x).tobytes() + np.ascontiguousarray(split.y).tobytes())
    digest.update(np.ascontiguousarray(one.schedule.indices(0, one.steps)).tobytes())
    return {"w0": one.initial_weights(), "digest": digest.hexdigest()}


def flattened(tree: Any, front: str) -> dict[str, np.ndarray]:
    """Nested dicts as one, the names joined by a colon."""
    if not isinstance(tree, dict):
        return {front: np.asarray(tree)}
    return {name: leaf for key, below in tree.items() for name, leaf in flattened(below, f"{front}:{key}").items()}


CASES: tuple[str, ...] = ("mlp", "densenet")
