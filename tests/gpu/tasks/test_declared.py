"""Declared hyperparameters: representations, schedules, sharing and rows per example, beside the same written out by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from hypertrail.errors import UsageError
from hypertrail.hyper import Bins, EachStep, Free, Linear, Log, Logit, Shared, Spline
from hypertrail.methods import Forward
from hypertrail.projections import Box, Simplex
from hypertrail.task import Rows, Task
from hypertrail_gpu import declared, tasks
from hypertrail_gpu.updates import Momentum

from .problems import STEPS, oracle
from .test_ways import distance

Tree = Any
rng = np.random.default_rng(7)
X, Y = rng.standard_normal((12, 4)), rng.standard_normal((12, 3))
VALID = (rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 5, 3)))
INDICES = rng.integers(0, 12, (STEPS, 4))
W = {
    "a": {"W": rng.standard_normal((4, 5)), "b": np.zeros(5)},
    "b": {"W": rng.standard_normal((5, 3)), "b": np.zeros(3)},
}


def kernels(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1


DECLARED = {
    "rate": Log(0.05, bounds=(1e-4, 1.0), steps=Spline(4)),
    "momentum": Logit(0.6, steps=Bins(3)),
    "decay": Log(1e-2, over=Shared("unit", where=kernels)),
    "speed": Log(1.0, over=Shared(lambda name, shape: name[2], where=kernels, elsewhere=1.0), steps=EachStep()),
    "examples": Logit(np.full(12, 0.4), per_example=True),
    "shift": Free(np.zeros(3)),
    "temperature": 0.3,
}


def model(w: Tree, X: Any) -> Any:
    return jnp.tanh(X @ w["a"]["W"] + w["a"]["b"]) @ w["b"]["W"] + w["b"]["b"]


def loss(w: Tree, hyper: Tree, batch: Tree, t: Any) -> Any:
    X, Y, _ = batch
    errors = jnp.mean((model(w, X) - Y - hyper["shift"]) ** 2, axis=1)
    decay = sum(jax.tree.leaves(jax.tree.map(lambda c, a: jnp.sum(c * a**2), hyper["decay"], w)))
    return jnp.mean(hyper["examples"] * errors) + decay


def hyper_loss(w: Tree, hyper: Tree, batch: Tree) -> Any:
    return jnp.mean((model(w, batch[0]) - batch[1]) ** 2) + 0.01 * hyper["temperature"] ** 2


def rate(hyper: Tree, t: Any) -> Tree:
    return jax.tree.map(lambda a: a[t] * hyper["rate"][t], hyper["speed"])


def declared_task(**changes: Any) -> Task:
    settings: dict[str, Any] = {
        "loss": loss,
        "update": Momentum(rate, lambda hyper, t: hyper["momentum"][t]),
        "hyper_loss": hyper_loss,
        "weights": W,
        "hyper": DECLARED,
        "batches": Rows((X, Y, np.arange(12)), INDICES),
        "valid": VALID,
        "rows": lambda batch: batch[2],
    }
    return Task(**(settings | changes))


def by_hand(u: Tree) -> Tree:
    """The values, written out."""
    knots = np.linspace(0, STEPS - 1, 4)
    spline = jnp.asarray(CubicSpline(knots, np.eye(4), bc_type="natural")(np.arange(STEPS)))
    bins = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    one, two = jnp.exp(u["speed"]["a"]), jnp.exp(u["speed"]["b"])
    ones = jnp.ones(STEPS)
    return {
        "rate": jnp.exp(spline @ u["rate"]),
        "momentum": jax.nn.sigmoid(u["momentum"])[bins],
        "decay": {
            "a": {"W": jnp.exp(u["decay"]["['a']['W']"]), "b": 0.0},
            "b": {"W": jnp.exp(u["decay"]["['b']['W']"]), "b": 0.0},
        },
        "speed": {"a": {"W": one, "b": ones}, "b": {"W": two, "b": ones}},
        "examples": jax.nn.sigmoid(u["examples"]),
        "shift": u["shift"],
        "temperature": u["temperature"],
    }


def written_out() -> Task:
    """The same problem with plain arrays: its functions make the values by themselves."""

    def of_examples(w: Tree, u: Tree, batch: Tree, t: Any) -> Any:
        values = by_hand(u)
        return loss(w, values | {"examples": values["examples"][batch[2]]}, batch, t)

    update = Momentum(lambda u, t: rate(by_hand(u), t), lambda u, t: by_hand(u)["momentum"][t])
    return declared_task(
        loss=of_examples,
        update=update,
        hyper_loss=lambda w, u, batch: hyper_loss(w, by_hand(u), batch),
        hyper=declared.initial(declared_task(), STEPS),
        rows=None,
    )


def test_the_first_arrays() -> None:
    u = declared.initial(declared_task(), STEPS)
    np.testing.assert_allclose(u["rate"], np.log(np.full(4, 0.05)))
    np.testing.assert_allclose(u["momentum"], np.log(1.5) * np.ones(3))
    assert {name: a.shape for name, a in u["decay"].items()} == {"['a']['W']": (5,), "['b']['W']": (3,)}
    assert {name: a.shape for name, a in u["speed"].items()} == {"a": (STEPS,), "b": (STEPS,)}
    assert u["temperature"] == 0.3


def test_hypergradients_are_those_of_the_same_problem_written_out() -> None:
    value, true = oracle(written_out())
    task = declared_task()
    for found in (
        tasks.hypergradient(tasks.train(task)),
        tasks.hypergradient(tasks.train(task, "ends"), Forward(most=100)),
        tasks.hypergradient(tasks.train(task, "ends"), "drmad-C5:tail=11"),
    ):
        assert found.value == pytest.approx(float(value), rel=1e-12)
        assert distance(found.hyper, true) < 1e-8
    assert distance(tasks.hypergradient(tasks.train(task)).hyper, true) < 1e-12


def test_arrays_of_the_weights_precision() -> None:
    with jax.enable_x64(False):
        trail = tasks.train(declared_task())
    assert {leaf.dtype for leaf in jax.tree.leaves(trail.hyper)} == {np.dtype("float32")}


def test_projected_arrays() -> None:
    task = declared_task(
        hyper=DECLARED
        | {"mixture": Linear(np.ones(4), projection=Simplex(2.0)), "box": Linear(0.0, bounds=(-1.0, 1.0))}
    )
    u = declared.initial(task, STEPS)
    np.testing.assert_allclose(u["mixture"], 0.5 * np.ones(4))
    beyond = u | {"rate": np.full(4, 5.0, np.float32), "box": np.array(-3.0), "temperature": np.array(99.0)}
    back = declared.project(task, beyond)
    assert np.all(back["rate"] == 0)
    assert back["rate"].dtype == np.float32
    assert back["box"] == -1
    assert back["temperature"] == 99


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Log(0.0), "Log: init 0, expected finite numbers above 0"),
        (lambda: Log(np.array([1.0, np.nan])), "Log: init nan … nan, expected finite numbers above 0"),
        (lambda: Logit(1.0), "Logit: init 1, expected finite numbers between 0 and 1"),
        (lambda: Log(0.1, bounds=(0.2, 1.0)), r"init 0.1 lies outside its bounds \(0.2, 1.0\)"),
        (lambda: Log(0.1, bounds=(1.0, 0.2)), r"bounds \(1.0, 0.2\), expected \(lowest, highest\)"),
        (lambda: Log(0.1, bounds=(-1.0, 0.2)), r"bounds \(-1.0, 0.2\), expected numbers above 0"),
        (lambda: Free(np.inf), "Free: init inf, expected finite numbers"),
        (lambda: Linear(0.5, bounds=(0.0, 1.0), projection=Box()), "bounds and a projection, expected one of them"),
        (lambda: Linear(0.5, per_example=True), "per_example needs an init with one row for each training example"),
        (lambda: Log(np.ones(3), over=Shared()), r"with over, init is one number; found an array of shape \[3\]"),
        (lambda: Log(np.ones(3), per_example=True, steps=Bins(2)), "per_example goes with neither over nor steps"),
        (
            lambda: Shared("tensor"),
            r"Shared\('tensor'\), expected one of network, layer, unit, parameter, or a function",
        ),
        (lambda: Bins(0), r"Bins\(0\), expected at least 1"),
        (lambda: Spline(1), r"Spline\(1\), expected at least 2 knots"),
    ],
)
def test_refused_declarations(make: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make()


@pytest.mark.parametrize(
    ("hyper", "changes", "reason"),
    [
        ({"rate": Log(0.1, steps=Bins(40))}, {}, r"Bins\(40\) for 11 steps, expected at most one bin for each step"),
        ({"rate": Log(0.1, steps=Spline(40))}, {}, r"Spline\(40\) for 11 steps, expected at most one knot"),
        ({"decay": Log(0.1, over=Shared(where=lambda name, shape: False))}, {}, "is False for every array"),
        ({"decay": Log(0.1, over=Shared("unit"))}, {"weights": None, "start": lambda hyper: W}, "give Task.weights"),
        ({"decay": Log(0.1, over=Shared(lambda name, shape: "all"))}, {}, None),
    ],
)
def test_refused_where_it_meets_the_task(hyper: Tree, changes: dict[str, Any], reason: str | None) -> None:
    task = declared_task(hyper=DECLARED | hyper, **changes)
    if reason is None:
        assert list(declared.initial(task, STEPS)["decay"]) == ["all"]
        return
    with pytest.raises(UsageError, match=reason):
        tasks.train(task)
