"""`--devices`: what it refuses, and one run made by two processes, of which the first alone writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hypertrail import UsageError, cli, processes, runs, stopping

HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
SMALL = [
    *("run", "drmad-digits", "--precision", "float64", "--depth", "3", "--blocks", "1", "--growth", "2"),
    *("--train", "64", "--valid", "20", "--select", "20", "--test", "20", "--steps", "6", "--batch", "16"),
    *("--meta-iterations", "2"),
]


class Devices:
    """Several processes, seen from one of them: `others` is what the other processes say."""

    def __init__(self, process: int, others: list[int]) -> None:
        self.others, self.process = others, lambda: (process, 1 + len(others))

    def gathered(self, mine: int) -> list[int]:
        return [mine, *self.others]


class Engine:
    def __init__(self, devices: Devices) -> None:
        self.devices = devices


def run_folder(path: Path) -> Path:
    (path / "states").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "states" / "0000.npz").write_bytes(b"123")
    (path / "lock").write_text("process 1")
    return path


def test_a_follower_works_in_a_copy_and_leaves_nothing(tmp_path, capsys):
    path = run_folder(tmp_path / "run")
    before = processes.fingerprint(path)
    with processes.folder(Engine(Devices(1, [before])), path) as mine:
        assert mine != path
        assert (mine / "states" / "0000.npz").read_bytes() == b"123"
        assert not (mine / "lock").exists()
        (mine / "config.json").unlink()
        print("not to be seen")
    assert not mine.exists()
    assert processes.fingerprint(path) == before
    assert capsys.readouterr().out == ""


def test_process_0_writes_the_folder_itself(tmp_path):
    path = run_folder(tmp_path / "run")
    with processes.folder(Engine(Devices(0, [processes.fingerprint(path)])), path) as mine:
        assert mine == path


def test_refuses_processes_that_see_other_folders(tmp_path):
    path = run_folder(tmp_path / "run")
    nothing = processes.fingerprint(tmp_path / "elsewhere")
    shared = processes.folder(Engine(Devices(0, [nothing])), path)
    with pytest.raises(UsageError, match="the 2 processes do not see the same files"), shared:
        pass


def test_all_stop_where_one_was_asked():
    stopping.forget()
    try:
        stopping.together(lambda mine: True)
        with pytest.raises(Exception, match="stopped by a signal to another process after block 3") as stopped:
            stopping.here("block 3")
        assert stopped.value.exit_code == 75
    finally:
        stopping.together(bool)
    stopping.here("block 4")  # nobody has asked


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--devices", "2", "--engine", "cpu"],
            "devices 2: the cpu engine computes on one processor; use --engine gpu",
        ),
        (["--devices", "64"], "devices 64, expected 1 to "),
        (["--devices", "some"], "devices 'some', expected a number from 1 on, or 'all'"),
    ],
)
def test_refusals_before_anything_is_written(tmp_path, capsys, words, why):
    code = cli.main([*SMALL, *words, "--run-dir", str(tmp_path / "run")])
    assert (code, (tmp_path / "run").exists()) == (2, False)
    assert why in capsys.readouterr().err


def hypertrail(*words: str, **variables: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.Popen(
        [HYPERTRAIL, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
def test_two_processes_of_a_slurm_step_make_one_run(tmp_path):
    step = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    shared = [*SMALL, "--devices", "all", "--run-dir", str(tmp_path / "shared")]
    pair = [hypertrail(*shared, **step, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    alone = hypertrail(*SMALL, "--run-dir", str(tmp_path / "alone"))
    said = [one.communicate() for one in (*pair, alone)]
    assert [one.returncode for one in (*pair, alone)] == [0, 0, 0], said
    assert said[0][0]
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())
    environment = json.loads((tmp_path / "shared" / "env.json").read_text())["engine"]
    assert (environment["in_use"], environment["process"]) == (4, [0, 2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "shared", "tmp"]
    assert not list((tmp_path / "tmp").glob("hypertrail-*"))
    a, b = (runs.read_metrics(tmp_path / name) for name in ("shared", "alone"))
    assert len(a) == len(b) == 3
    for x, y in zip(a, b, strict=True):
        assert x["hyper_loss"] == pytest.approx(y["hyper_loss"], rel=1e-10)
    for k in range(2):
        x, y = (np.load(tmp_path / name / "hypergradients" / f"{k:04d}.npz") for name in ("shared", "alone"))
        assert sorted(x) == sorted(y)
        for key in y:
            np.testing.assert_allclose(x[key], y[key], rtol=1e-9, atol=1e-10 * np.abs(y[key]).max())


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on_to_the_same_bits(tmp_path):
    long = [*SMALL[:-1], "20", "--no-compare-exact"]
    shared = [*long, "--devices", "all", "--run-dir", str(tmp_path / "shared")]
    variables = {"JAX_NUM_PROCESSES": "2", "TMPDIR": str(tmp_path)}

    def pair(words: list[str] = shared) -> list[subprocess.Popen]:
        address = f"127.0.0.1:{free_port()}"
        return [
            hypertrail(*words, **variables, JAX_COORDINATOR_ADDRESS=address, JAX_PROCESS_ID=str(i)) for i in range(2)
        ]

    stopped = pair()
    while stopped[0].poll() is None and len(runs.read_metrics(tmp_path / "shared")) < 2:
        time.sleep(0.05)
    stopped[1].send_signal(signal.SIGTERM)  # process 0 hears of it from process 1
    said = [one.communicate()[1] for one in stopped]
    assert [one.returncode for one in stopped] == [75, 75], said
    assert "stopped by a signal to another process" in said[0]
    assert "stopped by SIGTERM" in said[1]
    lines = len(runs.read_metrics(tmp_path / "shared"))
    assert 2 <= lines < 21
    again = pair()
    said = [one.communicate()[1] for one in again]
    assert [one.returncode for one in again] == [0, 0], said
    found = runs.read_metrics(tmp_path / "shared")
    assert [line["meta_iteration"] for line in found] == list(range(21))
    other = [word.replace("shared", "unbroken") for word in shared]
    unbroken = pair(other)
    said = [one.communicate()[1] for one in unbroken]
    assert [one.returncode for one in unbroken] == [0, 0], said
    for x, y in zip(found, runs.read_metrics(tmp_path / "unbroken"), strict=True):
        assert (x["hyper_loss"], x["metrics"], x["hyper"]) == (y["hyper_loss"], y["metrics"], y["hyper"])
