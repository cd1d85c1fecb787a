"""env.json: where a run works, with which versions, and which variables it was given."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "jax", "jaxlib", "autograd", "h5py", "tyro", "matplotlib", "optax")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NPROC",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "HYPERTRAIL_DATA",
)


def environment(engine: dict[str, Any]) -> dict[str, Any]:
    """Time, machine, versions, what the engine says of its devices, and the commit of our code."""
    return {
        "time": now(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": sys.version.split()[0],
        "hypertrail": importlib.metadata.version("hypertrail"),
        "packages": {name: version(name) for name in PACKAGES},
        "engine": engine,
        "git": git_commit(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if decides(name)},
    }


def decides(variable: str) -> bool:
    """Whether a variable of the environment may decide about devices, threads, data, or the bits of a number."""
    return variable in VARIABLES or variable.startswith(("JAX_", "XLA_"))


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> dict[str, Any] | None:
    """{"commit", "changed": whether the tree differs from it}; None where our code lies in no git checkout of its own."""
    here = Path(__file__).resolve()
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        answer = subprocess.run(
            [git, "-C", str(here.parent), *words], capture_output=True, text=True, errors="replace", check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(ask("status", "--porcelain"))}
