"""What the two scripts of the thesis share: a DenseNet of depth 7, random images, Theano's layout, and the Hessian by tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import hypertrail as h
import hypertrail_cpu.reverse
import hypertrail_gpu.compiled
import hypertrail_gpu.functional
from hypertrail_data import BatchSchedule
from hypertrail_data.splits import Split, Splits
from hypertrail_nets import Layer, densenet, get_all_params

TRAIN, VALID, BATCH = 80, 96, 8
SCHEDULE = BatchSchedule(TRAIN, BATCH, 1)


def random_images() -> Splits:
    """Ten random pictures, each class one of them under noise: the data that the scripts were given, drawn again."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(10, 32, 32, 3))

    def split(size: int) -> Split:
        y = rng.integers(0, 10, size)
        x = (pictures[y] * 0.5 + rng.normal(size=(size, 32, 32, 3))).astype(np.float32)
        return Split(x, y.astype(np.int32), np.arange(size))

    train, valid, nothing = split(TRAIN), split(VALID), split(0)
    return Splits(train, valid, nothing, nothing, np.zeros(3, np.float32), np.ones(3, np.float32), 10, "made")


def digests(splits: Splits) -> list[str]:
    """sha256 of what the scripts read: images and labels for training, in the order of the first epoch, and for validation."""
    rows = SCHEDULE.indices(0, TRAIN // BATCH).ravel()
    train, valid = splits.train, splits.valid
    arrays = (train.x[rows].transpose(0, 3, 1, 2), train.y[rows], valid.x.transpose(0, 3, 1, 2), valid.y)
    return [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays]


def in_our_layout(array: np.ndarray) -> np.ndarray:
    """A kernel (out, in, height, width) of theirs, for a true convolution, as (height, width, in, out) of ours; else as it is."""
    return np.ascontiguousarray(np.transpose(array, (2, 3, 1, 0))[::-1, ::-1]) if array.ndim == 4 else array


def arrays_by_name(network: Layer, recorded: dict[str, np.ndarray], tag: str, end: str = "") -> dict[str, np.ndarray]:
    """{our name: array in our layout} of the recorded arrays <tag><number of the parameter><end>; some parameters have none."""
    names = [p.name for p in get_all_params(network, trainable=True)]
    return {
        name: in_our_layout(recorded[f"{tag}{i}{end}"]) for i, name in enumerate(names) if f"{tag}{i}{end}" in recorded
    }


# Compiling this network takes half a minute of processor time, and so does going tensor by tensor in the reference engine.
@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two engines."""
    return h.load(request.param)


@pytest.fixture(params=["full", pytest.param("block", marks=pytest.mark.slow)])
def hessian(request: pytest.FixtureRequest) -> str:
    """full: the whole Hessian; block: that of each tensor alone, which the engines then have too."""
    if request.param == "block":
        request.getfixturevalue("tensor_by_tensor")
    return request.param


@pytest.fixture(scope="session")
def by_parameter() -> Callable[..., dict[str, np.ndarray]]:
    """by_parameter(network, recorded, "w"): see `arrays_by_name`."""
    return arrays_by_name


@pytest.fixture(scope="session")
def thesis_problem(started: Any) -> Callable[..., h.Problem]:
    """thesis_problem(recorded, steps, rates=True): the DenseNet from the recorded weights; a penalty (and a rate) per weight.

    recorded: the arrays of a file, among them the weights w0, w1, … and `sha256` of images and labels, which are checked.
    """
    splits = random_images()

    def thesis_problem(recorded: dict[str, np.ndarray], steps: int, rates: bool) -> h.Problem:
        assert digests(splits) == recorded["sha256"].tolist(), "images, labels or their order are not what was recorded"
        network = densenet((32, 32, 3), 10, depth=7, growth=4, first_output=4, dropout=0.0)
        penalty = h.L2("parameter", 1e-4, bounds=(1e-7, 1e-2))
        rate = h.LearningRate("parameter", 0.1, bounds=(1e-5, 1.0))
        return started(
            arrays_by_name(network, recorded, "w"),
            network=network,
            splits=splits,
            schedule=SCHEDULE,
            steps=steps,
            hyperparameters=(penalty, rate) if rates else (penalty,),
            dynamics=h.Dynamics("damped", 0.1, 0.9),
            valid_batch=BATCH,
            precision="float64",
        )

    return thesis_problem


@pytest.fixture
def tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines with the Hessian of each tensor alone, as the scripts have it. A switch of the tests: the package has none."""
    second_order, linearise = hypertrail_cpu.reverse.second_order, hypertrail_gpu.functional.linearise

    def reference(problem: Any, w: Any, values: Any, x: Any, y: Any, step: Any, u: Any) -> tuple[Any, Any]:
        alone = {k: {j: u[j] if j == k else 0 * u[j] for j in u} for k in u}
        blocks = {k: second_order(problem, w, values, x, y, step, only)[0][k] for k, only in alone.items()}
        return blocks, second_order(problem, w, values, x, y, step, u)[1]

    def compiled(*arguments: Any) -> tuple[Any, Any]:
        g, tangent = linearise(*arguments)

        def blocks(u: Any) -> tuple[Any, Any]:
            names = list(u)
            alone = {k: jax.numpy.stack([u[k] if j == k else 0 * u[k] for j in names]) for k in names}
            products = jax.vmap(lambda only: tangent(only)[0])(alone)
            return {k: products[k][i] for i, k in enumerate(names)}, tangent(u)[1]

        return g, blocks

    monkeypatch.setattr(hypertrail_cpu.reverse, "second_order", reference)
    for module in (hypertrail_gpu.functional, hypertrail_gpu.compiled):
        monkeypatch.setattr(module, "linearise", compiled)
