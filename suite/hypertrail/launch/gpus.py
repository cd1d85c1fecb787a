"""Which GPUs each run of a local launch gets: a share of its own of those that the launch itself may see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from ..errors import UsageError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> tuple[list[str] | None, str]:
    """The GPUs that this process may use, as the variable names them (numbers or UUIDs), and who says so. None: nobody does, as
    there is neither the variable nor a working nvidia-smi. No GPU is touched."""
    if VARIABLE in os.environ:
        names: list[str] = []
        for one in os.environ[VARIABLE].split(","):
            if one.strip() in ("", "-1", "NoDevFiles"):  # CUDA looks no further either
                break
            names.append(one.strip())
        return names, f"{VARIABLE}={os.environ[VARIABLE]}"
    if shutil.which("nvidia-smi") is None:
        return None, ""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listed.returncode:
        return None, ""
    return re.findall(r"^GPU (\d+):", listed.stdout, flags=re.M), "nvidia-smi -L"


def shares(at_once: int, each: int) -> list[str]:
    """What the variable is for each of the runs at work at a time; "": the run sees no GPU. Where nobody says which GPUs there
    are, they are numbered from 0. UsageError for more than there are."""
    names, who = visible()
    wanted = at_once * each
    if names is None:
        names = [str(i) for i in range(wanted)]
    if wanted > len(names):
        raise UsageError(
            f"{at_once} runs at once with --gpus {each} need {wanted} GPUs, expected at most {len(names)} ({who}); "
            "ask for fewer with --at-once or --gpus"
        )
    return [",".join(names[i * each : (i + 1) * each]) for i in range(at_once)]
