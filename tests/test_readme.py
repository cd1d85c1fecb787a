"""Every command that the README shows is run: here in a shorter form, by CI (`make test`), or by the slow tests (`make demo`)."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypertrail import cli, rows

pytestmark = pytest.mark.pictures  # the figures of each experiment, laid out as users have them

RACE = "--engine cpu --repeats 1 --rates 0.3 --batch 4 --train 8 --valid 40 --select 10 --test 10 --every 1 "
SHORT = {
    "drmad-digits": "--engine cpu --depth 4 --growth 2 --blocks 1 --steps 6 --meta-iterations 1 --train 64 --valid 32 --batch 16",
    "drmad-mnist": "--engine cpu --hidden 5 --steps 10 --meta-iterations 1 --train 200 --valid 60 --test 60",
    "drmad-densenet": "--engine cpu --depth 4 --growth 2 --blocks 1 --first-output 2 --steps 6 --meta-iterations 1 "
    "--train 16 --valid 8 --valid-batch 8 --test 8 --batch 8",
    "rosenbrock": "--steps 5 --updates 1",
    "chaos": "--engine cpu --values 3 --hidden 5 --steps 3 --train 60 --batch 20",
    "interpolation": "--engine cpu --networks softmax mnist-mlp --steps 3 --points 4",
    "schedules-mnist": "--engine cpu --hidden 5 --steps 5 --meta-iterations 1 --train 60 --batch 20 --select 60 --test 60",
    "ard-mnist": "--engine cpu --steps 5 --meta-iterations 1 --train 60 --batch 20 --valid 60 --select 60 --test 60",
    "learned-data-mnist": "--engine cpu --steps 5 --meta-iterations 1 --valid 60 --select 60 --test 60",
    "completions-mnist": "--engine cpu --lengths 10 --meta-iterations 1 --methods drmad-C4 --train 60 --valid 60 --test 60",
    "drmad-vs-exact": "--steps 20 --reference-steps 0 --train 60 --valid 60",
    "adaptive-digits": RACE + "--hidden 3 --penalties 1e-4 --budget 160",
    "almeida-quadratic": "--engine cpu --weights 3 --steps 20 --examples 32 --repeats 1 --rates 0.1 5",
    "adaptive-mnist": RACE + "--hidden 3 --penalties 1e-4 --budget 160",
    "adaptive-densenet": RACE + "--setting 100-5 --budget 20 --block 3 --validation-batches 2 --depth 7 --growth 2 "
    "--first-output 2",
    "hd-mnist": "--engine cpu --train 40 --select 10 --test 10 --batch 5 --epochs 2 --mlp-epochs 1 --hidden 4 "
    "--rates 0.05 --repeats 1",
    "t1t2-mnist": "--engine cpu --train 20 --valid 20 --select 10 --test 10 --batch 5 --hidden 4 --penalties 1e-4 1e-2 "
    "--noises 0.1 1 --starts 2 --steps 200 --repeats 1",
    "rtho-mnist": "--engine cpu --train 20 --valid 10 --select 10 --test 10 --batch 5 --hidden 3 --steps 200 "
    "--every 50 200 --repeats 1",
}

ON_FILES = ("drmad-mnist", "drmad-densenet", "chaos", "interpolation", "schedules-mnist", "ard-mnist", "learned-data-mnist",
            "completions-mnist", "drmad-vs-exact", "adaptive-mnist", "adaptive-densenet", "hd-mnist", "t1t2-mnist",
            "rtho-mnist")  # fmt: skip


# Of these, tests/suite has whole runs on noise in the shape of the data: the real files add minutes, and little. What is new in
# adaptive-densenet are adaptive-mnist's race and drmad-densenet's network and files, together.
WITHOUT_FILES = ("adaptive-densenet", "ard-mnist", "chaos", "completions-mnist", "drmad-vs-exact", "hd-mnist",
                 "interpolation", "rtho-mnist", "schedules-mnist", "t1t2-mnist")  # fmt: skip
STUDIES = ("rosenbrock", "adaptive-digits", "almeida-quadratic")
LAUNCHES = (
    "hypertrail launch drmad-digits --seeds 0:10 --grid method=exact,drmad-C4 --partition gpu --gpus 1 --time 2:00:00",
    "hypertrail launch rosenbrock --grid steps=25,50 --cluster local --at-once 2",
)


def commands(root: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def hypertrail(words: str, cwd: Path) -> str:
    """What the command says. In this process: test_cli.py and others start it as its own, which takes seconds each time."""
    said, complaints = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
        code = cli.main(shlex.split(words))
    assert code == 0, complaints.getvalue()
    return said.getvalue()


def datasets(root: Path) -> Path:
    import os

    for folder in (os.environ.get("HYPERTRAIL_DATA"), root.parent / "shared" / "datasets"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no MNIST and CIFAR-10 at hand: set HYPERTRAIL_DATA")


def test_all_of_them_are_known_here(root):
    """A command that is added to the README without being run anywhere fails here."""
    known = {"make demo", "make test", "hypertrail list", "hypertrail compare RUN_A RUN_B", "hypertrail report RUN RUN",
             "hypertrail plot RUN FIGURE", "hypertrail export-tensorboard RUN", "hypertrail status", "hypertrail collect",
             "hypertrail verify drmad-digits", "hypertrail verify everything", *LAUNCHES}  # fmt: skip
    known |= {f"hypertrail run {name}" for name in ("drmad-digits", *STUDIES)}
    assert set(commands(root)) == known | {f"hypertrail run {name} --data-dir FOLDER" for name in ON_FILES}


def test_list_run_compare_and_report(tmp_path):
    assert "drmad-digits" in hypertrail("list", tmp_path)
    hypertrail(f"run drmad-digits {SHORT['drmad-digits']} --run-dir a", tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert "hyper loss" in hypertrail("compare a b", tmp_path)
    hypertrail("report a b --out both", tmp_path)
    assert (tmp_path / "both" / "index.html").is_file()
    assert "metrics" in hypertrail("plot a", tmp_path)
    hypertrail("plot a metrics --out one.pdf", tmp_path)
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
    hypertrail("export-tensorboard a", tmp_path)
    assert list((tmp_path / "a" / "tensorboard").rglob("events.out.*"))


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(tmp_path, name):
    hypertrail(f"run {name} {SHORT[name]} --run-dir run", tmp_path)
    assert (tmp_path / "run" / "DONE").is_file()
    is_collected(tmp_path / "run", name)


def is_collected(run: Path, name: str) -> None:
    """Its every number comes into the tables; it says some, and labels that no seed changes."""
    said = rows.of_run(run)
    assert said
    assert all(values for _, values in said)
    labels = [tuple(row.labels.items()) for row in said]
    assert len(set(labels)) == len(labels)
    assert cli.main(["collect", str(run), "--out", str(run.parent / "collected")]) == 0
    with open(run.parent / "collected" / "cells.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == sum(len(values) for _, values in said)
    assert list((run.parent / "collected").glob(f"{name}*.png"))


def test_launch_status_and_collect(tmp_path):
    array, here = (command.removeprefix("hypertrail ") for command in LAUNCHES)
    assert "#SBATCH" in hypertrail(f"{array} --dry-run", tmp_path)
    assert not (tmp_path / "runs").exists()
    hypertrail(f"{here.replace('25,50', '5,6')} --engine cpu --updates 1", tmp_path)
    assert "2 runs: 2 done" in hypertrail("status", tmp_path)
    hypertrail("collect", tmp_path)
    assert len(list(tmp_path.rglob("runs.csv"))) == 1


def test_verify(tmp_path):
    said = hypertrail(f"verify drmad-digits {SHORT['drmad-digits']} --directions 1 --alone", tmp_path)
    assert "finite differences" in said


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in WITHOUT_FILES else name for name in ON_FILES]
)
def test_experiments_on_real_data(root, tmp_path, name):
    hypertrail(f"run {name} --data-dir {shlex.quote(str(datasets(root)))} {SHORT[name]} --run-dir run", tmp_path)
    assert (tmp_path / "run" / "DONE").is_file()
    is_collected(tmp_path / "run", name)


@pytest.mark.slow
def test_demo_in_a_fresh_clone(root, tmp_path):
    """What a newcomer does: clone, `make demo`, look at the report."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    outer = ("ARGS", "MAKEFLAGS")  # those of a `make test-slow ARGS=…` that runs this are not the demo's
    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"],
        cwd=clone,
        env={key: value for key, value in os.environ.items() if key not in outer},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "drmad-C4 against the exact hypergradient" in done.stdout
    assert len(list(clone.glob("runs/drmad-digits/*/report.html"))) == 1
