"""The batch file for a GPU node: a shell reads it, and it asks for what a run needs. tests/suite/test_slurm.py runs it."""

from __future__ import annotations

import re
import subprocess


def test_the_shell_reads_it_and_it_asks_for_what_a_run_needs(root):
    file = root / "gpu-ver" / "slurm" / "run.sbatch"
    subprocess.run(["bash", "-n", file], check=True)
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", file.read_text(encoding="utf-8"), flags=re.M))
    assert {"gpus-per-node": "1", "requeue": "", "signal": "USR2@120", "open-mode": "append"}.items() <= flags.items()
    done = subprocess.run(["bash", file, "drmad-digits"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: sbatch ")
