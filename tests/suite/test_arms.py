"""Arms of a comparison: equal budgets, schedules from outside, and a process that is really killed in the middle of a block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hypertrail_data
from hypertrail import (
    L2,
    T1T2,
    Adaptive,
    Dynamics,
    HypergradientDescent,
    LearningRate,
    Plain,
    Problem,
    UsageError,
    engines,
    stopping,
)
from hypertrail.errors import Stopped
from hypertrail.race import arm_records, arms
from hypertrail.race.arms import Arm
from hypertrail.runs import arrays
from hypertrail_nets import mlp

BUDGET = 60


def small(steps: int = BUDGET, schedule: Any = None, **changes: Any) -> Problem:
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), 60, 40, 20, 30, seed=0)
    settings: dict[str, Any] = {
        "network": mlp((8, 8, 1), (5,), dropout=0.2),
        "splits": splits,
        "schedule": schedule or hypertrail_data.BatchSchedule(60, 10, seed=0, order="reshuffled"),
        "steps": steps,
        "hyperparameters": (L2("parameter", bounds=(1e-7, 1e-2)), LearningRate("parameter", 0.1, bounds=(1e-5, 1.0))),
        "dynamics": Dynamics("damped", 0.1, 0.9),
        "valid_batch": 10,
        "precision": "float64",
    }
    return Problem(**(settings | changes))


ADAPTIVE = Arm("adaptive", Adaptive(steps=7, validation_batches=2, last=2, mode="look-ahead", mass=0.5))


@pytest.fixture(scope="module")
def cpu() -> Any:
    return engines.load("cpu")


def test_equal_budgets_are_fewer_steps_for_what_costs_more(cpu, tmp_path):
    problem = small()
    price = 7 + 2 + 2 * 2  # n steps, M validation batches, K products at two gradients each: for both engines
    record = arms.train(cpu, problem, ADAPTIVE, BUDGET, tmp_path / "a.npz", every=2)
    assert record["price"] == price
    assert record["gradients"] == BUDGET
    assert record["block"]["steps"] == [7] * 4 + [BUDGET - 4 * price], "what no block fits into is trained plainly"
    assert record["steps"] == 4 * (7 - 2) + BUDGET - 4 * price
    plain = arms.train(cpu, problem, Arm("plain", Plain(7)), BUDGET, tmp_path / "b.npz", every=3)
    assert (plain["steps"], plain["gradients"], plain["price"]) == (BUDGET, BUDGET, 7)
    assert [one["block"] for one in plain["points"]] == [-1, 2, 5, 8], "the start, every third block, and the last"
    assert [one["step"] for one in plain["points"]] == [0, 21, 42, 60]
    assert set(plain["points"][0]["metrics"]) == {"train", "valid", "select", "test"}
    assert plain["failed"] is None
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    ("method", "budget", "block_steps"),
    [
        (T1T2(every=5, block=20, validation_batches=1), 60, [20, 20, 10]),  # 24 gradients a block, 12 for its half
        (T1T2(every=5, block=20, validation_batches=1), 24, [20]),
        (HypergradientDescent(block=25), 60, [25, 25, 10]),
        (Plain(25), 60, [25, 25, 10]),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_arm_spends_its_budget_to_the_last_gradient(cpu, tmp_path, method, budget, block_steps):
    kinds = (L2("network", 1e-3), LearningRate("network", 0.1))
    record = arms.train(cpu, small(hyperparameters=kinds), Arm("a", method), budget, tmp_path / "a.npz", every=2)
    assert record["gradients"] == budget
    assert record["block"]["steps"] == block_steps
    assert record["steps"] == sum(block_steps)
    assert record["price"] == method.cost(small()).price


def test_the_last_plain_steps_leave_the_hyperparameters_where_they_are(cpu, tmp_path):
    problem = small(hyperparameters=(L2("network", 1e-3), LearningRate("network", 0.1)))
    arm = Arm("a", T1T2(every=5, block=5, validation_batches=1))
    record = arms.train(cpu, problem, arm, 20, tmp_path / "a.npz")
    assert record["block"]["steps"] == [5, 5, 5, 2]
    penalties = [mean for mean, *_ in record["hyper"]["l2"]["network"]]
    assert len(penalties) == len(record["points"]) == 5
    assert len(set(penalties[:4])) == 4, "the start and three moves"
    assert penalties[4] == penalties[3]


@pytest.mark.parametrize("name", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_the_start_is_measured_whatever_every_says(name, tmp_path):
    """Its point is what the engine measures after a training of no step: a rate so small that one step changes nothing."""
    engine, problem = engines.load(name), small(steps=20)
    record = arms.train(engine, problem, Arm("plain", Plain(5)), 20, tmp_path / "a.npz", every=1000)
    assert [point["step"] for point in record["points"]] == [0, 20]
    still = small(
        steps=1, hyperparameters=(L2("parameter", bounds=(1e-7, 1e-2)),), dynamics=Dynamics(learning_rate=1e-30)
    )
    training = engine.train(still, still.initial_hyper())
    for split, found in record["points"][0]["metrics"].items():
        assert found["loss"] == pytest.approx(engine.evaluate(still, training, split).loss, rel=1e-12)
        assert found["error"] == engine.evaluate(still, training, split).error


def test_what_blows_up_without_overflow_is_marked(cpu, tmp_path):
    """A penalty so steep that w grows by a factor at each step, and in the end by far more than 1e4; all of it finite."""
    problem = small(hyperparameters=(L2("network", 1.0, bounds=(1e-9, 1e9)), LearningRate("network", 0.1)))
    wild = Arm("wild", Plain(5), (("l2", 1000.0),))
    record = arms.train(cpu, problem, wild, 20, tmp_path / "a.npz")
    assert record["failed"] is None
    assert "‖w‖ grew from" in record["blown_up"]
    assert record["norms"][-1] > 1e4 * record["norms"][0]
    tame = arms.train(cpu, problem, Arm("tame", Plain(5), (("l2", 1e-4),)), 20, tmp_path / "b.npz")
    assert tame["blown_up"] is None


@pytest.mark.parametrize("name", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_plain_blocks_are_plain_training(name, tmp_path):
    engine, problem = engines.load(name), small(steps=20)
    for start, schedule in (((), "constant"), ((("learning_rate", 0.3), ("l2", 1e-3)), "constant"), ((), "step")):
        arm = Arm("plain", Plain(5), start, schedule)
        arms.train(engine, problem, arm, 20, tmp_path / f"{start}{schedule}.npz")
        state = arrays.load(tmp_path / f"{start}{schedule}.npz")["state"]
        drops = ((10, 0.1), (15, 0.01)) if schedule == "step" else ()
        other = problem.with_(dynamics=Dynamics("damped", 0.1, 0.9, schedule=drops))
        training = engine.train(other, arm.first_hyper(problem))
        for key, w in training.final.items():
            np.testing.assert_allclose(state["w"][key], w, rtol=1e-11, atol=1e-14)


@pytest.mark.slow
def test_a_schedule_compiles_nothing_anew(tmp_path):
    import jax

    engine, problem, seen = engines.load("gpu"), small(), []

    def listen(event: str, duration: float, **rest: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        arms.train(engine, problem, Arm("a", Plain(5)), BUDGET, tmp_path / "a.npz")
        assert seen
        seen.clear()
        for schedule in arms.SCHEDULES:
            arms.train(engine, problem, Arm("b", Plain(5), (("learning_rate", 0.2),), schedule), BUDGET,
                       tmp_path / f"{schedule}.npz")  # fmt: skip
        assert not seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_schedules_fall_as_they_say(cpu, tmp_path):
    assert [arms.step_schedule(p) for p in (0, 0.49, 0.5, 0.75)] == [1, 1, 0.1, 0.01]
    assert arms.cosine_schedule(0) == 1
    assert arms.cosine_schedule(0.5) == pytest.approx(0.5)
    arm = Arm("cosine", Plain(6), (("learning_rate", 0.2),), "cosine")
    record = arms.train(cpu, small(), arm, BUDGET, tmp_path / "a.npz")
    rates = [mean for mean, *_ in record["hyper"]["learning_rate"]["network"]]
    wanted = [0.2, *(0.2 * (1 + np.cos(np.pi * k / 10)) / 2 for k in range(10))]
    np.testing.assert_allclose(np.exp(rates), wanted, rtol=1e-4)


def test_a_kind_with_a_step_of_0_stays(cpu, tmp_path):
    arm = Arm("l2", Adaptive(6, 2, 2, moves=(("learning_rate", 0.0), ("l2", 0.01))), schedule="cosine")
    record = arms.train(cpu, small(), arm, BUDGET, tmp_path / "a.npz")
    (rates, *_), penalties = record["hyper"]["learning_rate"].values(), record["hyper"]["l2"]["dense1/W"]
    assert rates[-1][0] < rates[0][0] == rates[1][0], "the schedule moves them"
    assert rates[-1][1] == rates[-1][-1], "all alike"
    assert penalties[-1][1] < penalties[0][0] < penalties[-1][-1], "up or down, one by one"


def test_what_diverges_is_a_result(cpu, tmp_path):
    problem = small(hyperparameters=(L2("parameter"), LearningRate("parameter", 0.1, bounds=(1e-5, 1e200))))
    record = arms.train(cpu, problem, Arm("wild", Plain(5), (("learning_rate", 1e150),)), BUDGET, tmp_path / "a.npz")
    assert "is not finite at step" in record["failed"]
    assert record["gradients"] < BUDGET


def test_what_cannot_be_is_refused(cpu, tmp_path):
    problem = small()
    for arm, budget, words in (
        (Arm("a", ADAPTIVE.method, schedule="cosine"), BUDGET, "moves the learning rate itself"),
        (ADAPTIVE, 5, "more than the budget of 5"),
        (ADAPTIVE, BUDGET + 1, "expected the budget, 61"),
        (Arm("a", Plain(5), (("l2", 1.0),)), BUDGET, "l2 1 at the start, expected between 1e-07 and 0.01"),
        (Arm("a", Plain(5), (("l1", 1.0),)), BUDGET, "expected a kind that is declared"),
        (Arm("a", Adaptive(7, 5, 2)), BUDGET, "5 validation batches of 10 are more than the 40 examples"),
    ):
        with pytest.raises(UsageError, match=words):
            arms.train(cpu, problem, arm, budget, tmp_path / f"{words}.npz")
    without_rates = small(hyperparameters=(L2("parameter"),))
    with pytest.raises(UsageError, match="schedule 'cosine' is of the learning rate, which is not declared"):
        arms.train(cpu, without_rates, Arm("a", Plain(5), schedule="cosine"), BUDGET, tmp_path / "c.npz")
    for make in (lambda: Arm("a b", Plain()), lambda: Arm("a", Plain(), schedule="linear"), lambda: Plain(0)):
        with pytest.raises(UsageError, match="expected"):
            make()


def test_what_another_arm_or_run_left_is_not_gone_on_with(cpu, tmp_path):
    """Nor is a file that is not whole: each begins at the first step, and ends as it does in an empty folder."""
    problem, path = small(), tmp_path / "a.npz"
    kept = ("steps", "norms", "digest")
    expected = arms.train(cpu, problem, Arm("b", Plain(20)), BUDGET, tmp_path / "b.npz", run="mine")
    for arm, run in ((Arm("a", Plain(20)), "mine"), (Arm("b", Plain(10)), "mine"), (Arm("b", Plain(20)), "other")):
        arms.train(cpu, problem, arm, BUDGET, path, run=run)
        found = arms.train(cpu, problem, Arm("b", Plain(20)), BUDGET, path, run="mine")
        assert {key: found[key] for key in kept} == {key: expected[key] for key in kept}
    for content in (b"", b"PK", path.read_bytes()[:-100]):
        path.write_bytes(content)
        found = arms.train(cpu, problem, Arm("b", Plain(20)), BUDGET, path, run="mine")
        assert {key: found[key] for key in kept} == {key: expected[key] for key in kept}


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("arm", [ADAPTIVE, Arm("cosine", Plain(13), schedule="cosine")], ids=lambda arm: arm.name)
def test_a_signal_stops_it_after_any_block_measured_or_not(cpu, tmp_path, arm, every):
    problem, path = small(), tmp_path / "a.npz"
    whole = arms.train(cpu, problem, arm, BUDGET, tmp_path / "whole.npz", every)
    blocks = len(whole["block"]["steps"])
    assert blocks > 2
    stopping.ask("SIGTERM")
    try:
        for k in range(blocks):
            with pytest.raises(Stopped, match=f"block {k} of arm {arm.name}"):
                arms.train(cpu, problem, arm, BUDGET, path, every)
    finally:
        stopping.forget()
    assert same(arms.train(cpu, problem, arm, BUDGET, path, every), whole)


def test_a_kill_costs_two_minutes_however_rarely_it_is_measured(cpu, tmp_path, monkeypatch):
    """A clock on which a block takes 50 seconds: saved after every third of them, and at the end, where it is measured."""
    saved, now = [], [0]

    def save(path: Path, record: dict[str, Any], state: Any, run: str) -> None:
        saved.append(int(state["block"]))
        arm_records.save(path, record, state, run)

    def seen(done: int, budget: int) -> None:
        now[0] += 50

    monkeypatch.setattr(arms, "save", save)
    monkeypatch.setattr(arms.time, "monotonic", lambda: now[0])
    record = arms.train(cpu, small(), Arm("plain", Plain(6)), BUDGET, tmp_path / "a.npz", every=100, seen=seen)
    assert saved == [4, 7, 10]
    assert [point["step"] for point in record["points"]] == [0, BUDGET]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Everything but the seconds, to the bit: the digest is of the state's arrays."""
    first, second = (
        {key: one for key, one in record.items() if key not in ("block", "evaluation_seconds")}
        | {key: record["block"][key] for key in ("steps", "loss", "hyper_loss")}
        for record in (a, b)
    )
    assert first == second
    return first["digest"] is not None


CHILD = """
import importlib.util, os, signal, sys
from dataclasses import dataclass
from pathlib import Path

engine, folder, fatal = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
spec = importlib.util.spec_from_file_location("here", {here!r})
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
from hypertrail.race import arms
from hypertrail import engines, runs
from hypertrail_data import BatchSchedule


@dataclass(frozen=True)
class Deadly(BatchSchedule):
    def indices(self, start, stop):
        if start <= fatal < stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().indices(start, stop)


problem = here.small(schedule=Deadly(60, 10, 0, "reshuffled"))
with runs.Run(folder, {{"experiment": "x", "hash": "", "config": {{"seed": 0}}}}) as run:
    run.describe([], {{}})
    arms.in_run(run, engines.load(engine), problem, here.ADAPTIVE, here.BUDGET, every=2)
"""


@pytest.mark.parametrize("name", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_block_it_ends_with_the_same_bits(name, tmp_path):
    """SIGKILL in block 3 (step 18 is in the middle of it, for the reference engine); blocks 0 and 1 are saved, 2 is not."""
    child = CHILD.format(here=str(Path(__file__).resolve()))
    folder = tmp_path / "run"
    folder.mkdir()

    def start(fatal: int) -> int:
        words = [sys.executable, "-c", child, name, str(folder), str(fatal)]
        return subprocess.run(words, check=False, env=os.environ).returncode

    assert start(18) == -signal.SIGKILL
    left = arrays.load(folder / "arms" / "s0-adaptive.npz")
    assert int(left["state"]["block"]) == 2, "two blocks are saved, the third was not"
    assert not list((folder / "parts").glob("*.json"))
    assert start(10**6) == 0
    assert not (folder / "arms" / "s0-adaptive.npz").exists()
    found = json.loads((folder / "parts" / "s0-adaptive.json").read_text())["found"]
    whole = arms.train(engines.load(name), small(), ADAPTIVE, BUDGET, tmp_path / "whole.npz", every=2)
    assert same(found, whole)
