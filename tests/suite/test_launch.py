"""Launching: what is planned, what is printed, local runs to the end, what a second launch leaves alone."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypertrail import cli, experiments, own, runs
from hypertrail.launch import command, gathering, gpus, launches, status, submitting
from hypertrail.runs import lock

ROSENBROCK = ["--engine", "cpu", "--updates", "1"]
SMALL = {"depth": 4, "growth": 2, "blocks": 1}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    return subprocess.run(
        [sys.executable, "-m", "hypertrail", *map(str, words)], capture_output=True, text=True, check=False
    )


# -- what is planned ------------------------------------------------------------------------------------------------------


def test_no_experiment_has_a_setting_of_the_name_of_a_launch_option():
    ours = {field.name for field in dataclasses.fields(command.Options)}
    for name in experiments.names():
        assert not ours & {field.name for field in dataclasses.fields(experiments.load(name).Config)}, name


def test_a_dry_run_prints_every_run_and_the_script_and_writes_nothing(here, capsys):
    words = ["launch", "almeida-quadratic", "--engine", "cpu", "--seeds", "0:2", "--grid", "steps=20,40", "--dry-run",
             "--partition", "gpu",
             "--gpus", "2", "--cpus", "4", "--memory", "1.5", "--time", "2:00:00", "--at-once", "3", "--notice", "30",
             "--setup", "module load cuda", "--setup", "echo hello", "--sbatch", "account=me", "exclusive"]  # fmt: skip
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  hypertrail run")]
    assert [(one[one.index("--steps") + 1], one[one.index("--seed") + 1]) for one in commands] == [
        ("20", "0"), ("20", "1"), ("40", "0"), ("40", "1"),
    ]  # fmt: skip
    for one in commands:  # each is a command that run accepts, on the folder that its configuration names
        config = cli.parse(experiments.load("almeida-quadratic").Config, one[3:], "", None)
        record = runs.config_record("almeida-quadratic", config)
        assert config.run_dir == here / "runs" / "almeida-quadratic" / f"launched-{record['hash']}-s{config.seed}"
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", said, flags=re.M))
    expected = {"partition": "gpu", "gpus-per-node": "2", "cpus-per-task": "4", "mem": "1536MB", "time": "120",
                "array": "0-3%3", "signal": "USR2@30", "requeue": "", "account": "me", "exclusive": "",
                "job-name": "hypertrail-almeida-quadratic", "open-mode": "append"}  # fmt: skip
    assert {key: flags.get(key) for key in expected} == expected
    script = said[said.index("#!/bin/bash") : said.index("nothing was submitted")]
    assert "\n# setup\nmodule load cuda\necho hello\n" in script
    assert re.search(r"^srun .*--cpus-per-task=4 .* -m submitit\.core\._submit ", script, flags=re.M)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("before", [None, "DEBUG"])
def test_the_logging_of_others_is_left_alone(before):
    """submitit configures logging when it is imported, and closes all handlers that are there; jobs still inherit its setting."""
    program = (
        "import logging, os; closed = []\n"
        "class Theirs(logging.Handler):\n    def close(self): closed.append(self); super().close()\n"
        "theirs = Theirs(); logging.getLogger('absl').addHandler(theirs)\n"
        "from hypertrail.launch import submitting; submitting.imported()\n"
        "print(len(closed), os.environ.get('SUBMITIT_LOG_LEVEL'))"
    )
    kept = {name: value for name, value in os.environ.items() if name != "SUBMITIT_LOG_LEVEL"}
    kept |= {} if before is None else {"SUBMITIT_LOG_LEVEL": before}
    done = subprocess.run([sys.executable, "-c", program], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(before)]


def test_one_run_is_no_array_and_no_requeue_is_said(here, capsys):
    assert cli.main(["launch", "rosenbrock", "--dry-run", "--no-requeue"]) == 0
    said = capsys.readouterr().out
    assert "--array" not in said
    assert "#SBATCH --no-requeue" in said
    assert "#SBATCH --time=60" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--grid", "steps=5,x"], "steps=x: .*invalid literal"),
        (
            ["--grid", "steps=5", "outer-rate=0.1,-1"],
            "steps=5 outer-rate=-1: outer-rate -1, expected a positive number",
        ),
        (["--grid", "steps=5", "--grid", "stepz=1"], "rosenbrock has no setting 'stepz' for the grid"),
        (["--grid", "steps=5,05"], "steps=5 seed=0 and steps=05 seed=0 are the same run"),
        (["--stepz", "1"], "Unrecognized options: --stepz, 1; did you mean --steps?"),
        (["--seeds", "x"], "seeds 'x', expected"),
        (
            ["--seeds", "0:2"],
            "seeds '0:2': rosenbrock draws nothing at random, its runs would be equal; expected one seed",
        ),
        (["--gpus", "-1"], "gpus -1, expected 0 to 1,000,000"),
        (["--cpus", "1000000000"], "cpus 1000000000, expected 1 to 1,000,000"),
        (["--time", "2"], "notice 120, expected fewer seconds than the job has, 120; see --time"),
        (["--memory", "0"], r"memory 0, expected 0.0010 \(1 MiB\) to"),
        (["--memory", "1e-9"], "memory 1e-09, expected"),  # rounded to --mem=0, it would be all memory of the node
        (["--memory", "inf"], "memory inf, expected"),
        (["--memory", "nan"], "memory nan, expected"),
        (["--runs-dir", "a\nscancel --me"], "holds a line break"),
        (["--sbatch", "comment=a\nrm -rf x"], "holds a line break"),
        (["--partition", "a\rb"], "holds a line break"),
        (["--setup", "module load x\x1b[2J"], "holds a line break or another character that cannot be printed"),
        (["--sbatch", "=5"], "sbatch '=5', expected an option of sbatch"),
        (["--sbatch", "a b=5"], "sbatch 'a b=5', expected an option of sbatch"),
        (["--seeds", "0:1000000000"], "1,000,000,000 runs, expected at most 10,000 in one launch"),
        (["--seeds", "0:999999999999999999:1"], "runs, expected at most 10,000 in one launch"),
        (["--seeds", "0:" + "9" * 5000], "holds a number of 5,000 digits, expected at most 1,000"),
        (
            ["--grid", *(f"{name}=" + ",".join(map(str, range(1, 30))) for name in ("steps", "updates", "outer-rate"))],
            "24,389 runs, expected at most 10,000",
        ),
        (["--grid", "steps=5 --engine cpu"], "--steps takes one value"),
        (["--grid", "steps=--engine"], "'--engine' is an option; expected values of --steps alone"),
        (["--steps", "10" + "0" * 22], "expected at most 100000000: the loss of every step is kept"),
        (["--cluster", "local", "--partition", "gpu"], "--partition is for Slurm"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(here, capsys, words, complaint):
    assert cli.main(["launch", "rosenbrock", *words]) == 2
    said = capsys.readouterr()
    assert re.search(complaint, said.err), said.err
    assert (said.err.count("\n"), said.out, list(here.iterdir())) == (1, "", [])


def test_without_slurm_it_says_so(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert cli.main(["launch", "rosenbrock"]) == 2
    assert "there is no Slurm here" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_without_submitit_it_says_so(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert cli.main(["launch", "rosenbrock", "--cluster", "local"]) == 2
    assert "pip install 'hypertrail[slurm]'" in capsys.readouterr().err


# -- local runs -----------------------------------------------------------------------------------------------------------


def test_local_runs_to_the_end_and_again(here, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a, 7")  # not the first two of the machine, and one by its UUID
    words = [
        "launch",
        "rosenbrock",
        *ROSENBROCK,
        "--seeds",
        "3",
        "--grid",
        "steps=5,6",
        "--cluster",
        "local",
        "--at-once",
        "2",
        "--gpus",
        "1",
    ]
    first = call(*words)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1] == "2 done"
    (path,) = (here / "runs" / "launches").iterdir()
    found = launches.read(path)
    assert [run.cell for run in found.runs] == [{"steps": "5"}, {"steps": "6"}]
    for run in found.runs:
        assert runs.status(run.folder) == "done"
        assert runs.read_config(run.folder)["hash"] == run.hash
        assert len(run.jobs) == 1
        assert "after 1 update: loss" in (path / "jobs" / f"{run.jobs[0].removeprefix('pid ')}_0_log.out").read_text()
    seen = [json.loads((run.folder / "env.json").read_text())["variables"] for run in found.runs]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["GPU-5a", "7"]
    assert (path / "lock").read_text() == ""

    before = {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file() and p.name != "lock"}
    assert cli.main(words) == 0  # the same launch: its runs are finished
    said = capsys.readouterr().out
    assert "2 of 2 runs: done\nnothing to submit" in said
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file() and p.name != "lock"} == before

    words[words.index("steps=5,6")] = "steps=5,6,7"  # a larger one: its first two are the same runs
    assert cli.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(str(run.folder) in said for run in found.runs)
    assert said.count("  hypertrail run") == 3
    words[words.index("steps=5,6,7")] = "steps=6"  # a smaller one: a launch of its own, with nothing to do
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "1 of 1 runs: done" in said
    assert cli.main(["status", said.split()[-1]]) == 0
    assert capsys.readouterr().out.endswith("1 runs: 1 done\n")


NVIDIA_SMI = """\
GPU 0: NVIDIA A100 (UUID: GPU-5a)
  MIG 1g.10gb     Device  0: (UUID: MIG-77)
GPU 1: NVIDIA A100 (UUID: GPU-3c)
"""


@pytest.mark.parametrize(
    ("variable", "listed", "expected"),
    [
        ("2,3", None, ["2", "3"]),
        ("2,-1,3", NVIDIA_SMI, ["2"]),
        ("", NVIDIA_SMI, []),
        (None, NVIDIA_SMI, ["0", "1"]),
        (None, "", None),  # it is there, but fails
        (None, None, None),
    ],
)
def test_which_gpus_there_are(tmp_path, monkeypatch, capsys, variable, listed, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    if listed is not None:
        (tmp_path / "listed").write_text(listed)
        show = f"while read -r line; do echo $line; done < {tmp_path}/listed"
        (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$1" = -L ] && [ -s {tmp_path}/listed ] && {show}\n')
        (tmp_path / "nvidia-smi").chmod(0o700)
    assert gpus.visible()[0] == expected
    there = 3 if expected is None else len(expected)  # nobody tells: not looked at
    assert gpus.shares(there, 1) == (expected or [str(i) for i in range(there)])
    assert gpus.shares(7, 0) == [""] * 7
    words = ["launch", "almeida-quadratic", "--engine", "cpu", "--seeds", f"0:{there + 1}", "--cluster", "local"]
    if expected is not None:
        assert cli.main([*words, "--gpus", "1", "--at-once", "9"]) == 2
        said = capsys.readouterr().err
        assert f"{there + 1} runs at once with --gpus 1 need {there + 1} GPUs, expected at most {there} (" in said
        assert not (tmp_path / "runs").exists()


def test_a_failed_run_is_told_and_tried_again_on_request_only(here, capsys, monkeypatch):
    words = ["launch", "rosenbrock", *ROSENBROCK, "--steps", "5", "--cluster", "local"]
    (run,) = command.plan(own.find("rosenbrock"), command.Options(), words[2:-2])
    run.folder.mkdir(parents=True)
    record = runs.config_record("rosenbrock", experiments.load("rosenbrock").Config(engine="cpu", updates=1, steps=5))
    assert record["hash"] == run.hash
    (run.folder / "config.json").write_text(runs.dump(record))
    (run.folder / "FAILED").write_text("NumericalFailure: loss is not finite at step 3\n")
    assert cli.main(words) == 0
    assert "1 of 1 runs: failed; try them again with --retry-failed\nnothing to submit" in capsys.readouterr().out
    monkeypatch.setattr(submitting, "to_processes", lambda folder, asked, jobs, started: started(0, "pid 1"))
    assert cli.main([*words, "--retry-failed"]) == 1  # nothing was done about it
    assert "started seed=0" in capsys.readouterr().out


@pytest.fixture
def submitted(monkeypatch):
    """The words of every job that is started here; none of them does anything."""
    said = []

    def nothing(folder, asked, jobs, started):
        for place, one in enumerate(jobs):
            said.append(list(one.words))
            started(place, f"pid {len(said)}")

    monkeypatch.setattr(submitting, "to_processes", nothing)
    return said


@pytest.mark.parametrize("failed", [False, True])
def test_the_same_launch_again_takes_the_data_where_it_is_named_now(here, capsys, submitted, failed):
    words = ["launch", "chaos", "--seeds", "0:2", "--cluster", "local", "--data-dir"]
    assert cli.main([*words, "wrong"]) == 1
    (path,) = (here / "runs" / "launches").iterdir()
    first = launches.read(path)
    if failed:
        for run in first.runs:
            run.folder.mkdir(parents=True)
            (run.folder / "FAILED").write_text("DataError: wrong names nothing\n")
    assert cli.main([*words, "right", *(["--retry-failed"] if failed else [])]) == 1
    assert [one[one.index("--data-dir") + 1] for one in submitted] == ["wrong", "wrong", "right", "right"]
    assert list((here / "runs" / "launches").iterdir()) == [path]  # the same launch all the same
    again = launches.read(path)
    assert [(run.hash, run.folder) for run in again.runs] == [(run.hash, run.folder) for run in first.runs]
    assert [run.jobs for run in again.runs] == [["pid 1", "pid 3"], ["pid 2", "pid 4"]]
    assert [run.words for run in again.runs] == submitted[2:]


def test_a_runs_folder_that_was_moved_goes_on_where_it_is_now(here, capsys, submitted):
    words = ["launch", "rosenbrock", *ROSENBROCK, "--cluster", "local", "--runs-dir"]
    assert cli.main([*words, "before"]) == 1
    (here / "before").rename(here / "now")
    assert cli.main([*words, "now"]) == 1
    (name,) = {run.folder.name for path in (here / "now" / "launches").iterdir() for run in launches.read(path).runs}
    asked = [one[one.index("--run-dir") + 1] for one in submitted]
    assert asked == [str(here / place / "rosenbrock" / name) for place in ("before", "now")]


def test_runs_that_stopped_by_themselves_are_told_by_the_exit_code(here, capsys, monkeypatch):
    """One is finished, one failed, one was let go in good order: its time was up, or its disk was full."""

    def leave(folder, asked, jobs, started):
        for place, one in enumerate(jobs):
            path = Path(one.words[one.words.index("--run-dir") + 1])
            path.mkdir(parents=True)
            (path / "config.json").write_text("{}")
            if ends[place]:
                (path / ends[place]).write_text(
                    "… no progress since the last start: more" if ends[place] == "log.txt" else "{}"
                )
            started(place, f"pid {place}")

    monkeypatch.setattr(submitting, "to_processes", leave)
    words = ["launch", "almeida-quadratic", "--engine", "cpu", "--seeds", "0:3", "--cluster", "local", "--runs-dir"]
    ends = ["DONE", "FAILED", ""]
    assert cli.main([*words, "a"]) == 75
    said = capsys.readouterr()
    assert said.out.splitlines()[-2:] == ["1 done, 1 failed, 1 stopped", "seed=1: failed: {}"]
    assert said.err == "hypertrail: runs were stopped; the same launch again goes on\n"
    ends = ["DONE", "FAILED", "DONE"]
    assert cli.main([*words, "b"]) == 1
    ends = ["DONE"] * 3
    assert cli.main([*words, "c"]) == 0
    ends = ["DONE", "", "log.txt"]
    assert cli.main([*words, "d"]) == 75
    ends = ["DONE", "FAILED", "log.txt"]  # whoever starts again what ends with 75 would do so for ever
    assert cli.main([*words, "e"]) == 76
    assert "seed=2: stopped: no progress since the last start: more\n" in capsys.readouterr().out


def test_two_at_once_are_refused(here, capsys):
    words = ["launch", "rosenbrock", *ROSENBROCK, "--cluster", "local"]
    asked, planned = command.Options(cluster="local"), []
    planned = command.plan(own.find("rosenbrock"), asked, ROSENBROCK)
    one = launches.Launch(here / "runs" / "launches" / "now-rosenbrock", "rosenbrock", "hypertrail …", planned)
    one.write()
    with launches.submitting(one.path):
        assert cli.main(words) == 2
    assert re.search(r"is being launched by process \d+ on .*; wait for it", capsys.readouterr().err)


@pytest.mark.slow
def test_local_runs_that_are_stopped_go_on_with_the_next_launch(here):
    small = ["--engine", "cpu", "--depth", "4", "--growth", "2", "--blocks", "1", "--train", "64", "--valid", "32", "--batch",
             "16", "--steps", "20", "--precision", "float64", "--no-compare-exact"]  # fmt: skip
    words = ["launch", "drmad-digits", *small, "--meta-iterations", "8", "--seeds", "0:2", "--cluster", "local"]
    with subprocess.Popen([sys.executable, "-m", "hypertrail", *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()
            folder = here / process.stdout.readline().rpartition(": ")[2].strip()
            while len(runs.read_metrics(folder)) < 2:
                time.sleep(0.1)
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 75
    assert said == "1 stopped, 1 not started\n"
    assert "stopped by SIGTERM after" in (folder / "log.txt").read_text()
    assert "2 runs: 1 stopped, 1 not started" in call("status").stdout
    again = call(*words)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "2 done")
    assert (folder / "log.txt").read_text().count("taken up by process") == 1


# -- what runs inside a job -----------------------------------------------------------------------------------------------


class Requeued(Exception):
    pass


@pytest.mark.parametrize(
    ("code", "state", "restarts", "requeued"),
    [
        (75, "RUNNING", "0", True),
        (143, "SIGNALING", "2", True),
        (75, "COMPLETING", "0", False),  # cancelled, or preempted: Slurm knows what it does
        (75, None, "0", False),
        (75, "RUNNING", "3", False),  # often enough
        (3, "RUNNING", "0", False),
        (76, "RUNNING", "0", False),  # its time was up, and nothing was won in it
    ],
)
def test_a_stopped_job_asks_to_be_requeued_only_where_it_is_still_ours(monkeypatch, code, state, restarts, requeued):
    def requeue(number, frame):
        raise Requeued

    monkeypatch.setattr(cli, "main", lambda words: code)
    monkeypatch.setattr(submitting, "ask", lambda *words: state)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    before = signal.signal(signal.SIGUSR2, requeue)  # as submitit does
    try:
        with pytest.raises(Requeued if requeued else SystemExit) as end:
            submitting.Job(("run",), requeues=3)()
        assert requeued or end.value.code == code
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_same_signal_twice_at_once_is_one():
    """Slurm's srun and its step daemon both hand on SIGTERM: the run is to stop in order all the same."""
    program = (
        "import time; from hypertrail import signals, stopping\n"
        "with signals.asking():\n"
        "    print('ready', flush=True)\n"
        "    while not stopping.asked(): time.sleep(0.01)\n"
        "    time.sleep(0.5)\n"
        "    print(stopping.asked())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        said, _ = process.communicate()
    assert (process.returncode, said) == (0, "SIGTERM\n")


def test_a_job_that_is_done_returns(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda words: 0)
    assert submitting.Job(("run",), requeues=3)() is None


# -- states ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gone():
    """The record of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        holder = lock.holder_of(child.pid)
    return holder


def test_jobs_of_every_launch_count(here):
    """A run that waits in the queue for one launch is not submitted by another."""
    (run,) = command.plan(own.find("rosenbrock"), command.Options(), [])
    base = here / "runs" / "launches"
    for name, jobs in (("a", ["3_0", "9"]), ("b", ["5_0"]), ("c", [])):
        launches.Launch(base / name, "rosenbrock", "", [dataclasses.replace(run, jobs=jobs)]).write()
    assert launches.jobs(here / "runs") == {run.folder.resolve(): ["3_0", "9", "5_0"]}
    (one,) = gathering.gather([base / "c"])
    assert status.row(one, {"9": "PENDING"}, False, {}).cells()[3:] == ["waiting", "", "", "9"]
    (one,) = gathering.gather([base / "b"])
    assert status.row(one, {}, False, {}).state.message.endswith(f"see {base / 'b' / 'jobs' / '5_0_0_log.err'}")


def test_states(tmp_path, gone):
    folder = tmp_path / "run"

    def now(jobs=(), queue=None, launching=False):
        return str(status.state(folder, jobs, queue, launching))

    assert now() == "not started"
    assert now(launching=True) == "waiting"
    assert now(["5_0"], {"5_0": "PENDING"}) == "waiting"
    assert now(["4_0", "5_0", "pid 7"], {"4_0": "RUNNING"}) == "running"
    assert now(["5_0"], {}) == "lost: job 5_0 ended before the run began"
    assert now(["5_0"], None).startswith("waiting: as far as is known")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert now(["5_0"], {}) == "stopped"
    (folder / "log.txt").write_text(
        "now stopped by SIGUSR2 after step 1; no progress since the last start: needs more\n"
    )
    assert now(["5_0"], {}) == "stopped: no progress since the last start: needs more"
    (folder / "log.txt").unlink()
    assert now(["5_0"], {"5_0": "PENDING"}) == "waiting"
    (folder / "lock").write_text(json.dumps(dataclasses.asdict(gone)))
    assert now() == f"lost: {gone} is gone"
    (folder / "lock").write_text(json.dumps(dataclasses.asdict(lock.holder_of(os.getpid()))))
    assert now(["5_0"], {"5_0": "PENDING"}) == "running"
    (folder / "lock").write_text("")
    (folder / "FAILED").write_text("NumericalFailure: loss is not finite at step 3\n")
    assert now(["5_0"], {}) == "failed: NumericalFailure: loss is not finite at step 3"
    assert now(["5_0"], {"5_0": "RUNNING"}) == "running"
    (folder / "FAILED").unlink()
    (folder / "DONE").write_text("{}")
    assert now(["5_0"], {}) == "done"


@pytest.mark.usefixtures("without_figures")
def test_the_table_of_a_runs_folder(make_run, tmp_path, capsys):
    for seed, rate in ((0, 0.1), (1, 0.1), (0, 0.2)):
        make_run(tmp_path / "drmad-digits" / f"{seed}-{rate}", seed=seed, outer_rate=rate, **SMALL)
    with pytest.raises(ArithmeticError):
        make_run(tmp_path / "drmad-digits" / "failed", fails=1, outer_rate=0.3, **SMALL)
    assert cli.main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [re.split(r"\s{2,}", line) for line in lines[:-1]]
    assert table[0] == ["run", "seed", "settings", "state", "progress", "last metrics"]
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows["drmad-digits/0-0.2"][:4] == ["0", "outer-rate=0.2", "done", "4/4"]
    assert re.fullmatch(r"hyper loss [\d.]+, test error [\d.]+ %", rows["drmad-digits/1-0.1"][4])
    assert rows["drmad-digits/failed"][2].startswith("failed: NumericalFailure: ")
    assert rows["drmad-digits/failed"][3] == "1/4"
    assert lines[-1] == "4 runs: 3 done, 1 failed"
    (tmp_path / "drmad-digits" / "0-0.2" / "metrics.jsonl").write_text("torn\n" * 3)
    assert cli.main(["status", str(tmp_path)]) == 0
    assert "metrics.jsonl is damaged in line 1" in capsys.readouterr().out
    assert cli.main(["status", str(tmp_path / "drmad-digits" / "0-0.2")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 runs: 1 damaged"
    assert cli.main(["status", str(tmp_path / "nothing")]) == 2
    assert cli.main(["status", str(tmp_path), "--watch", "0.01"]) == 0  # nothing is at work: shown once


def test_a_damaged_run_is_a_row_among_the_others(make_run, tmp_path, capsys):
    for seed, name in enumerate("abc"):
        make_run(tmp_path / "drmad-digits" / name, seed=seed, **SMALL)
    (tmp_path / "drmad-digits" / "b" / "config.json").write_text("")
    assert cli.main(["status", str(tmp_path)]) == 0
    *_, table = [[re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]]
    rows = {row[0]: row[1:] for row in table[1:-1]}
    assert rows["drmad-digits/a"][1] == rows["drmad-digits/c"][1] == "done"
    assert rows["drmad-digits/b"][0].startswith("damaged: ")
    assert "config.json is damaged" in rows["drmad-digits/b"][0]
    assert table[-1] == ["3 runs: 2 done, 1 damaged"]
    assert cli.main(["status", str(tmp_path / "drmad-digits" / "b")]) == 0
    assert "1 runs: 1 damaged" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_a_damaged_launch_hides_nothing(here, capsys):
    words = ["launch", "rosenbrock", "--cluster", "local", "--engine", "cpu", "--steps", "5", "--updates", "1"]
    (here / "runs" / "launches" / "broken").mkdir(parents=True)
    (here / "runs" / "launches" / "broken" / "launch.json").write_text('{"runs": [')
    assert cli.main(words) == 0
    assert "warning: a launch is left out: runs/launches/broken/launch.json is damaged" in capsys.readouterr().err
    assert cli.main(["status"]) == 0
    said = capsys.readouterr()
    assert re.search(r"launches/broken +damaged: .*launch.json is damaged", said.out)
    assert said.out.splitlines()[-1] == "2 runs: 1 damaged, 1 done"
    assert said.err == ""
    assert cli.main(["status", "runs/launches/broken"]) == 0
    assert "1 runs: 1 damaged" in capsys.readouterr().out
    assert cli.main(["collect"]) == 0
    said = capsys.readouterr()
    assert "warning: left out: runs/launches/broken, as " in said.err
    assert "1 runs counted, 1 not" in said.out


def test_on_a_terminal_it_is_a_table(make_run, tmp_path):
    import io

    from rich.console import Console

    make_run(tmp_path / "drmad-digits" / "[a]", seed=4, **SMALL)
    out = Console(width=200, force_terminal=True, color_system=None, file=io.StringIO())
    out.print(status.as_table(status.look(tmp_path)))
    said = out.file.getvalue()
    assert "drmad-digits/[a]" in said
    assert "4/4" in said
