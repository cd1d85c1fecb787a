"""The bilevel problem: what it refuses, its values, its losses, its validation batches; and what the engines refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hypertrail import (
    L1,
    L2,
    T1T2,
    Cost,
    DrMAD,
    Dynamics,
    Exact,
    ExampleWeight,
    FloatReversed,
    Forward,
    HypergradientDescent,
    Implicit,
    InitialScale,
    LearningRate,
    Momentum,
    Problem,
    Reversible,
    Training,
    TrainingInput,
    Truncated,
    UsageError,
    WeightTransform,
    load,
)
from hypertrail.adapting import refuse as refuse_online
from hypertrail.hyperparameters import Hyperparameter
from hypertrail.problem import DYNAMICS
from hypertrail.refusals import refuse, refuse_hyper, refuse_method, refuse_plan, refuse_reversible
from hypertrail_data import BatchSchedule, Splits, make_splits
from hypertrail_data import load as load_data
from hypertrail_nets import densenet, get_output, mlp


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(load_data("digits"), 200, 70, 0, 50, seed=1)


@pytest.fixture
def make(splits: Splits) -> Any:
    """A small problem with any field changed."""

    def build(*hyperparameters: Hyperparameter, **changes: Any) -> Problem:
        fields = {
            "network": mlp((8, 8, 1), (6,), dropout=0.5),
            "splits": splits,
            "schedule": BatchSchedule(200, 20, seed=1),
            "steps": 7,
            "hyperparameters": hyperparameters or (L2(),),
            "precision": "float64",
        }
        return Problem(**(fields | changes))

    return build


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0"),
        ({"precision": "float16"}, "'float16', expected one of float32, float64"),
        ({"hyperparameters": ()}, "nothing to tune"),
        ({"hyperparameters": (L2(), L2(level="layer"))}, "each kind can be declared once"),
        ({"schedule": BatchSchedule(100, 20, seed=1)}, "100 examples, train has 200"),
        ({"valid_batch": 0}, "valid_batch 0, expected 1 … 70"),
        ({"valid_batch": 71}, "valid_batch 71"),
        ({"network": mlp((8, 8, 1), (), classes=4)}, r"\(4,\) outputs, the data has 10 classes"),
        ({"network": mlp((7, 7, 1), ())}, r"images of shape \(7, 7, 1\), the data has \(8, 8, 1\)"),
        ({"l2": -1e-4}, "l2 -0.0001"),
        ({"l2": float("nan")}, "l2 nan"),
        ({"l2_on": "biases"}, "l2_on 'biases', expected one of regularizable, all"),
        ({"l2_on": "all"}, "l2_on 'all' is for the fixed penalty, which a declared L2 takes the place of"),
    ],
)
def test_problems_that_cannot_be(make, changes, message):
    with pytest.raises(UsageError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "rmsprop"}, "'rmsprop', expected one of damped, heavy-ball, nesterov, adam, damped-old"),
        ({"learning_rate": 0.0}, "learning rate 0.0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"momentum": -0.1}, "momentum -0.1"),
        ({"second_momentum": 1.0}, "second_momentum 1.0, expected 0"),
        ({"epsilon": 0.0}, "epsilon 0.0, expected a positive number"),
        ({"epsilon": float("inf")}, "epsilon inf"),
        ({"epsilon_place": "outside"}, "epsilon_place 'outside', expected one of corrected, uncorrected"),
        ({"schedule": ((5, 0.1), (5, 0.01))}, "steps must rise"),
        ({"schedule": ((-2, 0.1),)}, "from 0 on"),
        ({"schedule": ((3, -1.0),)}, "factors of the learning rate, expected numbers ≥ 0"),
        ({"schedule": ((3, float("nan")),)}, "expected numbers ≥ 0"),
        ({"schedule": ((3, float("inf")),)}, "expected numbers ≥ 0"),
        ({"learning_rate": float("inf")}, "learning rate inf"),
    ],
)
def test_dynamics_that_cannot_be(changes, message):
    with pytest.raises(UsageError, match=message):
        Dynamics(**changes)


def test_where_the_fixed_penalty_acts(make):
    problem = make(LearningRate(), l2=0.1)
    assert {name for name in problem.constants()["l2"] if name.endswith("/b")} == set()
    everywhere = problem.with_(l2_on="all")
    assert set(everywhere.constants()["l2"]) == {p.name for p in problem.params}
    w = {p.name: np.full(p.shape, 2.0) for p in problem.params}
    size = sum(p.size for p in problem.params)
    assert float(everywhere.penalty(np, w, everywhere.constants())) == pytest.approx(0.1 * 4 * size)


def test_schedule_factors():
    assert Dynamics().factors(3).tolist() == [1, 1, 1]
    scheduled = Dynamics(schedule=((2, 0.1), (4, 0.01), (9, 0.0)))
    assert scheduled.factors(6).tolist() == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert Dynamics(schedule=((0, 0.5),)).factors(2).tolist() == [0.5, 0.5]


DECLARED = {
    "l2": (L2(),),
    "rate and momentum per step": (LearningRate(per_step=True), Momentum(level="layer", per_step=True)),
    "rate per parameter": (LearningRate(level="parameter"),),
    "everything": (L2(level="unit"), L1(level="network"), LearningRate(level="unit"), Momentum(), WeightTransform()),
}


@pytest.mark.parametrize("declared", [*DECLARED.values(), (ExampleWeight(), TrainingInput(), InitialScale())])
def test_shapes_are_those_of_the_arrays(make, declared):
    problem = make(*declared)
    hyper = problem.initial_hyper()
    assert problem.hyper_shapes() == {k: {n: np.shape(u) for n, u in a.items()} for k, a in hyper.items()}
    refuse_hyper(problem, hyper)


def test_arrays_of_other_shapes_are_refused(make):
    problem = make(LearningRate(per_step=True))
    longer = problem.with_(steps=9).initial_hyper()
    with pytest.raises(
        UsageError, match=r"learning_rate network: an array of shape \(9,\), this problem declares \(7,\)"
    ):
        refuse_hyper(problem, longer)
    for missing in ({}, {"learning_rate": {}}):
        with pytest.raises(UsageError, match="learning_rate network: no array"):
            refuse_hyper(problem, missing)


def test_without_a_valid_split_there_is_no_hyper_loss(make):
    splits = make_splits(load_data("digits"), 200, 0, 0, 50, seed=1)
    problem = make(splits=splits)
    x, y = problem.valid_batches()
    assert (x.shape, len(y)) == ((0, 1, 8, 8, 1), 0)
    for refused in (lambda: refuse_method(problem, DrMAD()), lambda: refuse_online(problem, T1T2(every=1, block=1))):
        with pytest.raises(UsageError, match="the valid split is empty"):
            refused()
    rates = make(LearningRate(), splits=splits, dynamics=Dynamics("damped", 0.1, 0.0))
    refuse_online(rates, HypergradientDescent(block=1))  # never looks at it


@pytest.mark.parametrize("declared", DECLARED.values(), ids=DECLARED.keys())
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_values_are_complete(make, declared, precision):
    """Learning rate and momentum for every tensor whoever declared what; everything broadcasts; in the precision."""
    problem = make(*declared, precision=precision)
    values = problem.values(problem.initial_hyper())
    assert set(values) == {"learning_rate", "momentum", *(h.kind for h in declared)}
    for kind, by_name in values.items():
        per_step = getattr(problem.declared(kind), "per_step", False)
        for name, value in by_name.items():
            assert value.dtype == precision
            shape = problem.initial_weights()[name].shape
            one = value[0] if per_step else value
            assert np.broadcast_shapes(np.shape(one), shape) == shape
            assert not per_step or len(value) == problem.steps
    everything = {p.name for p in problem.params}
    assert set(values["learning_rate"]) == set(values["momentum"]) == everything
    for kind in {"l2", "l1", "transform"} & set(values):
        assert set(values[kind]) == {"dense1/W", "logits/W"}


def test_constants_fill_what_is_not_declared(make):
    problem = make(L1(), dynamics=Dynamics(learning_rate=0.3, momentum=0.7), l2=1e-3)
    values = problem.values(problem.initial_hyper())
    constants = {kind: {float(v) for v in values[kind].values()} for kind in ("learning_rate", "momentum", "l2")}
    assert constants == {"learning_rate": {0.3}, "momentum": {0.7}, "l2": {1e-3}}
    assert set(values["l2"]) == {"dense1/W", "logits/W"}


def test_a_declared_hyperparameter_replaces_the_constant(make):
    problem = make(L2(init=1e-2), LearningRate(init=0.5), l2=1e-3, dynamics=Dynamics(learning_rate=0.3))
    values = problem.values(problem.initial_hyper())
    np.testing.assert_allclose(values["l2"]["dense1/W"], 1e-2)
    np.testing.assert_allclose(values["learning_rate"]["dense1/b"], 0.5)
    assert problem.needs_velocity()
    assert not make(L2()).needs_velocity()
    assert make(L2(), dynamics=Dynamics("adam")).needs_velocity()


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_initial_velocity_is_zero_in_the_shape_of_the_dynamics(make, kind, precision):
    problem = make(dynamics=Dynamics(kind), precision=precision)
    w, v = problem.initial_weights(), problem.initial_velocity()
    assert w.keys() == v.keys()
    for name, one in v.items():
        assert one.shape == ((2, *w[name].shape) if kind == "adam" else w[name].shape)
        assert one.size == problem.dynamics.moments * w[name].size
        assert one.dtype == precision
        assert not one.any()


def test_initial_weights_and_noise_are_functions_of_the_seed(make):
    one, again, other, single = make(seed=3), make(seed=3), make(seed=4), make(seed=3, precision="float32")
    assert one.noise_key == again.noise_key != other.noise_key
    assert all(isinstance(word, np.uint32) for word in one.noise_key)
    for name, w in one.initial_weights().items():
        np.testing.assert_array_equal(w, again.initial_weights()[name])
        np.testing.assert_array_equal(w.astype(np.float32), single.initial_weights()[name])
    assert not np.array_equal(one.initial_weights()["logits/W"], other.initial_weights()["logits/W"])


def test_problems_are_equal_only_if_they_are_one(make):
    problem = make()
    longer = problem.with_(steps=9)
    assert (longer.steps, problem.steps) == (9, 7)
    assert problem == problem != problem.with_()
    assert len({problem, longer}) == 2


def test_penalty_in_closed_form(make):
    problem = make(L2(), L1(level="unit"))
    rng = np.random.default_rng(0)
    hyper = {k: {n: rng.normal(-3.0, 1.0, u.shape) for n, u in a.items()} for k, a in problem.initial_hyper().items()}
    w = problem.initial_weights()
    expected = sum(
        np.sum(10.0 ** hyper["l2"][name] * w[name] ** 2) + np.sum(np.exp(hyper["l1"][name]) * np.abs(w[name]))
        for name in ("dense1/W", "logits/W")
    )
    np.testing.assert_allclose(problem.penalty(np, w, problem.values(hyper)), expected, rtol=1e-13)
    none = make(Momentum())
    assert none.penalty(np, w, none.values(none.initial_hyper())) == 0.0


def test_a_fixed_penalty_on_z_is_a_tunable_one_on_w(make):
    """w = z·eᵗ: c z² = c e^(−2t) w² (DrMAD, experiment 1)."""
    problem = make(WeightTransform(), l2=np.exp(-4))
    t = {n: np.random.default_rng(0).normal(size=u.shape) for n, u in problem.initial_hyper()["transform"].items()}
    z, values = problem.initial_weights(), problem.values({"transform": t})
    w = problem.effective(np, z, values)
    expected = sum(np.sum(np.exp(-4) * np.exp(-2 * t[n]) * w[n] ** 2) for n in t)
    np.testing.assert_allclose(problem.penalty(np, z, values), expected, rtol=1e-13)
    assert t["dense1/W"].shape == (64, 1)
    np.testing.assert_array_equal(w["logits/b"], z["logits/b"])


def test_scaled_weights_in_closed_form(make):
    problem = make(InitialScale("unit"))
    hyper = {
        "initial_scale": {
            n: np.log(1.0 + np.arange(len(u))) for n, u in problem.initial_hyper()["initial_scale"].items()
        }
    }
    drawn, scaled = problem.initial_weights(), problem.scaled(problem.initial_weights(), problem.values(hyper))
    assert set(scaled) == set(drawn)
    for name, one in drawn.items():
        np.testing.assert_allclose(scaled[name], (1.0 + np.arange(one.shape[-1])) * one, rtol=1e-14)
    assert make(L2()).scaled(drawn, {}) == drawn


def test_a_batch_sees_its_rows_and_the_loss_weighs_them(make, ops):
    problem = make(L2(), ExampleWeight(), TrainingInput(), network=mlp((8, 8, 1), (6,), dropout=0.5))
    rng = np.random.default_rng(0)
    hyper = problem.initial_hyper()
    hyper["example_weight"]["train"] = rng.normal(size=200)
    hyper["training_input"]["x"] = rng.normal(size=(200, 8, 8, 1))
    values, rows = problem.values(hyper), np.array([3, 199, 3])
    seen = problem.seen(values, rows)
    assert seen["l2"] is values["l2"]
    np.testing.assert_array_equal(seen["training_input"]["x"], hyper["training_input"]["x"][rows])
    w, y = problem.initial_weights(), problem.splits.train.y[rows]
    logits = get_output(problem.network, w, hyper["training_input"]["x"][rows], ops, key=problem.noise_key, step=4)
    a = 1 / (1 + np.exp(-hyper["example_weight"]["train"][rows]))
    expected = np.mean(a * (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(3), y]))
    x = problem.splits.train.x[rows]  # not looked at
    np.testing.assert_allclose(problem.data_loss(ops, w, x, y, 4, values=seen), expected, rtol=1e-12)
    plain = problem.data_loss(ops, w, x, y, None)
    np.testing.assert_allclose(plain, problem.valid_loss(ops, w, x, y), rtol=1e-15)


def test_the_three_passes(make, ops):
    """Training: the step's dropout mask. Hyper loss: dropout off, batch statistics. Metrics: running averages."""
    problem = make(network=densenet((8, 8, 1), depth=7, growth=2, first_output=3, dropout=0.5), valid_batch=10)
    w = problem.initial_weights()
    train = problem.splits.train
    x, y = train.x[:10].astype(np.float64), train.y[:10]
    losses = [problem.data_loss(ops, w, x, y, step) for step in (2, 2, 3)]
    assert losses[0] == losses[1] != losses[2]
    logits = get_output(problem.network, w, x, ops, deterministic=True)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(problem.valid_loss(ops, w, x, y), -np.log(p[np.arange(10), y]).mean(), rtol=1e-12)

    collected: dict[str, np.ndarray] = {}
    problem.data_loss(ops, w, x, y, 0, collected)
    running = problem.update_running(problem.initial_running(), collected)
    for name, value in running.items():
        start = 0.0 if name.endswith("mean") else 1.0
        np.testing.assert_allclose(value, 0.9 * start + 0.1 * collected[name], rtol=1e-12, atol=1e-15)

    loss, error = problem.metrics(ops, w, running, x, y)
    logits = get_output(problem.network, w, x, ops, deterministic=True, running=running)
    np.testing.assert_allclose(loss, ops.cross_entropy(logits, y), rtol=1e-12)
    np.testing.assert_array_equal(error, logits.argmax(axis=1) != y)
    assert not np.allclose(loss.mean(), problem.valid_loss(ops, w, x, y))


@pytest.mark.parametrize(
    ("size", "batches"), [(None, (1, 70)), (70, (1, 70)), (35, (2, 35)), (32, (2, 32)), (1, (70, 1))]
)
def test_valid_batches(make, size, batches):
    problem = make(valid_batch=size, precision="float32")
    x, y = problem.valid_batches()
    assert x.shape == (*batches, 8, 8, 1)
    assert y.shape == batches
    assert x.dtype == np.float32
    kept = batches[0] * batches[1]
    np.testing.assert_array_equal(x.reshape(kept, 8, 8, 1), problem.splits.valid.x[:kept])
    np.testing.assert_array_equal(y.reshape(kept), problem.splits.valid.y[:kept])


# -- what the engines refuse -------------------------------------------------------------------------------------------


def trained(steps: int, trajectory: Any) -> Training:
    nothing: dict[str, np.ndarray] = {}
    return Training(
        nothing, nothing, nothing, nothing, nothing, np.zeros(steps), np.zeros(steps), steps, trajectory, Cost()
    )


@pytest.mark.parametrize(
    ("declared", "changes", "method", "trajectory", "message"),
    [
        ((L2(),), {}, Exact(), None, "keep='memory'"),
        ((L2(),), {}, Exact(), range(5), "5 of the 7 states"),
        ((LearningRate(),), {}, DrMAD("C0"), None, "no gradient for learning_rate; use C1"),
        ((L2(), Momentum(), LearningRate()), {}, DrMAD("C0"), None, "momentum and learning_rate"),
        ((L2(),), {"dynamics": Dynamics("heavy-ball")}, DrMAD("C0"), None, "damped"),
        ((LearningRate(per_step=True),), {}, DrMAD("C4"), None, "per-step"),
        ((L2(),), {"steps": 4}, DrMAD("C4"), None, "speed of steps 5 to 20, this run has 4; train longer or use C0"),
        ((L2(),), {}, Implicit("dense", most=9), None, r"parameters, allowed are 9; use implicit-cg"),
        ((InitialScale(),), {}, Implicit(), None, "no gradient for initial_scale; use exact"),
        ((Momentum(), InitialScale()), {}, Implicit(), None, "momentum and initial_scale"),
        ((InitialScale(),), {}, Truncated(6), range(7), "truncated to 6 of 7 steps never reaches w_0"),
    ],
)
def test_combinations_that_cannot_work_are_refused(make, declared, changes, method, trajectory, message):
    problem = make(*declared, **changes)
    with pytest.raises(UsageError, match=message):
        refuse(problem, trained(problem.steps, trajectory), method)


@pytest.mark.parametrize(
    ("declared", "changes", "method", "trajectory"),
    [
        ((L2(), LearningRate(per_step=True)), {}, Exact(), range(7)),
        ((L2(),), {}, DrMAD("C0"), None),
        ((LearningRate(per_step=True),), {}, DrMAD("C1"), None),
        ((LearningRate(), Momentum()), {"dynamics": Dynamics("heavy-ball")}, DrMAD("C4"), None),
        ((InitialScale(),), {}, Truncated(7), range(7)),
        ((InitialScale(), ExampleWeight()), {}, DrMAD("C0"), None),
        ((L2(),), {"steps": 5}, DrMAD("C4"), None),
        ((L2(),), {"steps": 4}, DrMAD("C5"), None),
        ((ExampleWeight(), TrainingInput()), {}, Implicit(), None),
        ((ExampleWeight(),), {}, Truncated(2), range(7)),
    ],
)
def test_combinations_that_work_are_not(make, declared, changes, method, trajectory):
    problem = make(*declared, **changes)
    refuse(problem, trained(problem.steps, trajectory), method)


RATES = (LearningRate(), Momentum())
LINES = ("C0", "C1", "C2", "C3", "C4", "C6")


@pytest.mark.parametrize(
    ("declared", "kind", "method", "message"),
    [
        *(((L2(),), "adam", DrMAD(c), f"completion {c}: a line knows no moments.*use exact") for c in LINES),
        *((RATES, "nesterov", DrMAD(c), "no gradient for learning_rate and momentum; use exact") for c in LINES[1:]),
        *(((L2(),), kind, DrMAD("C0"), "written for the damped") for kind in ("nesterov", "damped-old")),
        *(
            ((L2(),), kind, method, f"damped dynamics, not of {kind}; use exact")
            for kind in ("nesterov", "adam", "damped-old")
            for method in (DrMAD("C5"), FloatReversed())
        ),
    ],
)
def test_methods_that_do_not_suit_the_dynamics_are_refused(make, declared, kind, method, message):
    with pytest.raises(UsageError, match=message):
        refuse_method(make(*declared, dynamics=Dynamics(kind)), method)


@pytest.mark.parametrize(
    ("declared", "kind", "methods"),
    [
        (RATES, "nesterov", ()),
        ((L2(),), "nesterov", [DrMAD(c) for c in LINES[1:]]),
        (RATES, "damped-old", [DrMAD(c) for c in LINES[1:]]),
        (RATES, "adam", ()),
    ],
)
def test_methods_that_suit_the_dynamics_are_not(make, declared, kind, methods):
    problem = make(*declared, dynamics=Dynamics(kind))
    for method in (Exact(), Truncated(3), Forward(most=10**4), *methods):
        refuse_method(problem, method)
    refuse_method(make(L2(), dynamics=Dynamics(kind)), Implicit())


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        *((Dynamics(kind), f"undoes damped momentum, not {kind}") for kind in DYNAMICS if kind != "damped"),
        (Dynamics(momentum=0.0), "between 2"),
        (Dynamics(momentum=1 - 2.0**-17), "between 2"),
    ],
)
def test_dynamics_that_cannot_be_undone_are_refused(make, dynamics, message):
    with pytest.raises(UsageError, match=message):
        refuse_reversible(make(dynamics=dynamics))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (Momentum(init=2.0**-17, bounds=(2.0**-17, 0.9)), "got 7.62939e-06; narrow its bounds"),
        (
            Momentum("layer", 0.5, per_step=True, bounds=(2.0**-17, 0.9)),
            r"bounds \[7.62939e-06, 0.9\] let it leave them",
        ),
        (Momentum("layer", 0.5, bounds=(0.1, 1 - 2.0**-17)), r"bounds \[0.1, 0.999992\] let it leave them"),
    ],
)
def test_a_declared_momentum_that_cannot_be_undone_is_refused(make, declared, message):
    with pytest.raises(UsageError, match=message):
        refuse_reversible(make(declared))
    with pytest.raises(UsageError, match=message):
        refuse_plan(make(declared), Exact(), Reversible())


@pytest.mark.parametrize("level", ["network", "layer"])
@pytest.mark.parametrize("per_step", [False, True])
def test_declared_momenta_that_can_be_undone_are_accepted(make, level, per_step):
    refuse_reversible(make(Momentum(level, per_step=per_step)))
    refuse_reversible(make(Momentum(level, 2.0**-16, (2.0**-16, 1 - 2.0**-16), per_step)))


def test_largest_momentum_that_is_a_fraction_is_accepted(make):
    refuse_reversible(make(dynamics=Dynamics(momentum=1 - 2.0**-16)))


def test_an_engine_that_does_not_exist():
    with pytest.raises(UsageError, match="'tpu', expected one of cpu, gpu"):
        load("tpu")
