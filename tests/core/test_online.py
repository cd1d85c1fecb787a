"""Online methods as they are declared: what is refused, which validation examples a move sees, how a state is taken up again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hypertrail_data
from hypertrail import (
    L2,
    MARTHE,
    OSGM,
    RTHO,
    T1T2,
    Adaptive,
    Almeida,
    BudgetSum,
    Clarke,
    Dynamics,
    ExampleWeight,
    HypergradientDescent,
    InitialScale,
    InitialWeight,
    LearningRate,
    Momentum,
    Noise,
    Plain,
    Problem,
    UsageError,
)
from hypertrail.adapting import blocks_left, gather, moved_kinds, output_weights, refuse, taken_up, validation_rows
from hypertrail_nets import densenet, mlp


@pytest.fixture
def make() -> Callable[..., Problem]:
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=60, valid=47, select=0, test=9, seed=1)

    def make(*declared: Any, momentum: float = 0.9, **changes: Any) -> Problem:
        settings: dict[str, Any] = {
            "network": mlp((8, 8, 1), (5,)),
            "splits": splits,
            "schedule": hypertrail_data.BatchSchedule(60, 10, seed=2),
            "steps": 100,
            "hyperparameters": declared or (L2(), LearningRate("parameter")),
            "dynamics": Dynamics("damped", 0.1, momentum),
            "valid_batch": 5,
            "seed": 3,
        }
        return Problem(**(settings | changes))

    return make


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Adaptive(steps=0), "adaptive steps 0, expected at least 1"),
        (lambda: Adaptive(steps=5, last=6), "adaptive last 6, expected 1 … 5"),
        (lambda: Adaptive(steps=5, last=5, mode="look-ahead"), "stays where it is"),
        (lambda: Adaptive(mode="forwards"), "restore, look-ahead, as-published"),
        (lambda: Adaptive(states="guessed"), "kept, undone"),
        (lambda: Adaptive(mass=1.0), "adaptive mass 1,"),
        (lambda: Adaptive(moves=(("l2", -0.1),)), "adaptive move of l2 -0.1"),
        (lambda: T1T2(every=10, block=25), "block 25, expected a multiple of every = 10"),
        (lambda: T1T2(representation="log"), "value, free"),
        (lambda: HypergradientDescent(rule="geometric"), "additive, multiplicative"),
        (lambda: HypergradientDescent(beta=float("nan")), "beta nan"),
        (lambda: Almeida(average=1.0), "almeida average 1,"),
        (lambda: MARTHE(mu=1.5), "mu 1.5, expected 0 ≤ mu ≤ 1"),
        (lambda: RTHO(mu=0.5), "use MARTHE"),
        (lambda: OSGM(learning_rate=0.0), "learning_rate 0,"),
        (lambda: Clarke(terms=-1), "clarke terms -1"),
    ],
)
def test_declarations_that_make_no_sense(declare, message):
    with pytest.raises(UsageError, match=message):
        declare()


@pytest.mark.parametrize(
    ("declared", "method", "changes", "message"),
    [
        ((L2(), LearningRate(per_step=True)), Adaptive(), {}, "declare it without per_step"),
        ((LearningRate(),), T1T2(), {}, "t1t2 moves l2 or l1 or noise, declared is learning_rate"),
        ((L2(),), HypergradientDescent(), {}, "moves learning_rate, declared is l2"),
        ((L2(),), T1T2(block=120), {}, "takes 120 steps, the problem has 100"),
        ((L2(), Momentum()), Adaptive(5, 2), {}, "no step for momentum"),
        ((L2(),), Adaptive(steps=5, validation_batches=10), {}, "10 validation batches of 5 are more than the 47"),
        ((L2(),), Adaptive(5, 2, states="undone"), {"momentum": 0.0}, "keep the states"),
        ((LearningRate("parameter"),), Almeida(), {}, "gradient descent without momentum"),
        ((LearningRate("layer"),), Almeida(), {"momentum": 0.0}, "one learning rate for each parameter"),
        ((LearningRate("parameter"),), OSGM(), {}, "gradient descent without momentum"),
        ((L2("parameter"),), RTHO(), {}, "are too many"),
        ((L2(), InitialWeight()), Adaptive(5, 2), {}, "w_0 is past: no initial_weight"),
        (
            (L2(), LearningRate()),
            Adaptive(60, 0, last=60, states="undone"),
            {"dynamics": Dynamics(momentum=0.4), "precision": "float32", "steps": 100},
            "adaptive with states='undone' would undo 60 steps in float32, whose 24 bits are lost after 18",
        ),
        (
            (ExampleWeight(representation="linear", projection=BudgetSum(3.0)),),
            RTHO(),
            {},
            "clips each number for itself, example_weight has a projection of all of them together",
        ),
        ((L2(), InitialScale()), Adaptive(5, 2), {}, "w_0 is past"),
    ],
)
def test_combinations_that_cannot_work(make, declared, method, changes, message):
    with pytest.raises(UsageError, match=message):
        refuse(make(*declared, **changes), method)


def test_what_can_work_is_not_refused(make):
    for method in (Adaptive(20, 9, 4), T1T2(), Clarke(), HypergradientDescent(), Plain()):
        refuse(make(), method)
    refuse(make(LearningRate(per_step=True), InitialScale()), Plain())
    assert moved_kinds(make(), Plain()) == ()
    refuse(make(momentum=0.0), Almeida())
    refuse(make(L2("network"), LearningRate()), RTHO())


@pytest.mark.parametrize(
    ("declared", "method", "gradients", "products"),
    [
        ((L2(),), Plain(50), 50, 0),
        ((L2(), LearningRate("parameter")), Adaptive(20, 3, 4), 20 + 3, 4),
        ((L2(),), Adaptive(20, 0, 4, mode="look-ahead"), 20 + 9, 4),
        ((L2(),), T1T2(every=10, block=20), 20 + 2, 0),
        ((L2(), Noise()), T1T2(every=10, block=20), 20 + 2, 2),
        ((LearningRate(),), HypergradientDescent(block=20), 20, 0),
        ((LearningRate("parameter"),), Almeida(block=20), 20, 0),
        ((L2("network"), LearningRate()), RTHO(every=5, block=20), 20 + 4 * 9, 2 * 20),
        ((L2("network"), LearningRate()), MARTHE(block=20, every=2), 20 + 10, 2 * 20),
        ((LearningRate(),), OSGM(block=20), 40, 0),
        ((L2(),), Clarke(block=20, every=5, terms=3), 20 + 4, 4 * 4),
    ],
)
def test_what_a_block_costs(make, declared, method, gradients, products):
    """Validation: 47 examples in batches of 5, so 9 of them where the whole split is looked at."""
    cost = method.cost(make(*declared, network=mlp((8, 8, 1), (5,), noise=True)))
    assert (cost.gradients, cost.hvps, cost.price) == (gradients, products, gradients + 2 * products)


def test_what_looks_at_the_valid_split_needs_one(make):
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=60, valid=0, select=0, test=9, seed=1)
    empty = {"splits": splits, "valid_batch": None}
    for method in (Adaptive(20, 0, 4), Adaptive(20, 3, 4), T1T2(), RTHO(), MARTHE(), Clarke()):
        with pytest.raises(UsageError, match="the valid split is empty"):
            refuse(make(L2("network"), LearningRate(), **empty), method)
    for method in (Plain(), HypergradientDescent()):
        refuse(make(**empty), method)
    for method in (Almeida(), OSGM()):
        refuse(make(LearningRate("parameter"), momentum=0.0, **empty), method)


def test_noise_needs_a_noise_layer(make):
    with pytest.raises(UsageError, match="the network has no noise layer"):
        make(Noise())
    assert set(make(Noise("unit"), network=mlp((8, 8, 1), (5,), noise=True)).initial_hyper()["noise"]) == {
        "noise0/std",
        "noise1/std",
    }


def test_only_online_methods_are_taken(make):
    from hypertrail import Exact

    with pytest.raises(UsageError, match="takes an online method"):
        refuse(make(), Exact())


def test_validation_rows_are_distinct_and_a_function_of_seed_and_number(make):
    problem = make()
    rows = validation_rows(problem, 4, 7)
    assert rows.shape == (4, 5)
    assert len(np.unique(rows)) == 20
    assert rows.max() < 45, "the rest smaller than a batch takes no part"
    np.testing.assert_array_equal(rows, validation_rows(make(), 4, 7))
    assert not np.array_equal(rows, validation_rows(problem, 4, 8))
    assert not np.array_equal(rows, validation_rows(make(seed=4), 4, 7))
    np.testing.assert_array_equal(validation_rows(problem, 0, 7), np.arange(45).reshape(9, 5))
    assert len(np.unique(validation_rows(problem, 9, 0))) == 45


def test_every_validation_example_is_met(make):
    problem = make()
    assert len(np.unique([validation_rows(problem, 2, number) for number in range(100)])) == 45


def test_how_many_blocks_fit(make):
    problem = make()
    assert blocks_left(problem, Adaptive(20, 1, 4), 0) == 5
    assert blocks_left(problem, Adaptive(20, 1, 4), 81) == 0
    assert blocks_left(problem, Adaptive(30, 1, 4), 0) == 3, "ten steps are left out"
    assert blocks_left(problem, Adaptive(20, 1, 4, mode="look-ahead"), 0) == 6, "20 + 5 · 16 = 100"
    assert blocks_left(problem, Adaptive(20, 1, 4, mode="as-published"), 0) == 5


def test_the_output_layer(make):
    assert [p.name for p in output_weights(make().network)] == ["logits/W"], "its b is left alone"
    weights = output_weights(densenet((8, 8, 1), depth=4, growth=2, blocks=1, first_output=2))
    assert [p.name for p in weights] == ["logits/W"]


def test_a_state_is_taken_up_only_where_it_fits():
    template = {"w": {"a": np.zeros(3)}, "running": {}, "memory": {"slots": {}}, "step": np.array(0)}
    saved = {"w": {"a": np.ones(3)}, "step": np.array(4)}
    found = taken_up(template, saved)
    assert found["running"] == {}
    assert found["memory"] == {"slots": {}}
    assert found["w"]["a"].sum() == 3
    wrong = (
        {"w": {"a": np.ones(2)}, "step": np.array(4)},
        {"w": {"a": np.ones(3, np.float32)}, "step": np.array(4)},
        {"w": {"a": np.ones(3), "b": np.ones(3)}, "step": np.array(4)},
        {"w": {"a": np.ones(3)}},
    )
    for state in wrong:
        with pytest.raises(UsageError, match="that saved it"):
            taken_up(template, state)


def test_nothing_to_gather(make):
    with pytest.raises(UsageError, match="no block is left"):
        gather(make(), iter(()))
