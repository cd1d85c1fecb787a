"""What a task cannot be, what a training must not hide, and what must not be compiled twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail.errors import NumericalFailure, UsageError, VerificationFailure
from hypertrail.keeping import Checkpoints, Reversible
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Truncated
from hypertrail.runs import midway
from hypertrail.runs.midway import Midway
from hypertrail.task import Arrays, Rows, Start, Stream, Task
from hypertrail_gpu import batches, tasks
from hypertrail_gpu.updates import Momentum, Optax

from .problems import STEPS, least_squares, mlp
from .test_ways import distance

Tree = Any


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """A list that grows by one entry for every program XLA compiles."""
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


def scalar_task(**changes: Any) -> Task:
    """One weight, one hyperparameter, four steps: fast to compile."""
    settings: dict[str, Any] = {
        "loss": lambda w, hyper, batch, t: (w - batch) ** 2 + hyper * w**2,
        "update": Momentum(lambda hyper, t: 0.1, lambda hyper, t: 0.5),
        "hyper_loss": lambda w, hyper, batch: (w - 1.0) ** 2,
        "weights": np.array(0.3),
        "hyper": np.array(0.2),
        "batches": np.arange(4.0),
    }
    return Task(**(settings | changes))


# -- nothing is compiled twice ------------------------------------------------------------------------------------------------


def test_a_second_round_compiles_nothing(tmp_path: Path, compilations: list[str]) -> None:
    """Weak types at first, strong ones afterwards; the length of a line changes."""
    task = replace(least_squares(), batches=Rows(least_squares().batches.data, np.arange(40 * 8).reshape(40, 8) % 40))

    def round_of(hyper: Tree, folder: str) -> list[Any]:
        memory = tasks.train(task, "memory", hyper)
        found = [tasks.hypergradient(memory, method) for method in (Exact(), Truncated(7), DrMAD("C4"), DrMAD("C1"))]
        for keep in ("host", tmp_path / folder, Checkpoints(5), Reversible()):
            found.append(tasks.hypergradient(tasks.train(task, keep, hyper)))
        found.append(tasks.hypergradient(tasks.train(task, Checkpoints(5), hyper), DrMAD("C6")))
        ends = tasks.train(task, "ends", hyper)
        return [*found, tasks.hypergradient(ends, Forward()), tasks.hypergradient(ends, FloatReversed())]

    moved = {"penalty": jnp.full(6, -2.0), "rate": jnp.asarray(np.log(0.2)), "momentum": np.float64(0.9)}
    first = round_of({"penalty": np.full(6, -3.0), "rate": jnp.log(0.1), "momentum": 0.5}, "a")
    assert compilations
    compilations.clear()
    second = round_of(moved, "b")
    assert first[2].steps != second[2].steps, "the line should change its length here"
    assert compilations == []


def test_a_stream_and_a_chunk_that_is_not_full_compile_once(compilations: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(batches, "CHUNK_STEPS", 3)
    task = scalar_task(batches=Stream(lambda t: np.float64(t), 8))
    tasks.hypergradient(tasks.train(task))
    compilations.clear()
    tasks.hypergradient(tasks.train(task, hyper=np.array(0.3)))
    assert compilations == []


def test_short_chunks_are_the_same_numbers(monkeypatch: Any, task_of: Callable, oracle_of: Callable) -> None:
    _, true = oracle_of("mlp")
    monkeypatch.setattr(batches, "CHUNK_STEPS", 4)
    task = replace(mlp(), seed=1)
    for keep in ("memory", Checkpoints(3)):
        assert distance(tasks.hypergradient(tasks.train(task, keep)).hyper, true) < 1e-10


# -- batches ------------------------------------------------------------------------------------------------------------------


def test_every_kind_of_batches_is_the_same_training() -> None:
    batches = np.arange(4.0)
    kinds = [batches, Arrays(batches), Rows(batches, np.arange(4)[:, None]), Stream(lambda t: batches[t], 4)]

    def loss(w: Any, hyper: Any, batch: Any, t: Any) -> Any:
        return (w - jnp.sum(batch)) ** 2 + hyper * w**2

    found = [float(tasks.hypergradient(tasks.train(scalar_task(loss=loss, batches=one))).hyper) for one in kinds]
    np.testing.assert_allclose(found, found[0], rtol=1e-14)


def test_the_true_step_goes_with_the_batch() -> None:
    """A schedule that only step 3 obeys has a hypergradient that is that of step 3, by every way."""

    def loss(w: Any, hyper: Any, batch: Any, t: Any) -> Any:
        return (w - batch) ** 2 + jnp.where(t == 3, hyper[3], 0.0) * w**2

    task = scalar_task(loss=loss, hyper=np.linspace(0.1, 0.5, 6), batches=np.arange(6.0))
    for keep, method in (
        ("memory", Exact()),
        (Checkpoints(2), Exact()),
        ("ends", Forward()),
        ("ends", FloatReversed()),
    ):
        found = np.asarray(tasks.hypergradient(tasks.train(task, keep), method).hyper)
        assert np.flatnonzero(found).tolist() == [3]


def test_a_stream_that_is_no_function_of_the_step_is_found() -> None:
    calls: list[int] = []

    def read(t: int) -> Any:
        calls.append(t)
        return np.float64(t + 0.01 * len(calls))

    with pytest.raises(
        VerificationFailure, match=r"at step \d the reverse pass sees the loss .*, training saw .*pure function"
    ):
        tasks.hypergradient(tasks.train(scalar_task(batches=Stream(read, 4))))


def test_a_stream_that_changes_its_shapes() -> None:
    with pytest.raises(UsageError, match=r"read\(t\) gives other shapes or another tree at some t of 0 … 3"):
        tasks.train(
            scalar_task(
                batches=Stream(lambda t: np.zeros(1 + t // 2), 4), loss=lambda w, h, b, t: jnp.sum((w - b) ** 2) * h
            )
        )


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        (iter([1, 2]), "batches is a builtins.list_iterator, expected arrays with a leading axis of steps.*Stream"),
        ((x for x in [1]), "batches is a builtins.generator"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, r"must be one for all arrays, found \{.*: 4, .*: 3\}"),
        (np.zeros((0, 2)), "batches: no batch, expected at least one"),
        (np.float64(1.0), "the leading axis is the number of the batch"),
        (Stream(lambda t: t, 0), "a stream of 0 steps, expected a whole number from 1 on"),
        (Rows(np.zeros(5), np.array([[0, 5]])), "batches.indices: row 5, expected 0 … 4, the rows of the data"),
        (Rows(np.zeros(5), np.array([[0, -1]])), "batches.indices: row -1, expected 0 … 4"),
        (Rows(np.zeros(5), np.zeros((2, 2))), r"batches.indices: float64\[2, 2\], expected whole numbers of shape"),
        (Rows(np.zeros(5), np.zeros(3, int)), r"batches.indices: int64\[3\], expected whole numbers of shape"),
    ],
)
def test_batches_that_are_none(batches: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        tasks.train(scalar_task(batches=batches))


def test_an_hdf5_dataset_is_no_array(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", data=np.arange(8.0))
        with pytest.raises(UsageError, match=r"batches is a h5py.*Dataset, expected arrays.*hypertrail.Stream"):
            tasks.train(scalar_task(batches=data))
        streamed = tasks.train(scalar_task(batches=Stream(lambda t: data[t], 8)))
    np.testing.assert_array_equal(streamed.losses, tasks.train(scalar_task(batches=np.arange(8.0))).losses)


# -- what a task cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"weights": {"W": np.zeros(2), "n": np.arange(3)}},
            r"weights\['n'\]: int64\[3\], expected floating point arrays",
        ),
        ({"weights": None}, "weights: nothing, expected floating point arrays"),
        (
            {"weights": {"W": np.zeros(2), "f": len}},
            r"weights\['f'\] is len, expected arrays; let the functions close over",
        ),
        ({"hyper": {"f": len}}, r"hyper\['f'\] is len, expected arrays"),
        ({"hyper": {"n": 3}}, r"hyper: no floating point array among \[\"\['n'\]\"\]; there is nothing to tune"),
        ({"hyper": {}}, "hyper: no floating point array among nothing"),
        (
            {"loss": lambda w, hyper, batch, t: (w, w)},
            "loss gave tuple, expected one floating point number; further results need a state",
        ),
        (
            {"loss": lambda w, hyper, batch, t: jnp.stack([w, w])},
            r"loss gave float64\[2\], expected one floating point number",
        ),
        ({"loss": lambda w, hyper, batch, t: 1}, "loss gave (int|int64.*), expected one floating point number"),
        (
            {"state": np.zeros(1), "loss": lambda w, s, h, b, t: w, "hyper_loss": lambda w, s, h, b: w},
            r"the task carries a state, so loss must give \(L, next state\)",
        ),
        (
            {"update": lambda w, v, g, hyper, t: (w.astype(jnp.float32), v)},
            r"a step turns w from float64\[\] into float32\[\]",
        ),
        ({"update": lambda w, v, g, hyper, t: (w, (v, v))}, r"a step turns v from float64\[\] into nothing"),
        ({"per_example": True}, r"a row per example is given without rows\(batch\)"),
        ({"splits": {"Other": np.zeros(1)}}, None),
    ],
)
def test_what_a_task_cannot_be(changes: dict[str, Any], reason: str | None) -> None:
    if reason is None:
        assert tasks.train(scalar_task(**changes)).steps == 4
        return
    with pytest.raises(UsageError, match=reason) as refused:
        tasks.train(scalar_task(**changes))
    assert "\n" not in str(refused.value)


def test_no_task_at_all() -> None:
    with pytest.raises(UsageError, match=r"dict is no task, expected a hypertrail.Task"):
        tasks.train({})


# -- numbers that are not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["ends", "memory", Checkpoints(2)])
def test_a_loss_that_is_nan_is_named_with_its_step(keep: Any) -> None:
    task = scalar_task(loss=lambda w, hyper, batch, t: jnp.where(t == 2, jnp.nan, 1.0) * (w - batch) ** 2)
    with pytest.raises(NumericalFailure, match="elementary loss is not finite at step 2"):
        tasks.train(task, keep)


def test_weights_that_are_lost_in_the_last_step_are_named() -> None:
    def update(w: Any, v: Any, g: Any, hyper: Any, t: Any) -> Any:
        return w - jnp.where(t == 3, jnp.inf, 0.1) * g, v

    with pytest.raises(NumericalFailure, match=r"elementary weights is not finite at step 4|weights.*step 4"):
        tasks.train(scalar_task(update=update))


def test_a_hyper_loss_that_is_nan_is_named() -> None:
    task = scalar_task(hyper_loss=lambda w, hyper, batch: jnp.log(-1.0 - w**2))
    with pytest.raises(NumericalFailure, match="hyper loss is not finite at step 4"):
        tasks.hypergradient(tasks.train(task))


def test_an_infinite_slope_is_named_with_its_step() -> None:
    def update(w: Any, v: Any, g: Any, hyper: Any, t: Any) -> Any:
        return w - 0.1 * g + 0.0 * jnp.sqrt(jnp.where(t == 1, 0.0, 1.0) * w**2), v

    with pytest.raises(NumericalFailure, match=r"adjoint of the weights .* is not finite at step 0"):
        tasks.hypergradient(tasks.train(scalar_task(update=update)))


# -- states that are filled from hyperparameters ------------------------------------------------------------------------------


def test_an_optimiser_state_that_is_filled_from_hyperparameters() -> None:
    """optax.inject_hyperparams puts the learning rate into v_0, and the step reads it there."""
    import optax

    task = scalar_task(
        update=Optax(lambda hyper, t: optax.inject_hyperparams(optax.sgd)(learning_rate=hyper)),
        loss=lambda w, hyper, batch, t: (w - batch) ** 2,
        hyper=np.array(0.1),
    )
    found = float(tasks.hypergradient(tasks.train(task)).hyper)

    def f(rate: Any) -> Any:
        w = 0.3
        for batch in range(4):
            w = w - rate * 2 * (w - batch)
        return (w - 1.0) ** 2

    assert found == pytest.approx(float(jax.grad(f)(0.1)), rel=1e-12)


# -- a custom derivative that is none -----------------------------------------------------------------------------------------


@jax.custom_vjp
def reversed_gradient(x: Any) -> Any:
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda none, d: (-0.5 * d,))


def test_a_custom_vjp_that_is_no_derivative() -> None:
    """The Hessian is not symmetric then; the reverse step is what jax.grad makes of the whole step."""

    def loss(w: Tree, hyper: Any, batch: Any, t: Any) -> Any:
        features = jnp.tanh(w["a"] * batch)
        return jnp.sum((w["b"] * features - 1.0) ** 2) + hyper * jnp.sum((w["c"] * reversed_gradient(features)) ** 2)

    start = {"a": np.array([0.5, -0.3]), "b": np.array([0.2, 0.4]), "c": np.array([0.3, 0.6])}
    task = scalar_task(loss=loss, weights=start, hyper_loss=lambda w, hyper, batch: jnp.sum(w["a"] ** 2 + w["b"]))

    def f(hyper: Any) -> Any:
        w, v = start, jax.tree.map(jnp.zeros_like, start)
        for t in range(4):
            g = jax.grad(loss)(w, hyper, float(t), t)
            v = jax.tree.map(lambda v, g: 0.5 * v - 0.5 * g, v, g)
            w = jax.tree.map(lambda w, v: w + 0.1 * v, w, v)
        return jnp.sum(w["a"] ** 2 + w["b"])

    found = float(tasks.hypergradient(tasks.train(task)).hyper)
    assert found == pytest.approx(float(jax.grad(f)(0.2)), rel=1e-12)


# -- random masks and x64 -----------------------------------------------------------------------------------------------------


def test_exact_reversal_keeps_the_masks_of_a_float32_model() -> None:
    """jax.random draws other numbers from the same key in x64 mode, which integers need."""

    def loss(w: Any, hyper: Any, batch: Any, t: Any) -> Any:
        mask = jax.random.bernoulli(jax.random.fold_in(jax.random.key(3), t), 0.5, (6,))
        return jnp.mean(mask * (w - batch) ** 2) + hyper * jnp.mean(w**2)

    with jax.enable_x64(False):
        task = scalar_task(
            loss=loss,
            weights=np.linspace(-1, 1, 6, dtype=np.float32),
            hyper=np.float32(0.2),
            batches=np.arange(24, dtype=np.float32).reshape(4, 6) / 10,
            hyper_loss=lambda w, hyper, batch: jnp.mean((w - 1.0) ** 2),
        )
        kept, undone = tasks.train(task), tasks.train(task, Reversible())
        np.testing.assert_allclose(undone.losses, kept.losses, rtol=1e-6)
        found = float(tasks.hypergradient(undone).hyper)
        assert found == pytest.approx(float(tasks.hypergradient(kept).hyper), rel=1e-5)


# -- the middle of a training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["ends", "disk"])
@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    name: str, place: str, tmp_path: Path, monkeypatch: Any, task_of: Callable
) -> None:
    monkeypatch.setattr(batches, "CHUNK_STEPS", 4)
    monkeypatch.setattr(midway, "EVERY", 0.0)
    task = replace(task_of(name), seed=2)

    def keep(folder: str) -> Any:
        return tmp_path / folder if place == "disk" else "ends"

    whole = tasks.train(task, keep("whole"), midway=Midway(tmp_path / "whole.npz", 0, "mark"))

    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise Killed

    middle = Midway(tmp_path / "cut.npz", 0, "mark")
    with pytest.raises(Killed):
        tasks.train(task, keep("cut"), progress=stop, midway=middle)
    seen: list[int] = []
    gone_on = tasks.train(task, keep("cut"), progress=lambda done, total: seen.append(done), midway=middle)
    assert seen == [STEPS]
    np.testing.assert_array_equal(gone_on.losses, whole.losses)
    np.testing.assert_array_equal(gone_on.distances, whole.distances)
    for one, two in zip(jax.tree.leaves(gone_on.end), jax.tree.leaves(whole.end), strict=True):
        np.testing.assert_array_equal(one, two)
    if place == "disk":
        a, b = tasks.hypergradient(gone_on), tasks.hypergradient(whole)
        for one, two in zip(jax.tree.leaves(a.hyper), jax.tree.leaves(b.hyper), strict=True):
            np.testing.assert_array_equal(one, two)
        gone_on.kept.close()
        whole.kept.close()


def test_the_middle_of_another_training_is_not_taken(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(midway, "EVERY", 0.0)
    tasks.train(scalar_task(), "ends", midway=Midway(tmp_path / "x.npz", 0, "mark"))
    other = scalar_task(
        weights=np.zeros(3), loss=lambda w, h, b, t: jnp.sum((w - b) ** 2) * h, hyper_loss=lambda w, h, b: w[0]
    )
    trained = tasks.train(other, "ends", midway=Midway(tmp_path / "x.npz", 0, "mark"))
    assert trained.losses[0] == 0 < trained.losses[1]  # (0 − 0)², from its own beginning


# -- where training begins ----------------------------------------------------------------------------------------------------


def test_hyperparameters_that_reach_the_beginning() -> None:
    task = scalar_task(
        weights=None, start=lambda hyper: Start(hyper * 2.0), loss=lambda w, hyper, batch, t: (w - batch) ** 2
    )
    found = tasks.hypergradient(tasks.train(task))

    def f(hyper: Any) -> Any:
        w, v = 2.0 * hyper, 0.0
        for batch in range(4):
            v = 0.5 * v - 0.5 * 2 * (w - batch)
            w = w + 0.1 * v
        return (w - 1.0) ** 2

    assert float(found.hyper) == pytest.approx(float(jax.grad(f)(0.2)), rel=1e-12)
    assert float(found.start.w) == pytest.approx(float(found.hyper) / 2, rel=1e-12)
