"""What the comparisons with the original programs share: how a file is read, and how agreement is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hypertrail as h

DATA = Path(__file__).parent / "data"
MOST = 17.0  # what two equal arrays are said to agree to: float64 holds no more


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
