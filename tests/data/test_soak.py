"""Long trajectories: what is resident does not grow with them. Each in a process of its own, which says what it measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm"),
]

MEASURE = """
import json, os, sys
import numpy as np
from hypertrail import memory
from hypertrail_data import StoredTrajectory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def peak():
    return memory.peak() / 1e6  # not getrusage's, which begins with what the parent held
"""


def measured(program: str, *words: object) -> dict:
    """The last line that the program prints, in MB."""
    answer = subprocess.run([sys.executable, "-c", MEASURE + program, *map(str, words)], capture_output=True, text=True,
                            env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False)  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    print(answer.stdout)
    return json.loads(answer.stdout.splitlines()[-1])


def test_memory_is_flat_over_two_thousand_segments(tmp_path):
    """Segments of a quarter of a megabyte, written and walked both ways; resident after 200 and after all of them."""
    program = """
segments, rows = 2000, 4
state = np.random.default_rng(0).normal(size=(rows, 8192))
seen = {}
with StoredTrajectory.create(sys.argv[1], state.nbytes) as trajectory:
    for k in range(segments):
        trajectory.append(k * rows, {"w": state + k})
        if k + 1 in (200, segments):
            trajectory.flush()
            seen[f"written {k + 1}"] = resident()
    for name, walk in (("forwards", trajectory.forwards()), ("backwards", trajectory.backwards())):
        for k, part in enumerate(walk):
            assert part.states["w"][0, 0] == state[0, 0] + part.start // rows
            if k + 1 in (200, segments):
                seen[f"{name} {k + 1}"] = resident()
    assert len(trajectory.segments()) == segments
print(json.dumps(seen))
"""
    try:
        seen = measured(program, tmp_path / "t")
    finally:
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
    for what in ("written", "forwards", "backwards"):
        assert seen[f"{what} 2000"] < seen[f"{what} 200"] + 8, seen


def room_for(folder, gigabytes: float) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes + 2:
        pytest.skip(f"{free:.1f} GB free in {folder}, {gigabytes + 2} wanted")


def test_five_gigabytes_there_and_back(tmp_path):
    """640 states of 8 MB written and read backwards: far less than one gigabyte resident."""
    room_for(tmp_path, 5)
    program = """
steps, state = 640, np.random.default_rng(0).normal(size=(1, 2_000_000)).astype(np.float32)
with StoredTrajectory.create(sys.argv[1]) as trajectory:
    for t in range(steps):
        state[0, 0] = t
        trajectory.append(t, {"w": state[:, :1_000_000], "v": state[:, 1_000_000:]})
    trajectory.flush()
    written, size, t = peak(), trajectory.nbytes, steps
    for part in trajectory.backwards():
        for k in reversed(range(len(part))):
            t -= 1
            assert part.states["w"][k, 0] == t
    assert t == 0
print(json.dumps({"bytes": size, "written": written, "walked": peak()}))
"""
    try:
        seen = measured(program, tmp_path / "t")
    finally:
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
    assert seen["bytes"] > 5e9
    assert seen["walked"] < 1000, seen


def test_an_exact_hypergradient_over_five_gigabytes(tmp_path):
    """The compiled engine: a million weights, 1,250 steps, every state on disk; training and exact reverse pass."""
    room_for(tmp_path, 5)
    program = """
from pathlib import Path
import hypertrail_data as data
from hypertrail import Exact, L2, Problem, engines
from hypertrail_nets import mlp
engine = engines.load("gpu")
problem = Problem(
    network=mlp((8, 8, 1), (1000, 940), 10),
    splits=data.make_splits(data.load("digits"), 64, 64, 0, 64, seed=0),
    schedule=data.BatchSchedule(64, 4, seed=0),
    steps=1250,
    hyperparameters=(L2(level="layer"),),
)
hyper = problem.initial_hyper()
begun = resident()
training = engine.train(problem, hyper, Path(sys.argv[1]))
trained, size = peak(), training.trajectory.nbytes
result = engine.hypergradient(problem, hyper, training, Exact())
assert all(np.isfinite(h).all() for h in result.gradient["l2"].values())
training.trajectory.close()
print(json.dumps({"bytes": size, "before": begun, "trained": trained, "reversed": peak()}))
"""
    try:
        seen = measured(program, tmp_path / "t")
    finally:
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
    assert seen["bytes"] > 5e9
    assert seen["reversed"] < 1000, seen
