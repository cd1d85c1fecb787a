"""The thesis' GPU script (Theano), adaptive method: two blocks of 12 steps, 4 of them reversed, on a DenseNet of depth 7.

What it was given: weights, ln rates and log10 penalties drawn at random (the same for all classes of the output layer), batches
of 8 in a fixed order, γ .9, steps .1 in ln α and .01 in log10 λ. `full` has the whole Hessian, `block` theirs as it is, which
takes the second derivatives of each tensor alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import hypertrail as h
import hypertrail_cpu.reverse
import hypertrail_gpu.compiled
from hypertrail_data import BatchSchedule
from hypertrail_data.splits import Split, Splits
from hypertrail_nets import Layer, densenet, get_all_params

STEPS, LAST, BATCHES, BATCH = 12, 4, 12, 8
# Their script divides the sum over the M validation batches by n.
SCALE = STEPS / BATCHES
# Their 10 is a float32 constant, and so is its logarithm: 1.4e-8 of d log10 λ.
THEIR_LN10 = float(np.log(np.float32(10))) / np.log(10)
OUTPUT = "logits/W"
DIGITS = {"w": 15, "v": 14, "dr": 14, "dλ": 14, "r": 16, "λ": 16}


def images() -> Splits:
    """Ten random pictures, each class one of them under noise: the data that the script was given."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(10, 32, 32, 3))

    def split(size: int) -> Split:
        y = rng.integers(0, 10, size)
        x = (pictures[y] * 0.5 + rng.normal(size=(size, 32, 32, 3))).astype(np.float32)
        return Split(x, y.astype(np.int32), np.arange(size))

    train, valid, select, test = (split(size) for size in (80, BATCHES * BATCH, 8, 8))
    return Splits(train, valid, select, test, np.zeros(3, np.float32), np.ones(3, np.float32), 10, "made")


def ours(array: np.ndarray) -> np.ndarray:
    """A kernel (out, in, height, width) of theirs, for a true convolution, as (height, width, in, out) of ours."""
    return np.ascontiguousarray(np.transpose(array, (2, 3, 1, 0))[::-1, ::-1]) if array.ndim == 4 else array


@pytest.fixture(scope="module")
def problem_of(started) -> Callable[[dict[str, np.ndarray]], h.Problem]:
    splits, schedule = images(), BatchSchedule(80, BATCH, 1)

    def problem_of(recorded: dict[str, np.ndarray]) -> h.Problem:
        rows = schedule.indices(0, 80 // BATCH).ravel()
        x, y = splits.train.x[rows], splits.train.y[rows]
        seen = (x.transpose(0, 3, 1, 2), y, splits.valid.x.transpose(0, 3, 1, 2), splits.valid.y)
        digests = [hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest() for one in seen]
        assert digests == recorded["sha256"].tolist(), "images, labels or their order are not what the script was given"
        network = densenet((32, 32, 3), 10, depth=7, growth=4, first_output=4, dropout=0.0)
        return started(
            recorded_by_name(network, recorded, "w"),
            network=network,
            splits=splits,
            schedule=schedule,
            steps=2 * STEPS,
            hyperparameters=(
                h.L2("parameter", 1e-4, bounds=(1e-7, 1e-2)),
                h.LearningRate("parameter", 0.1, bounds=(1e-5, 1.0)),
            ),
            dynamics=h.Dynamics("damped", 0.1, 0.9),
            valid_batch=BATCH,
            precision="float64",
        )

    return problem_of


def recorded_by_name(network: Layer, recorded: dict[str, np.ndarray], tag: str) -> dict[str, np.ndarray]:
    """{our name: array in our layout} of the recorded arrays <tag><number of the parameter>."""
    names = [p.name for p in get_all_params(network, trainable=True)]
    return {name: ours(recorded[f"{tag}{i}"]) for i, name in enumerate(names) if f"{tag}{i}" in recorded}


@pytest.fixture
def tensor_by_tensor(monkeypatch) -> None:
    """Both engines with the Hessian of each tensor alone, as the script has it. This is a switch of this test, not of ours."""
    second_order, linearise = hypertrail_cpu.reverse.second_order, hypertrail_gpu.compiled.linearise

    def reference(problem: Any, w: Any, values: Any, x: Any, y: Any, step: Any, u: Any) -> tuple[Any, Any]:
        alone = {k: {j: u[j] if j == k else 0 * u[j] for j in u} for k in u}
        blocks = {k: second_order(problem, w, values, x, y, step, one)[0][k] for k, one in alone.items()}
        return blocks, second_order(problem, w, values, x, y, step, u)[1]

    def compiled(*arguments: Any) -> tuple[Any, Any]:
        g, tangent = linearise(*arguments)

        def blocks(u: Any) -> tuple[Any, Any]:
            names = list(u)
            alone = {k: jax.numpy.stack([u[k] if j == k else 0 * u[k] for j in names]) for k in names}
            products = jax.vmap(lambda one: tangent(one)[0])(alone)
            return {k: products[k][i] for i, k in enumerate(names)}, tangent(u)[1]

        return g, blocks

    monkeypatch.setattr(hypertrail_cpu.reverse, "second_order", reference)
    monkeypatch.setattr(hypertrail_gpu.compiled, "linearise", compiled)


def check(problem: h.Problem, recorded: dict[str, np.ndarray], blocks: Iterator[Any], meets: Any, flat: Any) -> None:
    for i, block in zip(range(2), blocks, strict=True):

        def theirs(tag: str, i: int = i) -> dict[str, np.ndarray]:
            return recorded_by_name(problem.network, recorded, f"b{i}_{tag}")

        dr, dλ, r, λ = (theirs(tag) for tag in ("dr", "dl", "r", "l"))
        everything = {
            "w": (block.state["w"], theirs("w"), 1),
            "v": (block.state["v"], theirs("v"), 1),
            "dr": (block.gradient["learning_rate"], dr, SCALE),
            "dλ": (block.gradient["l2"], dλ, SCALE / THEIR_LN10),
            "r": (block.hyper["learning_rate"], r, 1),
            "λ": (block.hyper["l2"], λ, 1),
        }
        for quantity, (mine, other, factor) in everything.items():
            assert set(mine) == set(other)
            meets(f"block {i}, {quantity}", flat(mine, other), factor * flat(other, other), DIGITS[quantity])
        for mine, other in ((block.hyper["learning_rate"], r), (block.hyper["l2"], λ)):
            meets(f"block {i}, output layer", mine[OUTPUT], other[OUTPUT], DIGITS["r"])


def case(engine: str, hessian: str, *marks: Any) -> Any:
    return pytest.param(engine, hessian, id=f"{engine}-{hessian}", marks=marks)


# The slow ones take half a minute of processor time each, to compile or to go tensor by tensor.
@pytest.mark.parametrize(
    ("engine", "hessian"),
    [
        case("cpu", "full"),
        *(case(*at, pytest.mark.slow) for at in (("gpu", "full"), ("cpu", "block"), ("gpu", "block"))),
    ],
)
def test_two_blocks(engine, hessian, golden, meets, flat, problem_of, request):
    """λ and r identical to the rounding of one addition: every sign agrees, and the output layer is averaged as theirs."""
    if hessian == "block":
        request.getfixturevalue("tensor_by_tensor")
    recorded = golden(f"c_online_{hessian}")
    problem = problem_of(recorded)
    hyper = {
        "l2": recorded_by_name(problem.network, recorded, "l"),
        "learning_rate": recorded_by_name(problem.network, recorded, "r"),
    }
    moves = (("learning_rate", 0.1), ("l2", 0.01))
    method = h.Adaptive(STEPS, 0, LAST, moves=moves, mode="as-published", states="undone")
    check(problem, recorded, h.load(engine).adapt(problem, hyper, method), meets, flat)
