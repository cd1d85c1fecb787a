"""Real processes that die, and disks that take no more."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypertrail_data import StoredTrajectory

PROGRAM = Path(__file__).with_name("writing.py")


def test_killed_ten_times(tmp_path, writing):
    folder = tmp_path / "t"
    StoredTrajectory.create(folder, writing.SEGMENT_BYTES).close()
    moments = random.Random(25)
    stop = life = 0
    while life < 10 or stop <= 100:  # on a busy machine it takes more of them to come so far
        life += 1
        command = [sys.executable, PROGRAM, folder, str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            first = child.stdout.readline()  # it is writing
            time.sleep(moments.uniform(0, 0.08))
            child.send_signal(signal.SIGKILL)
            said = (first + child.stdout.read()).rpartition("\n")[0].splitlines()
        assert child.returncode == -signal.SIGKILL
        acknowledged = int(said[-1])
        for mode in ("r", "a"):  # as it was left, and again after the sweep
            with StoredTrajectory.open(folder, mode) as trajectory:
                assert trajectory.stop >= max(acknowledged, stop)
                if trajectory.stop:
                    assert trajectory.start == 0
                for part in trajectory.forwards():
                    assert writing.same(part.states, writing.states(part.start, part.stop))
                stop = trajectory.stop
    with StoredTrajectory.open(folder, "a") as trajectory:
        trajectory.append(stop, writing.states(stop, stop + 5))
        assert trajectory.verify().steps == stop + 5


def run(program: str, *arguments: object) -> list[str]:
    """Run ``program`` to its end in a process of its own; it must end well."""
    command = [sys.executable, "-X", "faulthandler", "-c", program, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROGRAM.parent)}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


LIMITED = """
import resource, signal, sys
from hypertrail_data import DiskFull, StoredTrajectory
from writing import states
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""


def test_no_room_for_a_segment(tmp_path, writing):
    program = (
        LIMITED
        + """
trajectory = StoredTrajectory.create(sys.argv[1], 20_000)
trajectory.append(0, states(0, 50))
trajectory.flush()
limit(10_000)
try:
    for step in range(50, 10_000):
        trajectory.append(step, states(step, step + 1))
except DiskFull as error:
    assert "file too large" in str(error), error
    print(trajectory.acknowledged, step)
trajectory.close()
"""
    )
    acknowledged, reached = map(int, run(program, tmp_path / "t"))
    assert acknowledged == 50
    assert reached < 200  # it did not train on for long with nothing being kept
    self_check(tmp_path / "t", writing, 50)


def test_no_room_in_the_manifest(tmp_path, writing):
    """Its lines are short, so the limit cuts one of them in the middle."""
    program = (
        LIMITED
        + """
from hypertrail_data import manifest
from pathlib import Path
trajectory = StoredTrajectory.create(sys.argv[1], 3_000)
limit(25_000)  # a segment has 10 kB or so
try:
    for step in range(10_000):
        trajectory.append(step, states(step, step + 1))
except DiskFull as error:
    print(trajectory.acknowledged)
trajectory.close()
"""
    )
    (acknowledged,) = map(int, run(program, tmp_path / "t"))
    assert acknowledged > 50
    assert 24_000 < (tmp_path / "t" / "manifest.jsonl").stat().st_size <= 25_000
    self_check(tmp_path / "t", writing, acknowledged)


def self_check(folder, writing, stop):
    """All that was acknowledged is there, nothing else is, and it goes on from there."""
    with StoredTrajectory.open(folder) as trajectory:
        assert trajectory.stop == stop
    with StoredTrajectory.open(folder, "a") as trajectory:
        trajectory.append(stop, writing.states(stop, stop + 20))
        for part in trajectory.forwards():
            assert writing.same(part.states, writing.states(part.start, part.stop))
        assert trajectory.verify().steps == stop + 20
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("size", [2_000, 100_000])
def test_no_room_for_an_export(tmp_path, size):
    program = (
        LIMITED
        + """
with StoredTrajectory.create(sys.argv[1] + "/t", 20_000) as trajectory:
    trajectory.append(0, states(0, 50))
    trajectory.flush()
    limit(int(sys.argv[2]))
    try:
        trajectory.export(sys.argv[1] + "/x.h5")
    except DiskFull:
        print("full")
"""
    )
    assert run(program, tmp_path, size) == ["full"]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_no_room_to_begin_with(tmp_path):
    program = (
        LIMITED
        + """
limit(20)
try:
    StoredTrajectory.create(sys.argv[1])
except DiskFull:
    print("full")
limit(resource.RLIM_INFINITY)
StoredTrajectory.create(sys.argv[1]).close()
"""
    )
    assert run(program, tmp_path / "t") == ["full"]


def test_a_program_that_forgets_to_close_ends_and_keeps_full_segments(tmp_path, writing):
    program = (
        LIMITED
        + """
trajectory = StoredTrajectory.create(sys.argv[1], 20_000)
trajectory.append(0, states(0, 50))
"""
    )
    run(program, tmp_path / "t")
    with StoredTrajectory.open(tmp_path / "t") as trajectory:
        assert 40 < trajectory.stop <= 50
        assert trajectory.verify().steps == trajectory.stop
