"""The command line in real processes: exit codes, one line per error, what is imported, signals, one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypertrail import UsageError, cli, runs
from hypertrail.experiments import names
from hypertrail.methods import NAMES

HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
# A network and data so small that the reference engine needs a few seconds.
pytestmark = pytest.mark.pictures  # a report of this process is compared with that of another

SMALL = ["--engine", "cpu", "--depth", "7", "--growth", "2", "--train", "64", "--valid", "20", "--select", "20", "--test", "20",
         "--steps", "6", "--batch", "16", "--meta-iterations", "1"]  # fmt: skip
HEAVY = ("jax", "jaxlib", "matplotlib", "autograd", "h5py", "optax", "pooch", "hypertrail_gpu", "hypertrail_cpu")


def call(*words, **environment):
    return subprocess.run(
        [HYPERTRAIL, *map(str, words)], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def complaint(answer):
    """The one line on stderr."""
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("hypertrail: ")
    return lines[0].removeprefix("hypertrail: ")


# -- help and list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["list"],
        ["run", "--help"],
        ["--version"],
        ["run", "drmad-mnist", "--help"],
        ["verify", "drmad-digits", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words):
    program = (
        "import sys; from hypertrail.cli import main; code = main(sys.argv[1:]);"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    answer = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "[]\n")
    assert answer.stdout


def test_list_names_every_experiment_with_its_headline():
    answer = call("list")
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(len(line.split()) > 6 for line in lines)


def test_help_of_an_experiment_explains_every_field(digits_experiment):
    import dataclasses

    answer = call("run", "drmad-digits", "--help", COLUMNS="100")
    said = " ".join(answer.stdout.replace("│", " ").split())
    for field in dataclasses.fields(digits_experiment.Config):
        assert "--" + field.name.replace("_", "-") in said
    assert "float32: to work with, fast. float64: to check and compare" in said
    assert "Take the exact hypergradient beside the method's" in said
    assert "hypertrail run drmad-digits" in said


# -- exit code 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rum"], f"unknown command 'rum', expected one of {', '.join(cli.COMMANDS)}; see hypertrail --help"),
        (["run"], "hypertrail run needs EXPERIMENT; see hypertrail run --help"),
        (["run", "--seed", "1"], "hypertrail run needs EXPERIMENT; see hypertrail run --help"),
        (["compare", "x"], "hypertrail compare needs RUN_A RUN_B; see hypertrail compare --help"),
        (["list", "a"], "hypertrail list takes nothing, got a as well"),
        (["compare", "a", "b", "c"], "hypertrail compare takes at most 2 names, got a b c"),
        (["report", "a", "--out"], "hypertrail report --out needs a path; see hypertrail report --help"),
        (
            ["run", "drmad-digit"],
            f"unknown experiment 'drmad-digit', expected one of {', '.join(names())}; did you mean drmad-digits?",
        ),
        (
            ["run", "drmad-digits", "--steps", "0"],
            "steps 0, expected at least 1; see hypertrail run drmad-digits --help",
        ),
        (
            ["run", "drmad-digits", "--dropout", "1"],
            "dropout 1, expected at least 0 and below 1; see hypertrail run drmad-digits --help",
        ),
        (
            ["run", "drmad-digits", "--learning-rate", "nan"],
            "learning-rate nan, expected a positive number; see hypertrail run drmad-digits --help",
        ),
        (
            ["run", "drmad-digits", "--stepz", "3"],
            "Unrecognized options: --stepz, 3; did you mean --steps? see hypertrail run drmad-digits --help",
        ),
        (
            ["run", "drmad-digits", "--method", "drmad"],
            f"method 'drmad', expected one of {', '.join(NAMES)}; see hypertrail run drmad-digits --help",
        ),
        (
            ["run", "drmad-digits", "--trajectory", "checkpoint"],
            "trajectory 'checkpoint', expected memory, host, disk, auto, checkpoints, checkpoints-N or reversible; "
            "see hypertrail run drmad-digits --help",
        ),
        (
            ["run", "drmad-digits", "--train", "1500"],
            "train + valid + select + test asks for 2697 rows, but digits has 1797 rows; ask for fewer",
        ),
        (
            ["run", "drmad-digits", "--depth", "11"],
            "depth 11 with 3 blocks: (depth − blocks − 1) / blocks must be a whole number ≥ 1; the nearest depths are 10 and 13",
        ),
        (["run", "drmad-digits", "--batch", "601"], "batch is 601; expected 1 .. 600, the number of examples"),
        (
            ["report", "/nowhere"],
            "/nowhere is not the folder of a run (it has no config.json); runs lie in runs/<experiment>/<time>-…",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_one_line_with_code_2(words, expected, monkeypatch, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.err == f"hypertrail: {expected}\n"
    assert said.out == ""


def test_unknown_experiment_and_bad_value_in_a_real_process(tmp_path):
    for words in (["run", "drmad-digit"], ["run", "drmad-digits", "--steps", "many", "--runs-dir", tmp_path]):
        answer = call(*words)
        assert answer.returncode == 2
        assert complaint(answer)
    assert list(tmp_path.iterdir()) == []
    assert call().returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "drmad-C4"), "completion C4 measures the speed of steps 5 to 20, this run has 4; train longer or use C0"),
        (("--method", "exact", "--trajectory", "checkpoints-5"), "5 checkpoints for 4 steps, expected at most one for each step"),
    ],
)  # fmt: skip
def test_a_method_that_cannot_go_back_is_refused_before_there_is_a_folder(monkeypatch, capsys, tmp_path, words, said):
    from hypertrail_cpu import training

    monkeypatch.setattr(training, "gradient_at", None)  # the first step would call it
    words = ["--engine", "cpu", "--steps", "4", *words, "--runs-dir", str(tmp_path)]
    assert cli.main(["run", "drmad-digits", *words]) == 2
    assert capsys.readouterr().err == f"hypertrail: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("HYPERTRAIL_TRACEBACK", "1")
    with pytest.raises(UsageError, match="unknown command"):
        cli.main(["rum"])


# -- exit codes 3 and 4 ---------------------------------------------------------------------------------------------------


def test_a_run_that_becomes_nan_ends_with_3_and_says_so_in_its_folder(tmp_path):
    folder = tmp_path / "run"
    answer = call(
        "run", "drmad-digits", *SMALL, "--learning-rate", "1e300", "--precision", "float64", "--run-dir", folder
    )
    assert answer.returncode == 3
    said = complaint(answer)
    assert "is not finite at step" in said
    assert (folder / "FAILED").read_text() == f"NumericalFailure: {said}\n"
    assert not (folder / "DONE").exists()
    assert (folder / "states" / "0000.npz").exists()
    assert "failed: NumericalFailure" in (folder / "report.html").read_text()


def test_a_missing_data_folder_ends_with_4_and_leaves_no_run(tmp_path):
    answer = call("run", "drmad-mnist", "--data-dir", tmp_path / "nowhere", "--runs-dir", tmp_path / "runs")
    assert answer.returncode == 4
    assert str(tmp_path / "nowhere") in complaint(answer)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_verification_ends_with_4(monkeypatch, capsys):
    from hypertrail import VerificationFailure, verify

    def fail(*_):
        raise VerificationFailure("1 of the checks failed")

    monkeypatch.setattr(verify, "main", fail)
    assert cli.main(["verify", "drmad-digits"]) == 4
    assert capsys.readouterr().err == "hypertrail: 1 of the checks failed\n"


@pytest.mark.parametrize(("number", "code"), [(28, 75), (122, 75), (13, 4)])
def test_a_full_disk_ends_with_75(monkeypatch, capsys, number, code):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setitem(cli.COMMANDS, "list", (fail, "", ""))
    assert cli.main(["list"]) == code
    assert os.strerror(number) in capsys.readouterr().err


# -- a whole run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    return folder, call("run", "drmad-digits", *SMALL, "--method", "drmad-C1", "--run-dir", folder)


def test_a_run_says_and_writes_everything(finished):
    folder, answer = finished
    assert (answer.returncode, answer.stderr) == (0, "")
    for word in (
        "train",
        "valid",
        "select",
        "test",
        "hyper loss",
        "cosine",
        "equal signs",
        "seconds:",
        "meta-iteration 1: T 6",
    ):
        assert word in answer.stdout
    assert answer.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    there = {p.name for p in folder.iterdir()}
    assert there == {"config.json", "env.json", "command.txt", "metrics.jsonl", "log.txt", "states", "hypergradients", "steps",
                     "figures", "report.html", "lock", "DONE"}  # fmt: skip
    assert "meta-iteration 0: T 6" in (folder / "log.txt").read_text()
    env = json.loads((folder / "env.json").read_text())
    assert env["engine"]["engine"] == "cpu"
    assert len(runs.read_metrics(folder)) == 2
    others = [p for p in folder.rglob("*") if p.is_file() and p.name != "lock"]  # which is emptied after all
    assert (folder / "DONE").stat().st_mtime_ns >= max(p.stat().st_mtime_ns for p in others)


def test_done_is_a_no_op(finished):
    folder, _ = finished
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    answer = call("run", "drmad-digits", *SMALL, "--method", "drmad-C1", "--run-dir", folder)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "finished; nothing to do" in answer.stdout
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()} == before
    other = call("run", "drmad-digits", *SMALL, "--method", "exact", "--run-dir", folder)
    assert other.returncode == 2
    assert "another config (method drmad-C1, not exact)" in complaint(other)


def test_report_and_compare_read_it(finished, capsys):
    folder, _ = finished
    page = (folder / "report.html").read_bytes()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert cli.main(["compare", str(folder), str(folder)]) == 0
    assert "the runs agree in all 2 meta-iterations" in capsys.readouterr().out


def test_the_same_command_gives_the_same_numbers(finished, tmp_path):
    folder, _ = finished
    assert call("run", "drmad-digits", *SMALL, "--method", "drmad-C1", "--run-dir", tmp_path / "again").returncode == 0
    for name in ("states/0001.npz", "hypergradients/0000.npz"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


# -- signals and the second writer ----------------------------------------------------------------------------------------


def test_ctrl_c_stops_a_run_that_nobody_else_may_write_to(tmp_path):
    folder = tmp_path / "run"
    words = [HYPERTRAIL, "run", "drmad-digits", *SMALL, "--steps", "100000", "--run-dir", folder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts what it puts into the background with SIGINT ignored, and tests may be started so.
    ready = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", ready, *map(str, words)], **pipes) as process:
        try:
            said = process.stdout.readline()  # it has its folder and is at work
            assert said == f"run folder: {folder}\n"
            second = call(*words[1:])
            assert second.returncode == 2
            assert f"{folder} is being written by process {process.pid} on " in complaint(second)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == f"hypertrail: stopped by SIGINT; run the same command with --run-dir {folder} to go on\n"
    assert runs.status(folder) == "unfinished"
    assert "stopped by SIGINT" in (folder / "log.txt").read_text()
    assert (folder / "states" / "0000.npz").exists()
    other = call("run", "drmad-digits", *SMALL, "--steps", "10", "--run-dir", folder)
    assert other.returncode == 2
    assert "holds a run of another config (steps 100000, not 10); ask for the same, or" in complaint(other)


def test_sigterm_outside_a_run_ends_with_143():
    program = (
        "import os, signal, time; from hypertrail import cli;"
        "cli.COMMANDS['list'] = (lambda words: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60)), '', '');"
        "raise SystemExit(cli.main(['list']))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (143, "hypertrail: terminated (SIGTERM)\n")


def test_a_reader_that_goes_away_is_no_traceback():
    answer = subprocess.run(f"{HYPERTRAIL} --help | true", shell=True, capture_output=True, text=True, check=False)
    assert answer.stderr == ""
