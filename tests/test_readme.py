"""Every command that the README shows is run: here in a shorter form, by CI (`make test`), or by the slow tests (`make demo`)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = {
    "drmad-digits": "--engine cpu --depth 4 --growth 2 --blocks 1 --steps 6 --meta-iterations 1 --train 64 --valid 32 --batch 16",
    "drmad-mnist": "--engine cpu --hidden 5 --steps 10 --meta-iterations 1 --train 200 --valid 60 --test 60",
    "drmad-densenet": "--engine cpu --depth 4 --growth 2 --blocks 1 --first-output 2 --steps 6 --meta-iterations 1 "
    "--train 128 --valid 32 --valid-batch 16 --test 40",
    "rosenbrock": "--steps 5 --updates 1",
    "chaos": "--engine cpu --values 3 --hidden 5 --steps 3 --train 60 --batch 20",
    "interpolation": "--engine cpu --networks softmax mnist-mlp --steps 3 --points 4",
    "schedules-mnist": "--engine cpu --hidden 5 --steps 5 --meta-iterations 1 --train 60 --batch 20 --select 60 --test 60",
    "ard-mnist": "--engine cpu --steps 5 --meta-iterations 1 --train 60 --batch 20 --valid 60 --select 60 --test 60",
    "learned-data-mnist": "--engine cpu --steps 5 --meta-iterations 1 --valid 60 --select 60 --test 60",
    "completions-mnist": "--engine cpu --lengths 10 --meta-iterations 1 --methods drmad-C4 --train 60 --valid 60 --test 60",
    "drmad-vs-exact": "--engine cpu --steps 20 --reference-steps 0 --train 60 --valid 60",
}

ON_FILES = ("drmad-mnist", "drmad-densenet", "chaos", "interpolation", "schedules-mnist", "ard-mnist", "learned-data-mnist",
            "completions-mnist", "drmad-vs-exact")  # fmt: skip


def commands(root: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def hypertrail(words: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "hypertrail", *shlex.split(words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def datasets(root: Path) -> Path:
    import os

    for folder in (os.environ.get("HYPERTRAIL_DATA"), root.parent / "shared" / "datasets"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no MNIST and CIFAR-10 at hand: set HYPERTRAIL_DATA")


def test_all_of_them_are_known_here(root):
    """A command that is added to the README without being run anywhere fails here."""
    known = {"make demo", "make test", "hypertrail list", "hypertrail compare RUN_A RUN_B", "hypertrail report RUN",
             "hypertrail run drmad-digits", "hypertrail verify drmad-digits", "hypertrail verify everything",
             "hypertrail run rosenbrock"}  # fmt: skip
    assert set(commands(root)) == known | {f"hypertrail run {name} --data-dir FOLDER" for name in ON_FILES}


def test_list_run_compare_and_report(tmp_path):
    assert "drmad-digits" in hypertrail("list", tmp_path)
    for name in ("a", "b"):
        hypertrail(f"run drmad-digits {SHORT['drmad-digits']} --run-dir {name}", tmp_path)
    assert "hyper loss" in hypertrail("compare a b", tmp_path)
    (tmp_path / "a" / "report.html").unlink()
    hypertrail("report a", tmp_path)
    assert (tmp_path / "a" / "report.html").is_file()


def test_a_study(tmp_path):
    assert "after 1 update: loss" in hypertrail(f"run rosenbrock {SHORT['rosenbrock']} --run-dir run", tmp_path)
    hypertrail("report run", tmp_path)


def test_verify(tmp_path):
    said = hypertrail(f"verify drmad-digits {SHORT['drmad-digits']} --directions 1 --alone", tmp_path)
    assert "finite differences" in said


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ON_FILES)
def test_experiments_on_real_data(root, tmp_path, name):
    hypertrail(f"run {name} --data-dir {shlex.quote(str(datasets(root)))} {SHORT[name]} --run-dir run", tmp_path)
    assert (tmp_path / "run" / "DONE").is_file()


@pytest.mark.slow
def test_demo_in_a_fresh_clone(root, tmp_path):
    """What a newcomer does: clone, `make demo`, look at the report."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "drmad-C4 against the exact hypergradient" in done.stdout
    assert len(list(clone.glob("runs/drmad-digits/*/report.html"))) == 1
