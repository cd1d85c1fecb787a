"""Experiments that their users bring: files, modules and entry points, by the command line, in real processes and folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypertrail import UsageError, cli, own, users_code
from hypertrail.runs import arrays

HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
FILE = '''"""Least squares with a penalty per feature.

More words."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import hypertrail as h
from hypertrail.outer import GradientDescent
from hypertrail_gpu.updates import Momentum


@dataclass(frozen=True)
class Config(h.TaskConfig):
    steps: int = 12
    """T."""
    meta_iterations: int = 2
    """How many times the penalties move."""


def task(config):
    rng = np.random.default_rng(config.seed)
    true = np.where(np.arange(6) < 2, 1.0, 0.0)

    def split(n):
        X = rng.standard_normal((n, 6)).astype(np.float32)
        return X, (X @ true + rng.standard_normal(n)).astype(np.float32)

    train, valid, test = split(20), split(20), split(20)

    def loss(w, hyper, batch, t):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) + jnp.sum(hyper["penalty"] * w**2)

    def squares(w, hyper, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    return h.Task(
        loss=loss,
        update=Momentum(lambda hyper, t: 0.1, lambda hyper, t: 0.9),
        hyper_loss=squares,
        weights=np.zeros(6, np.float32),
        hyper={"penalty": h.Log(np.full(6, 0.01))},
        batches=tuple(np.broadcast_to(a, (config.steps, *a.shape)) for a in train),
        valid=tuple(a[None] for a in valid),
        splits={"test": tuple(a[None] for a in test)},
        metrics={"absolute": lambda w, hyper, batch: jnp.mean(jnp.abs(batch[0] @ w - batch[1]))},
    )


def rule(config):
    return GradientDescent(config.outer_rate)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(FILE)
    return tmp_path


def run_folder(here: Path) -> Path:
    (folder,) = (here / "runs" / "my-task").iterdir()
    return folder


def call(*words: Any, **environment: str) -> Any:
    return subprocess.run(
        [HYPERTRAIL, *map(str, words)], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_a_file_has_all_that_a_built_in_experiment_has(here, capsys):
    assert cli.main(["run", "my_task.py"]) == 0
    folder = run_folder(here)
    said = capsys.readouterr().out
    assert "differences of the first steps: penalty" in said
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["meta_iteration"] for line in lines] == [0, 1, 2]
    assert set(lines[0]["metrics"]["test"]) == {"loss", "absolute", "batches"}
    assert lines[2]["hyper_loss"] < lines[0]["hyper_loss"]
    assert (folder / "source.py").read_text() == FILE
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == "my-task"
    assert config["config"]["source"] == str(here / "my_task.py")
    assert (folder / "report.html").is_file()
    for words in (["report", folder], ["plot", folder, "metrics"], ["compare", folder, folder], ["collect", "runs"]):
        assert cli.main(list(map(str, words))) == 0
    assert cli.main(["run", "my_task.py", "--run-dir", str(folder)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.main(["run", "my_task.py", "--run-dir", str(folder), "--meta-iterations", "3"]) == 0  # it may grow


def test_a_run_goes_on_to_the_same_bits(here):
    assert cli.main(["run", "my_task.py", "--run-dir", "whole"]) == 0
    assert cli.main(["run", "my_task.py", "--run-dir", "cut"]) == 0
    (here / "cut" / "DONE").unlink()
    for path in (here / "cut" / "states" / "0002.npz", here / "cut" / "hypergradients" / "0001.npz"):
        path.unlink()
    assert cli.main(["run", "my_task.py", "--run-dir", "cut"]) == 0
    one, two = (arrays.load(here / name / "states" / "0002.npz") for name in ("whole", "cut"))
    np.testing.assert_array_equal(one["hyper"]["penalty"]["value"], two["hyper"]["penalty"]["value"])


def test_another_file_is_no_resume(here, capsys):
    assert cli.main(["run", "my_task.py", "--run-dir", "run"]) == 0
    (here / "run" / "DONE").unlink()
    (here / "my_task.py").write_text(FILE.replace("0.01", "0.02"))
    capsys.readouterr()
    assert cli.main(["run", "my_task.py", "--run-dir", "run"]) == 2
    said = capsys.readouterr().err
    assert "another file: " in said
    assert "my_task.py has the sha256" in said
    assert len(said.splitlines()) == 1
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "my_task.py").write_text(FILE)  # the same file may move
    assert cli.main(["run", "elsewhere/my_task.py", "--run-dir", "run"]) == 0


def test_verify_compares_with_differences_and_with_the_unrolled_loop(here, capsys):
    assert cli.main(["verify", "my_task.py", "--directions", "1"]) == 0
    said = capsys.readouterr().out
    assert "ok   exact of penalty against differences of 10 steps" in said
    assert "ok   exact of penalty against autodiff through 10 unrolled steps" in said


def test_launched_locally_collected_and_compared(here, capsys):
    words = ["--cluster", "local", "--seeds", "0:2", "--meta-iterations", "1", "--no-check"]
    assert cli.main(["launch", "my_task.py", *words]) == 0
    assert cli.main(["collect", "runs"]) == 0
    assert "my-task: at the end" in capsys.readouterr().out
    assert len(list((here / "runs" / "my-task").glob("launched-*"))) == 2
    assert cli.main(["status", "runs"]) == 0
    assert capsys.readouterr().out.count("done") >= 2


def test_a_module_of_a_package(here, monkeypatch):
    (here / "my_package").mkdir()
    (here / "my_package" / "__init__.py").touch()
    (here / "my_package" / "penalties.py").write_text(FILE)
    monkeypatch.syspath_prepend(here)
    assert own.find("my_package.penalties").title == "penalties"


def test_an_entry_point_of_an_installed_package(here):
    """A real installation: a package of one module, with its metadata, on the path of a new process."""
    (here / "site" / "others").mkdir(parents=True)
    (here / "site" / "others" / "__init__.py").write_text(FILE)
    info = here / "site" / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hypertrail.experiments]\nothers-penalties = others\n")
    listed = call("list", PYTHONPATH=str(here / "site"))
    assert "others-penalties" in listed.stdout
    answer = call("run", "others-penalties", "--meta-iterations", "0", "--no-check", PYTHONPATH=str(here / "site"))
    assert answer.returncode == 0, answer.stderr
    assert (here / "runs" / "others-penalties").is_dir()


def test_two_files_in_one_process_are_two_modules(here):
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "my_task.py").write_text(FILE.replace("steps: int = 12", "steps: int = 7"))
    first, second = own.find("my_task.py"), own.find("elsewhere/my_task.py")
    assert (first.module.Config().steps, second.module.Config().steps) == (12, 7)


WRONG: dict[str, tuple[str, str]] = {
    "a syntax error": ("def task(:\n", "SyntaxError: .*line 1"),
    "a missing module": (
        "import nothing_of_this_name\n",
        "ModuleNotFoundError: No module named 'nothing_of_this_name'",
    ),
    "no task": ("x = 1\n", r"has no function task\(\), and no Config with problem\(\) or study\(\)"),
    "a Config that is none": (
        "Config = 3\ndef task(): pass\n",
        "Config is 3, expected a frozen dataclass that extends",
    ),
    "a task that is none": ("def task(): return 7\n", "int is no task, expected a hypertrail.Task"),
    "a task that fails": ("def task():\n    return {}['x']\n", r"task\(\): KeyError: 'x' \(my_task.py, line 2\)"),
    "an end": ("raise SystemExit(0)\n", r"it ends the program \(SystemExit: 0\)"),
    "an exit": ("raise RuntimeError('no\\nway')\n", r"RuntimeError: no way \(my_task.py, line 1\)"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_a_file_is_said_in_one_line(fault, here, capsys):
    content, reason = WRONG[fault]
    (here / "my_task.py").write_text(content)
    with pytest.raises(UsageError, match=reason) as refused:
        cli_main("run", "my_task.py")
    assert "\n" not in str(refused.value)
    assert not (here / "runs").exists()


def cli_main(*words: str) -> None:
    """Like the command line, but what it would say is raised."""
    found = own.find(words[1])
    config = cli.parse(found.module.Config, list(words[2:]), "", None)
    cli.with_its_data(found.module, config)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("nowhere.py", "nowhere.py is not there, or is no file"),
        ("my_task", r"unknown experiment 'my_task'; for the file in this folder say my_task.py"),
        ("drmad_digts", "did you mean drmad-digits"),
        ("no.such.module", "module no.such.module: ModuleNotFoundError"),
        (".", "unknown experiment"),
        ("..", "unknown experiment"),
        ("a..b", "unknown experiment"),
        ("x\0y", "unknown experiment"),
        ("x\0y.py", "is not there, or is no file"),
        ("x" * 5000, "unknown experiment"),
        ("x" * 5000 + ".py", "is not there, or is no file"),
        ("sub/folder", "is not there, or is no file"),
        ("", "unknown experiment"),
    ],
)
def test_words_that_are_no_experiment(word, reason, here):
    with pytest.raises(UsageError, match=reason):
        own.find(word)


def test_a_file_with_the_name_of_a_built_in_experiment(here):
    (here / "drmad_digits.py").write_text(FILE)
    with pytest.raises(UsageError, match="drmad-digits is the name of a built-in experiment; call the file otherwise"):
        own.find("drmad_digits.py")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--engine", "cpu"], "an own model runs in the gpu engine alone"),
        (["--devices", "2"], "an own model runs on one device"),
        (["--method", "truncated-0"], "truncated steps 0, expected at least 1"),
        (["--method", "implicit-cg"], r"needs the loss over all training data; give Task\(whole_loss"),
        (["--method", "drmad-C4:sum_of_norms=1"], "."),
    ],
)
def test_what_a_task_cannot_do_is_refused_before_there_is_a_folder(words, reason, here, capsys):
    assert cli.main(["run", "my_task.py", *words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    import re

    assert re.search(reason, said), said
    assert not (here / "runs").exists()


def test_a_derivative_that_lies_stops_the_run(here, capsys):
    lie = FILE.replace("jnp.sum(hyper", "jnp.sum(jax.lax.stop_gradient(w) * hyper").replace("* w**2)", "* w)")
    (here / "my_task.py").write_text("import jax\n" + lie.replace("np.full(6, 0.01)", "np.full(6, 3.0)"))
    assert cli.main(["run", "my_task.py"]) == 4
    said = capsys.readouterr().err
    assert "the automatic derivative of this task is not that of its training (penalty: hypergradient" in said
    assert cli.main(["run", "my_task.py", "--no-check", "--meta-iterations", "1"]) == 0


def test_the_place_of_an_error_is_the_users():
    def inner():
        raise KeyError("spam")

    with pytest.raises(UsageError, match=r"here: KeyError: 'spam' \(test_own.py, line \d+\)"), users_code.told("here"):
        inner()
