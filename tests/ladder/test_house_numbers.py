"""The package gives the numbers that were written down before its walls were moved (house_numbers.json).

Three inner products with fixed directions and the norm say more than a hash: where the order of a sum has changed they agree to
rounding, where a formula has changed they do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hypertrail.engines import load

from . import house_numbers

WRITTEN: dict[str, Any] = json.loads(house_numbers.FILE.read_text())
# float64, relative to the norm. What solves a system or reverses integers stops where its own tolerance is met.
ALLOWED, SOLVED = 1e-12, 1e-6


def apart(found: dict[str, Any], written: dict[str, Any]) -> float:
    """The largest difference of norm and products, relative to the norm."""
    size = written["norm"] or 1.0
    pairs = zip([found["norm"], *found["products"]], [written["norm"], *written["products"]], strict=True)
    return max(abs(a - b) for a, b in pairs) / size


def held(found: Iterator[tuple[str, dict[str, Any]]]) -> int:
    count = 0
    for name, one in found:
        allowed = SOLVED if "implicit" in name or "reversible" in name or "float-reversed" in name else ALLOWED
        assert name in WRITTEN, name
        assert apart(one, WRITTEN[name]) <= allowed, (name, apart(one, WRITTEN[name]))
        count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize(("dynamics", "family"), house_numbers.PROBLEMS)
@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_trainings_and_ways_back(engine: str, dynamics: str, family: str) -> None:
    assert held(house_numbers.offline(load(engine), dynamics, family)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", house_numbers.ONLINE)
@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_online_rules(engine: str, name: str) -> None:
    held(house_numbers.online(load(engine), name))


def test_a_number_that_moves_is_seen() -> None:
    numbers = np.random.default_rng(1).standard_normal(50)
    written = house_numbers.digest(numbers)
    numbers[7] *= 1 + 1e-10
    assert apart(house_numbers.digest(numbers), written) > ALLOWED
    assert apart(written, written) == 0.0
