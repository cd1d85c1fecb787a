"""The thesis' GPU script (Theano 1.0.5 and Lasagne): one meta-iteration of DrMAD on a DenseNet of depth 7, T = 30.

Its choices: minibatches 0 … N − 1, N from the sum of the tensors' norms, no adjoint for what is not regularized. Its product
with the Hessian takes each tensor alone (`block`), an error that this package does not have; `full` is the same script with the
whole Hessian. Its constant 10 is a float32, and so is its logarithm: 1.4e-8 in dλ.
"""

from __future__ import annotations

import numpy as np

import hypertrail as h
from hypertrail.methods import AsPublished
from hypertrail.outer import SignMomentum, update

METHOD = h.DrMAD(
    "C4", multiplier=0.5, first_batches=True, choices=AsPublished(sum_of_norms=True, regularized_only=True)
)
LN10 = float(np.log(np.float32(10))) / np.log(10)  # their logarithm of 10, over ours


def test_one_meta_iteration(engine, hessian, golden, thesis_problem, by_parameter, meets, flat):
    recorded = golden("c_drmad")
    problem = thesis_problem(recorded, steps=30, rates=False)

    def theirs(tag: str, end: str = "") -> dict[str, np.ndarray]:
        return by_parameter(problem.network, recorded, tag, end)

    hyper = {"l2": theirs("l")}
    training = engine.train(problem, hyper, "ends")
    meets("v_T", flat(training.velocity, theirs("v")), flat(theirs("v"), theirs("v")), 14.0)
    result = engine.hypergradient(problem, hyper, training, METHOD)
    assert result.diagnostics["N"] == int(recorded["n_backward"][0]) == 23
    dλ = theirs("dl", f"_{hessian}")
    assert set(dλ) == set(hyper["l2"])
    meets("d log10 λ", flat(result.gradient["l2"], dλ), flat(dλ, dλ) / LN10, 14.0)
    # The penalties that their signs with momentum then give, from our hypergradient
    rule = SignMomentum(0.3333, 0.7)
    moved, _ = update(rule, problem.hyperparameters, hyper, result.gradient, rule.start(hyper))
    for name, λ in theirs("moved", f"_{hessian}").items():
        np.testing.assert_allclose(moved["l2"][name], λ, rtol=0, atol=1e-13)
