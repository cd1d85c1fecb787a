"""How far steps can be undone in floating point, from the formula mantissa / log2(1/γ), and what is refused beyond it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hypertrail import (
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    FloatReversed,
    LearningRate,
    Momentum,
    Problem,
    Truncated,
    UsageError,
    VerificationFailure,
)
from hypertrail.hyperparameters import L2
from hypertrail.mantissa import arrival, horizon, refuse_arrival, undoable_steps
from hypertrail.methods import parse_method
from hypertrail.refusals import refuse_plan
from hypertrail_data import BatchSchedule, load, make_splits
from hypertrail_nets import mlp

GAMMAS = (0.9, 0.95, 0.98)


@pytest.fixture(scope="module")
def splits() -> Any:
    return make_splits(load("digits"), 40, 20, 0, 5, seed=1)


@pytest.fixture
def make(splits: Any) -> Any:
    def make(*declared: Any, **changes: Any) -> Problem:
        fields = {
            "network": mlp((8, 8, 1), (3,)),
            "splits": splits,
            "schedule": BatchSchedule(40, 10, seed=1),
            "steps": 100,
            "hyperparameters": declared or (L2(),),
            "precision": "float64",
        }
        return Problem(**{**fields, **changes})

    return make


# -- the formula, and the numbers in the documentation --------------------------------------------------------------------


def test_the_horizon_is_the_mantissa_over_the_bits_of_a_step():
    assert [round(horizon(gamma)) for gamma in GAMMAS] == [158, 324, 823]
    assert horizon(0.5, "float64") == 53


@pytest.mark.parametrize(
    "path",
    [
        "docs/exact.md",
        "suite/hypertrail/methods.py",
        "suite/hypertrail/mantissa.py",
        "cpu-ver/hypertrail_cpu/providers.py",
    ],
)
def test_the_documented_numbers_follow_from_the_formula(root, path):
    """Three numbers of steps beside the three momenta, with commas or strokes between them."""
    text = (root / path).read_text(encoding="utf-8")
    found = re.findall(r"(\d+)[,/ ]+(\d+)[,/ ]+(\d+)[a-z0-9 ]*\s+at\s+(?:γ = )?\.9[,/ ]+\.95[,/ ]+\.98", text)
    mine = [numbers for numbers in found if numbers != ("274", "549", "1350")]  # those of int64 buffers
    assert mine == [tuple(str(round(horizon(gamma))) for gamma in GAMMAS)]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("gamma", [0.5, *GAMMAS])
def test_steps_at_one_momentum(gamma, precision):
    assert undoable_steps([np.asarray(gamma)], 10_000, precision) == int(horizon(gamma, precision))


def test_the_smallest_momentum_of_each_step_counts():
    """Two tensors that take turns in being the smaller one; the last steps are undone first."""
    low, high = np.tile([0.25, 0.5], 20), np.tile([0.5, 0.25], 20)
    assert undoable_steps([low, high], 40, "float32") == 12
    assert undoable_steps([np.asarray(0.5), np.full(40, 0.9)], 40, "float32") == 24
    rising = np.concatenate([np.full(20, 0.25), np.full(20, 0.5)])
    assert undoable_steps([rising], 40, "float32") == 20 + 2


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_float_reversal_beyond_the_mantissa_is_refused(make):
    problem = make(dynamics=Dynamics(momentum=0.5))
    with pytest.raises(
        UsageError, match=r"float-reversed would undo 100 steps in float64, whose 53 bits are lost after 53"
    ):
        refuse_plan(problem, FloatReversed(), "ends")
    refuse_plan(problem, FloatReversed(beyond=True), "ends")
    refuse_plan(problem.with_(steps=53), FloatReversed(), "ends")
    with pytest.raises(UsageError, match="in float32, whose 24 bits are lost after 24"):
        refuse_plan(problem.with_(steps=53, precision="float32"), FloatReversed(), "ends")


def test_a_long_tail_is_refused(make):
    problem = make(Momentum("layer", 0.5))
    with pytest.raises(UsageError, match="a tail of 54 would undo 54 steps in float64"):
        refuse_plan(problem, DrMAD("C5", tail=54), "ends")
    with pytest.raises(UsageError, match="a tail of 100 would undo 100 steps"):
        refuse_plan(problem, DrMAD("C5", tail=1000), "ends")  # K = T, which the documentation called exact
    refuse_plan(problem, DrMAD("C5", tail=53), "ends")
    refuse_plan(problem, DrMAD("C5"), "ends")


def test_momenta_of_each_step_add_up(make):
    problem = make(Momentum("layer", 0.5, per_step=True), steps=54)
    with pytest.raises(UsageError, match="would undo 54 steps in float64, whose 53 bits are lost after 53"):
        refuse_plan(problem, FloatReversed(), "ends")
    refuse_plan(problem.with_(steps=53), FloatReversed(), "ends")


def test_the_switch_can_be_written():
    assert parse_method("float-reversed:beyond=true") == FloatReversed(beyond=True)
    assert parse_method("float-reversed") == FloatReversed()
    with pytest.raises(UsageError, match="beyond is 'yes', expected true or false"):
        parse_method("float-reversed:beyond=yes")


def test_where_a_pass_arrives():
    w0, wT, v = {"a": np.array([3.0, 0.0])}, {"a": np.array([0.0, 4.0])}, {"a": np.array([0.0, 2.0])}
    still = {"a": np.zeros(2)}
    assert arrival(w0, still, w0, wT, v) == 0.0
    assert arrival({"a": np.array([3.0, 0.4])}, still, w0, wT, v) == pytest.approx(0.1)
    assert arrival(w0, {"a": np.array([0.5, 0.0])}, w0, wT, v) == pytest.approx(0.25)
    refuse_arrival("m", 0.01, "float32", "")
    for far in (0.011, np.nan, np.inf):
        with pytest.raises(VerificationFailure, match=r"away from w_0 and v_0 = 0, allowed 0\.01"):
            refuse_arrival("m", far, "float32", "")


# -- a learning rate of 0 -------------------------------------------------------------------------------------------------

ENDS_AT_0 = Dynamics(schedule=((99, 0.0),))


@pytest.mark.parametrize("method", [DrMAD("C3"), DrMAD("C4"), DrMAD("C5", tail=0)], ids=lambda one: one.name)
@pytest.mark.parametrize("kind", ["damped", "heavy-ball"])
def test_a_schedule_that_ends_at_0_is_refused_where_its_last_rate_stands_for_all(make, method, kind):
    if kind == "heavy-ball" and method.completion == "C5":
        pytest.skip("C5 is for the damped dynamics")
    problem = make(dynamics=Dynamics(kind, schedule=((99, 0.0),)))
    with pytest.raises(UsageError, match=f"completion {method.completion} walks steps 0 to 99 .* makes that 0"):
        refuse_plan(problem, method, "ends")
    for other in (DrMAD("C0") if kind == "damped" else DrMAD("C1"), DrMAD("C1"), DrMAD("C2")):
        refuse_plan(problem, other, "ends")  # no velocity is asked for, and each step has its own rate
    refuse_plan(problem, Exact(), "memory")
    refuse_plan(problem, Truncated(5), "memory")


def test_c5_looks_where_its_line_ends_and_c6_at_every_stretch(make):
    middle = Dynamics(schedule=((89, 0.0), (90, 1.0)))
    with pytest.raises(UsageError, match="completion C5 walks steps 0 to 89"):
        refuse_plan(make(dynamics=middle), DrMAD("C5", tail=10), "ends")
    refuse_plan(make(dynamics=middle), DrMAD("C5", tail=9), "ends")
    with pytest.raises(UsageError, match="completion C6 walks steps 80 to 89"):
        refuse_plan(make(dynamics=middle), DrMAD("C6"), Checkpoints(10))
    refuse_plan(make(dynamics=middle), DrMAD("C6"), Checkpoints(100))  # each step is a stretch of its own: exact
    refuse_plan(make(dynamics=middle), DrMAD("C6"), Checkpoints(4))


@pytest.mark.parametrize(("completion", "step"), [("C1", 5), ("C2", 50)])
@pytest.mark.parametrize("declared", [LearningRate("layer"), LearningRate("network", per_step=True), Momentum()])
def test_a_line_s_velocity_is_not_divided_by_0(make, completion, step, declared):
    problem = make(declared, dynamics=Dynamics(schedule=((step, 0.0), (step + 1, 1.0))))
    with pytest.raises(UsageError, match=f"completion {completion} divides by the learning rate of step {step}"):
        refuse_plan(problem, DrMAD(completion), "ends")
    if completion == "C1":  # walks steps 0 … 9
        refuse_plan(make(declared, dynamics=Dynamics(schedule=((10, 0.0),))), DrMAD("C1"), "ends")


def test_a_rate_that_is_0_in_the_precision_counts(make):
    tiny = Dynamics(schedule=((99, 1e-45),))
    refuse_plan(make(dynamics=tiny), DrMAD("C4"), "ends")
    with pytest.raises(UsageError, match="from step 99 on 1e-46 is 0 in float32"):
        make(dynamics=tiny, precision="float32")
