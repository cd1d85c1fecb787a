"""The processor's threads: the bits depend on their number and not on the cores, so a run keeps its number or says so."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import hypertrail_cpu
import hypertrail_gpu
from hypertrail import UsageError, cli, threads
from hypertrail.report import compare
from hypertrail.runs.writing import dump_sealed

HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
ROSENBROCK = ["run", "rosenbrock", "--steps", "4", "--updates", "1"]


def engine_with(count, obeys=True):
    """An engine that has `count` threads and, if it obeys, as many as it is asked for."""
    state = {"count": count}

    def ask(wanted):
        if obeys:
            state["count"] = wanted

    module = SimpleNamespace(ask=ask, count=lambda: state["count"], WAY_OUT="this is how")
    return SimpleNamespace(name="made up", threads=module)


def fix(engine, wanted=None, began=None):
    with threads.fixed(engine, wanted, began):
        pass
    return engine.threads.count()


# -- the rule --------------------------------------------------------------------------------------------------------------


def test_threads_are_those_asked_for_else_those_of_the_beginning_else_what_there_is():
    assert fix(engine_with(2), wanted=3) == 3
    assert fix(engine_with(2), began=5) == 5
    assert fix(engine_with(2), wanted=5, began=5) == 5
    assert fix(engine_with(2)) == 2
    assert fix(engine_with(None, obeys=False), wanted=3) is None  # a GPU computes
    with threads.fixed(SimpleNamespace(), 3, 4):
        pass  # an engine that says nothing of threads


def test_what_cannot_be_had_is_refused():
    with pytest.raises(UsageError, match="threads 3: this run began with 2, and its bits depend on it"):
        fix(engine_with(2), wanted=3, began=2)
    with pytest.raises(UsageError, match="threads 3: the made up engine has 2; this is how"):
        fix(engine_with(2, obeys=False), wanted=3)


def test_what_is_said_of_a_run_that_goes_on():
    assert threads.on_going_on(engine_with(2), 2) == ""
    assert threads.on_going_on(engine_with(None), 2) == ""
    assert threads.on_going_on(SimpleNamespace(), 2) == ""
    assert "began with 4 threads and goes on with 2: its bits may differ" in threads.on_going_on(engine_with(2), 4)
    assert "is not recorded; it goes on with 2: its bits may differ" in threads.on_going_on(engine_with(2), None)


@pytest.mark.parametrize(
    ("env", "number"),
    [({"engine": {"threads": 3}}, 3), ({}, None), ({"engine": {}}, None), ({"engine": "gpu"}, None),
     *(({"engine": {"threads": value}}, None) for value in (None, "3", 0, -1, 2.5, True, [1]))],
)  # fmt: skip
def test_what_a_run_folder_says(tmp_path, env, number):
    (tmp_path / "env.json").write_text(json.dumps(env))
    assert threads.recorded(tmp_path) == number
    assert threads.recorded(tmp_path / "nothing there") is None
    assert threads.recorded(None) is None


def test_compare_says_where_the_threads_differ(make_run, capsys):
    a, b = make_run(), make_run()
    for folder, number in ((a, 1), (b, 2)):
        env = json.loads((folder / "env.json").read_text())
        env["engine"]["threads"] = number
        del env["check"]
        (folder / "env.json").write_text(dump_sealed(env))
    compare.main(a, b)
    assert "threads: 1, not 2; the same command rounds differently, so bits may differ" in capsys.readouterr().out
    compare.main(a, a)
    assert "threads:" not in capsys.readouterr().out


# -- the engines -----------------------------------------------------------------------------------------------------------


def test_each_engine_tells_its_threads():
    for engine in (hypertrail_gpu, hypertrail_cpu):
        assert engine.describe()["threads"] == engine.threads.count()
    assert hypertrail_cpu.threads.count() is None or hypertrail_cpu.threads.count() >= 1


PROGRAM = """
import hashlib, os, sys
import numpy as np
cores, wanted = int(sys.argv[1]), int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
import jax, jax.numpy as jnp
from hypertrail_gpu import threads
if wanted:
    threads.ask(wanted)
x, w = np.random.default_rng(0).standard_normal((2, 600, 600)).astype("f")
tall = np.random.default_rng(1).standard_normal((5000, 784)).astype("f")
results = (  # which of these depend on the threads is another question on each processor
    jax.jit(jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w))))(w),
    jax.jit(lambda tall: tall.T @ tall)(tall),
    jax.jit(lambda tall: tall.sum(0))(tall),
)
bits = hashlib.sha256(b"".join(np.asarray(result).tobytes() for result in results)).hexdigest()
count = threads.count()
threads.ask(9)
print(count, threads.count(), bits)
"""


def child(cores, wanted):
    environment = {key: value for key, value in os.environ.items() if key not in ("NPROC", "XLA_FLAGS")}
    words = [sys.executable, "-c", PROGRAM, str(cores), str(wanted)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bits_depend_on_the_threads_that_are_asked_for_and_not_on_the_cores():
    one_core, two_threads = child(1, 0), child(1, 2)
    assert one_core[:2] == ["1", "1"], "as many as cores; asking after the start changes nothing"
    assert two_threads[:2] == ["2", "2"]
    assert one_core[2] != two_threads[2], "or this test sees nothing"
    if len(os.sched_getaffinity(0)) > 1:
        assert child(2, 0) == two_threads
        assert child(2, 1) == one_core


def test_the_reference_engine_reads_the_variables_as_openblas_does(monkeypatch):
    libraries = list(Path(np.__file__).parents[1].glob("numpy.libs/libscipy_openblas64_*"))
    if not libraries:
        pytest.skip("this NumPy does not bring its own OpenBLAS")
    true = ctypes.CDLL(str(libraries[0])).scipy_openblas_get_num_threads64_()
    assert hypertrail_cpu.threads.count() == true
    cores = len(os.sched_getaffinity(0))
    for name in hypertrail_cpu.threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert hypertrail_cpu.threads.count() == cores
    for said, count in (("1", 1), (str(cores + 1), cores), ("0", cores), ("many", cores), ("", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert hypertrail_cpu.threads.count() == count
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    assert hypertrail_cpu.threads.count() == 1
    monkeypatch.setattr(hypertrail_cpu.threads, "blas", lambda: "mkl")
    assert hypertrail_cpu.threads.count() is None


# -- the command line ------------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_number_or_says_so(tmp_path, capsys):
    """In this process JAX has been started: its number of threads cannot be changed any more."""
    folder, here = tmp_path / "run", hypertrail_gpu.threads.count()
    assert cli.main([*ROSENBROCK, "--run-dir", str(folder)]) == 0
    env = json.loads((folder / "env.json").read_text())
    assert env["engine"]["threads"] == here
    words = [*ROSENBROCK, "--run-dir", str(folder)]
    (folder / "DONE").unlink()
    assert cli.main([*words, "--threads", str(here)]) == 0  # the same, said aloud
    assert "bits may differ" not in (folder / "log.txt").read_text()
    (folder / "DONE").unlink()
    env["engine"]["threads"] = here + 1
    del env["check"]
    (folder / "env.json").write_text(dump_sealed(env))
    capsys.readouterr()
    assert cli.main(words) == 0
    said = f"this run began with {here + 1} threads and goes on with {here}: its bits may differ"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (folder / "log.txt").read_text()
    (folder / "DONE").unlink()
    before = (folder / "log.txt").read_text()
    assert cli.main([*words, "--threads", str(here)]) == 2
    assert f"threads {here}: this run began with {here + 1}" in capsys.readouterr().err
    assert cli.main([*ROSENBROCK, "--threads", str(here + 1), "--run-dir", str(tmp_path / "new")]) == 2
    assert "XLA takes this number at its first use in a process" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert (folder / "log.txt").read_text() == before
    assert cli.main([*ROSENBROCK, "--threads", "0"]) == 2
    assert "threads 0, expected at least 1" in capsys.readouterr().err


SMALL = ["--depth", "4", "--blocks", "1", "--growth", "6", "--steps", "5", "--no-compare-exact",
         "--train", "128", "--valid", "64", "--select", "0", "--test", "10"]  # fmt: skip


def run(folder, cores, *words, environment):
    """`hypertrail run drmad-digits` on so many cores; the bytes of its states and hypergradients."""
    environment = {
        key: value for key, value in {**os.environ, **environment}.items() if key not in ("NPROC", "XLA_FLAGS")
    }
    program = (
        "import os, sys; from hypertrail import cli;"
        f"os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}]); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = ["run", "drmad-digits", *SMALL, *words, "--run-dir", str(folder)]
    subprocess.run([sys.executable, "-c", program, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*.npz")}


@pytest.mark.slow
def test_a_run_that_began_on_one_core_goes_on_to_the_same_bits_on_two(tmp_path):
    """With one folder of compiled programs for all: those of two threads are not taken for those of one."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    environment = {"HYPERTRAIL_CACHE": str(tmp_path / "cache")}
    two = run(tmp_path / "two", 2, "--meta-iterations", "2", environment=environment)
    one = run(tmp_path / "one", 1, "--meta-iterations", "2", environment=environment)
    assert one.keys() == two.keys()
    assert one != two, "or this test sees nothing"
    run(tmp_path / "resumed", 1, "--meta-iterations", "1", environment=environment)
    assert run(tmp_path / "resumed", 2, "--meta-iterations", "2", environment=environment) == one
    assert run(tmp_path / "fixed", 2, "--threads", "1", "--meta-iterations", "2", environment=environment) == one
    plain = run(tmp_path / "plain", 1, "--no-compilation-cache", "--meta-iterations", "2", environment=environment)
    assert plain == one
