"""The batch file for a GPU node: a shell reads it, and it asks for what a run needs. tests/suite/test_slurm.py runs it."""

from __future__ import annotations

import os
import re
import subprocess

import pytest


def test_the_shell_reads_it_and_it_asks_for_what_a_run_needs(root):
    file = root / "gpu-ver" / "slurm" / "run.sbatch"
    subprocess.run(["bash", "-n", file], check=True)
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", file.read_text(encoding="utf-8"), flags=re.M))
    assert {"gpus-per-node": "1", "requeue": "", "signal": "USR2@120", "open-mode": "append"}.items() <= flags.items()
    done = subprocess.run(["bash", file, "drmad-digits"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: sbatch ")


@pytest.mark.parametrize(
    ("code", "state", "restarts", "requeued"),
    [
        (75, "RUNNING", "", True),
        (75, "SIGNALING", "99", True),  # its time is nearly up: it is still ours
        (75, "RUNNING", "100", False),
        (75, "COMPLETING", "", False),
        (76, "RUNNING", "", False),  # it would be there for ever
        (0, "RUNNING", "", False),
    ],
)
def test_it_requeues_what_stopped_and_is_still_ours(root, tmp_path, code, state, restarts, requeued):
    programs = {"srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": f'echo "$@" >> {tmp_path}/said'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o700)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    file = root / "gpu-ver" / "slurm" / "run.sbatch"
    done = subprocess.run(["bash", file, "drmad-digits", "one"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else "") == ("requeue 7\n" if requeued else "")
