"""What is broken around a run: a screen that goes away, the files of a run folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hypertrail import cli, runs
from hypertrail.experiments import chaos
from hypertrail.runs import arrays
from hypertrail_data import DataError

HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
TINY = ["run", "rosenbrock", "--engine", "cpu", "--steps", "3", "--updates", "1"]


def shell(command, **options):
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("screen", ["| head -c 5", ">&-", ">/dev/full", ">/dev/full 2>&1"], ids=str)
def test_a_run_goes_on_without_a_screen(tmp_path, screen):
    command = shlex.join([str(HYPERTRAIL), *TINY, "--run-dir", str(tmp_path / "run")])
    answer = shell(f"set -o pipefail; {command} {screen}")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert runs.status(tmp_path / "run") == "done"
    assert "report:" in (tmp_path / "run" / runs.LOG).read_text()


@pytest.mark.parametrize("screen", ["2>&-", "2>/dev/full"], ids=str)
def test_a_complaint_that_nobody_can_read_keeps_its_exit_code(screen):
    answer = shell(f"{HYPERTRAIL} run nothing {screen}")
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", "")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (runs.CONFIG, b'{"experiment": "dr', r"config\.json is damaged"),
        (runs.CONFIG, b"{}", r"config\.json is damaged: it has no experiment, hash or config"),
        (runs.CONFIG, b"[1]", r"config\.json is damaged: expected an object"),
        (runs.ENV, b'{"time": ', r"env\.json is damaged"),
        (runs.METRICS, b'garbage\n{"meta_iteration": 1}\n', r"metrics\.jsonl is damaged in line 1 of 2"),
        (runs.METRICS, b'\xff\xfe\n{"meta_iteration": 1}\n{', r"metrics\.jsonl is damaged in line 1 of 2"),
    ],
)
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_damaged_run_folder_is_named(tmp_path, run_folder, capsys, name, damage, said, command):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / name).write_bytes(damage)
    if command == "compare" and name == runs.ENV:
        pytest.skip("compare does not look at it")
    words = [command, str(folder), *([str(run_folder)] if command == "compare" else [])]
    assert cli.main(words) == cli.DATA
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(said, line), line


def test_a_cut_hypergradient_is_named(tmp_path, run_folder, capsys):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    path = folder / "hypergradients" / "0000.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert cli.main(["compare", str(folder), str(run_folder)]) == cli.DATA
    assert "0000.npz is not the file that was written there" in capsys.readouterr().err
    with pytest.raises(DataError, match="damaged"):
        arrays.load(path)


class TestChaos:
    def test_where_no_value_is_finite(self):
        values = np.linspace(15.0, 16.0, 30)
        nothing = np.full(30, np.nan)
        found = chaos.parts(values, nothing, nothing)
        assert [one["largest_slope"] for one in found] == [None]
        chaos.draw({"values": values, "losses": nothing, "slopes": nothing}, values[1])

    @pytest.mark.parametrize("words", [["--low", "1000"], ["--high", "900"], ["--low", "nan"]], ids=" ".join)
    def test_rates_that_no_rate_can_be(self, words, capsys):
        assert cli.main(["run", "chaos", *words]) == cli.USAGE
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["verify", "everything", "--seed", "-1"], ["run", "rosenbrock", "--momentum", "0"]],
    ids=" ".join,
)
def test_values_that_cannot_be(words, capsys):
    assert cli.main(words) == cli.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_overflows_says_one_line(tmp_path, capsys):
    words = ["run", "rosenbrock", "--engine", "cpu", "--log-rate", "800", "--run-dir", str(tmp_path / "run")]
    assert cli.main(words) == 3
    assert capsys.readouterr().err.count("\n") == 1
