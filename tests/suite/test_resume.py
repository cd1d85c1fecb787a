"""A run that was stopped anywhere goes on to the same bits: the meta loop on the closed-form engine, and studies."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from hypertrail import NumericalFailure, Problem, cli, outer, runs, stopping, tuning
from hypertrail.errors import Stopped
from hypertrail.experiments import drmad_digits
from hypertrail.methods import parse_method
from hypertrail.report import writing
from hypertrail.runs import arrays
from hypertrail.runs import run as run_module
from hypertrail.runs.midway import Middle, Midway
from hypertrail.runs.writing import append

M = 3
RULES = [outer.Sign(0.1), outer.Adam(0.1)]  # without memory, and with the longest


def record(**fields):
    return runs.config_record("drmad-digits", drmad_digits.Config(**{"meta_iterations": M, **fields}))


def go(
    path, problem: Problem, engine, rule=RULES[1], meta_iterations=M, trajectory="memory", compare_exact=True, **changes
):
    with runs.Run(path, record(meta_iterations=meta_iterations), runs.GROWS) as run:
        run.describe(["run"], {})
        lines = tuning.into_run(
            run,
            problem,
            engine,
            parse_method("drmad-C1"),
            rule,
            meta_iterations,
            compare_exact,
            trajectory=trajectory,
            **changes,
        )
        run.done({})
    return lines


def plain(path):
    """Every number of a run: its lines without seconds and memory, its arrays as they lie there."""
    lines = runs.read_metrics(path)
    for line in lines:
        line.pop("memory")
        for cost in line["cost"].values():
            cost.pop("seconds")
    return lines, {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*.npz"))}


@pytest.fixture
def whole(tmp_path, problem, engine):
    """An uninterrupted run, and its numbers."""
    go(tmp_path / "whole", problem, engine)
    return plain(tmp_path / "whole")


@pytest.fixture(autouse=True)
def nobody_asks():
    stopping.forget()
    yield
    stopping.forget()


class Killed(BaseException):
    """The process ends here: nothing that follows is done."""


def writes(monkeypatch, dies_at):
    """Let the writer die just before its n-th write."""
    count = 0
    for where, name in ((arrays, "write_atomic"), (run_module, "write_atomic"), (run_module, "append")):
        write = getattr(where, name)

        def dying(path, content, write=write):
            nonlocal count
            count += 1
            if count == dies_at:
                if write is append:
                    append(path, content[: len(content) // 2])
                raise Killed
            write(path, content)

        monkeypatch.setattr(where, name, dying)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_run_that_dies_at_any_write_goes_on_to_the_same_bits(rule, tmp_path, problem, engine, monkeypatch):
    go(tmp_path / "whole", problem, engine, rule)
    expected = plain(tmp_path / "whole")
    ends, dies_at = False, 0
    while not ends:
        dies_at += 1
        path = tmp_path / f"dies at {dies_at}"
        with monkeypatch.context() as patch:
            writes(patch, dies_at)
            try:
                go(path, problem, engine, rule)
                ends = True
            except Killed:
                pass
        if not ends:
            lines = go(path, problem, engine, rule)
            assert plain(path) == expected
            assert lines == runs.read_metrics(path)
            shutil.rmtree(path)
    assert dies_at > 3 * M


def test_it_trains_again_only_what_was_not_done(tmp_path, problem, engine, whole):
    engine.trainings.clear()
    engine.fails = 2
    with pytest.raises(NumericalFailure):
        go(tmp_path / "run", problem, engine)
    engine.fails = None
    engine.trainings.clear()
    go(tmp_path / "run", problem, engine)
    assert len(engine.trainings) == M + 1 - 2
    assert plain(tmp_path / "run") == whole
    assert "goes on at meta-iteration 2" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_with_a_problem_for_each_meta_iteration_goes_on_with_the_problem_of_its_index(tmp_path, problem, engine):
    def problem_for(k):
        return problem.reseeded(100 + k)

    engine.fails = 2
    with pytest.raises(NumericalFailure):
        go(tmp_path / "run", problem, engine, problem_for=problem_for)
    engine.fails = None
    engine.trainings.clear()
    go(tmp_path / "run", problem, engine, problem_for=problem_for)
    assert [one.problem.seed for one in engine.trainings] == [102, 103]


def test_more_meta_iterations_go_on_from_the_last_update(tmp_path, problem, engine, whole):
    go(tmp_path / "run", problem, engine, meta_iterations=1)
    engine.trainings.clear()
    go(tmp_path / "run", problem, engine)
    assert len(engine.trainings) == M
    assert plain(tmp_path / "run") == whole


def test_a_run_that_lacks_only_its_report_trains_nothing(tmp_path, problem, engine, whole):
    go(tmp_path / "run", problem, engine)
    (tmp_path / "run" / "DONE").unlink()
    engine.trainings.clear()
    assert [line["meta_iteration"] for line in go(tmp_path / "run", problem, engine)] == list(range(M + 1))
    assert engine.trainings == []
    assert plain(tmp_path / "run") == whole


@pytest.mark.parametrize(
    "damage",
    ["torn line", "line not JSON", "lines gone", "state gone", "state not whole", "hypergradient gone", "first state"],
)
def test_what_is_damaged_is_computed_again(tmp_path, problem, engine, whole, damage):
    path = tmp_path / "run"
    go(path, problem, engine)
    (path / "DONE").unlink()
    metrics, states = path / "metrics.jsonl", path / "states"
    lines = metrics.read_text().splitlines(keepends=True)
    if damage == "torn line":
        metrics.write_text("".join(lines[:3]) + lines[3][:100])
    elif damage == "line not JSON":  # what a power cut may leave
        metrics.write_text("".join(lines[:2]) + "\0" * 50 + "\n" + "".join(lines[3:]))
    elif damage == "lines gone":
        metrics.unlink()
    elif damage == "state gone":
        (states / "0002.npz").unlink()
    elif damage == "state not whole":
        metrics.write_text("".join(lines[:3]))
        (states / "0003.npz").write_bytes((states / "0003.npz").read_bytes()[:-400])
        (states / "0002.npz").write_bytes(b"")
    elif damage == "hypergradient gone":
        (path / "hypergradients" / "0001.npz").unlink()
    else:
        shutil.rmtree(states)
    go(path, problem, engine)
    assert plain(path) == whole


@pytest.mark.parametrize("stage", ["train", "hypergradient", "exact"])
def test_a_signal_stops_between_two_chunks(tmp_path, problem, engine, whole, stage):
    def heard(k, name, done, total):
        if (k, name) == (1, stage) and done:
            stopping.ask("SIGUSR2")

    good = engine.hypergradient

    def with_progress(problem, hyper, training, method, progress):
        progress(3, 6)
        return good(problem, hyper, training, method)

    engine.hypergradient = with_progress
    with pytest.raises(Stopped, match=rf"stopped by SIGUSR2 after step \d of 6 \({stage}, meta-iteration 1\)"):
        go(tmp_path / "run", problem, engine, report=heard)
    assert [line["meta_iteration"] for line in runs.read_metrics(tmp_path / "run")] == [0]
    stopping.forget()
    go(tmp_path / "run", problem, engine)
    assert plain(tmp_path / "run") == whole


def test_a_signal_stops_after_a_saved_meta_iteration_but_not_after_the_last(tmp_path, problem, engine, whole):
    with pytest.raises(Stopped, match="after meta-iteration 1; run the same command with --run-dir to go on"):
        go(tmp_path / "run", problem, engine, finished=lambda one: one.index == 1 and stopping.ask("SIGTERM"))
    assert len(runs.read_metrics(tmp_path / "run")) == 2
    stopping.forget()
    go(tmp_path / "run", problem, engine, finished=lambda one: one.index == M and stopping.ask("SIGTERM"))
    assert plain(tmp_path / "run") == whole


def test_a_trajectory_that_was_left_half_written_is_begun_again(tmp_path, problem, engine):
    engine.fails = 1
    with pytest.raises(NumericalFailure):
        go(tmp_path / "run", problem, engine, trajectory="disk")
    assert (tmp_path / "run" / "trajectory").is_dir()  # the engine of this test makes it, and refuses one that is there
    engine.fails = None
    go(tmp_path / "run", problem, engine, trajectory="disk")
    assert len(runs.read_metrics(tmp_path / "run")) == M + 1


@pytest.mark.parametrize("compare_exact", [False, True])
def test_the_middle_of_a_training_counts_where_what_it_keeps_is_there(tmp_path, problem, engine, compare_exact):
    """--trajectory disk: the states before it are needed where the exact pass is, and only there."""
    path = tmp_path / "run"
    engine.fails = 1
    with pytest.raises(NumericalFailure):
        go(path, problem, engine, trajectory="disk", compare_exact=compare_exact)
    engine.fails = None
    with runs.Run(path, record()) as run:
        mark = tuning.mark(run, problem, 1, arrays.load(run.state(1)))
    w, v, running = problem.initial_weights(), problem.initial_velocity(), problem.initial_running()
    Midway(path / "training.npz", 1, mark).write(Middle(3, w, v, running, np.zeros(3), np.zeros(3), 1.0))
    go(path, problem, engine, trajectory="disk", compare_exact=compare_exact)
    assert ("the training goes on at step 3" in (path / "log.txt").read_text()) == (not compare_exact)


def test_the_command_line_tries_a_failed_run_again(tmp_path, closed_form_engines, capsys, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(writing, "write_report", lambda folder, *_: folder)  # figures take seconds
    words = ["run", "drmad-digits", "--meta-iterations", "2", "--no-compare-exact", "--run-dir", str(folder)]
    closed_form_engines.fails = 1
    assert cli.main(words) == 3
    assert runs.status(folder).startswith("failed: NumericalFailure")
    closed_form_engines.fails = None
    assert cli.main(words) == 0
    assert runs.status(folder) == "done"
    log = (folder / "log.txt").read_text()
    assert "tried again after: NumericalFailure: hypergradient" in log
    assert "goes on at meta-iteration 1" in log
    assert "After 2 updates" in log  # the table of the whole run
    capsys.readouterr()
    assert cli.main([*words, "--meta-iterations", "3"]) == 0
    assert len(runs.read_metrics(folder)) == 4
    assert json.loads((folder / "DONE").read_text())["meta_iterations"] == 3
    assert cli.main(words) == 2
    assert "meta_iterations 3, not 2); ask for the same (meta_iterations may only grow)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signal", "at", "step", "codes"),
    [
        ("SIGUSR2", 0, 0, (76, 76)),
        ("SIGTERM", 0, 0, (75, 75)),  # preempted: that may happen at any time
        ("SIGUSR2", 1, 0, (75, 76)),  # a meta-iteration in the first start, none in the second
        ("SIGUSR2", 0, 3, (75, 76)),  # three steps in the first start, no fourth in the second
        ("SIGUSR2", 1, 3, (75, 76)),
    ],
)
def test_a_run_whose_time_is_up_with_nothing_won_says_what_it_needs(
    tmp_path, closed_form_engines, capsys, monkeypatch, signal, at, step, codes
):
    good = closed_form_engines.train

    def train(problem, hyper, keep, progress, midway):
        if midway.index == at:
            if step:
                midway.write(Middle(step, {}, {}, {}, np.zeros(step), np.zeros(step), 1.0))
            stopping.ask(signal)
        return good(problem, hyper, keep, progress, midway)

    monkeypatch.setattr(closed_form_engines, "train", train)
    folder = tmp_path / "run"
    words = ["run", "drmad-digits", "--meta-iterations", "2", "--run-dir", str(folder)]
    for code in codes:
        assert cli.main(words) == code
        told = "no progress since the last start: needs a longer --time, or a new run with --trajectory disk"
        assert (runs.no_progress(folder) == told) == (code == 76)
        assert (told in capsys.readouterr().err) == (code == 76)
        assert runs.status(folder) == "unfinished"


def line(k):
    numbers = {"meta_iteration": k, "steps": 1, "hyper_loss": 1.0}
    return numbers | {"metrics": {}, "cost": {}, "hyper": {}}


def test_an_update_in_place_of_a_closing_line_is_progress(tmp_path):
    with runs.Run(tmp_path / "run", record()) as run:
        run.describe(["run"], {})
        run.append(line(0) | {"method": "exact"})
        run.append(line(1))
        before = run.reached()
        run.keep_lines(1)
        assert not run.reached().beyond(before)
        run.append(line(1) | {"method": "exact"})
        assert run.reached().beyond(before)


def test_what_a_study_has_computed_is_progress(tmp_path):
    with runs.Run(tmp_path / "run", record()) as run:
        run.describe(["run"], {}, ("figures",))
        before = run.reached()
        run.append({"a": 1})
        run.keep_lines(0)
        assert not run.reached().beyond(before)
        run.part("one", dict)
        assert run.reached().beyond(before)
        assert not run.reached().beyond(run.reached())


def test_a_part_is_computed_once(tmp_path):
    asked = []

    def compute():
        asked.append(1)
        arrays.save(run.path / "parts" / "one.npz", {"x": np.arange(3)})
        return {"x": 0.1 + 0.2}

    with runs.Run(tmp_path / "run", record()) as run:
        run.describe(["run"], {}, ("figures",))
        assert run.part("one", compute) == run.part("one", compute) == {"x": 0.1 + 0.2}
        stopping.ask("SIGTERM")
        assert run.part("one", compute) == {"x": 0.1 + 0.2}
        with pytest.raises(Stopped, match="after part two"):
            run.part("two", compute)
        assert run.part("two", compute) == {"x": 0.1 + 0.2}
    assert len(asked) == 2
