"""The states that the trajectory tests write, and the folder of the real data sets."""

from __future__ import annotations

import importlib.util
import os
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
def real_data() -> Path:
    """The folder with the real MNIST and CIFAR-10, from HYPERTRAIL_DATA or beside the repository."""
    if named := os.environ.get("HYPERTRAIL_DATA"):
        return Path(named)
    beside = HERE.parents[2] / "shared" / "datasets"
    if not beside.is_dir():
        pytest.skip("no real data: set HYPERTRAIL_DATA to a folder that holds MNIST and CIFAR-10")
    return beside
