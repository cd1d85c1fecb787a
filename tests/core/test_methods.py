"""The names of the methods, and N of completion C4."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest

from hypertrail import DrMAD, Exact, Forward, Implicit, Truncated, UsageError
from hypertrail.methods import (
    CHOICE_OF,
    AsPublished,
    batch_steps,
    parse_method,
    points,
    speed_matched_steps,
    stretch_steps,
    tail_of,
)


@pytest.mark.parametrize("multiplier", ["0.01", "0.07", "0.1", "0.3", "0.35", "0.5", "0.7", "0.9", "1"])
@pytest.mark.parametrize("speed", [1e-6, 0.1, 0.3, 1.0, np.pi, 1e5])
def test_constant_speed_gives_ceil_of_multiplier_times_T(multiplier: str, speed: float):
    """ceil in exact arithmetic: 0.07 · 100 is 7 steps, not 8."""
    method = DrMAD(multiplier=float(multiplier), max_steps=10**9)
    for steps in [*range(5, 60), 100, 200, 777, 1000, 20_000]:
        distances = [speed * (t + 1) for t in range(steps)]
        assert speed_matched_steps(distances, speed * steps, steps, method) == ceil(Fraction(multiplier) * steps), steps


def test_an_example_by_hand():
    """T = 6: s_4 = 5/5 = 1, s_5 = 12/6 = 2, q = (¾, ¼), b = (¾ + ½) / 20 = 1/16."""
    distances = [9.0, 9.0, 9.0, 9.0, 5.0, 12.0]
    assert speed_matched_steps(distances, 20.0, 6, DrMAD(multiplier=0.25)) == 4
    assert speed_matched_steps(distances, 20.0, 6, DrMAD(multiplier=0.26)) == ceil(0.26 * 16) == 5
    assert speed_matched_steps(distances, 20.0, 6, DrMAD(multiplier=0.01)) == 1
    assert speed_matched_steps(distances, 20.0, 6, DrMAD(multiplier=1.0)) == 6, "never more than T"
    assert speed_matched_steps(distances, 20.0, 6, DrMAD(multiplier=1.0, max_steps=3)) == 3


def test_the_weights_of_the_speeds_fall_by_halves():
    """T = 7: q = (1 − ¼ − ⅛, ¼, ⅛) on speeds 8, 4, 16: b = (5 + 1 + 2) / 32."""
    distances = [0.0, 0.0, 0.0, 0.0, 8.0 * 5, 4.0 * 6, 16.0 * 7]
    assert speed_matched_steps(distances, 32.0, 7, DrMAD()) == 4


def test_only_steps_5_to_20_are_measured():
    method = DrMAD(multiplier=0.37)
    distances = [0.1 * (t + 1) for t in range(100)]
    expected = speed_matched_steps(distances, 10.0, 100, method)
    for t in (*range(4), *range(20, 100)):
        assert speed_matched_steps([*distances[:t], 1e9, *distances[t + 1 :]], 10.0, 100, method) == expected, t
    for t in (4, 19):
        assert speed_matched_steps([*distances[:t], 1e9, *distances[t + 1 :]], 10.0, 100, method) != expected, t


@pytest.mark.parametrize(
    ("distances", "total", "message"),
    [
        ([1.0] * 4, 1.0, "this run has 4"),
        ([1.0] * 9, 0.0, "w_T equals w_0"),
        ([1.0] * 9, float("nan"), "w_T equals w_0"),
        ([0.0] * 9, 1.0, "did not move"),
    ],
)
def test_runs_without_a_speed(distances, total, message):
    with pytest.raises(UsageError, match=message):
        speed_matched_steps(distances, total, len(distances), DrMAD())


@pytest.mark.parametrize(
    "method",
    [
        Exact(),
        *(DrMAD(c) for c in ("C0", "C1", "C4")),
        *(DrMAD(c, first_batches=True) for c in ("C1", "C3", "C4", "C5")),
        *(DrMAD(c, spread="even") for c in ("C1", "C3", "C4", "C5", "C6")),
        *(DrMAD("C4", choices=AsPublished(**{one: True})) for one in CHOICE_OF if "C4" in CHOICE_OF[one]),
        DrMAD("C5", first_batches=True, choices=AsPublished(inner_rho=True, without_last=True)),
    ],
    ids=lambda m: m.name,
)
def test_names_are_parsed_back(method):
    assert parse_method(method.name) == method


@pytest.mark.parametrize(
    ("word", "method"),
    [
        ("drmad-C5:tail=20", DrMAD("C5", tail=20)),
        ("drmad-C1-first", DrMAD("C1", first_batches=True)),
        ("drmad-C4-even", DrMAD("C4", spread="even")),
        (
            "drmad-C4-first:sum_of_norms:multiplier=0.5:regularized_only",
            DrMAD(
                "C4",
                multiplier=0.5,
                first_batches=True,
                choices=AsPublished(sum_of_norms=True, regularized_only=True),
            ),
        ),
        ("drmad-C4:multiplier=0.1:max_steps=200", DrMAD("C4", multiplier=0.1, max_steps=200)),
        ("truncated-50", Truncated(50)),
        ("implicit-dense:damping=1e-4", Implicit("dense", damping=1e-4)),
        ("implicit-neumann:iterations=20:step=.3", Implicit("neumann", iterations=20, step=0.3)),
        ("forward:most=100", Forward(100)),
    ],
)
def test_settings_follow_after_colons(word, method):
    assert parse_method(word) == method


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-8), ("float32", 1e-5)])
def test_an_implicit_solve_asks_for_what_its_numbers_can_reach(precision, tolerance):
    assert Implicit().at(precision).tolerance == tolerance
    assert Implicit(tolerance=1e-3).at(precision).tolerance == 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: parse_method("reverse"), "'reverse'.*exact, drmad-C0, drmad-C1, .*truncated-K"),
        (lambda: parse_method("drmad-C9"), "'C9'"),
        (lambda: parse_method("drmad-C2-first"), "first_batches is for completions C1, C3, C4, C5, not for C2"),
        (lambda: parse_method("drmad-C6-first"), "first_batches is for completions C1, C3, C4, C5, not for C6"),
        (lambda: parse_method("drmad-C2-even"), "spread 'even': completion C2 spreads no minibatches over the run"),
        (lambda: DrMAD("C4", first_batches=True, spread="even"), "spread 'even': first_batches spreads no minibatches"),
        (lambda: DrMAD(spread="random"), "spread 'random', expected one of drawn, even"),
        (lambda: parse_method("drmad-C1:inner_rho"), "inner_rho is for C2, C3, C4, C5, not for C1"),
        (lambda: parse_method("drmad-C4:without_last"), "without_last is for C5, not for C4"),
        (lambda: parse_method("drmad-C3:sum_of_norms"), "sum_of_norms is for C4, C5, not for C3"),
        (lambda: parse_method("drmad-C5:regularized_only"), "regularized_only is for C1, C2, C3, C4, not for C5"),
        (lambda: parse_method("drmad-C0:line_dalpha"), "line_dalpha is for C1, C2, C3, C4, C5, not for C0"),
        (lambda: parse_method("drmad-C6:end_velocity"), "end_velocity is for C1, C2, C3, C4, C5, not for C6"),
        (
            lambda: parse_method("drmad-C4:sum_of_norms=1"),
            "drmad-C4 has no setting 'sum_of_norms', expected multiplier",
        ),
        (
            lambda: parse_method("drmad-C5:tails=20"),
            "drmad-C5 has no setting 'tails', expected multiplier, max_steps, tail",
        ),
        (lambda: parse_method("exact:K=3"), "exact has no setting 'K', expected none"),
        (lambda: parse_method("drmad-C5:tail=2.5"), "tail is '2.5', expected a whole number, as in tail=20"),
        (lambda: parse_method("implicit-cg:damping"), "damping is '', expected a number"),
        (lambda: parse_method("drmad-C4:tail=5"), "tail is for completion C5, not for C4"),
        (lambda: parse_method("drmad-C3:max_steps=5"), "C4, C5 and C6, not for C3"),
        (lambda: parse_method("truncated-3:steps=7"), "truncated-3 has no setting 'steps', expected none"),
        (lambda: DrMAD("C7"), "C0, C1, C2, C3, C4, C5, C6"),
        (lambda: DrMAD(multiplier=0.0), "multiplier 0.0"),
        (lambda: DrMAD(multiplier=float("inf")), "multiplier inf"),
        (lambda: DrMAD(max_steps=0), "max_steps 0"),
        (lambda: Implicit(tolerance=1.0), "tolerance 1.0, .* below 1"),
        (lambda: Implicit(tolerance=float("nan")), "tolerance nan"),
        (lambda: Implicit("neumann", step=float("inf")), "step inf"),
        (lambda: Implicit(damping=float("nan")), "damping nan"),
        (lambda: Implicit(damping=float("inf")), "damping inf"),
    ],
)
def test_methods_that_do_not_exist(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_tail_is_that_of_the_smallest_momentum():
    """K = int(20 / (3 (−log2 γ))): 90 at .95, 43 at .9; never more than T; what is asked for goes first."""
    momenta = [np.array(0.95), np.array([0.9, 0.99])]
    assert tail_of(DrMAD("C5"), momenta[:1], 1000) == 90
    assert tail_of(DrMAD("C5"), momenta, 1000) == 43
    assert tail_of(DrMAD("C5"), momenta, 20) == 20
    assert tail_of(DrMAD("C5", tail=7), momenta, 1000) == 7


def test_stretches_under_5_steps_are_walked_step_by_step():
    """As far as max_steps lets them; nothing is measured then. From 5 on it is C4's rule."""

    def unasked() -> float:
        pytest.fail("no length is needed")

    assert [stretch_steps([], unasked, T, DrMAD("C6")) for T in range(5)] == [0, 1, 2, 3, 4]
    assert [stretch_steps([], unasked, T, DrMAD("C6", max_steps=2)) for T in range(5)] == [0, 1, 2, 2, 2]
    distances = [0.1 * (t + 1) for t in range(7)]
    assert stretch_steps(distances, lambda: 0.7, 7, DrMAD("C5")) == 7
    assert stretch_steps(distances, lambda: 0.7, 7, DrMAD("C5", max_steps=2)) == 2


@pytest.mark.parametrize(
    ("start", "stop", "N"), [(0, 20_000, 200), (0, 47, 4), (19, 28, 9), (5, 6, 1), (300, 1000, 333)]
)
def test_a_drawn_step_lies_within_its_stretch(start, stop, N):
    ends = start + np.arange(N + 1) * (stop - start) // N
    seen = [batch_steps(DrMAD("C4"), seed, start, stop, N) for seed in range(20)]
    for steps in seen:
        assert ((ends[:-1] <= steps) & (steps < ends[1:])).all()
    np.testing.assert_array_equal(batch_steps(DrMAD("C4"), 3, start, stop, N), seen[3])  # a pure function of the seed
    assert (len({tuple(steps) for steps in seen}) == 1) == (stop - start == N)
    np.testing.assert_array_equal(batch_steps(DrMAD("C4", spread="even"), 3, start, stop, N), ends[:-1])
    first = DrMAD("C4", first_batches=True)
    np.testing.assert_array_equal(batch_steps(first, 3, start, stop, N), start + np.arange(N))


def test_drawn_steps_do_not_alias_with_an_epoch():
    """T = 20,000, an epoch of 300 minibatches, N = 200: the first step of every stretch is one of 3 minibatches only."""
    even = batch_steps(DrMAD("C3", spread="even"), 0, 0, 20_000, 200) % 300
    assert set(even) == {0, 100, 200}
    for seed in range(10):  # 200 draws from 300: 146 on average
        assert len(set(batch_steps(DrMAD("C3"), seed, 0, 20_000, 200) % 300)) > 130


def test_points_of_a_line():
    def rho(method, N):
        return points(method, 0, 0, 100, N)[0]

    inner = AsPublished(inner_rho=True)
    np.testing.assert_array_equal(rho(DrMAD("C4"), 10), np.linspace(0, 1, 11)[:10])
    np.testing.assert_array_equal(rho(DrMAD("C2"), 100), np.arange(100) / 100)
    for method in (DrMAD("C1"), DrMAD("C2", choices=inner), DrMAD("C4", choices=inner)):
        np.testing.assert_array_equal(rho(method, 10), np.linspace(0.001, 0.999, 10))
    whole, shorter = (DrMAD("C5", choices=AsPublished(without_last=on)) for on in (False, True))
    for all_of_it, rest in zip(points(whole, 0, 0, 100, 10), points(shorter, 0, 0, 100, 10), strict=True):
        np.testing.assert_array_equal(rest, all_of_it[:9])
    assert len(rho(shorter, 1)) == 1
