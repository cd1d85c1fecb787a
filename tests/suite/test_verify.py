"""verify: a derivative from values alone, an engine that is right, and engines that are wrong in known ways."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hypertrail import (
    DrMAD,
    Exact,
    ExampleWeight,
    InitialScale,
    TrainingInput,
    UsageError,
    VerificationFailure,
    engines,
    outer,
    tolerances,
    verify,
)


@pytest.mark.parametrize(
    ("f", "slope"),
    [(np.sin, 1.0), (lambda x: np.exp(3 * x), 3.0), (lambda x: x**2, 0.0), (lambda x: 5.0 + 1e-3 * x, 1e-3)],
)
def test_ridders_finds_the_slope(f, slope):
    assert verify.derivative(f, 0.02, 8, 1e-12) == pytest.approx(slope, abs=2e-11)


def test_ridders_steps_past_a_jump_that_is_not_at_zero():
    """Training a network with relu jumps where an activation crosses zero; nearer to 0 than the jump the slope is right."""
    assert verify.derivative(lambda x: np.sin(x) + 1e-4 * (x > 0.0007), 2e-3, 8, 1e-9) == pytest.approx(1.0, abs=1e-9)


def test_ridders_stops_when_it_is_good_enough():
    calls = []
    verify.derivative(lambda x: calls.append(x) or 2.0 * x, 0.02, 8, 1e-9)
    assert len(calls) == 4  # two levels of two


def test_ridders_says_that_there_was_nothing_to_measure():
    """It once said 0.0, which is what a hypergradient of nothing but zeros says as well."""
    assert np.isnan(verify.derivative(lambda x: np.nan, 0.02, 8, 1e-12))
    assert np.isnan(verify.derivative(lambda x: np.inf, 0.02, 8, 1e-12))
    assert verify.derivative(lambda x: np.sin(x) if abs(x) < 0.001 else np.nan, 0.02, 12, 1e-12) == pytest.approx(1.0)
    assert not verify.Check("exact", np.nan, 1e-6).passed


def test_random_signs_are_signs_and_repeat(problem):
    hyper = problem.initial_hyper()
    one, again, other = (verify.random_signs(hyper, 0, n) for n in (0, 0, 1))
    values = np.ravel(one["l2"]["dense1/W"])
    assert set(values) == {-1.0, 1.0}
    assert abs(values.mean()) < 0.2
    np.testing.assert_array_equal(one["l2"]["dense1/W"], again["l2"]["dense1/W"])
    assert (one["l2"]["dense1/W"] != other["l2"]["dense1/W"]).any()


@pytest.fixture(scope="module")
def cpu():
    return engines.load("cpu")


def wrong(engine, change):
    """The same engine with `change` done to its hypergradients."""

    def hypergradient(*words, **more):
        result = engine.hypergradient(*words, **more)
        result.gradient = outer.tree(change, result.gradient)
        return result

    return SimpleNamespace(name="wrong", train=engine.train, hyper_loss=engine.hyper_loss, hypergradient=hypergradient)


def test_the_reference_engine_passes(problem, cpu):
    checks = list(verify.verify(problem, cpu, cpu, DrMAD("C1"), directions=2))
    assert [c.passed for c in checks] == [True] * 8
    assert [c.epsilon for c in checks] == [1e-6] * 4 + [1e-10] * 4
    assert [c.what.split(",")[0] for c in checks] == [
        f"{method} of {kind}" for method in ("exact", "exact", "exact", "drmad-C1") for kind in ("l2", "learning_rate")
    ]
    assert all(c.difference < 1e-7 for c in checks)
    assert str(checks[0]).startswith(
        "ok   exact of l2, cpu against finite differences, direction 1 of 2: relative difference "
    )


def test_kinds_that_live_on_examples_and_on_w_0_pass(make_problem, cpu):
    declared = (InitialScale(), ExampleWeight(), TrainingInput())
    checks = list(verify.verify(make_problem(hyperparameters=declared), cpu, cpu, Exact(), directions=1))
    assert [c.passed for c in checks] == [True] * 6
    assert checks[-1].what == "exact of training_input, cpu against cpu, 2,560 coordinates"


@pytest.mark.parametrize(
    "change", [lambda h: 1.001 * h, lambda h: -h, lambda h: np.zeros_like(h)], ids=["scaled", "sign", "zero"]
)
def test_an_engine_that_is_wrong_fails_both_checks(problem, cpu, change):
    checks = list(verify.verify(problem, wrong(cpu, change), cpu, Exact(), directions=1))
    assert [c.passed for c in checks] == [False] * 4
    assert str(checks[-1]).startswith("FAIL ")


def test_a_method_that_cannot_go_is_refused_before_anything_is_trained(make_problem):
    with pytest.raises(UsageError, match="this run has 4; train longer or use C0"):
        next(verify.verify(make_problem(steps=4), SimpleNamespace(), None, DrMAD("C4"), directions=1))


def test_a_method_that_walks_between_checkpoints_gets_them(problem, cpu):
    checks = list(verify.verify(problem, cpu, cpu, DrMAD("C6"), directions=0))
    assert [c.passed for c in checks] == [True] * 4
    assert checks[-1].what.startswith("drmad-C6 of learning_rate")


def test_the_exact_check_is_not_done_twice(problem, cpu):
    checks = list(verify.verify(problem, cpu, cpu, Exact(), directions=0))
    assert [c.what for c in checks] == [
        "exact of l2, cpu against cpu, 370 coordinates",
        "exact of learning_rate, cpu against cpu, 1 coordinates",
    ]


def test_every_tolerance_has_a_reason():
    assert ("finite differences", "float64") in tolerances.TABLE
    for entry in tolerances.TABLE.values():
        assert 0 < entry.epsilon < 0.1
        assert len(entry.reason) > 20
    with pytest.raises(UsageError, match="no tolerance for finite differences in float32"):
        tolerances.tolerance("finite differences", "float32")


def test_the_command_says_a_line_per_check_and_fails_when_one_does(
    monkeypatch, capsys, digits_experiment, cpu, make_problem
):
    options, default = verify.options(digits_experiment)
    assert default.precision == "float64"
    assert default.steps == verify.STEPS
    monkeypatch.setattr(digits_experiment, "problem", lambda config: make_problem())
    monkeypatch.setattr(verify, "load", lambda name: cpu)
    config = options(precision="float64", engine="cpu", directions=1, method="drmad-C1")
    assert verify.main(digits_experiment, config, "drmad-digits") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "drmad-digits: T 6, float64, seed 0"
    assert [line[:4] for line in said[1:]] == ["ok  "] * 6
    monkeypatch.setattr(verify, "load", lambda name: cpu if name == "gpu" else wrong(cpu, lambda h: 2 * h))
    with pytest.raises(VerificationFailure, match="6 of the checks failed") as failure:
        verify.main(digits_experiment, config, "drmad-digits")
    assert failure.value.exit_code == 4
    with pytest.raises(UsageError, match="directions -1"):
        verify.main(digits_experiment, options(directions=-1), "drmad-digits")
