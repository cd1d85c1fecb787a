"""The second form of an experiment, one that drives itself: its folder, its closing words, its report, its failures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hypertrail import UsageError, cli, experiments, figures, runs
from hypertrail.checks import at_least
from hypertrail.errors import Stopped
from hypertrail.experiments import drmad_digits
from hypertrail.experiments._common import Study
from hypertrail.report.writing import write_report
from hypertrail.runs import arrays
from hypertrail.sections import Section
from hypertrail_data import DataError


@dataclass(frozen=True)
class Config(Study):
    """Settings of a study of squares."""

    n: int = 4
    """How many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("n", self.n, 1)


def study(config: Config, run: Any, voice: Any) -> None:
    if config.n == 13:
        raise UsageError("thirteen of them, expected another number")
    squares = np.array(run.part("squares", lambda: {"of": [i**2 for i in range(config.n)]})["of"])
    voice.progress("squares", config.n, config.n)
    arrays.save(run.path / "squares.npz", {"y": squares})
    run.append({"sum": int(squares.sum())})
    voice.say("squared")


def show(folder: Any) -> list[Section]:
    from matplotlib.figure import Figure

    (line,) = runs.read_metrics(folder)
    y = arrays.load(folder / "squares.npz")["y"]
    with figures.style():
        figure = Figure(figsize=(4, 3))
        figure.subplots().plot(y)
        pictures = {"They grow <fast>": figures.save(folder, "squares", figure)}
    return [Section("Squares", "Words & more.", ("n", "sum"), [[str(len(y)), str(line["sum"])]], pictures)]


@pytest.fixture
def squares(monkeypatch, closed_form_engines):
    """An experiment called squares is declared."""
    module = ModuleType("squares", "Squares are drawn.")
    for one in (Config, study, show):
        setattr(module, one.__name__, one)
    monkeypatch.setattr(experiments, "names", lambda: ["squares"])
    monkeypatch.setattr(experiments, "headline", lambda name: "Squares are drawn.")
    monkeypatch.setattr(experiments, "load", lambda name: module)
    return module


def test_a_study_says_and_writes_everything(squares, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["run", "squares", "--n", "5", "--run-dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == f"run folder: {folder}"
    assert said.splitlines()[-1] == f"report: {folder / 'report.html'}"
    for word in ("squared", "Squares", "30", "Words & more."):
        assert word in said
        assert word in (folder / "log.txt").read_text()
    there = "config.json env.json command.txt metrics.jsonl log.txt squares.npz parts figures report.html lock DONE"
    assert {p.name for p in folder.iterdir()} == set(there.split())
    assert json.loads((folder / "DONE").read_text()).keys() == {"time", "files", "check"}
    page = (folder / "report.html").read_text()
    words = ("<h2>Squares</h2>", "Words &amp; more.", "<td>5</td><td>30</td>", "They grow &lt;fast&gt;", ">done<")
    for word in (*words, "<td>n</td><td>5</td>"):
        assert word in page
    assert "Metrics" not in page

    for path in (folder / "report.html", folder / "figures" / "squares.png"):
        path.unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    capsys.readouterr()
    assert cli.main(["run", "squares", "--n", "5", "--run-dir", str(folder)]) == 0
    assert "finished; nothing to do" in capsys.readouterr().out
    assert cli.main(["compare", str(folder), str(folder)]) == 2
    assert "no meta-iteration in common" in capsys.readouterr().err


def test_a_study_that_fails_leaves_its_message(squares, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["run", "squares", "--n", "13", "--run-dir", str(folder)]) == 2
    assert capsys.readouterr().err == "hypertrail: thirteen of them, expected another number\n"
    assert "thirteen" in (folder / "FAILED").read_text()
    assert "failed: UsageError: thirteen" in (folder / "report.html").read_text()
    assert not (folder / "DONE").exists()


def test_what_a_study_lacks_it_says_before_it_has_a_folder(squares, tmp_path, capsys, monkeypatch):
    def missing(config):
        raise DataError(f"no data for {config.n}")

    words = ["run", "squares", "--runs-dir", str(tmp_path / "runs")]
    for hook in ("problem", "ready"):
        with monkeypatch.context() as patch:
            patch.setattr(squares, hook, missing, raising=False)
            assert cli.main(words) == 4
        assert capsys.readouterr().err == "hypertrail: no data for 4\n"
    assert not list(tmp_path.iterdir())


def test_a_study_that_failed_or_was_stopped_is_done_again_from_its_first_line(squares, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["run", "squares", "--run-dir", str(folder)]
    good = squares.study

    def half(config, run, voice):
        run.part("nothing", dict)
        run.append({"sum": 1})
        run.append({"sum": 2})
        raise half.ends_with

    squares.study = half
    for half.ends_with, code in ((UsageError("no"), 2), (Stopped("stopped"), 75), (OSError(28, "No space left"), 75)):
        assert cli.main(words) == code
        assert (folder / "FAILED").exists() == (code == 2)
        assert len(runs.read_metrics(folder)) == 2
    squares.study = good
    capsys.readouterr()
    assert cli.main(words) == 0
    assert [line["sum"] for line in runs.read_metrics(folder)] == [14]
    assert not (folder / "FAILED").exists()


def test_a_study_whose_first_line_comes_before_a_part_is_refused(squares, tmp_path, monkeypatch):
    """Nothing in it could be stopped, or taken up."""
    monkeypatch.setattr(squares, "study", lambda config, run, voice: run.append({"sum": 1}))
    with pytest.raises(RuntimeError, match="before its first part"):
        cli.main(["run", "squares", "--run-dir", str(tmp_path / "run")])


def test_verify_says_that_there_is_nothing_to_verify(squares, capsys):
    assert cli.main(["verify", "squares"]) == 2
    assert capsys.readouterr().err == (
        "hypertrail: squares is a study without a problem of its own; hypertrail verify has nothing to check in it\n"
    )


@pytest.mark.usefixtures("without_figures")
def test_a_meta_loop_may_add_to_its_report(make_run, monkeypatch):
    folder = make_run()
    total = sum(line["hyper_loss"] for line in runs.read_metrics(folder))

    def show(path):
        assert path == folder
        return [Section("Its own", columns=("sum",), rows=[[f"{total:.6f}"]])]

    monkeypatch.setattr(drmad_digits, "show", show, raising=False)
    page = write_report(folder).read_text()
    assert f"<td>{total:.6f}</td>" in page
    assert page.index("<h2>Its own</h2>") < page.index("<h2>Metrics</h2>")
