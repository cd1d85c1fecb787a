"""A run of an own task, killed in the middle of a training whose states lie on the disk, goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypertrail.runs import arrays

EXAMPLES = Path(__file__).parents[2] / "examples"
# Short chunks, and the middle is written after each: a training of seconds has many places to be killed at.
PROGRAM = """
import sys
from hypertrail import cli
from hypertrail.runs import midway
from hypertrail_gpu import batches
midway.EVERY, batches.CHUNK_STEPS = 0.0, 10
sys.exit(cli.main(sys.argv[1:]))
"""
SETTINGS = ["--steps", "120", "--batch", "2", "--length", "8", "--width", "8", "--heads", "2", "--blocks", "1",
            "--meta-iterations", "1", "--trajectory", "disk", "--no-check"]  # fmt: skip


def started(folder: Path) -> subprocess.Popen[Any]:
    words = ["run", str(EXAMPLES / "transformer.py"), *SETTINGS, "--run-dir", str(folder)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[Any]) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


@pytest.mark.slow
def test_a_transformer_killed_in_the_middle_of_a_training(tmp_path: Path) -> None:
    ended(started(tmp_path / "whole"))
    kills = 0
    while True:
        process = started(tmp_path / "cut")
        middle = tmp_path / "cut" / "training.npz"
        before = middle.stat().st_mtime_ns if middle.exists() else 0
        while process.poll() is None and kills < 3:
            written = middle.stat().st_mtime_ns if middle.exists() else 0
            if written > before:
                time.sleep(0.05 * kills)  # at another place of a chunk each time
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                break
            time.sleep(0.002)
        else:
            ended(process)
            break
    assert kills == 3
    log = (tmp_path / "cut" / "log.txt").read_text()
    assert "the training goes on at step" in log
    for name in ("states/0001.npz", "hypergradients/0000.npz", "steps/0000.npz", "steps/0001.npz"):
        whole, cut = (dict(arrays.flatten(arrays.load(tmp_path / run / name))) for run in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        for key, one in whole.items():
            np.testing.assert_array_equal(one, cut[key], err_msg=f"{name}: {key}")
