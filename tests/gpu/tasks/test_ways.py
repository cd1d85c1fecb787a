"""The matrix: every way to a hypergradient on every kind of task equals unrolled autodiff, or is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail.errors import UsageError
from hypertrail.keeping import Checkpoints, Last, Reversible
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated
from hypertrail_gpu import tasks

from .problems import STEPS

TASKS = {
    "least-squares": ("least_squares",),
    "nesterov": ("least_squares", "nesterov"),
    "mlp": ("mlp", "damped"),
    "mlp-adamw": ("mlp",),
    "transformer": ("transformer",),
    "convolutions": ("convolutions",),
}
DAMPED = ("least-squares", "mlp", "convolutions")
KEPT: dict[str, Any] = {
    "memory": "memory",
    "host": "host",
    "hdf5": Path,
    "checkpoints": Checkpoints(),
    "three-checkpoints": Checkpoints(3),
}


def distance(found: Any, true: Any) -> float:
    """‖found − true‖ / ‖true‖ over the whole tree."""
    assert jax.tree.structure(found) == jax.tree.structure(true)
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True))
    size = np.sqrt(sum(float(np.sum(np.asarray(b) ** 2)) for _, b in pairs))
    return float(np.sqrt(sum(float(np.sum((np.asarray(a) - np.asarray(b)) ** 2)) for a, b in pairs)) / size)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", TASKS)
def test_the_true_states(name: str, kept: str, task_of: Callable, oracle_of: Callable, tmp_path: Path) -> None:
    value, true = oracle_of(*TASKS[name])
    keep = tmp_path / "states" if KEPT[kept] is Path else KEPT[kept]
    trail = tasks.train(task_of(*TASKS[name]), keep)
    found = tasks.hypergradient(trail)
    assert found.value == pytest.approx(float(value), rel=1e-12)
    assert distance(found.hyper, true) < 1e-10
    assert found.steps == STEPS
    assert found.replayed < 1e-12


@pytest.mark.parametrize("name", TASKS)
def test_the_last_steps_alone(name: str, task_of: Callable, oracle_of: Callable) -> None:
    _, true = oracle_of(*TASKS[name], cut=STEPS - 4)
    task = task_of(*TASKS[name])
    for keep in ("memory", Last(4), Checkpoints(4)):
        found = tasks.hypergradient(tasks.train(task, keep), Truncated(4))
        assert distance(found.hyper, true) < 1e-10
        assert found.start is None


@pytest.mark.parametrize("name", TASKS)
def test_forward_mode(name: str, task_of: Callable, oracle_of: Callable) -> None:
    _, true = oracle_of(*TASKS[name])
    found = tasks.hypergradient(tasks.train(task_of(*TASKS[name]), "ends"), Forward())
    assert distance(found.hyper, true) < 1e-10


@pytest.mark.parametrize("name", ["least-squares", "mlp"])
def test_steps_undone_in_floating_point(name: str, task_of: Callable, oracle_of: Callable) -> None:
    _, true = oracle_of(*TASKS[name])
    found = tasks.hypergradient(tasks.train(task_of(*TASKS[name]), "ends"), FloatReversed())
    assert distance(found.hyper, true) < 1e-8


@pytest.mark.parametrize("name", ["least-squares", "mlp"])
def test_exact_reversal(name: str, task_of: Callable) -> None:
    """Against the kept states of the same task with its momenta as fractions: what fixed point trains with."""
    task = task_of(*TASKS[name])
    fractions = replace(task, update=replace(task.update, fractions=True))
    true = tasks.hypergradient(tasks.train(fractions)).hyper
    trail = tasks.train(task, Reversible())
    found = tasks.hypergradient(trail)
    assert distance(found.hyper, true) < 1e-10
    cut = tasks.hypergradient(trail, Truncated(4)).hyper
    assert distance(cut, tasks.hypergradient(tasks.train(fractions), Truncated(4)).hyper) < 1e-10


@pytest.mark.parametrize("name", DAMPED)
def test_lines_that_are_the_trajectory(name: str, task_of: Callable, oracle_of: Callable) -> None:
    """C6 with every state kept, and C5 with a tail of all steps, are exact."""
    _, true = oracle_of(*TASKS[name])
    task = task_of(*TASKS[name])
    every = tasks.train(task, Checkpoints(STEPS))
    assert distance(tasks.hypergradient(every, DrMAD("C6")).hyper, true) < 1e-8
    if task.state is None:
        whole = tasks.hypergradient(tasks.train(task, "ends"), DrMAD("C5", tail=STEPS))
        assert distance(whole.hyper, true) < 1e-8


@pytest.mark.parametrize("completion", ["C0", "C1", "C2", "C3", "C4", "C5", "C6"])
@pytest.mark.parametrize("name", DAMPED)
def test_lines_go_where_they_can(name: str, completion: str, task_of: Callable, oracle_of: Callable) -> None:
    """A line is an approximation: it has the tree of λ, is finite, and is not the exact hypergradient by accident."""
    _, true = oracle_of(*TASKS[name])
    task = task_of(*TASKS[name])
    keep = Checkpoints(3) if completion == "C6" else "ends"
    method = DrMAD(completion, tail=3) if completion == "C5" else DrMAD(completion)
    if completion == "C5" and task.state is not None:
        with pytest.raises(UsageError, match=r"state of the task .* cannot be undone"):
            tasks.hypergradient(tasks.train(task, keep), method)
        return
    found = tasks.hypergradient(tasks.train(task, keep), method)
    assert 1e-6 < distance(found.hyper, true) < 3


def test_implicit_differentiation(task_of: Callable) -> None:
    """dλ = −(∂²L/∂λ∂w)ᵀ H⁻¹ ∇f by the dense Hessian."""
    task = task_of("least_squares")
    trail = tasks.train(task, "ends")
    found = tasks.hypergradient(trail, Implicit("cg")).hyper
    w, hyper = trail.end.w, trail.hyper

    def f(w: Any) -> Any:
        return sum(task.hyper_loss(w, hyper, batch) for batch in zip(*task.valid, strict=True)) / 3

    p = jnp.linalg.solve(jax.hessian(task.whole_loss)(w, hyper), jax.grad(f)(w))
    true = jax.grad(lambda hyper: -jnp.vdot(jax.grad(task.whole_loss)(w, hyper), p))(hyper)
    assert distance(found, true) < 1e-6


REFUSED: list[tuple[str, Any, Method, str]] = [
    ("mlp-adamw", "ends", FloatReversed(), "the update Optax does not offer"),
    ("transformer", "ends", FloatReversed(), "the update Optax does not offer"),
    ("nesterov", "ends", FloatReversed(), "the update Momentum does not offer"),
    ("convolutions", "ends", FloatReversed(), "the state of the task .* cannot be undone"),
    ("mlp-adamw", Reversible(), Exact(), "undoes damped momentum alone, not Optax"),
    ("transformer", Reversible(), Exact(), "undoes damped momentum alone, not Optax"),
    ("nesterov", Reversible(), Exact(), r"undoes damped momentum alone, not Momentum \(nesterov\)"),
    ("convolutions", Reversible(), Exact(), "the state of the task .* cannot be undone"),
    ("mlp-adamw", "ends", DrMAD("C4"), "the update Optax does not offer"),
    ("transformer", "ends", DrMAD("C0"), "the update Optax does not offer"),
    ("nesterov", "ends", DrMAD("C2"), "the update Momentum does not offer"),
    ("mlp", "ends", DrMAD("C6"), "goes along lines between kept states; train with keep="),
    ("mlp", "ends", Exact(), "exact needs the states of the run, this training kept its ends alone"),
    ("mlp", Last(3), Exact(), "the states from step 0 on are needed, this training kept those from step 8 on"),
    ("mlp", "ends", Implicit("cg"), "needs the loss over all training data; give Task"),
    ("mlp", "ends", Forward(most=3), "carries one state for each of 39 hyperparameters, at most 3"),
]


@pytest.mark.parametrize(("name", "keep", "method", "reason"), REFUSED, ids=lambda one: getattr(one, "name", None))
def test_refused_with_the_reason(name: str, keep: Any, method: Method, reason: str, task_of: Callable) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        tasks.hypergradient(tasks.train(task_of(*TASKS[name]), keep), method)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
