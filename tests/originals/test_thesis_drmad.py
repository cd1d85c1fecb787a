"""The thesis' GPU script (Theano 1.0.5 and Lasagne): one meta-iteration of DrMAD on a DenseNet of depth 7, T = 30.

Its choices: minibatches 0 … N − 1, N from the sum of the tensors' norms, no adjoint for what is not regularized. Its product
with the Hessian takes each tensor alone (`c_drmad_block`), an error that this package does not have; `c_drmad_full` is the same
script with the whole Hessian. Its constant 10 is a float32, and so is its logarithm: 1.4e-8 in dλ.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import hypertrail as h
from hypertrail.methods import AsPublished
from hypertrail.outer import SignMomentum, update
from hypertrail_data import BatchSchedule
from hypertrail_data.splits import Split, Splits
from hypertrail_nets import densenet

METHOD = h.DrMAD(
    "C4", multiplier=0.5, first_batches=True, choices=AsPublished(sum_of_norms=True, regularized_only=True)
)
LN10 = float(np.log(np.float32(10))) / np.log(10)  # their logarithm of 10, over ours
BATCH, STEPS = 8, 30


def ours(theirs: np.ndarray) -> np.ndarray:
    """Their kernels (out, in, kh, kw), of a true convolution, as ours: (kh, kw, in, out), of a cross-correlation."""
    return np.transpose(theirs, (2, 3, 1, 0))[::-1, ::-1] if theirs.ndim == 4 else theirs


class Given(h.Problem):
    """A problem that starts from the weights of the file."""

    def initial_weights(self) -> dict[str, np.ndarray]:
        return {p.name: np.ascontiguousarray(ours(START[f"w{i}"])) for i, p in enumerate(self.params)}


START: dict[str, np.ndarray] = {}


@pytest.fixture(scope="module")
def data(golden) -> dict[str, np.ndarray]:
    START.update(golden("c_drmad"))
    return START


def made_images(data: dict[str, np.ndarray], schedule: BatchSchedule) -> Splits:
    """The random images that the script was given, drawn again: 80 for training and 96 for validation."""
    rng = np.random.default_rng(0)
    classes = rng.normal(size=(10, 32, 32, 3))

    def split(n: int) -> Split:
        y = rng.integers(0, 10, n)
        x = (classes[y] * 0.5 + rng.normal(size=(n, 32, 32, 3))).astype(np.float32)
        return Split(x, y.astype(np.int32), np.arange(n))

    train, valid = split(80), split(96)
    nothing = Split(np.zeros((0, 32, 32, 3), np.float32), np.zeros(0, np.int32), np.arange(0))
    order = schedule.indices(0, 10).ravel()  # the script walked through the images in our order of the first epoch
    both = [np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2))) for x in (train.x[order], valid.x)]
    assert hashlib.sha256(both[0].tobytes() + both[1].tobytes()).hexdigest() == str(data["images"])
    np.testing.assert_array_equal(train.y[order], data["y"])
    np.testing.assert_array_equal(valid.y, data["yv"])
    return Splits(train, valid, nothing, nothing, np.zeros(3), np.ones(3), classes=10, name="made")


def made_problem(data: dict[str, np.ndarray]) -> tuple[h.Problem, dict[str, int]]:
    """The problem, and {name of a regularizable parameter: its place in their lists}."""
    schedule = BatchSchedule(80, BATCH, 1)
    problem = Given(
        network=densenet((32, 32, 3), 10, depth=7, growth=4, first_output=4, dropout=0.0),
        splits=made_images(data, schedule),
        schedule=schedule,
        steps=STEPS,
        hyperparameters=(h.L2("parameter", 1e-4, bounds=(1e-7, 1e-2)),),
        dynamics=h.Dynamics("damped", 0.1, 0.9),
        valid_batch=BATCH,
        precision="float64",
    )
    return problem, {p.name: i for i, p in enumerate(problem.params) if p.name not in problem.unregularized}


def block_by_block(engine: Any, monkeypatch: Any) -> None:
    """Replace the product with the Hessian by that of each tensor alone, which is what their script computes."""
    if engine.name == "cpu":
        from hypertrail_cpu import reverse

        whole = reverse.second_order

        def alone(problem: Any, w: Any, values: Any, x: Any, y: Any, step: Any, u: Any) -> Any:
            _, mixed = whole(problem, w, values, x, y, step, u)
            parts = {
                k: whole(problem, w, values, x, y, step, {j: (u[j] if j == k else 0 * u[j]) for j in u}) for k in u
            }
            return {k: part[0][k] for k, part in parts.items()}, mixed

        monkeypatch.setattr(reverse, "second_order", alone)
        return
    import jax
    import jax.numpy as jnp

    from hypertrail_gpu import functional

    linearise = functional.linearise

    def linearised(*args: Any) -> Any:
        g, tangent = linearise(*args)

        def alone(u: Any) -> Any:
            names = list(u)

            def part(mask: Any) -> Any:
                return tangent({name: mask[i] * u[name] for i, name in enumerate(names)})[0]

            parts = jax.vmap(part)(jnp.eye(len(names)))
            return {name: parts[name][i] for i, name in enumerate(names)}, tangent(u)[1]

        return g, alone

    monkeypatch.setattr(functional, "linearise", linearised)


@pytest.mark.parametrize("hessian", ["full", "block"])
def test_one_meta_iteration(engine, data, meets, flat, monkeypatch, hessian):
    problem, place = made_problem(data)
    if hessian == "block":
        block_by_block(engine, monkeypatch)
    hyper = {"l2": {name: np.ascontiguousarray(ours(data[f"l{i}"])) for name, i in place.items()}}
    training = engine.train(problem, hyper, "ends")
    names = [p.name for p in problem.params]
    velocity = {name: ours(data[f"v{i}"]) for i, name in enumerate(names)}
    meets("v_T", flat(training.velocity, names), flat(velocity, names), 14.0)
    result = engine.hypergradient(problem, hyper, training, METHOD)
    assert result.diagnostics["N"] == int(data["n_backward"][0]) == 23
    theirs = {name: ours(data[f"dl{i}_{hessian}"]) / LN10 for name, i in place.items()}
    meets("d log10 λ", flat(result.gradient["l2"], place), flat(theirs, place), 14.0)
    # The penalties that their signs with momentum then give, from our hypergradient
    rule = SignMomentum(0.3333, 0.7)
    moved, _ = update(rule, problem.hyperparameters, hyper, result.gradient, rule.start(hyper))
    for name, i in place.items():
        np.testing.assert_allclose(moved["l2"][name], ours(data[f"moved{i}_{hessian}"]), rtol=0, atol=1e-13)
