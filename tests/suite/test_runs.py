"""The run folder: what is written when, one writer, nothing overwritten, files whole or absent."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import numpy as np
import pytest

from hypertrail import UsageError, runs
from hypertrail.experiments.drmad_digits import Config
from hypertrail.runs import arrays


def record(**fields):
    return runs.config_record("drmad-digits", Config(**fields))


def test_the_hash_follows_what_decides_the_numbers():
    base = record()["hash"]
    assert base == record()["hash"]
    assert len(base) == 8
    assert base != record(steps=101)["hash"]
    assert base != record(seed=1)["hash"]
    assert base == record(runs_dir=Path("/elsewhere"), run_dir=Path("/x"), data_dir=Path("/y"))["hash"]


def test_folder_name_has_time_hash_and_seed(tmp_path):
    now = datetime.datetime(2026, 11, 21, 7, 8, 9)
    one = record(runs_dir=tmp_path, seed=5)
    path = runs.folder_for(one, now)
    assert path == tmp_path / "drmad-digits" / f"20261121-070809-{one['hash']}-s5"
    path.mkdir(parents=True)
    assert runs.folder_for(one, now) == path.with_name(path.name + "-2")


def test_what_was_asked_is_written_before_anything_runs(tmp_path):
    with runs.Run(tmp_path / "a" / "b", record(steps=7)) as run:
        run.describe(
            ["run", "drmad-digits", "--steps", "7", "--runs-dir", "my runs"], {"engine": "fake", "devices": ["x"]}
        )
        there = {p.name for p in run.path.iterdir()}
        assert there == {
            "config.json",
            "env.json",
            "command.txt",
            "states",
            "hypergradients",
            "steps",
            "figures",
            "lock",
        }
        assert runs.read_config(run.path)["config"]["steps"] == 7
        assert (run.path / "command.txt").read_text() == "hypertrail run drmad-digits --steps 7 --runs-dir 'my runs'\n"
        env = json.loads((run.path / "env.json").read_text())
        assert env["engine"] == {"engine": "fake", "devices": ["x"]}
        assert env["packages"]["numpy"] == np.__version__
        assert runs.status(run.path) == "unfinished"


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path):
    assert runs.writer(tmp_path / "run") is None
    with runs.Run(tmp_path / "run", record()) as first:
        first.describe(["run"], {})
        with pytest.raises(UsageError, match=rf"is being written by process {os.getpid()} on \S+ \(started 20"):
            runs.Run(tmp_path / "run", record())
        assert runs.writer(first.path).process == os.getpid()
    assert runs.writer(first.path) is None
    with runs.Run(tmp_path / "run", record()) as second:
        assert runs.writer(second.path).process == os.getpid()


@pytest.mark.parametrize("end", ["unfinished", "failed", "finished"])
def test_a_folder_with_another_run_is_not_touched(tmp_path, end):
    with runs.Run(tmp_path / "run", record(steps=7, engine="cpu")) as run:
        run.describe(["run"], {})
        if end == "failed":
            run.failed("NumericalFailure: loss is not finite")
        if end == "finished":
            run.done({})
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(
        UsageError, match=r"of another config \(engine cpu, not gpu; steps 7, not 8\); ask for the same"
    ):
        runs.Run(tmp_path / "run", record(steps=8))
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_an_unfinished_run_is_taken_up_with_what_differs(tmp_path):
    with runs.Run(tmp_path / "run", record()) as run:
        assert run.fresh
        run.describe(["run", "drmad-digits"], {"engine": "fake"})
        run.log("begun")
        with open(run.path / "log.txt", "a") as f:
            f.write("a torn li")
    (run.path / "states" / ".0000.npz.17.tmp").write_text("half")
    with runs.Run(tmp_path / "run", record(data_dir=Path("/elsewhere"))) as run:
        assert (run.fresh, run.finished) == (False, False)
        for word in ("--data-dir /elsewhere", "--data-dir /elsewhere", ""):
            run.describe(["run", "drmad-digits", *word.split()], {"engine": "other"})
    assert (run.path / "command.txt").read_text().splitlines() == [
        "hypertrail run drmad-digits",
        "hypertrail run drmad-digits --data-dir /elsewhere",
    ]
    env = json.loads((run.path / "env.json").read_text())
    assert env["engine"] == {"engine": "fake"}
    assert [later["engine"] for later in env["later"]] == [{"engine": "other"}] * 3
    assert runs.read_config(run.path)["config"]["data_dir"] is None
    lines = (run.path / "log.txt").read_text().splitlines()
    assert lines[1] == "a torn li"
    assert "the environment differs from that of the first start: engine" in "".join(lines)
    assert not list((run.path / "states").iterdir())


def test_a_failed_run_is_tried_again_and_says_so(tmp_path):
    with runs.Run(tmp_path / "run", record()) as run:
        run.describe(["run"], {})
        run.failed("NumericalFailure: loss is not finite at step 3")
        (run.path / "training.npz").write_text("the middle of a training that went wrong")
    with runs.Run(tmp_path / "run", record()) as run:
        assert not run.finished
    assert runs.status(run.path) == "unfinished"
    assert not (run.path / "training.npz").exists()
    assert "tried again after: NumericalFailure: loss is not finite at step 3" in (run.path / "log.txt").read_text()


def test_a_finished_run_may_only_grow(tmp_path):
    with runs.Run(tmp_path / "run", record(meta_iterations=3)) as run:
        run.describe(["run"], {})
        run.done({})
    with runs.Run(tmp_path / "run", record(meta_iterations=3), runs.GROWS) as run:
        assert run.finished
    for refused, grows in ((4, ()), (2, runs.GROWS)):
        hint = r"meta_iterations 3, not .*ask for the same" + (r" \(meta_iterations may only grow\)" if grows else ",")
        for ask in (runs.Run, runs.is_done):
            with pytest.raises(UsageError, match=hint):
                ask(tmp_path / "run", record(meta_iterations=refused), grows)
    with pytest.raises(UsageError, match=r"not 4; steps 100, not 99\); ask for the same, or"):
        runs.Run(tmp_path / "run", record(meta_iterations=4, steps=99), runs.GROWS)
    assert not runs.is_done(tmp_path / "run", record(meta_iterations=4), runs.GROWS)
    assert runs.status(tmp_path / "run") == "done"
    (run.path / "training.npz").write_text("of the closing training, which may have another length now")
    with runs.Run(tmp_path / "run", record(meta_iterations=4), runs.GROWS) as run:
        assert (run.fresh, run.finished) == (False, False)
    assert runs.status(tmp_path / "run") == "unfinished"
    assert not (run.path / "training.npz").exists()
    assert runs.read_config(run.path) == record(meta_iterations=4)
    assert "meta_iterations 3 before, now 4" in (run.path / "log.txt").read_text()


def test_a_start_that_was_killed_at_once_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("")
    (tmp_path / "run" / ".config.json.17.tmp").write_text("{")
    with runs.Run(tmp_path / "run", record()) as run:
        assert run.fresh


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and is not a run"):
        runs.Run(tmp_path, record())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to .*file/run"):
        runs.Run(tmp_path / "file" / "run", record())


def test_done_is_known_again_and_another_config_refused(tmp_path):
    with runs.Run(tmp_path / "run", record(steps=7)) as run:
        run.describe(["run"], {})
        assert not runs.is_done(run.path, record(steps=7))
        run.done({"meta_iterations": 8})
    assert runs.is_done(run.path, record(steps=7))
    with pytest.raises(UsageError, match=r"another config \(steps 7, not 8\)"):
        runs.is_done(run.path, record(steps=8))
    assert runs.status(run.path) == "done"


def test_metrics_lines_survive_a_torn_last_one(tmp_path):
    with runs.Run(tmp_path / "run", record()) as run:
        run.append({"update": 0})
        run.append({"update": 1})
        written = (run.path / "metrics.jsonl").read_bytes()
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.append({"loss": float("nan")})
        with open(run.path / "metrics.jsonl", "a") as f:
            f.write('{"update": 2, "lo')
        assert runs.read_metrics(run.path) == [{"update": 0}, {"update": 1}]
        assert run.keep_lines(5) == runs.read_metrics(run.path)
        assert (run.path / "metrics.jsonl").read_bytes() == written
        assert run.keep_lines(1) == [{"update": 0}] == runs.read_metrics(run.path)
        assert run.keep_lines(0) == [] == runs.read_metrics(run.path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a run"):
        runs.read_config(tmp_path)


def test_arrays_come_back_nested_with_shapes_and_dtypes(tmp_path):
    nested = {"hypergradient": {"l2": {"block1.layer1.conv/W": np.arange(6.0).reshape(2, 3), "b/W": np.float32([1])},
                                "learning_rate": {"network": np.array(2.5)}}}  # fmt: skip
    arrays.save(tmp_path / "one.npz", nested)
    again = arrays.load(tmp_path / "one.npz")
    assert dict(arrays.flatten(again)).keys() == dict(arrays.flatten(nested)).keys()
    for name, value in arrays.flatten(nested):
        np.testing.assert_array_equal(dict(arrays.flatten(again))[name], value, strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["one.npz"]


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "file"
    arrays.write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        arrays.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"0003\.npz is not there"):
        arrays.load(tmp_path / "0003.npz")
