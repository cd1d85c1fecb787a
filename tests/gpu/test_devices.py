"""Several devices, and several processes, find what one device finds: in float64 to 1e-10."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hypertrail_gpu as gpu
from hypertrail import UsageError

HERE = Path(__file__).parent
PROGRAM = HERE / "sharing.py"
TOLERANCE = 1e-10  # the sums over a batch are cut in other places; nothing else differs

spec = importlib.util.spec_from_file_location("sharing", PROGRAM)
sharing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sharing)

MLP = "mlp rates exact"
CONVOLUTIONS = "tiny penalty exact"  # with batch norm: the statistics are those of the whole batch


def start(folder: Path, devices: int, wanted: str, cases: list[str], **variables: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), wanted, *cases], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(*programs: subprocess.Popen) -> None:
    for program in programs:
        _, said = program.communicate()
        assert program.returncode == 0, said


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def pair(folder: Path, cases: list[str], **variables: str) -> list[subprocess.Popen]:
    """Two processes with two devices each, which find each other on the loopback."""
    address = f"127.0.0.1:{free_port()}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **variables}
    return [start(folder, 2, "all", cases, **common, JAX_PROCESS_ID=str(i)) for i in range(2)]


def compare(folder: Path, index: int, cases: list[str]) -> None:
    for number, case in enumerate(cases):
        shared = np.load(folder / f"{index}-{number}.npz")
        alone = {key: sharing.flat(one) for key, one in sharing.results(case).items()}
        assert sorted(shared) == sorted(alone)
        for key, expected in alone.items():
            scale = np.linalg.norm(expected)
            assert scale > 0
            assert np.linalg.norm(shared[key] - expected) <= TOLERANCE * scale, (case, key)


def test_devices_of_one_process(tmp_path):
    cases = [CONVOLUTIONS, "functional"]
    finish(start(tmp_path, 4, "4", cases))
    said = json.loads((tmp_path / "0.json").read_text())
    assert (said["in use"], said["processes"]) == (4, 1)
    assert said["compiled again"] == 0
    assert said["replicas differ"] == []
    assert "a batch of 15 examples cannot be shared by 4 devices; expected a multiple of 4" in said["batch"]
    assert "disk" not in said  # one process keeps its states where it likes
    compare(tmp_path, 0, cases)


def test_two_processes(tmp_path):
    cases = [MLP]
    finish(*pair(tmp_path, cases))
    for index in range(2):
        said = json.loads((tmp_path / f"{index}.json").read_text())
        assert (said["in use"], said["processes"]) == (4, 2)
        assert said["compiled again"] == 0
        assert said["replicas differ"] == []
        assert (said["sums"], said["other exchanges"]) == (1, 0)  # of a step: all gradients together, and no masks
        assert "with 2 processes" in said["disk"]
        assert "Checkpoints()" in said["disk"]
        compare(tmp_path, index, cases)
    a, b = (dict(np.load(tmp_path / f"{index}-0.npz")) for index in range(2))
    assert all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("count", ["0", "-1", "two", "1000"])
def test_refuses_what_there_is_not(count):
    with pytest.raises(UsageError, match=f"devices '?{count}'?, expected"):
        gpu.devices.use(count)


def test_nobody_to_join():
    with pytest.raises(
        UsageError, match=r"cannot join processes.*; start them with srun, or set JAX_COORDINATOR_ADDRESS"
    ):
        gpu.devices.join()


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_NUM_PROCESSES": "two"},
        {"JAX_NUM_PROCESSES": "0"},
        {"SLURM_STEP_NODELIST": "here", "SLURM_NTASKS": ""},
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "-1"},
    ],
    ids=lambda variables: " ".join(variables.values()),
)
def test_a_variable_that_is_no_number_is_one_line(monkeypatch, variables):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name, value = variables.popitem()
    with pytest.raises(UsageError, match=f"{name}='{value}' in the environment, expected a number from [01] on"):
        gpu.devices.join()


def test_what_is_described_comes_back_from_json():
    described = gpu.describe()  # a run that is taken up compares it with the env.json of its first start
    assert json.loads(json.dumps(described)) == described


def test_one_device_is_what_there_was():
    assert gpu.devices.layout().mesh is None
    with gpu.devices.using(1) as count:
        assert count == 1
        assert gpu.devices.layout().mesh is None


# -- the rest takes minutes ---------------------------------------------------------------------------------------------

MANY = [
    "mlp rates exact truncated line checkpoints evaluate",
    "tiny rates exact evaluate",
    "lenet everything exact line tail float reversible",
    "densenet penalty exact reversible evaluate",
    "mlp per-step exact checkpoints",
    "noisy noise exact",
    "mlp examples exact piecewise evaluate",
    "mlp few forward descent",
    "mlp penalty implicit adaptive t1t2",
]


@pytest.mark.slow
def test_every_way_over_devices(tmp_path):
    finish(start(tmp_path, 2, "all", MANY))
    compare(tmp_path, 0, MANY)


@pytest.mark.slow
def test_every_way_over_processes(tmp_path):
    cases = [
        "tiny rates exact evaluate",
        "mlp everything exact reversible",
        "mlp examples exact",
        "mlp penalty adaptive",
    ]
    finish(*pair(tmp_path, cases))
    for index in range(2):
        compare(tmp_path, index, cases)
