"""Where, when and with what a report was made. Nothing here imports JAX: the process that writes it leaves the GPU alone."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

from _machine import installed, processor
from roots import FOLDERS, ROOT

PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy", "h5py", "optax")
ASKED = "name,driver_version,memory.total,clocks.max.sm,power.limit"


def environment(command: str) -> dict[str, Any]:
    """Date, command, processor, GPUs and driver, versions, commit. No host name and no path."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "processor": f"{processor()} ({platform.machine()}), {os.cpu_count()} cores, {platform.system()}",
        "load": round(os.getloadavg()[0], 1),
        "gpus": gpus(),
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := installed(name))},
        "hypertrail": hypertrail_version(),
        "commit": commit(),
        "sources": sources(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def hypertrail_version() -> str:
    """Of this checkout, which need not be installed."""
    text = (ROOT / "suite" / "hypertrail" / "__init__.py").read_text(encoding="utf-8")
    return next(line.split('"')[1] for line in text.splitlines() if line.startswith("__version__"))


def gpus() -> list[str]:
    """A line for each NVIDIA GPU: name, driver, memory, highest clock, power limit. Empty where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        return [f"nvidia-smi failed with code {asked.returncode}"]
    words = ("", "driver ", "memory ", "clock up to ", "power limit ")
    return [
        ", ".join(word + value.strip() for word, value in zip(words, line.split(","), strict=False))
        for line in asked.stdout.splitlines()
    ]


def commit() -> str:
    """The commit of the checkout, and whether files differ from it."""
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown, there is no git here"
    return asked.stdout.strip() if asked.returncode == 0 else "unknown, this is not a git checkout"


def sources() -> str:
    """The first 12 digits of the SHA-256 of all Python files of the packages and of this benchmark, in the order of their names.

    It names the code where the commit does not: in a copy without .git, or with changed files.
    """
    digest = hashlib.sha256()
    for folder in (*FOLDERS, "benchmarks/gpu"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
