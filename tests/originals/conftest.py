"""What the comparisons with the original programs share: how a file is read, and how agreement is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hypertrail as h
from hypertrail.records import Cost, Training
from hypertrail_data import BatchSchedule, MemoryTrajectory
from hypertrail_data.splits import Split, Splits
from hypertrail_nets import mlp

DATA = Path(__file__).parent / "data"
MOST = 17.0  # what two equal arrays are said to agree to: float64 holds no more


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`fast_on_gpu(case=…)`: only this case of a test is fast on the compiled engine, which compiles anew for each."""
    for item in items:
        mark = item.get_closest_marker("fast_on_gpu")
        if mark is None:
            continue
        values = item.callspec.params  # type: ignore[attr-defined]
        if values["engine"] == "gpu" and any(values[name] != fast for name, fast in mark.kwargs.items()):
            item.add_marker(pytest.mark.slow)


def digits_of(ours: Any, theirs: Any) -> float:
    """Decimal digits to which two arrays of one shape agree: −log₁₀ (‖ours − theirs‖ / ‖theirs‖), at most 17."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    size = np.linalg.norm(theirs)
    assert size > 0, "an array of zeros has no digits"
    apart = np.linalg.norm(ours - theirs) / size
    return MOST if apart == 0 else min(MOST, float(-np.log10(apart)))


def flat_of(arrays: Mapping[str, Any], names: Iterable[str]) -> np.ndarray:
    """The named arrays one after the other in one vector, float64: the form in which most originals keep parameters."""
    return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in names])


@pytest.fixture(scope="session")
def digits() -> Callable[[Any, Any], float]:
    """digits(ours, theirs) → to how many decimal digits they agree."""
    return digits_of


@pytest.fixture(scope="session")
def meets() -> Callable[..., None]:
    """meets("dw_0", ours, theirs, 14.7): fails, with the digits reached, unless the two agree to at least so many."""

    def meets(quantity: str, ours: Any, theirs: Any, at_least: float) -> None:
        reached = digits_of(ours, theirs)
        print(f"{quantity}: {reached:.1f} digits, expected {at_least}")  # shown by pytest -rP
        assert reached >= at_least, f"{quantity}: {reached:.1f} digits, expected at least {at_least}"

    return meets


@pytest.fixture(scope="session")
def flat() -> Callable[[Mapping[str, Any], Iterable[str]], np.ndarray]:
    """flat({name: array}, names) → one float64 vector."""
    return flat_of


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """golden("a_fraction") → every array of data/a_fraction.npz."""

    def golden(name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz") as file:
            return dict(file)

    return golden


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def engine(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two engines."""
    return h.load(request.param)


@dataclass(frozen=True, eq=False)
class Started(h.Problem):
    """A problem whose training starts from given weights. start: {parameter name: array}."""

    start: Any = None

    def initial_weights(self) -> dict[str, np.ndarray]:
        return {name: w.astype(self.dtype) for name, w in self.start.items()}


@pytest.fixture(scope="session")
def started() -> Callable[..., h.Problem]:
    """started(start, **fields of a Problem): one that starts from `start`.

    start: {parameter name: array}, or one vector that holds all of them in the order of the network.
    """

    def started(start: Any, **fields: Any) -> h.Problem:
        problem = h.Problem(**fields)
        return Started(**fields, start=start if isinstance(start, dict) else named(problem, start))

    return started


def named(problem: h.Problem, vectors: np.ndarray, only: str = "") -> dict[str, np.ndarray]:
    """{parameter name: (…, *shape)} of vectors (…, n): all parameters whose names end with `only`, in order."""
    params = [p for p in problem.params if p.name.endswith(only)]
    assert sum(p.size for p in params) == vectors.shape[-1]
    parts = np.split(vectors, np.cumsum([p.size for p in params])[:-1], axis=-1)
    return {p.name: part.reshape(*part.shape[:-1], *p.shape) for p, part in zip(params, parts, strict=True)}


@pytest.fixture(scope="session")
def by_name() -> Callable[..., dict[str, np.ndarray]]:
    """by_name(problem, vector, only="W") → {parameter name: array}."""
    return named


def splits_of_digits(x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray) -> Splits:
    """The recorded images (n, 64) and labels, (n,) or one-hot (n, 10), as splits; `select` and `test` are empty."""

    def split(x: np.ndarray, y: np.ndarray) -> Split:
        y = y.argmax(axis=1) if y.ndim == 2 else y
        return Split(x.reshape(-1, 8, 8, 1).astype(np.float32), y.astype(np.int32), np.arange(len(y)))

    train, valid, nothing = split(x, y), split(x_valid, y_valid), split(x[:0], y[:0])
    return Splits(train, valid, nothing, nothing, np.zeros(1, np.float32), np.ones(1, np.float32), 10, "digits")


@pytest.fixture(scope="session")
def digits_splits() -> Callable[..., Splits]:
    """digits_splits(x, y, x_valid, y_valid): see `splits_of_digits`."""
    return splits_of_digits


# -- the problem of HIPS/hypergrad and of DrMAD's authors: a perceptron 64-16-10 on handwritten digits ----------------------


@cache
def digits_given() -> dict[str, np.ndarray]:
    with np.load(DATA / "ab_problem.npz") as file:
        return dict(file)


class Perceptron(h.Problem):
    """64-16-10 with tanh, batches of 20, from the weights and on the examples that the originals were given."""

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.params]

    @property
    def weights(self) -> list[str]:
        """The names of the weight matrices, without the biases."""
        return [name for name in self.names if name.endswith("W")]

    def split(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Their vectors (…, 1210) as {name: (…, *shape)}."""
        return named(self, vectors)

    def initial_weights(self) -> dict[str, np.ndarray]:
        return self.split(digits_given()["x0"])

    def given(self, final: np.ndarray, w: np.ndarray | None = None, v: np.ndarray | None = None) -> Training:
        """The record of a training that ended at their w_T, (1210,), and went through their states w and v, (T, 1210)."""
        trajectory = MemoryTrajectory()
        if w is not None:
            both = {"w/": self.split(w), "v/": self.split(v)}
            trajectory.append(0, {front + name: a for front, arrays in both.items() for name, a in arrays.items()})
        start, end = self.initial_weights() if w is None else self.split(w[0]), self.split(final)
        still = {name: np.zeros_like(one) for name, one in end.items()}
        return Training(start, end, end, still, {}, np.zeros(self.steps), np.ones(20), self.steps, trajectory, Cost())


@pytest.fixture(scope="session")
def perceptron() -> Callable[..., Perceptron]:
    """perceptron(T, hyperparameters, **fields) → the problem, whose batches are checked to be those of the originals."""
    given = digits_given()
    splits = splits_of_digits(*(given[key] for key in ("X", "y", "Xv", "yv")))
    schedule = BatchSchedule(160, 20, 2, order="reshuffled")

    def perceptron(T: int, hyperparameters: Any, gamma: float = 0.9, **fields: Any) -> Perceptron:
        np.testing.assert_array_equal(schedule.indices(0, T), given["idx"][:T])
        return Perceptron(
            network=mlp((8, 8, 1), (16,), init_scale=0.3),
            splits=splits,
            schedule=schedule,
            steps=T,
            hyperparameters=hyperparameters,
            dynamics=h.Dynamics("damped", 0.3, gamma),
            precision="float64",
            **fields,
        )

    return perceptron
