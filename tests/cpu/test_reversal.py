"""Exact reversal: the arithmetic, the buffers, the way back to the bit, and the hypergradient that comes with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L2,
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    LearningRate,
    Momentum,
    NumericalFailure,
    Reversible,
    Truncated,
    UsageError,
    VerificationFailure,
    tolerances,
)
from hypertrail.records import Undoable
from hypertrail_cpu.providers import ExactlyReversed, Stored
from hypertrail_cpu.reversal import (
    Digits,
    Integers,
    add,
    capacity,
    fraction,
    fractions,
    rounded,
    to_fixed,
    to_float,
)
from hypertrail_cpu.reverse import reverse
from hypertrail_data import MemoryTrajectory

ONE = 2**52
FILL = 2.0**-36  # by so much at most the digits that fill up change a velocity in one step
STEPS = 40
ROUNDED = tolerances.reversible(STEPS, 0.9, 0.3).epsilon  # what that leaves in a hypergradient after STEPS steps


# -- the arithmetic


def test_conversion_truncates_toward_zero():
    x = np.array([1.0, -1.0, 1.5 / ONE, -1.5 / ONE, 0.9 / ONE, -0.9 / ONE, 0.0, -3.25])
    np.testing.assert_array_equal(to_fixed(x, "x", 0), [ONE, -ONE, 1, -1, 0, 0, 0, -3 * ONE - ONE // 4])
    y = np.random.default_rng(0).standard_normal(100)
    np.testing.assert_array_equal(to_fixed(-y, "y", 0), -to_fixed(y, "y", 0))  # so that subtracting undoes adding
    assert np.abs(to_float(to_fixed(y, "y", 0)) - y).max() < 1 / ONE


def test_range_ends_below_2048():
    largest = np.nextafter(2048.0, 0)
    assert to_float(to_fixed(np.array([largest, -largest]), "x", 0)).tolist() == [largest, -largest]
    for bad in (2048.0, -2048.0, np.inf, np.nan):
        with pytest.raises(NumericalFailure, match="x left the fixed point range at step 7; int64 fixed point holds"):
            to_fixed(np.array([1.0, bad]), "x", 7)


def test_sums_that_do_not_fit_are_caught():
    a = np.array([2**62, -(2**62), 2**62], dtype=np.int64)
    np.testing.assert_array_equal(add(a, np.array([2**62 - 1, -(2**62), -(2**62)]), "x", 0), [2**63 - 1, -(2**63), 0])
    for b in ([2**62, 0, 0], [0, -(2**62) - 1, 0]):
        with pytest.raises(NumericalFailure) as caught:
            add(a, np.array(b), "velocity", 3)
        assert (caught.value.quantity, caught.value.step) == ("velocity", 3)


@pytest.mark.parametrize("gamma", [1e-9, 1e-4, 0.1, 0.5, 0.9, 0.95, 0.98, 0.9999, 1 - 2.0**-15])
def test_fraction_is_above_by_at_most_one_part_in_65536(gamma):
    n, d = fraction(gamma)
    assert d == 2**16
    assert 1 <= n < d
    assert gamma <= n / d < gamma + 1 / d
    assert fraction(n / d) == (n, d)  # a fraction already


def test_known_fractions():
    """The authors' formula would make 32769/65536 of .5: it adds one always."""
    assert fraction(0.5) == (32768, 65536)
    assert fraction(0.75) == fraction(0.75 * (1 + 4e-16)) == (49152, 65536)  # logit γ and back may cost the last digits
    assert fraction(0.75 + 1e-9) == (49153, 65536)
    assert fraction(0.9) == (58983, 65536)
    assert fraction(1 - 2.0**-16) == (65535, 65536)


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.1, 1.5, np.nan, 1 - 2.0**-17])
def test_other_momenta_are_refused(gamma):
    with pytest.raises(UsageError, match="momentum"):
        fraction(gamma)


def test_capacity_of_the_reference():
    assert [capacity(gamma) for gamma in (0.9, 0.95, 0.98)] == [274, 549, 1350]
    assert capacity([0.9, 0.98]) == math.floor(
        (62 - 16 - math.log2(50) - 1) / -math.log2(0.9)
    )  # each counts at its worst


# -- the buffers


def by_hand(i: int, B: int, n: int, d: int) -> tuple[int, int]:
    """The five lines of the reference on Python integers."""
    B = B * d + (i % d)
    i = i // d
    i = i * n
    i = i + B % n
    return i, B // n


@pytest.mark.parametrize("unbounded", [True, False])
def test_multiplication_is_the_five_lines(unbounded):
    """Numbers of both signs, floor and remainder as in Python."""
    rng = np.random.default_rng(1)
    i = rng.integers(-(2**60), 2**60, 20)
    n, d = fraction(0.9)
    digits = Digits.empty((20,), None if unbounded else 100)
    pairs = [(int(one), 0) for one in i]
    for step in range(8):
        i = digits.multiply(i, n, d, step)
        pairs = [by_hand(*pair, n, d) for pair in pairs]
        assert [int(one) for one in i] == [one for one, _ in pairs]
        assert [int(one) for one in digits.B] == [B for _, B in pairs]
        assert np.abs(i).max() > 2**40


@pytest.mark.parametrize("gamma", [0.3, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("unbounded", [True, False])
def test_division_undoes_multiplication(gamma, unbounded):
    """Over more steps than one int64 buffer lasts, with pushes from outside as in training; no buffer ever overflows."""
    n, d = fraction(gamma)
    lasts = capacity(n / d)
    steps, rng = 2 * lasts + 5, np.random.default_rng(2)
    digits = Digits.empty((30,), None if unbounded else lasts)
    push = to_fixed(rng.standard_normal((steps, 30)), "push", 0)
    i = start = push[0]
    for t in range(steps):
        i = digits.multiply(i, n, d, t) + push[t]
        if not unbounded:
            assert digits.B.min() >= 0
            assert math.log2(1 + float(digits.B.max())) < 62 - 16
    assert len(digits.aside) == (0 if unbounded else 2)
    for t in reversed(range(steps)):
        i = digits.divide(i - push[t], n, d, t)
    np.testing.assert_array_equal(i, start)
    digits.check_empty(0)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.95])
def test_bits_of_the_unbounded_buffer(gamma):
    """log2(1/γ) per number and step, within 3 % once the run is long against the first few bits."""
    n, d = fraction(gamma)
    T = int(250 / -math.log2(gamma))
    rng = np.random.default_rng(3)
    digits = Digits.empty((40,), None)
    i = np.zeros(40, dtype=np.int64)
    for t in range(T):
        i = digits.multiply(i, n, d, t) + to_fixed(rng.standard_normal(40), "g", t)
    assert digits.bits() / (40 * T) == pytest.approx(-math.log2(gamma), rel=0.03)


def test_buffer_that_does_not_come_out_empty_is_told():
    digits = Digits.empty((3,), 4)
    n, d = fraction(0.9)
    i = np.array([5 * ONE, -ONE, 7], dtype=np.int64)
    for t in range(5):
        i = digits.multiply(i, n, d, t)
    digits.B = digits.B + 2
    with pytest.raises(VerificationFailure, match="at step 4 the buffer is not empty"):
        digits.divide(i, n, d, 4)


def test_start_is_checked_in_every_number():
    w0 = {"a": np.array([0.5, -1.25])}

    def fresh() -> Integers:
        return Integers.start(w0, {"a": np.array(58983)}, unbounded=False)

    fresh().check_start(w0)
    digits, w, v = fresh(), fresh(), fresh()
    digits.digits["a"].B = np.array([0, 1])
    w.w["a"] = w.w["a"] + np.array([0, 1])
    v.v["a"] = v.v["a"] - np.array([1, 0])
    for state, match in (
        (digits, "buffer is not empty"),
        (w, "did not come back to w_0"),
        (v, "did not come back to w_0"),
    ):
        with pytest.raises(VerificationFailure, match=match):
            state.check_start(w0)


# -- training and the way back


DYNAMICS = Dynamics("damped", 0.3, 0.9, schedule=((20, 0.5),))
CASES = {
    "penalties": ("penalties", DYNAMICS),
    "coarse": ("coarse", "damped"),
    "momentum per step": ("fine", "damped"),
    "half": ("penalties", Dynamics("damped", 0.3, 0.5)),
}


@pytest.fixture(scope="module")
def reversible(make):
    """(problem, hyper, reversible run, its exact hypergradient) of a case and a kind of buffer."""
    done = {}

    def run(case="coarse", unbounded=False):
        if (case, unbounded) not in done:
            declared, dynamics = CASES[case]
            problem = make("tanh", declared, dynamics, steps=STEPS)
            hyper = problem.initial_hyper()
            training = cpu.train(problem, hyper, keep=Reversible(unbounded))
            done[case, unbounded] = problem, hyper, training, cpu.hypergradient(problem, hyper, training, Exact())
        return done[case, unbounded]

    return run


def gaps(a, b) -> dict[str, float]:
    """Largest difference of each kind, relative to its largest entry."""
    out = {}
    for kind, arrays in b.items():
        size = max(np.abs(one).max() for one in arrays.values())
        out[kind] = max(np.abs(a[kind][key] - one).max() for key, one in arrays.items()) / size
    return out


@pytest.mark.parametrize("unbounded", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_way_back_is_the_way_there_to_the_bit(reversible, case, unbounded):
    """Every state on the way back against the states written down on the way there; the provider asserts the end itself."""
    problem, hyper, training, _ = reversible(case, unbounded)
    effective, moved = rounded(problem, hyper)
    values = effective.values(moved)
    state = Integers.start(problem.initial_weights(), fractions(problem, hyper), unbounded)
    steps = list(cpu.training.forward_in_integers(effective, values, state))
    back = list(ExactlyReversed(effective, values, training.trajectory, training.initial).backwards())
    assert [p.i for p in back] == list(range(STEPS - 1, -1, -1))
    for place, step in zip(reversed(back), steps, strict=True):
        for p in step.w:
            np.testing.assert_array_equal(place.w[p], step.w[p])
            np.testing.assert_array_equal(place.v[p], step.v[p])
    for p in state.w:
        np.testing.assert_array_equal(training.trajectory.w[p], state.w[p])
        np.testing.assert_array_equal(training.trajectory.v[p], state.v[p])
        assert training.trajectory.w[p].dtype == training.trajectory.v[p].dtype == np.int64


@pytest.mark.parametrize("case", CASES)
def test_hypergradient_is_the_stored_one_of_the_states_it_passes(reversible, case):
    """To the bit: the same kernel is fed the same states, once from integers and once from a trajectory."""
    problem, hyper, training, result = reversible(case)
    effective, moved = rounded(problem, hyper)
    provider = ExactlyReversed(effective, effective.values(moved), training.trajectory, training.initial)
    stored = MemoryTrajectory()
    for place in reversed(list(provider.backwards())):
        w, v = ({f"{front}/{p}": a[None] for p, a in one.items()} for front, one in (("w", place.w), ("v", place.v)))
        stored.append(place.i, w | v)
    truth = reverse(effective, moved, Stored(stored, True), STEPS, final=training.final)
    for p, one in truth.dw.items():
        np.testing.assert_array_equal(result.initial_weights[p], one)
        np.testing.assert_array_equal(result.initial_velocity[p], truth.dv[p])
    np.testing.assert_array_equal(result.adjoint_norms, truth.norms)


@pytest.mark.parametrize("case", CASES)
def test_hypergradient_is_that_of_a_float_run_with_the_effective_momentum(reversible, case):
    problem, hyper, training, result = reversible(case)
    effective, moved = rounded(problem, hyper)
    stored = cpu.train(effective, moved, keep="memory")
    truth = cpu.hypergradient(effective, moved, stored, Exact())
    for p in training.final:
        assert np.abs(training.final[p] - stored.final[p]).max() < 20 * FILL
    found = gaps(result.gradient, truth.gradient)
    assert found
    allowed = 1e-12 if case == "half" else ROUNDED  # ½ is 1/2: what fills up is one digit
    assert all(0 < gap < allowed for gap in found.values()), found
    if case != "half":  # which is the γ that was asked for
        plain = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep="memory"), Exact())
        assert min(gaps(result.gradient, plain.gradient).values()) > 1e-7  # γ is another one, and it shows
    assert (result.cost.gradients, result.cost.hvps) == (2, STEPS)


@pytest.mark.parametrize("case", ["penalties", "momentum per step"])
def test_segmented_is_unbounded(reversible, case):
    """The same integers as long as no buffer has been put aside (274 steps at γ = .9)."""
    *_, one, a = reversible(case, False)
    *_, other, b = reversible(case, True)
    for p in one.trajectory.w:
        np.testing.assert_array_equal(one.trajectory.w[p], other.trajectory.w[p])
        np.testing.assert_array_equal(one.trajectory.v[p], other.trajectory.v[p])
    assert gaps(a.gradient, b.gradient) == dict.fromkeys(a.gradient, 0.0)


# What `keeping.Reversible` and the compiled engine's refusal say: the same effective momentum, then rounding.
def test_segmented_and_unbounded_after_buffers_were_put_aside(make):
    """γ = .51 fills an int64 in 45 steps. Both come back; other digits fill up, which rounds differently and no more."""
    problem = make("tanh", steps=100, dynamics=Dynamics("damped", 0.05, 0.51))
    hyper = problem.initial_hyper()
    runs = [cpu.train(problem, hyper, keep=Reversible(unbounded)) for unbounded in (False, True)]
    assert [len(one.aside) for one in runs[0].trajectory.lost.digits.values()] == [2] * 6
    a, b = (cpu.hypergradient(problem, hyper, run, Exact()) for run in runs)
    allowed = 0.05 * 100 * FILL / (1 - 0.51)  # α T FILL / (1−γ)
    assert all(0 < gap < allowed for gap in gaps(a.gradient, b.gradient).values())
    assert runs[0].trajectory.bits == 64 * 3 / 100


def test_record_of_a_reversible_run(reversible):
    problem, _, training, _ = reversible("penalties", True)
    kept = training.trajectory
    assert isinstance(kept, Undoable)
    assert kept.momentum == dict.fromkeys(training.final, 58983 / 65536)
    assert kept.bits == pytest.approx(-math.log2(0.9), rel=0.25)  # 40 steps: the beginning still counts
    assert kept.nbytes == training.cost.trajectory_bytes > 3 * sum(one.nbytes for one in training.final.values())
    assert training.cost.gradients == STEPS  # without the probe
    for p in training.final:
        np.testing.assert_array_equal(training.final[p], to_float(kept.w[p]))
        np.testing.assert_array_equal(training.velocity[p], to_float(kept.v[p]))
        assert np.abs(training.initial[p] - problem.initial_weights()[p]).max() < 1 / ONE
    _, _, segmented, _ = reversible("penalties", False)
    assert segmented.trajectory.bits == 64 / STEPS  # one int64 was begun
    assert segmented.trajectory.nbytes == 3 * sum(one.nbytes for one in training.final.values())
    per_step = reversible("momentum per step")[2].trajectory.momentum
    np.testing.assert_array_equal(per_step["dense1/W"], np.full(STEPS, np.ceil(0.6 * 2**16) / 2**16))


@pytest.mark.parametrize("steps", [1, 7])
def test_truncated_walk_over_integers(reversible, steps):
    problem, hyper, training, exact = reversible("coarse")
    result = cpu.hypergradient(problem, hyper, training, Truncated(steps))
    np.testing.assert_array_equal(result.adjoint_norms, exact.adjoint_norms[:steps])
    assert result.cost.hvps == steps
    whole = cpu.hypergradient(problem, hyper, training, Truncated(STEPS))
    assert gaps(whole.gradient, exact.gradient) == dict.fromkeys(exact.gradient, 0.0)


def test_any_method_on_a_reversible_run_uses_the_momentum_it_had(reversible, make):
    problem, hyper, training, _ = reversible("penalties")
    effective = make("tanh", "penalties", Dynamics("damped", 0.3, 58983 / 65536, DYNAMICS.schedule), steps=STEPS)
    a = cpu.hypergradient(problem, hyper, training, DrMAD("C4"))
    b = cpu.hypergradient(effective, hyper, replace(training, trajectory=None), DrMAD("C4"))
    assert gaps(a.gradient, b.gradient) == dict.fromkeys(a.gradient, 0.0)


# -- what must not go silently


@pytest.mark.parametrize("change", ["hyper", "problem", "integers", "digits"])
def test_a_way_back_that_differs_is_caught(make, change):
    problem = make("tanh", "penalties", DYNAMICS, steps=8)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep=Reversible())
    kept = training.trajectory
    if change == "hyper":
        hyper = {kind: {key: u + 1e-9 for key, u in arrays.items()} for kind, arrays in hyper.items()}
    elif change == "problem":
        problem = make("tanh", "penalties", DYNAMICS, steps=8, seed=8)
    elif change == "integers":
        kept.w["dense1/W"] = kept.w["dense1/W"] + (np.arange(kept.w["dense1/W"].size) == 5).reshape(64, 12)
    else:
        kept.lost.digits["dense1/W"].B = kept.lost.digits["dense1/W"].B + 1
    with pytest.raises(VerificationFailure, match="not reproduced"):
        cpu.hypergradient(problem, hyper, training, Exact())


def test_run_of_another_engine_is_refused(make):
    problem = make("tanh")
    training = cpu.train(problem, problem.initial_hyper(), keep=Reversible())
    training.trajectory.lost = {"in": "another form"}
    with pytest.raises(UsageError, match="another engine's"):
        cpu.hypergradient(problem, problem.initial_hyper(), training, Exact())


def test_overflow_names_quantity_and_step(make):
    """A rate that doubles a weight some ten times in the linear penalty's valley: 2048 comes long before infinity."""
    penalty = L2("network", 1e3, bounds=(1e-9, 1e6))
    problem = make("relu", dynamics=Dynamics("damped", 0.1, 0.5), hyperparameters=(penalty,), steps=50)
    with pytest.raises(NumericalFailure, match=r"left the fixed point range at step \d; .*2048") as caught:
        cpu.train(problem, problem.initial_hyper(), keep=Reversible())
    assert caught.value.step < 10
    assert caught.value.quantity.startswith(("velocity (", "elementary weights ("))


def test_gradients_that_differ_in_their_bits_are_refused(make, monkeypatch):
    real, calls = cpu.training.elementary_gradient, []

    def shaky(*arguments):
        loss, g, statistics = real(*arguments)
        calls.append(1)
        return loss, {p: one * (1 + 1e-16 * 2 ** len(calls)) for p, one in g.items()}, statistics

    monkeypatch.setattr(cpu.training, "elementary_gradient", shaky)
    problem = make("tanh")
    with pytest.raises(UsageError, match="OPENBLAS_NUM_THREADS=1"):
        cpu.train(problem, problem.initial_hyper(), keep=Reversible())


def test_runs_that_cannot_be_reversed_are_refused(make):
    for problem, match in (
        (make("tanh", dynamics="heavy-ball"), "for the damped dynamics, not for heavy-ball"),
        (make("tanh", dynamics=Dynamics("damped", 0.1, 0.0)), "divides by the momentum: it is 0"),
        (
            make("tanh", hyperparameters=(Momentum("network", 1 - 1e-6, bounds=(0.1, 1 - 1e-7)),)),
            "is 1 when rounded up",
        ),
    ):
        with pytest.raises(UsageError, match=match):
            cpu.train(problem, problem.initial_hyper(), keep=Reversible())


def test_checkpoints_of_an_effective_problem_agree(make):
    """All exact providers on one problem: stored, recomputed and reversed."""
    problem = make("tanh", steps=30, hyperparameters=(L2("unit", 1e-2), LearningRate("layer", 0.2)))
    problem, hyper = rounded(problem, problem.initial_hyper())
    stored, recomputed = (
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep=keep), Exact())
        for keep in ("memory", Checkpoints())
    )
    assert gaps(recomputed.gradient, stored.gradient) == dict.fromkeys(stored.gradient, 0.0)
    undone = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep="ends"), DrMAD("C5", tail=30))
    assert max(gaps(undone.gradient, stored.gradient).values()) < 1e-6
