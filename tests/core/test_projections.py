"""Euclidean projections against a solver that knows nothing of them, and the linear example weights that use them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, minimize

from hypertrail import L2, Box, BudgetSum, ExampleWeight, Simplex, UsageError, outer
from hypertrail.hyperparameters import collapse, expand
from hypertrail.runs import arrays


def nearest(a, projection):
    """argmin ½ ‖x − a‖² by scipy's trust-region solver for constrained problems."""
    n = len(a)
    top = np.inf if isinstance(projection, Simplex) else 1.0
    rows = {
        Box: [],
        BudgetSum: [(-np.inf, getattr(projection, "limit", 0))],
        Simplex: [(getattr(projection, "total", 0),) * 2],
    }
    constraints = [LinearConstraint(np.ones((1, n)), *ends) for ends in rows[type(projection)]]
    found = minimize(
        lambda x: 0.5 * np.sum((x - a) ** 2),
        np.full(n, 0.5),
        jac=lambda x: x - a,
        hess=lambda x: np.eye(n),
        method="trust-constr",
        bounds=Bounds(np.zeros(n), np.full(n, top)),
        constraints=constraints,
        options={"gtol": 1e-12, "xtol": 1e-14, "barrier_tol": 1e-14, "maxiter": 5000},
    )
    return found.x


SETS = [Box(), BudgetSum(2.5), BudgetSum(0.4), BudgetSum(100.0), Simplex(1.0), Simplex(3.7)]


@pytest.mark.parametrize("projection", SETS, ids=repr)
@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
def test_the_projection_is_the_nearest_point_of_the_set(projection, spread):
    a = 0.4 + spread * np.random.default_rng(int(10 * spread)).normal(size=7)
    x = projection.project(a)
    oracle = nearest(a, projection)
    np.testing.assert_allclose(x, oracle, atol=2e-5)
    assert np.sum((x - a) ** 2) <= np.sum((oracle - a) ** 2) + 1e-6


@pytest.mark.parametrize("projection", [*SETS, BudgetSum(0.0)], ids=repr)
def test_what_it_returns_lies_in_the_set_and_stays(projection):
    rng = np.random.default_rng(4)
    for a in (
        rng.normal(size=500),
        np.full(500, 0.5),
        np.zeros(500),
        np.repeat([3.0, -1.0, 0.2], 50),
        rng.normal(size=1),
    ):
        x = projection.project(a)
        assert np.all(x >= 0)
        if isinstance(projection, Simplex):
            assert x.sum() == pytest.approx(projection.total, rel=1e-12)
        else:
            assert np.all(x <= 1)
            assert x.sum() <= getattr(projection, "limit", np.inf) + 1e-9
        np.testing.assert_allclose(projection.project(x), x, atol=1e-12)


@pytest.mark.parametrize("projection", [BudgetSum(40.0), Simplex(2.0)], ids=repr)
def test_no_point_of_the_set_is_nearer(projection):
    """⟨a − x, y − x⟩ ≤ 0 for every y of the set: what makes x the projection. 2000 numbers, 200 other points."""
    rng = np.random.default_rng(5)
    a = rng.normal(size=2000)
    x = projection.project(a)
    for _ in range(200):
        y = projection.project(rng.normal(size=2000) * rng.uniform(0.1, 3))
        assert np.dot(a - x, y - x) <= 1e-9


def test_by_hand():
    np.testing.assert_allclose(BudgetSum(1.0).project(np.array([0.9, 0.5, -2.0])), [0.7, 0.3, 0.0])
    np.testing.assert_allclose(BudgetSum(1.5).project(np.array([3.0, 0.8, 0.3])), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(Simplex().project(np.array([0.9, 0.5, -2.0])), [0.7, 0.3, 0.0])
    np.testing.assert_allclose(Simplex(3.0).project(np.array([3.0, 0.8, 0.3])), [2.6, 0.4, 0.0])
    np.testing.assert_array_equal(Box().project(np.array([-1.0, 0.25, 7.0])), [0.0, 0.25, 1.0])


# -- example weights that are held as they are ----------------------------------------------------------------------------


def linear(projection=None, init=0.5):
    return ExampleWeight(init=init, representation="linear", projection=projection)


def test_a_linear_weight_is_its_own_value_and_can_be_0_and_1():
    one = linear()
    assert one.projection == Box()
    held = {"train": np.array([0.0, 0.3, 1.0])}
    np.testing.assert_array_equal(expand(one, held, ())["train"], held["train"])
    np.testing.assert_array_equal(collapse(one, held, {"train": np.array([1.0, 2.0, 3.0])})["train"], [1.0, 2.0, 3.0])
    h = {"example_weight": {"train": np.array([-1.0, 0.0, -1.0])}}
    moved, _ = outer.update(outer.GradientDescent(1.0), [one], {"example_weight": held}, h, outer.State())
    np.testing.assert_array_equal(moved["example_weight"]["train"], [1.0, 0.3, 1.0])


def test_the_sum_is_kept_after_every_update_and_at_the_start(tmp_path):
    """Weights of 60 examples drift up by their hypergradient; Σ a ≤ 12 holds in what is returned and in what is saved."""
    declared = [linear(BudgetSum(12.0)), L2("network")]
    hyper = {"example_weight": {"train": declared[0].start(np.zeros((60, 1)))}, "l2": {"network": np.array(-4.0)}}
    np.testing.assert_allclose(hyper["example_weight"]["train"], np.full(60, 0.2))
    rng, rule = np.random.default_rng(0), outer.Adam(0.05)
    state = rule.start(hyper)
    for k in range(20):
        h = {"example_weight": {"train": rng.normal(size=60) - 0.5}, "l2": {"network": np.array(1.0)}}
        hyper, state = outer.update(rule, declared, hyper, h, state)
        a = hyper["example_weight"]["train"]
        assert np.all((a >= 0) & (a <= 1))
        assert a.sum() <= 12 + 1e-9, k
        arrays.save_state(tmp_path / "state.npz", hyper, state)
        np.testing.assert_array_equal(arrays.load_state(tmp_path / "state.npz")[0]["example_weight"]["train"], a)
    assert hyper["example_weight"]["train"].sum() == pytest.approx(12), "or the limit never mattered"
    assert np.any(a == 0)


def test_the_dtype_is_kept():
    assert linear(Simplex(2.0)).project(np.zeros(4, np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExampleWeight(representation="log"), "representation 'log', expected logit or linear"),
        (lambda: ExampleWeight(projection=Box()), "a projection is for representation='linear'"),
        (lambda: ExampleWeight(representation="linear", bounds=(0.1, 0.9)), "bounds are for the logit"),
        (lambda: linear(init=1.5), "init 1.5, expected a number from 0 to 1"),
        (lambda: BudgetSum(-1.0), r"BudgetSum limit -1\.0, expected"),
        (lambda: Simplex(0.0), r"Simplex total 0\.0, expected a positive"),
    ],
)
def test_what_cannot_be_declared(build, message):
    with pytest.raises(UsageError, match=message):
        build()
