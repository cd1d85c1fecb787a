"""What happens to the folders of runs while nobody looks: they are moved, deleted, damaged, or were made by somebody else."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import hypertrail_data
from hypertrail import cli, runs, stopping
from hypertrail.launch import launches
from hypertrail.report import writing
from hypertrail.runs import arrays
from hypertrail.runs.writing import dump_sealed
from hypertrail_data.sealed import seal, unseal

WORDS = ["run", "drmad-digits", "--meta-iterations", "3", "--steps", "6", "--no-compare-exact"]
DEEP = b"[" * 100_000 + b"]" * 100_000
NO_RECORDS = {
    "empty": b"", "half": b'{"experiment": "dr', "null": b"null", "a list": b"[1]", "no keys": b"{}", "other keys": b'{"a": 1}',
    "deep": DEEP, "a long number": b'{"seed": ' + b"9" * 5000 + b"}", "not UTF-8": b"\xff\xfe{}", "zeros": bytes(300),
    "NaN": b'{"experiment": NaN, "hash": NaN, "config": NaN}',
    "other types": b'{"experiment": {}, "hash": 3, "config": {"seed": true}, "part": [], "files": 7, "later": 3}',
}  # fmt: skip


FEW = ("half", "deep", "other types")
OF_A_RUN = ("config.json", "env.json", "metrics.jsonl", "DONE", "FAILED", "lock", "command.txt", "training.npz",
            "states/0001.npz", "hypergradients/0000.npz", "steps/0000.npz")  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch, closed_form_engines, without_figures):
    monkeypatch.setattr(writing, "write_report", lambda folder, *_: folder)
    stopping.forget()


def run(folder, *more):
    return cli.main([*WORDS, *more, "--run-dir", str(folder)])


def numbers(folder):
    lines = [
        {key: one for key, one in line.items() if key not in ("cost", "memory")} for line in runs.read_metrics(folder)
    ]
    return lines, {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npz"))}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def after_the_line(monkeypatch, n, act):
    """Call `act` as soon as the n-th line of a run is on the disk."""
    append, count = runs.Run.append, []

    def appending(self, line):
        append(self, line)
        count.append(line)
        if len(count) == n:
            act()

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "append", appending)
        yield


def stopped_run(folder, monkeypatch, *more, n=1):
    with after_the_line(monkeypatch, n, lambda: stopping.ask("SIGTERM")):
        assert run(folder, *more) == 75
    stopping.forget()
    return folder


def one_line(capsys):
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    (line,) = said.splitlines()
    return line


# -- a folder that is no longer where it was ------------------------------------------------------------------------------


def test_a_run_whose_folder_was_moved_does_not_write_into_the_next_one(tmp_path, monkeypatch, capsys):
    """The first run is at work at A; its folder is moved to B, and another run begins at A."""
    assert run(tmp_path / "whole") == 0
    a, b = tmp_path / "A", tmp_path / "B"
    there = {}

    def move():
        a.rename(b)
        words = ["run", "rosenbrock", "--engine", "cpu", "--steps", "4", "--updates", "0", "--run-dir"]
        subprocess.run([sys.executable, "-m", "hypertrail", *words, str(a)], check=True, capture_output=True)
        there.update(contents(a))

    with after_the_line(monkeypatch, 2, move):
        assert run(a) == 4
    assert f"another folder lies at {a}, where this one was" in one_line(capsys)
    assert contents(a) == there
    assert runs.status(b) == "unfinished"
    assert run(b) == 0
    assert numbers(b) == numbers(tmp_path / "whole")


@pytest.mark.parametrize(
    ("act", "said"), [(shutil.rmtree, "was deleted while it was being written"), (None, "was moved away while")]
)
def test_a_folder_that_is_gone_is_not_made_again(tmp_path, monkeypatch, capsys, act, said):
    folder = tmp_path / "run"
    with after_the_line(monkeypatch, 2, lambda: act(folder) if act else folder.rename(tmp_path / "moved")):
        assert run(folder) == 4
    assert said in one_line(capsys)
    assert not folder.exists()


def test_a_folder_that_is_gone_is_not_made_again_for_a_trajectory(tmp_path, monkeypatch, problem):
    """The engine makes the folder of the states itself."""
    from hypertrail import engines
    from hypertrail_data import DataError

    monkeypatch.undo()
    engine = engines.load("cpu")
    with pytest.raises(DataError, match="is gone or was never there"):
        engine.train(problem, problem.initial_hyper(), tmp_path / "deleted" / "trajectory")
    assert not (tmp_path / "deleted").exists()


# -- files that are not ours ----------------------------------------------------------------------------------------------


def test_other_files_beside_ours_are_of_no_concern(tmp_path, monkeypatch):
    assert run(tmp_path / "whole") == 0
    folder = stopped_run(tmp_path / "run", monkeypatch)
    for name in (
        "states/backup.npz",
        "states/0001 (copy).npz",
        "hypergradients/x.npz",
        "steps/-1.npz",
        "states/0009.txt",
    ):
        (folder / name).write_bytes(b"something else")
    assert run(folder) == 0
    for path in folder.rglob("*"):
        if path.is_file() and path.read_bytes() == b"something else":
            path.unlink()
    assert numbers(folder) == numbers(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling link"])
def test_a_training_that_is_no_file_is_as_good_as_none(tmp_path, monkeypatch, kind):
    """A pipe would make a reader wait for ever."""
    assert run(tmp_path / "whole") == 0
    folder, secret = stopped_run(tmp_path / "run", monkeypatch), tmp_path / "secret"
    secret.write_bytes(b"mine")
    if kind == "fifo":
        os.mkfifo(folder / "training.npz")
    else:
        (folder / "training.npz").symlink_to(secret if kind == "link" else tmp_path / "nothing")
    assert run(folder) == 0
    assert numbers(folder) == numbers(tmp_path / "whole")
    assert secret.read_bytes() == b"mine"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "config.json", "env.json", "command.txt", "lock", "DONE", "FAILED",
                                  "report.html", "states", "hypergradients", "steps", "figures", "trajectory"])  # fmt: skip
def test_a_link_in_a_run_folder_leads_nowhere(tmp_path, monkeypatch, capsys, name):
    """Nothing outside is read as ours, written or removed; the message names the link."""
    folder, outside = stopped_run(tmp_path / "run", monkeypatch), tmp_path / "outside"
    outside.mkdir()
    (outside / "0001.npz").write_bytes(b"mine")
    (outside / "file").write_bytes(b"mine\n")
    before = contents(outside)
    if (folder / name).is_dir():
        shutil.rmtree(folder / name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside if name in (*runs.META_LOOP, "trajectory") else outside / "file")
    capsys.readouterr()
    assert run(folder) == 4
    line = one_line(capsys)
    assert str(folder / name) in line
    assert "is a symbolic link" in line
    for command in ("report", "plot", "export-tensorboard"):
        cli.main([command, str(folder)])
    assert contents(outside) == before


def test_a_figure_is_not_written_through_a_link(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from hypertrail import figures

    secret, folder = tmp_path / "secret", tmp_path / "run"
    secret.write_bytes(b"mine")
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "loss.png").symlink_to(secret)
    figures.save(folder, "loss", Figure())
    assert secret.read_bytes() == b"mine"
    assert (folder / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")


# -- states that are believed ---------------------------------------------------------------------------------------------


def tampered(folder, k, change):
    """Change the arrays of state k and let its line say so: only what the arrays are can give it away."""
    path = folder / "states" / f"{k:04d}.npz"
    nested = arrays.load(path)
    change(nested)
    lines = [unseal(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)]
    lines[k - 1]["files"][f"states/{path.name}"] = arrays.save(path, nested)
    (folder / "metrics.jsonl").write_bytes(b"".join(map(seal, lines)))


def float32(nested):
    nested["hyper"]["l2"] = {name: u.astype(np.float32) for name, u in nested["hyper"]["l2"].items()}


def other_shape(nested):
    nested["hyper"]["l2"] = {name: u[..., :1] for name, u in nested["hyper"]["l2"].items()}


def another_kind(nested):
    nested["hyper"]["momentum"] = nested["hyper"].pop("l2")


def no_slots(nested):
    nested.pop("slots", None)
    nested["slots"] = {"another": nested["hyper"]}


def words(nested):
    nested["hyper"]["l2"] = {name: np.array("word") for name in nested["hyper"]["l2"]}


@pytest.mark.parametrize("change", [float32, other_shape, another_kind, no_slots, words])
def test_a_state_of_another_form_is_not_gone_on_with(tmp_path, monkeypatch, change):
    assert run(tmp_path / "whole") == 0
    folder = stopped_run(tmp_path / "run", monkeypatch, n=2)
    tampered(folder, 2, change)
    assert run(folder) == 0
    assert "goes on at meta-iteration 1" in (folder / "log.txt").read_text()
    assert numbers(folder) == numbers(tmp_path / "whole")


# -- crafted and half-written files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name, marks=() if name in FEW else pytest.mark.slow)
        for name, content in NO_RECORDS.items()
    ],
)
@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_file_that_holds_something_else_ends_in_no_traceback(tmp_path, monkeypatch, capsys, make_run, name, content):
    """Taken up, the run has the numbers that it has without the accident; every command that looks at it has one line to say."""
    folder = stopped_run(tmp_path / "run", monkeypatch)
    (folder / name).write_bytes(content)
    copy = shutil.copytree(folder, tmp_path / "copy")
    capsys.readouterr()
    for command in (["status", str(folder)], ["report", str(folder)], ["plot", str(folder)], ["collect", str(folder)],
                    ["compare", str(folder), str(folder)], ["export-tensorboard", str(folder)]):  # fmt: skip
        assert cli.main(command) in (0, 2, 4), command
        assert len(capsys.readouterr().err.splitlines()) <= 2, command  # collect: one warning, and why there is nothing
    for code in (run(copy), run(copy)):
        assert code == 0
    assert runs.status(copy) == "done"
    assert run(tmp_path / "whole") == 0
    assert numbers(copy) == numbers(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.update(metrics=3),
        lambda line: line.update(metrics={"train": {"loss": "low"}}),
        lambda line: line.update(hyper_loss="low"),
        lambda line: line.update(cost=[]),
        lambda line: line.update(meta_iteration="0"),
        lambda line: line.update(meta_iteration=-5),
        lambda line: line.update(files={"../../secret": "0" * 64}),
        lambda line: line.update(warnings=7),
        lambda line: line.update(norm="large"),
        lambda line: line.update(agreement={"l2": {}}),
    ],
)
def test_a_line_that_somebody_made_up_ends_in_no_traceback(tmp_path, capsys, make_run, end_again, change):
    folder = make_run(tmp_path / "run", meta_iterations=1)
    lines = [unseal(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)]
    change(lines[0])
    (folder / "metrics.jsonl").write_bytes(b"".join(map(seal, lines)))
    end_again(folder)
    for command in (["status", str(folder)], ["report", str(folder)], ["collect", str(folder)], ["plot", str(folder)],
                    ["compare", str(folder), str(folder)], ["export-tensorboard", str(folder)]):  # fmt: skip
        assert cli.main(command) in (0, 2, 4), command
        assert len(capsys.readouterr().err.splitlines()) <= 2, command


def test_one_damaged_run_is_no_end_for_the_others(tmp_path, monkeypatch, capsys, make_run):
    """status and collect: a row for each, whatever lies in the folders of some."""
    base = tmp_path / "runs" / "drmad-digits"
    whole = make_run(base / "whole", meta_iterations=1)
    makers = {
        "FAILED": lambda folder: (folder / "FAILED").write_bytes(b"\xff\xfe\x1b[2J"),
        "a folder for FAILED": lambda folder: (folder / "FAILED").mkdir(),
        "a pipe": lambda folder: (os.remove(folder / "metrics.jsonl"), os.mkfifo(folder / "metrics.jsonl")),
        "a folder": lambda folder: (os.remove(folder / "metrics.jsonl"), (folder / "metrics.jsonl").mkdir()),
        "lock 0": lambda folder: (folder / "lock").write_text(LOCK % "0"),
        "lock word": lambda folder: (folder / "lock").write_text(LOCK % '"word"'),
        "a folder for the lock": lambda folder: (os.remove(folder / "lock"), (folder / "lock").mkdir()),
        "an own config": lambda folder: (folder / "config.json").write_bytes(DEEP),
        "no seed": lambda folder: (folder / "config.json").write_text('{"experiment": "x", "hash": "1", "config": {}}'),
        "metrics": lambda folder: (folder / "metrics.jsonl").write_bytes(DEEP + b"\n" + DEEP + b"\n"),
    }
    for i, (name, make) in enumerate(makers.items()):
        folder = make_run(base / name, meta_iterations=1, seed=i + 1)
        (folder / "DONE").unlink()
        make(folder)
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "\x1b" not in said.out
    for name in (whole.name, *makers):
        assert f"drmad-digits/{name}" in said.out
    assert cli.main(["collect", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "1 runs counted" in capsys.readouterr().out


def test_a_finished_run_that_has_changed_is_not_shown_as_done(tmp_path, capsys, make_run):
    """Cut cleanly after a line, its end would be another."""
    base = tmp_path / "runs" / "drmad-digits"
    whole, cut, lost = (
        make_run(base / name, meta_iterations=2, seed=i) for i, name in enumerate(("whole", "cut", "lost"))
    )
    lines = (cut / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    (lost / "config.json").unlink()
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path / "runs")]) == 0
    counted = capsys.readouterr().out.splitlines()[-1]
    assert sorted(re.findall(r"\d \w+", counted)) == ["1 done", "2 damaged", "3 runs"]
    assert cli.main(["collect", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "1 runs counted, 2 not" in said.out
    assert f"left out: {cut}, as {cut / 'metrics.jsonl'} is not as the finished run wrote it" in said.err
    assert f"left out: {lost}, as" in said.err
    for command in (["report", str(cut)], ["compare", str(cut), str(whole)], ["plot", str(cut)]):
        assert cli.main(command) == 4
    capsys.readouterr()


def test_a_run_without_its_config_goes_on_where_all_else_is_its_own(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "whole") == 0
    for folder in (
        stopped_run(tmp_path / "run", monkeypatch),
        shutil.copytree(tmp_path / "whole", tmp_path / "finished"),
    ):
        (folder / "config.json").unlink()
        capsys.readouterr()
        assert run(folder, "--outer-rate", "0.5") == 2
        assert run(folder) == 0
        assert numbers(folder) == numbers(tmp_path / "whole")


@pytest.mark.parametrize("name", ["states/0001.npz", "hypergradients/0001.npz", "steps/0001.npz"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, monkeypatch, capsys, name):
    folder = stopped_run(tmp_path / "run", monkeypatch)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    capsys.readouterr()
    assert run(folder) == 4
    assert f"{folder / name} is a folder, and a file is to be written there; remove it" in one_line(capsys)
    (folder / name).rmdir()
    assert run(folder) == 0


LOCK = '{"process": %s, "host": "h", "started": "s", "ticks": 0, "place": "p"}'


# -- launches and tables --------------------------------------------------------------------------------------------------


def test_a_launch_cannot_name_runs_outside(tmp_path, capsys, make_run):
    secret = make_run(tmp_path / "private" / "drmad-digits" / "mine", meta_iterations=1)
    folder = tmp_path / "runs" / "launches" / "20260101-000000-drmad-digits"
    folder.mkdir(parents=True)
    there = os.path.relpath(secret, folder)
    one = {"folder": there, "hash": "1", "seed": 0, "cell": {}, "words": ["run"], "jobs": []}
    (folder / launches.LAUNCH).write_text(dump_sealed({"experiment": "drmad-digits", "command": "x", "runs": [one]}))
    assert cli.main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "damaged" in said
    assert "is not in the runs folder of the launch" in said
    assert "hyper loss" not in said


def test_texts_from_outside_are_harmless_in_tables(tmp_path, capsys, make_run, end_again):
    """A cell that a spreadsheet would take for a formula, and a name that would clear the screen."""
    base = tmp_path / "runs" / "drmad-digits"
    for name, data_dir in (("=cmd|'x'!A1", None), ("\x1b[2J\x1b]0;title\x07", None)):
        folder = make_run(base / name, meta_iterations=1, seed=len(name))
        config = json.loads((folder / "config.json").read_text())
        config["config"]["trajectory"] = f"{name}{data_dir or ''}"
        config["hash"] = runs.config.hash_of(config["experiment"], config["config"])
        (folder / "config.json").write_text(json.dumps(config))
        lines = [unseal(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)]
        of_this_run = {"run": runs.identity(config)}
        (folder / "metrics.jsonl").write_bytes(b"".join(seal(line | of_this_run) for line in lines))
        end_again(folder)
    capsys.readouterr()
    assert cli.main(["status", str(tmp_path / "runs")]) == 0
    assert cli.main(["collect", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    for table in ("runs.csv", "lines.csv", "cells.csv"):
        with open(tmp_path / "out" / table, newline="", encoding="utf-8") as f:
            cells = [cell for row in csv.reader(f) for cell in row]
        assert "'=cmd|'x'!A1" in cells
        assert not any(cell.startswith(("=", "@", "+")) or "\x1b" in cell for cell in cells)
    with open(tmp_path / "out" / "lines.csv", newline="", encoding="utf-8") as f:
        assert float(next(csv.DictReader(f))["hyper_loss"]) > 0  # numbers stay numbers


def test_the_way_out_names_the_right_option(tmp_path, capsys):
    assert cli.main([*WORDS, "--run-dir", "/proc/x"]) == 2
    assert "name another --run-dir" in one_line(capsys)
    assert cli.main([*WORDS, "--runs-dir", "/proc/x"]) == 2
    assert "name another --runs-dir" in one_line(capsys)


# -- data -----------------------------------------------------------------------------------------------------------------


def test_what_was_used_stands_in_the_folder(tmp_path, digits_experiment):
    """The digest of the data, and the moments that the network sees."""
    assert run(tmp_path / "run") == 0
    used = json.loads((tmp_path / "run" / "env.json").read_text())["data"]
    ((drawn, record),) = used.items()
    assert drawn.startswith("digits: train ")
    splits = digits_experiment.problem(digits_experiment.Config()).splits
    assert record["sha256"] == splits.digest
    assert record["seen"]["mean"] == pytest.approx([splits.train.x.mean(dtype=np.float64)], abs=1e-12)
    assert record["seen"]["std"] == pytest.approx([1.0], abs=1e-6)


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch, capsys):
    folder = stopped_run(tmp_path / "run", monkeypatch)
    load = hypertrail_data.load

    def changed(*what, **how):
        data = load(*what, **how)
        x = data.x.copy()
        x[7] = 16 - x[7]
        return hypertrail_data.Dataset(data.name, x, data.y, data.classes, data.official_test, data.scale)

    before = contents(folder)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(hypertrail_data, "load", changed)
        assert run(folder) == 4
    assert "are not those that this run began with" in one_line(capsys)
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} <= {"log.txt", "env.json", "lock"}
    assert run(folder) == 0


@pytest.mark.parametrize("accident", ["gone", "damaged"])
def test_a_run_does_not_go_on_with_other_data_without_its_environment(tmp_path, monkeypatch, capsys, accident):
    """Each line says itself which data it comes from."""
    folder = stopped_run(tmp_path / "run", monkeypatch)
    if accident == "gone":
        (folder / "env.json").unlink()
    else:
        (folder / "env.json").write_text("{")
    load = hypertrail_data.load

    def changed(*what, **how):
        data = load(*what, **how)
        return hypertrail_data.Dataset(data.name, data.x[::-1], data.y[::-1], data.classes, scale=data.scale)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(hypertrail_data, "load", changed)
        assert run(folder) == 4
    assert "meta-iteration 0 are not those that this run began with" in one_line(capsys)
    assert not (folder / "FAILED").exists()
    (folder / "env.json").unlink()
    assert run(folder) == 0


def test_a_study_does_not_go_on_with_other_data(tmp_path):
    """Its parts say from which data they come, also where env.json is gone."""
    from hypertrail.errors import OtherData

    def splits(seed):
        return hypertrail_data.make_splits(hypertrail_data.load("digits"), 40, 10, 10, 10, seed=seed)

    record = {"experiment": "x", "hash": runs.config.hash_of("x", {"seed": 0}), "config": {"seed": 0}}
    for seed in (0, 1):
        with runs.Run(tmp_path / "run", record) as open_run:
            if seed:
                (tmp_path / "run" / "env.json").unlink()
            open_run.describe([], {})
            open_run.data_used("digits, in some way", splits(seed))
            if seed:
                with pytest.raises(OtherData, match="digits, in some way are not those"):
                    open_run.part("a", lambda: {"x": 1})
            else:
                assert open_run.part("a", lambda: {"x": 1}) == {"x": 1}


def test_what_is_to_be_known_of_the_data_stands_in_the_folder(tmp_path, monkeypatch, capsys):
    """A file that is not the published original: the warning of a moment is a note that lasts."""
    load = hypertrail_data.load
    sentence = "images.gz loads, but is not the published original"

    def noted(*what, **how):
        data = load(*what, **how)
        return hypertrail_data.Dataset(data.name, data.x, data.y, data.classes, scale=data.scale, notes=(sentence,))

    monkeypatch.undo()
    monkeypatch.setattr(hypertrail_data, "load", noted)
    words = "run drmad-digits --engine cpu --depth 3 --blocks 1 --growth 2 --train 40 --valid 10 --select 10 --test 10 --batch 10"
    folder = tmp_path / "run"
    assert cli.main([*words.split(), "--steps", "8", "--meta-iterations", "0", "--run-dir", str(folder)]) == 0
    assert sentence in (folder / "log.txt").read_text()
    assert sentence in (folder / "report.html").read_text()
    assert sentence in json.dumps(json.loads((folder / "env.json").read_text())["data"])
