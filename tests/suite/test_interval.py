"""Intervals against printed tables and closed forms, and the rules that no table may break."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from hypertrail import interval
from hypertrail.interval import Unit, estimate, percent, verdict, with_half

# Two-sided 95 %, from printed tables.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize(("degrees", "t"), PRINTED.items())
def test_quantiles_are_the_printed_ones(degrees, t):
    assert interval.quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_quantiles_in_closed_form():
    """One degree of freedom is Cauchy's distribution; two have an inverse as well: t = p √(2 / (1 − p²))."""
    assert interval.quantile(1) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-10)
    assert interval.quantile(2, 0.5) == pytest.approx(0.5 * math.sqrt(2 / 0.75), rel=1e-10)


def test_an_interval_by_hand():
    e = estimate([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt((4 + 1 + 9) / 2) / math.sqrt(3)
    assert (e.n, e.mean) == (3, 3.0)
    assert e.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert (e.half, e.low, e.high) == pytest.approx((half, 3 - half, 3 + half), rel=1e-6)
    one = estimate([2.5])
    assert (one.n, one.mean, one.sd, one.half, one.low, one.high) == (1, 2.5, None, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_an_interval_covers_the_mean_as_often_as_it_says():
    """95 % of 2,000 samples of four normal numbers, to three standard deviations of that count."""
    samples = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
    held = sum(e.low <= 3.0 <= e.high for e in (estimate(list(x)) for x in samples))
    assert abs(held / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_the_half_width_is_at_least_one_example():
    """Two seeds that differ from the other arm by the same two images of 1,000: "+0.20 ± 0.00" once."""
    unit = percent(1000)
    assert with_half([0.2, 0.2], unit.difference) == "+0.20 ± 0.10"
    assert with_half([0.2, 0.2, 0.2], percent(200).difference) == "+0.20 ± 0.50"
    assert verdict([0.2, 0.2, 0.2], percent(200).difference) == "ties"
    assert verdict([0.2, 0.2, 0.2], unit.difference) == "loses"


def test_percentages_stay_within_0_and_100():
    e = estimate([60.0, 100.0], percent(50))
    assert (e.low, e.high) == (0.0, 100.0)
    assert with_half([60.0, 100.0], percent(50)) == "80.00 (0.00 to 100.00)"
    assert with_half([0.0, 0.0, 1.0], percent(100)) == "0.33 (0.00 to 1.77)"
    assert with_half([-90.0, 90.0], percent(50).difference) == "+0.00 (-100.00 to +100.00)"


def test_decimals_are_fixed():
    assert with_half([80.0, 81.0], percent(10**6)) == "80.50 ± 6.35"
    assert with_half([0.81, 0.82, 0.84], Unit()) == "0.823 ± 0.038"
    assert with_half([500.0, 700.0, 633.0], Unit()) == "611 ± 253"
    assert with_half([3.0], Unit(signed=True)) == "+3.000"
    assert with_half([1e30, 3e30, 2e30], Unit()) == "2.000e+30 ± 2.48e+30"
    assert "e" not in with_half([0.0, 1000.0, 20.0], Unit())


def test_fewer_than_three_seeds_give_no_verdict():
    assert verdict([-2.0]) == "1 seed: no verdict"
    assert verdict([-2.0, -2.0]) == "2 seeds: no verdict"
    assert verdict([-2.0, -2.1, -1.9]) == "helps"
    assert verdict([2.0, 2.1, 1.9]) == "loses"
    assert verdict([-1.0, 1.1, 0.2]) == "ties"


def test_a_verdict_knows_how_many_seeds_there_are():
    """20 seeds: mean .235, t 2.0930 · sd / √20 = .2401; the normal distribution's 1.96 would be .2248 and a loss."""
    assert verdict(list(np.tile([0.0, 1.0], 10) - 0.5 + 0.235)) == "ties"


def test_scipy_is_imported_only_where_an_interval_is_asked_for():
    code = "import sys, hypertrail, hypertrail.interval, hypertrail.race.report; print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
