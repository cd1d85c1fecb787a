"""The front door: h.train, h.hypergradient, h.tune and h.check on tasks, and what they say of a user's own faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypertrail as h
from hypertrail.outer import Adam, GradientDescent, State, update
from hypertrail.runs import arrays
from hypertrail_gpu import doubts
from hypertrail_gpu.outer_optax import Optax as OuterOptax
from hypertrail_gpu.tuned import TunedTask
from hypertrail_gpu.updates import Optax

from .test_declared import declared_task
from .test_guards import scalar_task
from .test_ways import distance

Tree = Any


def test_a_hypergradient_of_a_task_and_of_its_training(task_of: Callable, oracle_of: Callable) -> None:
    _, true = oracle_of("mlp", "damped")
    task = task_of("mlp", "damped")
    assert distance(h.hypergradient(task).hyper, true) < 1e-10
    assert distance(h.hypergradient(task, "forward", keep="ends").hyper, true) < 1e-10
    trail = h.train(task, h.Checkpoints(3))
    assert distance(h.hypergradient(trail, h.Exact()).hyper, true) < 1e-10
    with pytest.raises(
        h.UsageError, match="keep: for a task that is yet to be trained; this is the trail of a training"
    ):
        h.hypergradient(trail, keep="memory")


def test_tuning_is_the_loop_written_out() -> None:
    task = declared_task()
    tuned = h.tune(task, outer=GradientDescent(0.5), meta_iterations=2, check=False)
    hyper, losses = tuned_start(task), []
    for _ in range(2):
        result = h.hypergradient(h.train(task, hyper=hyper))
        losses.append(result.value)
        hyper = jax.tree.map(lambda u, d: np.asarray(u - 0.5 * d, np.float64), hyper, result.hyper)
    losses.append(h.hypergradient(h.train(task, hyper=hyper)).value)
    np.testing.assert_allclose(tuned.hyper_losses, losses, rtol=1e-12)
    assert losses[2] < losses[0]
    assert distance(tuned.hyper, hyper) < 1e-12
    np.testing.assert_allclose(tuned.values["momentum"][0], 1 / (1 + np.exp(-hyper["momentum"][0])), rtol=1e-12)
    assert str(tuned).startswith("hyper loss ")
    assert "valid: loss" in str(tuned)


def tuned_start(task: h.Task) -> Tree:
    return jax.tree.map(np.asarray, TunedTask(task).start)


def test_bounds_are_kept() -> None:
    task = scalar_task(
        hyper={"penalty": h.Log(0.2, bounds=(0.1, 0.3))}, loss=lambda w, u, b, t: (w - b) ** 2 + u["penalty"] * w**2
    )
    tuned = h.tune(task, outer=GradientDescent(100.0), meta_iterations=1)
    assert float(tuned.values["penalty"]) in (pytest.approx(0.1, rel=1e-12), pytest.approx(0.3, rel=1e-12))


def test_metrics_by_name_on_every_split() -> None:
    task = scalar_task(
        valid=np.arange(3.0),
        hyper_loss=lambda w, hyper, batch: (w - batch) ** 2,
        splits={"test": np.array([5.0, 7.0])},
        metrics={"distance": lambda w, hyper, batch: jnp.abs(w - batch)},
    )
    tuned = h.tune(task, meta_iterations=0)
    w = float(h.train(task).end.w)
    assert tuned.metrics["test"] == {
        "loss": pytest.approx(((w - 5) ** 2 + (w - 7) ** 2) / 2),
        "distance": pytest.approx((abs(w - 5) + abs(w - 7)) / 2),
        "batches": 2,
    }
    assert tuned.metrics["valid"]["loss"] == pytest.approx(tuned.hyper_losses[0])


@pytest.mark.parametrize("name", ["valid", "Test", "test set", ""])
def test_names_of_splits(name: str) -> None:
    with pytest.raises(h.UsageError, match="splits: name"):
        h.tune(scalar_task(splits={name: np.zeros(1)}), meta_iterations=0)


# -- optax as the outer rule --------------------------------------------------------------------------------------------------


def test_optax_adam_is_ours(tmp_path: Any) -> None:
    """Through files between two updates: its state is kept."""
    hyper = {"a": {"x": np.array([1.0, -2.0])}, "b": {"value": np.array(0.3)}}
    gradient = {"a": {"x": np.array([0.1, 4.0])}, "b": {"value": np.array(-1.0)}}
    found = []
    for rule in (Adam(0.1), OuterOptax(transformation=optax.adam(0.1))):
        here, state = hyper, rule.start(hyper)
        for k in range(3):
            here, state = update(rule, (Anything("a"), Anything("b")), here, gradient, state)
            path = tmp_path / f"{type(rule).__name__}{k}.npz"
            arrays.save_state(path, here, state)
            here, state = arrays.load_state(path)
        found.append(here)
        assert isinstance(state, State)
        assert state.count == 3
    for kind, tensors in found[0].items():
        for key, u in tensors.items():
            np.testing.assert_allclose(found[1][kind][key], u, rtol=1e-12)


class Anything:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def project(self, u: np.ndarray) -> np.ndarray:
        return u


def test_a_chain_of_optax_tunes() -> None:
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(optax.linear_schedule(0.5, 0.1, 3)))
    tuned = h.tune(scalar_task(), outer=chain, meta_iterations=2, check=False)
    assert tuned.hyper_losses[2] < tuned.hyper_losses[0]
    with pytest.raises(
        h.UsageError, match=r"outer rule 3, expected a rule of hypertrail.outer or an optax transformation"
    ):
        h.tune(scalar_task(), outer=3)


# -- models that lie to every automatic derivative ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "convolutions", "transformer"])
def test_the_tasks_of_the_matrix_tell_the_truth(name: str, task_of: Callable) -> None:
    assert {one.verdict for one in doubts.compare(TunedTask(task_of(name)))} == {"agree"}


LIES: dict[str, Callable[..., Any]] = {
    "a penalty behind stop_gradient": lambda w, hyper, batch, t: (w - batch) ** 2 + jax.lax.stop_gradient(hyper) * w**2,
    "a Hessian behind stop_gradient": lambda w, hyper, batch, t: (
        (w - batch) ** 2 + 9 * hyper * w * jax.lax.stop_gradient(w)
    ),
    "a rounded hyperparameter": lambda w, hyper, batch, t: (w - batch) ** 2 + straight_through(hyper) * w**2,
}


def straight_through(x: Any) -> Any:
    """The derivative of x, the values of 3 x."""
    return x + jax.lax.stop_gradient(2.0 * x)


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found(lie: str) -> None:
    task = scalar_task(loss=LIES[lie])
    with pytest.raises(
        h.VerificationFailure, match="the automatic derivative of this task is not that of its training"
    ):
        h.tune(task)
    (line,) = (str(one) for one in doubts.compare(TunedTask(task)))
    assert line.endswith("differ")


def test_running_statistics_behind_a_stop_gradient_are_found() -> None:
    """Flax NNX's BatchNorm: the hyper loss reads averages whose derivative is cut, by every automatic derivative."""
    from flax import nnx

    with jax.enable_x64(False):
        norm = nnx.BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0))
        graph, weights, averages = nnx.split(norm, nnx.Param, ...)
        X = (np.random.default_rng(0).standard_normal((4, 8, 3)) * 3 + 1).astype(np.float32)

        def loss(w: Tree, state: Tree, hyper: Any, batch: Any, t: Any) -> Any:
            model = nnx.merge(graph, w["norm"], state)
            out = model(batch * w["scale"], use_running_average=False)
            state = nnx.state(model, nnx.Not(nnx.Param))
            return jnp.mean((out - batch) ** 2) + hyper * jnp.sum((w["scale"] - 2) ** 2), state

        def hyper_loss(w: Tree, state: Tree, hyper: Any, batch: Any) -> Any:
            model = nnx.merge(graph, w["norm"], state)
            return jnp.mean(model(batch * w["scale"], use_running_average=True) ** 2)

        task = scalar_task(
            loss=loss,
            hyper_loss=hyper_loss,
            weights={"norm": weights, "scale": np.ones(3, np.float32)},
            state=averages,
            hyper=np.float32(0.3),
            batches=X,
            valid=X[:1],
        )
        assert {one.verdict for one in doubts.compare(TunedTask(task))} == {"differ"}


def test_a_kink_or_noise_is_not_told() -> None:
    """A hyper loss of many jumps has no slope that differences could find: nobody is accused."""
    task = scalar_task(hyper_loss=lambda w, hyper, batch: w + 0.3 * jnp.sign(jnp.sin(1e3 * w)))
    assert {one.verdict for one in doubts.compare(TunedTask(task))} == {"not told"}
    h.check(task)


def test_a_large_slope_hides_no_small_one() -> None:
    def loss(w: Any, hyper: Any, batch: Any, t: Any) -> Any:
        return (w - batch) ** 2 * hyper["large"] + 1e-6 * jax.lax.stop_gradient(hyper["small"]) * w**2

    found = doubts.compare(TunedTask(scalar_task(loss=loss, hyper={"large": np.array(1.0), "small": np.array(1.0)})))
    assert {one.kind: one.verdict for one in found} == {"large": "agree", "small": "differ"}


@pytest.mark.parametrize("seed", range(4))
def test_a_bend_of_adam_is_no_lie(seed: int) -> None:
    """With a small ε the root bends within a step of the differences: a finer one tells."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(False):
        x, y = rng.standard_normal((3, 20, 50)).astype("f4"), rng.standard_normal((3, 20)).astype("f4")

        def make(hyper: Any, t: Any) -> Any:
            return optax.chain(optax.scale_by_adam(eps=0.0, eps_root=1e-8), optax.scale(-1e-2))

        task = h.Task(
            loss=lambda w, hyper, batch, t: hyper["sources"] @ jnp.mean((x @ w - y) ** 2, 1),
            update=Optax(make),
            hyper_loss=lambda w, hyper, batch: jnp.mean((x[0] @ w - y[0]) ** 2),
            weights=np.zeros(50, "f4"),
            hyper={"sources": h.Linear(np.full(3, 1 / 3), projection=h.Simplex())},
            batches=np.arange(10),
        )
        assert "differ" not in {comparison.verdict for comparison in doubts.compare(TunedTask(task))}


# -- a user's own faults ------------------------------------------------------------------------------------------------------


def fails(*arguments: Any) -> Any:
    return {"there": 1}["nowhere"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss": fails}, r"loss: KeyError: 'nowhere' \(test_front.py, line \d+\)"),
        (
            {"update": fails},
            r"a step \(the gradient of loss, and update\): KeyError: 'nowhere' \(test_front.py, line \d+\)",
        ),
        ({"batches": h.Stream(fails, 3)}, r"read\((0|t)\): KeyError: 'nowhere' \(test_front.py, line \d+\)"),
        ({"hyper_loss": fails}, r"hyper_loss: KeyError: 'nowhere' \(test_front.py, line \d+\)"),
        ({"metrics": {"m": fails}}, r"metric m: KeyError: 'nowhere' \(test_front.py, line \d+\)"),
        ({"start": fails}, r"start: KeyError: 'nowhere' \(test_front.py, line \d+\)"),
        ({"hyper_loss": lambda w, hyper, batch: (w, w)}, "hyper_loss gave tuple, expected one floating point number"),
        (
            {"hyper_loss": lambda w, hyper, batch: jnp.stack([w])},
            r"hyper_loss gave float64\[1\], expected one floating",
        ),
        (
            {"metrics": {"m": lambda w, hyper, batch: jnp.stack([w])}},
            r"metric m gave float64\[1\], expected one number",
        ),
    ],
)
def test_faults_of_a_users_functions_are_told_before_anything_is_trained(changes: dict[str, Any], reason: str) -> None:
    trained = []
    with pytest.raises(h.UsageError, match=reason) as refused:
        h.train(scalar_task(**changes), progress=lambda done, total: trained.append(done))
    assert not trained
    assert "\n" not in str(refused.value)
    with pytest.raises(h.UsageError, match=reason):
        h.tune(scalar_task(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": np.zeros(5, int)}, r"weights: int64\[5\], expected floating point arrays"),
        ({"weights": np.zeros(5, complex)}, r"weights: complex128\[5\], expected floating point arrays"),
        ({"weights": {}}, "weights: nothing, expected floating point arrays"),
        ({"hyper": {"p": "a"}}, r"hyper\['p'\] is str, expected arrays"),
        ({"hyper_loss": lambda w: 0.0}, "hyper_loss: TypeError"),
        (
            {"hyper_loss": lambda w, hyper, batch: batch[0]},
            "hyper_loss: TypeError: 'NoneType' object is not subscriptable",
        ),
    ],
)
def test_tuning_refuses_what_training_refuses(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(h.UsageError, match=reason) as refused:
        h.tune(scalar_task(**changes))
    assert "\n" not in str(refused.value)


def test_a_metric_that_is_not_finite_is_named() -> None:
    task = scalar_task(valid=np.arange(2.0), metrics={"m": lambda w, hyper, batch: jnp.nan * w})
    with pytest.raises(h.NumericalFailure, match="m on valid in meta-iteration 0 is not finite"):
        h.tune(task)


def test_a_hyperparameter_that_nothing_reads_is_told() -> None:
    task = scalar_task(
        hyper={"used": np.array(0.2), "idle": np.array(1.0)}, loss=lambda w, u, b, t: (w - b) ** 2 * u["used"]
    )
    used, idle = sorted(h.check(task), reverse=True)
    assert "does not depend on it at all" in idle
    assert "does not depend" not in used


def test_the_task_is_not_touched() -> None:
    task = declared_task()
    before = jax.tree.leaves(task.weights)
    h.tune(task, meta_iterations=1, check=False)
    assert all(one is two for one, two in zip(before, jax.tree.leaves(task.weights), strict=True))
    assert replace(task, seed=3).programs == {}


def test_hyperparameters_that_move_while_the_network_trains() -> None:
    task = scalar_task(hyper={"penalty": h.Log(0.2)}, loss=lambda w, u, b, t: (w - b) ** 2 + u["penalty"] * w**2)
    method = h.Adaptive(steps=2, last=1, validation_batches=0, moves=(("penalty", 0.1),), average_output=False)
    blocks = list(h.adapt(task, method))
    assert [block.start for block in blocks] == [0, 2]
    places = [np.log(0.2), *(float(block.hyper["penalty"]) for block in blocks)]
    np.testing.assert_allclose(np.abs(np.diff(places)), 0.1, rtol=1e-12)
    (again,) = h.adapt(task, method, state=blocks[0].state)
    assert float(again.hyper["penalty"]) == float(blocks[1].hyper["penalty"])
