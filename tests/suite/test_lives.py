"""Runs that are killed, asked to stop, and left without room, in real processes: they go on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypertrail import runs

HERE = Path(__file__).parent
HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
# Small enough for the reference engine: a meta-iteration takes a fraction of a second, and writes a trajectory.
TINY = ["--depth", "3", "--blocks", "1", "--growth", "2", "--train", "64", "--valid", "20", "--select", "20", "--test", "20",
        "--batch", "16", "--precision", "float64", "--method", "exact", "--no-compare-exact"]  # fmt: skip


def command(folder, engine, steps=6):
    sizes = ["--steps", steps, "--meta-iterations", 4, "--trajectory", "disk", "--run-dir", folder]
    return ["run", "drmad-digits", *TINY, "--engine", engine, *map(str, sizes)]


def call(words, **how):
    return subprocess.run([HYPERTRAIL, *words], capture_output=True, text=True, check=False, **how)


# A program of its own, not preexec_fn: the test's process has threads (JAX), and may not fork Python code.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""


def plain(folder):
    """Every number of a run: its lines without the seconds, its arrays as they lie there."""
    lines = runs.read_metrics(folder)
    for line in lines:
        line.pop("memory")
        for cost in line["cost"].values():
            cost.pop("seconds")
    parts = ("states", "hypergradients", "steps")
    files = {f"{part}/{p.name}": p for part in parts for p in sorted((folder / part).iterdir())}
    assert runs.status(folder) == "done"
    return lines, {name: path.read_bytes() for name, path in files.items()}


def lives(folder, seed, longest, most, words):
    told = [sys.executable, HERE / "lives.py", folder, seed, longest, most, *words]
    done = subprocess.run(list(map(str, told)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    answer = call(command(folder, "cpu"))
    assert answer.returncode == 0, answer.stderr
    return plain(folder)


def test_killed_again_and_again_it_comes_to_the_same_end(tmp_path, whole):
    folder = tmp_path / "run"
    count = lives(folder, 1, 1.0, 6, command(folder, "cpu"))
    assert plain(folder) == whole
    assert count["killed"] >= 1


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_asked_to_stop_it_ends_with_75_and_goes_on(tmp_path, whole, number):
    folder = tmp_path / "run"
    words = [HYPERTRAIL, *command(folder, "cpu")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "states" / "0001.npz").exists():
            time.sleep(0.005)
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 75, err
    assert err.startswith(f"hypertrail: stopped by {number.name} after ")
    assert err.endswith(f"run the same command with --run-dir to go on: {folder}\n")
    assert runs.status(folder) == "unfinished"
    assert f"stopped by {number.name} after " in (folder / "log.txt").read_text()
    assert runs.writer(folder) is None
    answer = call(command(folder, "cpu"))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert plain(folder) == whole


# One call of C that does not come back, whatever signal arrives: as a compilation that lasts for minutes.
BUSY = """
import ctypes
from hypertrail import signals
with signals.asking():
    print("ready", flush=True)
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once_even_where_python_gets_no_turn(number):
    words = [sys.executable, "-c", BUSY]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            time.sleep(0.3)
            assert process.poll() is None  # the first one only asks
            for _ in range(100):
                process.send_signal(number)
                time.sleep(0.1)
                if process.poll() is not None:
                    break
        finally:
            process.kill()
            _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == f"hypertrail: ended at once by a second signal ({number.name})\n"


def test_of_two_writers_one_is_refused(tmp_path, whole):
    folder = tmp_path / "run"
    words = [HYPERTRAIL, *command(folder, "cpu")]
    pair = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate() for one in pair]
    codes = sorted(one.returncode for one in pair)
    assert codes == [0, 2]
    (refused,) = (err for one, (_, err) in zip(pair, said, strict=True) if one.returncode == 2)
    (winner,) = (one.pid for one in pair if one.returncode == 0)
    assert f"is being written by process {winner} on " in refused
    assert plain(folder) == whole


@pytest.mark.parametrize(
    ("room", "full"),
    [pytest.param(9_000, "trajectory", id="trajectory"),
     pytest.param(40_000, "figures", id="figures", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_full_disk_ends_it_with_75_and_it_goes_on(tmp_path, whole, room, full):
    """Where the room ends is a limit on the size of a file: what is longer gets the error of a full disk in the middle."""
    folder = tmp_path / "run"
    words = command(folder, "cpu")
    answer = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), HYPERTRAIL, *words], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 75, answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert "file too large" in answer.stderr.lower()
    assert runs.status(folder) == "unfinished"
    assert (folder / full).exists()
    assert not list(folder.rglob("*.tmp"))
    assert call(words).returncode == 0
    assert plain(folder) == whole


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path, whole):
    killed = writing = seed = 0
    while killed < 200:
        folder, seed = tmp_path / f"run {seed}", seed + 1
        count = lives(folder, seed, 1.0, 1000, command(folder, "cpu"))
        assert plain(folder) == whole
        killed, writing = killed + count["killed"], writing + count["while writing"]
    print(f"{killed} kills in {seed} runs, {writing} of them while the trajectory was being written")
    assert writing >= 5


@pytest.mark.slow
def test_the_compiled_engine_goes_on_to_the_same_bits(tmp_path):
    """Killed, stopped and taken up again, with a trajectory on disk; JAX on the processor."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
    words = {name: command(tmp_path / name, "gpu", steps=600) for name in ("whole", "run")}
    assert call(words["whole"], env=environment).returncode == 0
    folder, ends = tmp_path / "run", (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2, signal.SIGKILL)
    for k, number in enumerate(ends):  # each a moment after a meta-iteration was saved: inside the next training
        with subprocess.Popen([HYPERTRAIL, *words["run"]], env=environment, stdout=subprocess.DEVNULL) as process:
            while not (folder / "states" / f"{k + 1:04d}.npz").exists():
                time.sleep(0.005)
                assert process.poll() is None
            time.sleep(0.05)
            process.send_signal(number)
        assert process.returncode in (75 if number != signal.SIGKILL else -number, 0)
    assert call(words["run"], env=environment).returncode == 0
    assert "the training goes on at step " in (folder / "log.txt").read_text()
    assert plain(folder) == plain(tmp_path / "whole")
