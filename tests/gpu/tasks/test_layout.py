"""Only what the reverse pass reads is kept of a trajectory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypertrail as h
from hypertrail_gpu import tasks
from hypertrail_gpu.updates import Momentum, Optax

from .problems import convolutions, mlp
from .test_guards import scalar_task


def kept(task: h.Task) -> list[str]:
    return tasks.train(task).kept.layout.kept


def test_penalties_through_momentum_need_no_velocity() -> None:
    assert kept(scalar_task()) == ["w"]


def test_a_tuned_learning_rate_needs_it() -> None:
    task = scalar_task(update=Momentum(lambda hyper, t: hyper, lambda hyper, t: 0.5))
    assert kept(task) == ["w", "v"]


def test_adam_needs_its_moments_and_its_count() -> None:
    names = kept(scalar_task(update=Optax(lambda hyper, t: optax.adam(0.1, eps=0.0, eps_root=1e-4))))
    assert names[0] == "w"
    assert {name.rpartition("/")[2] for name in names[1:]} == {"count", "mu", "nu"}


def test_running_averages_are_kept_only_where_something_reads_them() -> None:
    """The averages of convolutions() enter no step of training, and an integer or a flag is always kept."""
    carried = [name for name in kept(replace(convolutions(), seed=3)) if name.startswith("carried")]
    trail = tasks.train(replace(convolutions(), seed=4))
    floats = [leaf for leaf in jax.tree.leaves(trail.start.carried) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(floats) == 2
    assert len(carried) <= len(jax.tree.leaves(trail.start.carried))


def test_half_of_the_memory(tmp_path: Path) -> None:
    task = mlp("damped")
    fixed = replace(
        task,
        update=Momentum(lambda hyper, t: 0.1, lambda hyper, t: 0.5),
        start=None,
        weights=task.start(task.hyper).weights,
    )
    for keep in ("memory", tmp_path / "states"):
        trail = tasks.train(fixed, keep)
        if keep == "memory":
            state = sum(leaf.nbytes for leaf in jax.tree.leaves(trail.start.w))
            assert trail.kept.nbytes == trail.steps * state
        found = tasks.hypergradient(trail)
        both = tasks.hypergradient(trail, "forward")
        for one, two in zip(jax.tree.leaves(found.hyper), jax.tree.leaves(both.hyper), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-14)


def test_states_of_another_layout_on_the_disk_are_refused(tmp_path: Path) -> None:
    one = tasks.train(scalar_task(), tmp_path / "states")
    one.kept.flush()
    other = tasks.train(scalar_task(update=Momentum(lambda hyper, t: hyper, lambda hyper, t: 0.5)), "memory")
    one.kept.layout = other.kept.layout
    with pytest.raises(Exception, match=r"states of .*, expected .*train again"):
        tasks.hypergradient(one)
