"""A training that is stopped in its middle goes on there to the same bits, in both engines."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pytest

import hypertrail_data
from hypertrail import L2, DrMAD, Exact, LearningRate, engines, outer, runs, stopping, tuning
from hypertrail.errors import Stopped
from hypertrail.experiments import drmad_digits
from hypertrail.methods import parse_method
from hypertrail.problem import Dynamics, Problem
from hypertrail.runs import midway
from hypertrail.runs.midway import Middle, Midway
from hypertrail_nets import densenet, mlp

STEPS, CHUNK = 12, 4


NETWORKS = {
    "mlp": mlp((8, 8, 1), (3,), 10),
    "densenet": densenet((8, 8, 1), 10, 3, 2, 1, first_output=3, dropout=0.1),  # running averages, masks
}


@pytest.fixture(params=["mlp", pytest.param("densenet", marks=pytest.mark.slow)])
def problem(request):
    """Velocities are kept."""
    return Problem(
        network=NETWORKS[request.param],
        splits=hypertrail_data.make_splits(hypertrail_data.load("digits"), 30, 20, 0, 0, seed=0),
        schedule=hypertrail_data.BatchSchedule(30, 8, seed=0),
        steps=STEPS,
        hyperparameters=(L2(level="layer"), LearningRate(init=0.3)),
        dynamics=Dynamics(momentum=0.8),
        precision="float64",
    )


@pytest.fixture
def engine(request, monkeypatch):
    """An engine whose chunks are short, and so is the time between two writes."""
    monkeypatch.setattr(midway, "EVERY", 0.0)
    if request.param == "cpu":
        monkeypatch.setattr(importlib.import_module("hypertrail_cpu.training"), "BLOCK", CHUNK)
    else:
        monkeypatch.setattr(importlib.import_module("hypertrail_gpu.compiled"), "CHUNK_STEPS", CHUNK)
    return engines.load(request.param)


@pytest.fixture(autouse=True)
def nobody_asks():
    stopping.forget()
    yield
    stopping.forget()


def same(a, b):
    """Two trees of arrays, bit for bit; where they differ, in words."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    else:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def stop_at(step):
    """A progress that stops a training at its first chunk from `step` on, as the meta loop's does."""

    def progress(done, total):
        if done >= step:
            raise Stopped
        stopping.here(f"step {done}")

    return progress


@pytest.mark.parametrize(
    ("engine", "stored"),
    [
        ("cpu", False),
        ("cpu", True),
        pytest.param("gpu", True, marks=pytest.mark.optimised),
        pytest.param("gpu", False, marks=pytest.mark.slow),
    ],
    indirect=["engine"],
    ids=["cpu-ends", "cpu-disk", "gpu-disk", "gpu-ends"],
)
def test_a_training_goes_on_to_the_same_bits(problem, engine, tmp_path, stored):
    hyper = problem.initial_hyper()

    def keep(name):
        return tmp_path / name if stored else "ends"

    whole = engine.train(problem, hyper, keep("whole"))
    for stops in ([1, 5, STEPS], [7]):
        middle = Midway(tmp_path / "training.npz", 3)
        for step in stops:
            with pytest.raises(Stopped):
                engine.train(problem, hyper, keep("run"), stop_at(step), middle)
            assert 0 < middle.read().step <= step + CHUNK
            if stored:  # what was written after the middle, and never finished, is dropped
                with hypertrail_data.StoredTrajectory.open(tmp_path / "run", "a") as trajectory:
                    last = trajectory.read(trajectory.stop - 1)
                    trajectory.append(trajectory.stop, {name: 7 + one[None] for name, one in last.items()})
        heard = []
        begun = middle.read().step
        training = engine.train(
            problem, hyper, keep("run"), lambda done, total, heard=heard: heard.append(done), middle
        )
        assert begun == STEPS or (heard[0] > begun and heard[-1] == STEPS)
        for name in ("initial", "final", "weights", "velocity", "running", "losses", "distances"):
            same(getattr(whole, name), getattr(training, name))
        ways = [DrMAD("C4"), *([Exact()] if stored else [])]
        for way in ways:
            a, b = (engine.hypergradient(problem, hyper, one, way) for one in (whole, training))
            same(a.gradient, b.gradient)
        if stored:
            assert training.trajectory.stop == STEPS
            assert training.trajectory.meta["meta_iteration"] == 3  # whose it is it says itself
            training.trajectory.close()
            shutil.rmtree(tmp_path / "run")
        middle.forget()
    if stored:
        whole.trajectory.close()


@pytest.mark.parametrize("engine", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)], indirect=True)
def test_what_lies_in_memory_begins_again(problem, engine, tmp_path):
    middle = Midway(tmp_path / "training.npz", 0)
    with pytest.raises(Stopped):
        engine.train(problem, problem.initial_hyper(), "memory", stop_at(5), middle)
    assert middle.read() is None


@pytest.mark.parametrize("engine", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)], indirect=True)
def test_who_stops_for_another_process_has_saved_its_middle(problem, engine, tmp_path, monkeypatch):
    """The processes are asked once for each chunk: whether to save, and then whether to stop, is one answer."""
    monkeypatch.setattr(midway, "EVERY", 1e9)
    answers = iter([False, True])
    stopping.together(lambda mine: next(answers))
    middle = Midway(tmp_path / "training.npz", 0)
    try:
        with pytest.raises(Stopped, match="a signal to another process after step 8"):
            engine.train(problem, problem.initial_hyper(), "ends", stop_at(STEPS + 1), middle)
    finally:
        stopping.together(bool)
    assert middle.read().step == 2 * CHUNK


def test_a_signal_between_saving_and_stopping_is_for_the_next_place():
    assert not stopping.coming()
    stopping.ask("SIGTERM")
    stopping.here("what was not saved")
    assert stopping.coming()
    with pytest.raises(Stopped):
        stopping.here("what was saved")


def test_the_middle_of_another_training_is_not_looked_at(tmp_path):
    one = Middle(5, {"a/W": np.ones(2)}, {"a/W": np.zeros(2)}, {}, np.arange(5.0), np.arange(5.0), 0.5)
    path = tmp_path / "training.npz"
    assert Midway(path, 3).read() is None
    Midway(path, 3).write(one)
    found = Midway(path, 3).read()
    assert (found.step, found.seconds, found.running) == (5, 0.5, {})
    same(found.w, one.w)
    assert Midway(path, 4).read() is None
    path.write_bytes(path.read_bytes()[:-30])
    assert Midway(path, 3).read() is None
    Midway(path, 3).forget()
    assert not path.exists()


def test_it_is_due_after_a_while_or_when_somebody_asks(tmp_path, monkeypatch):
    one = Midway(tmp_path / "training.npz", 0)
    assert not one.due()
    stopping.ask("SIGUSR2")
    assert one.due()
    stopping.forget()
    monkeypatch.setattr(midway, "EVERY", -1.0)
    assert one.due()


@pytest.mark.parametrize("engine", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize(
    ("method", "stage"), [("drmad-C4", "hypergradient"), ("exact", "hypergradient"), ("drmad-C2", "exact")]
)
def test_a_stop_in_a_reverse_pass_does_not_cost_the_training(problem, engine, tmp_path, monkeypatch, method, stage):
    monkeypatch.setattr(midway, "EVERY", 1e9)  # the signal alone makes it save
    config = drmad_digits.Config(meta_iterations=1, method=method, trajectory="disk")
    heard = []

    def go(name, report=None):
        with runs.Run(tmp_path / name, runs.config_record("drmad-digits", config)) as run:
            run.describe([], {})
            tuning.into_run(
                run, problem, engine, parse_method(method), outer.Adam(0.1), 1, stage == "exact", trajectory="disk", report=report
            )  # fmt: skip
        return numbers(tmp_path / name)

    def asks(k, name, done, total):
        if (k, name) == (0, stage) and done:
            stopping.ask("SIGTERM")

    expected = go("whole")
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step .* of .* \\({stage}, meta-iteration 0\\)"):
        go("run", asks)
    assert midway.place(tmp_path / "run" / "training.npz") == (0, STEPS)
    stopping.forget()
    found = go("run", lambda k, name, done, total: heard.append((k, name, done)))
    assert f"the training goes on at step {STEPS}" in (tmp_path / "run" / "log.txt").read_text()
    assert {done for k, name, done in heard if (k, name) == (0, "train")} <= {0, STEPS}  # nothing of it is done again
    assert found == expected
    assert not (tmp_path / "run" / "training.npz").exists()


def numbers(folder):
    """Every number of a run that does not tell the time or the memory it took."""
    lines = runs.read_metrics(folder)
    for line in lines:
        line.pop("memory")
        for cost in line["cost"].values():
            del cost["seconds"]
    return lines, {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.npz"))}
