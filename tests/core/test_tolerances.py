"""The tolerance of reversible runs grows with the run and with γ."""

from __future__ import annotations

import pytest

from hypertrail import UsageError, tolerances


def test_the_bound_of_a_reversible_run():
    assert tolerances.reversible(40, 0.9, 0.3).epsilon == pytest.approx(1.7e-9, rel=0.03)
    assert tolerances.reversible(600, 0.98, 0.3).epsilon == pytest.approx(1.3e-7, rel=0.03)
    ten = tolerances.reversible(100, 0.9, 0.1).epsilon / tolerances.reversible(10, 0.9, 0.1).epsilon
    assert ten == pytest.approx(10)
    with pytest.raises(UsageError, match=r"momentum 1.0, expected 0 ≤ momentum < 1"):
        tolerances.reversible(10, 1.0, 0.1)
    with pytest.raises(UsageError, match="no tolerance for reversible"):
        tolerances.tolerance("reversible", "float64")
