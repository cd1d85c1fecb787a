"""The states that the trajectory tests write, and the folder of the real data sets."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def writing() -> ModuleType:
    """The module writing.py, which is also run as a program of its own."""
    spec = importlib.util.spec_from_file_location("writing", HERE / "writing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_little_memory() -> Callable[..., str]:
    """Run a program with so many GiB of address space; what it prints. It sets the limit itself: a process that has computed with
    JAX has threads, and may not run Python code after a fork."""

    def run(program: str, *arguments: object, gib: int) -> str:
        limited = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({gib} * 2**30, {gib} * 2**30))\n{program}"
        words = [sys.executable, "-c", limited, *map(str, arguments)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout

    return run


@pytest.fixture
def real_data() -> Path:
    """The folder with the real MNIST and CIFAR-10, from HYPERTRAIL_DATA or beside the repository."""
    if named := os.environ.get("HYPERTRAIL_DATA"):
        return Path(named)
    beside = HERE.parents[2] / "shared" / "datasets"
    if not beside.is_dir():
        pytest.skip("no real data: set HYPERTRAIL_DATA to a folder that holds MNIST and CIFAR-10")
    return beside
