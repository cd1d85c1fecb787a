"""The forward run: its order, what it records, where it keeps the states, and how it fails."""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import L2, Dynamics, Exact, LearningRate, NumericalFailure, UsageError
from hypertrail_cpu import training as training_module
from hypertrail_cpu.dynamics import DYNAMICS
from hypertrail_cpu.losses import elementary_gradient
from hypertrail_cpu.training import batch, rates
from hypertrail_data import StoredTrajectory


def test_one_run_step_by_step(make):
    """Every record of a run against a loop written out here."""
    problem = make("densenet", "coarse")
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    values = problem.values(hyper)
    w = problem.initial_weights()
    v = {name: np.zeros_like(one) for name, one in w.items()}
    running = problem.initial_running()
    factors = [1, 1, 1, 0.5, 0.5, 0.5]
    for t in range(problem.steps):
        state = training.trajectory.read(t)
        rows = problem.schedule.indices(0, problem.steps)[t]
        x, y = problem.splits.train.x[rows].astype(np.float64), problem.splits.train.y[rows]
        loss, g, statistics = elementary_gradient(problem, w, values, x, y, t)
        assert training.losses[t] == loss
        for name in w:
            np.testing.assert_array_equal(state[f"w/{name}"], w[name])
            np.testing.assert_array_equal(state[f"v/{name}"], v[name])
            alpha, gamma = factors[t] * values["learning_rate"][name][t], values["momentum"][name]
            w[name], v[name] = DYNAMICS["damped"][0](w[name], v[name], g[name], alpha, gamma)
        running = {key: 0.9 * running[key] + 0.1 * statistics[key] for key in running}
        distance = np.sqrt(sum(np.sum((w[name] - training.initial[name]) ** 2) for name in w))
        assert training.distances[t] == pytest.approx(distance, rel=1e-14)
    for name in w:
        np.testing.assert_array_equal(training.final[name], w[name])
        np.testing.assert_array_equal(training.velocity[name], v[name])
        t = values["transform"].get(name, 0.0)
        np.testing.assert_allclose(training.weights[name], w[name] * np.exp(t), rtol=1e-15)
    for key, one in running.items():
        np.testing.assert_allclose(training.running[key], one, rtol=1e-14)
    assert training.steps == len(training.trajectory) == problem.steps
    assert training.cost.gradients == problem.steps
    assert training.cost.trajectory_bytes == 2 * problem.steps * sum(one.nbytes for one in w.values())


def test_dropout_masks_change_from_step_to_step_and_not_from_run_to_run(make):
    problem = make("tanh")
    w, values = problem.initial_weights(), problem.values(problem.initial_hyper())
    x, y = batch(problem, 0)
    first, again, other = (elementary_gradient(problem, w, values, x, y, step)[0] for step in (0, 0, 1))
    assert first == again
    assert first != other


def test_rates_take_the_row_of_their_step_and_the_factor_of_the_schedule(make):
    problem = make("tanh", hyperparameters=(LearningRate("layer", 0.2, per_step=True),))
    hyper = problem.initial_hyper()
    for u in hyper["learning_rate"].values():
        u += np.log(np.arange(1.0, 7.0))
    values = problem.values(hyper)
    for step, expected in ((1, 0.4), (4, 0.5 * 1.0)):
        alpha, gamma = rates(problem, values, step)
        assert alpha["dense1/W"] == pytest.approx(expected, rel=1e-14)
        assert gamma["dense1/b"] == problem.dynamics.momentum


def test_same_hyperparameters_give_the_same_run_bit_for_bit(make):
    problem = make("densenet")
    a, b = (cpu.train(problem, problem.initial_hyper()) for _ in range(2))
    assert a.trajectory is None
    np.testing.assert_array_equal(a.losses, b.losses)
    for name in a.final:
        np.testing.assert_array_equal(a.final[name], b.final[name])


@pytest.mark.parametrize("block", [1, 4, 50])
def test_disk_holds_what_memory_holds_bit_for_bit(make, tmp_path, monkeypatch, block):
    """For blocks that divide the run and blocks that do not; and the hypergradients are the same numbers."""
    monkeypatch.setattr(training_module, "BLOCK", block)
    problem = make("tanh", "fine")
    hyper = problem.initial_hyper()
    memory = cpu.train(problem, hyper, keep="memory")
    stored = cpu.train(problem, hyper, keep=tmp_path / "trajectory")
    assert len(memory.trajectory.segments()) == -(-problem.steps // block)
    for t in range(problem.steps):
        a, b = memory.trajectory.read(t), stored.trajectory.read(t)
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype == np.float64
    one, two = (cpu.hypergradient(problem, hyper, run, Exact()) for run in (memory, stored))
    for kind, arrays in one.gradient.items():
        for key, d in arrays.items():
            np.testing.assert_array_equal(two.gradient[kind][key], d)
    stored.trajectory.close()


def test_progress_comes_between_blocks(make, monkeypatch):
    monkeypatch.setattr(training_module, "BLOCK", 4)
    calls = []
    problem = make("tanh", steps=10)
    cpu.train(problem, problem.initial_hyper(), progress=lambda done, of: calls.append((done, of)))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_blocks_of_a_large_network_are_short(make, monkeypatch):
    monkeypatch.setattr(training_module, "BLOCK_BYTES", 0)
    problem = make("tanh")
    assert len(cpu.train(problem, problem.initial_hyper(), keep="memory").trajectory.segments()) == problem.steps


def diverging(make, steps):
    """A penalty and a rate that multiply the weights by about −α (1−γ) 2 λ = −100 in every step."""
    penalty = L2("network", 1e3, bounds=(1e-9, 1e6))
    return make("relu", dynamics=Dynamics("damped", 0.1, 0.5), hyperparameters=(penalty,), steps=steps)


def test_diverging_run_names_the_loss_and_the_step(make, tmp_path):
    problem = diverging(make, 200)
    with pytest.raises(NumericalFailure) as caught:
        cpu.train(problem, problem.initial_hyper(), keep=tmp_path / "trajectory")
    assert caught.value.quantity == "elementary loss"
    assert 10 < caught.value.step < problem.steps
    assert f"step {caught.value.step}" in str(caught.value)
    # Every state before a finished step is on disk, and the folder is free for another reader or writer.
    with StoredTrajectory.open(tmp_path / "trajectory", mode="a") as kept:
        assert (kept.start, kept.stop) == (0, caught.value.step)
        first = kept.read(0)
    for name, one in problem.initial_weights().items():
        np.testing.assert_array_equal(first[f"w/{name}"], one)


def test_weights_that_diverge_in_the_last_step_are_caught(make):
    """Every loss is finite, yet the last step has gone too far: cut a diverging run just before its loss would tell."""
    problem = diverging(make, 200)
    with pytest.raises(NumericalFailure) as first:
        cpu.train(problem, problem.initial_hyper())
    problem = diverging(make, first.value.step)
    with pytest.raises(NumericalFailure) as caught:
        cpu.train(problem, problem.initial_hyper())
    assert (caught.value.quantity, caught.value.step) == ("elementary weights", first.value.step)


def test_interrupted_run_keeps_its_finished_steps(make, tmp_path, monkeypatch):
    """A signal between two blocks: nothing that was computed is lost."""
    monkeypatch.setattr(training_module, "BLOCK", 4)
    real = training_module.elementary_gradient

    def interrupted(problem, w, values, x, y, step):
        if step == 6:
            raise KeyboardInterrupt
        return real(problem, w, values, x, y, step)

    monkeypatch.setattr(training_module, "elementary_gradient", interrupted)
    problem = make("tanh", steps=10)
    with pytest.raises(KeyboardInterrupt):
        cpu.train(problem, problem.initial_hyper(), keep=tmp_path / "trajectory")
    with StoredTrajectory.open(tmp_path / "trajectory") as kept:
        assert len(kept) == 6


def test_full_disk_is_told_once(make, monkeypatch):
    """The block whose writing failed is not written again, and the first error is the one that comes out."""
    calls = []

    class Full:
        nbytes = 0

        def append(self, start, states):
            calls.append(start)
            raise OSError(28, "No space left on device")

        def close(self):
            calls.append("closed")

    monkeypatch.setattr(cpu.keeping, "MemoryTrajectory", Full)
    problem = make("tanh")
    with pytest.raises(OSError, match="No space left"):
        cpu.train(problem, problem.initial_hyper(), keep="memory")
    assert calls == [0, "closed"]


def test_unknown_keep_is_refused(make):
    problem = make("tanh")
    with pytest.raises(UsageError, match="keep 'disk', expected 'ends', 'memory', 'host'"):
        cpu.train(problem, problem.initial_hyper(), keep="disk")
