"""`make gpu`: what becomes of a run whose parts fail, are cut off or no longer fit, and the whole of it at tiny sizes.

The fast tests drive it with sections of their own, which import no JAX.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

SECTIONS = {  # a module for each, as those in benchmarks/gpu
    "good": "say({'case': 'a', 'time, s': 1.5, 'ok': True}); say({'case': 'b', 'time, s': 2, 'ok': True})",
    "wrong": "say({'case': 'c', 'ok': False})",
    "bad": "say({'case': 'before'}); raise ValueError('no such thing')",
    "dying": "say({'case': 'before'}); import os, sys; print('F Unknown flag: --x', file=sys.stderr, flush=True); os.abort()",
    "slow": "import os, time; say({'case': 'before', 'process': os.getpid()}); print('asleep'); time.sleep(600)",
    "noisy": "print('a line of some library'); say({'flags': __import__('os').environ['XLA_FLAGS']})",
}
DRIVER = """
import sys
sys.path[:0] = {paths}
import plan
plan.SECTIONS = dict.fromkeys({sections}, "A section")
import notes, roots, run
from pathlib import Path
from results import Report
notes.NOTES = dict.fromkeys(plan.SECTIONS, "A note.")
report = Report(Path("out"), "report", "A title", run.machine.environment("a command"))
run.run(report, [plan.Part(*part[:1], **part[1]) for part in {parts}], True, {budget}, Path("cache"))
run.conclude(report)
print(*report.wrong(), sep="\\n")
"""


def driver(root: Path, folder: Path, parts: list[tuple[str, dict[str, Any]]], budget: float) -> subprocess.Popen:
    """A run of such parts in the folder."""
    for name, code in SECTIONS.items():
        (folder / f"{name}.py").write_text(f"def measure(part, sizes, machine, say):\n    {code}\n")
    paths = [str(root / "benchmarks" / "gpu"), str(folder)]
    parts = [(name, {"name": name, "least": 0, **more}) for name, more in parts]
    (folder / "driver.py").write_text(
        DRIVER.format(paths=paths, sections=list(SECTIONS), parts=parts, budget=budget), encoding="utf-8"
    )
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [sys.executable, "driver.py"], cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def reported(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


def statuses(data: dict[str, Any]) -> dict[str, str]:
    return {name: part["status"] for name, section in data["sections"].items() for part in section["parts"]}


def test_what_fails_is_said_in_words_and_the_next_part_goes_on(root, tmp_path):
    parts = [
        ("bad", {}),
        ("dying", {}),
        ("slow", {"most": 4}),
        ("wrong", {}),
        ("noisy", {"flags": "--a=1"}),
        ("good", {}),
    ]
    process = driver(root, tmp_path, parts, budget=480)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    data = reported(tmp_path)
    assert statuses(data) == {
        "bad": "failed: ValueError: no such thing",
        "dying": "failed: the process ended with code -6; F Unknown flag: --x",
        "slow": "cut off after 4 s, its time was up; the rows until then are kept",
        "wrong": "done",
        "noisy": "done",
        "good": "done",
    }
    rows = {name: section["rows"] for name, section in data["sections"].items()}
    assert [len(rows[name]) for name in ("bad", "dying", "slow", "wrong", "good")] == [1, 1, 1, 1, 2]
    assert rows["noisy"][0]["flags"].endswith("--a=1")
    assert "a line of some library" in said
    assert said.splitlines()[-4:] == [
        "wrong, c: not as it should be",
        *(f"{name}, {name}: {statuses(data)[name]}" for name in ("bad", "dying", "slow")),
    ]
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| case | time, s | verdict |\n|---|---|---|\n| a | 1.5 | met |\n| b | 2 | met |" in page
    assert "| c | MISSED |" in page
    assert "**bad: failed: ValueError: no such thing.**" in page
    assert not alive(rows["slow"][0]["process"])


def test_a_part_that_no_longer_fits_is_skipped_and_that_is_no_fault(root, tmp_path):
    process = driver(root, tmp_path, [("slow", {"most": 900}), ("good", {"least": 200})], budget=8)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert re.fullmatch(r"cut off after [45] s, .*", statuses(reported(tmp_path))["slow"])
    assert re.fullmatch(
        r"skipped: 0 s of the budget are left, it needs about 3 s", statuses(reported(tmp_path))["good"]
    )
    assert "good, good" not in said.splitlines()[-1]
    assert reported(tmp_path)["budget"] == 8


def test_a_run_that_is_killed_keeps_what_it_had_and_leaves_no_process(root, tmp_path):
    process = driver(root, tmp_path, [("good", {}), ("slow", {"most": 900})], budget=4800)
    assert "asleep\n" in iter(process.stdout.readline, ""), process.stderr.read()  # which comes after its row
    process.send_signal(signal.SIGKILL)
    process.communicate()
    data = reported(tmp_path)
    assert [len(data["sections"][name]["rows"]) for name in ("good", "slow")] == [2, 1]
    assert (data["finished"], statuses(data)) == (False, {"good": "done", "slow": "running"})
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "**The run has not come to its end" in page
    assert "| a | 1.5 | met |" in page
    while alive(data["sections"]["slow"]["rows"][0]["process"]):
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether it still does something: one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def benchmark(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "gpu"))


def counted_by_xla(f: Any, *arguments: Any) -> float:
    return jax.jit(f).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_arithmetic_of_convolutions_and_their_derivatives_is_what_xla_counts(benchmark, padding, stride):
    from flops import operations

    def f(x, w):
        return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jnp.ones((2, 9, 7, 3)), jnp.ones((3, 3, 3, 4))
    assert operations(jax.make_jaxpr(f)(x, w).jaxpr) == counted_by_xla(f, x, w)
    dy = f(x, w)
    for _, pull in (jax.vjp(lambda x: f(x, w), x), jax.vjp(lambda w: f(x, w), w)):
        assert operations(jax.make_jaxpr(pull)(dy).jaxpr) == counted_by_xla(pull, dy)


def test_the_arithmetic_of_loops_conditions_and_custom_derivatives(benchmark):
    from flops import operations

    a = jnp.ones((4, 5)), jnp.ones((5, 6))
    product = 2 * 4 * 5 * 6

    @jax.custom_vjp
    def once(x):
        return x @ a[1]

    once.defvjp(lambda x: (x @ a[1], None), lambda _, dy: (dy @ a[1].T @ a[1] @ a[1].T,))

    def loops(x):
        scanned = lax.scan(lambda carry, _: (carry, (x @ a[1]).sum()), 0.0, None, length=7)[1].sum()
        chosen = lax.cond(scanned > 0, lambda: (x @ a[1]).sum(), lambda: 0.0)
        return scanned + chosen + jax.jit(once)(x).sum()

    assert operations(jax.make_jaxpr(loops)(a[0]).jaxpr) == 9 * product


@pytest.mark.slow
def test_the_stored_numbers_are_those_of_the_reference_engine(benchmark):
    import cases
    import reference
    from problems import difference

    import hypertrail_cpu
    from hypertrail.tolerances import tolerance

    for case in cases.CASES:
        mine = cases.inputs(case)
        assert mine["digest"] == reference.digest(case)
        assert difference(mine["w0"], reference.expected(case, "w0")) == 0
        for method, gradient in cases.all_hypergradients(hypertrail_cpu, case):
            expected = reference.expected(case, method)
            assert set(expected) == set(gradient)
            assert {kind: set(arrays) for kind, arrays in expected.items()} == {k: set(a) for k, a in gradient.items()}
            assert difference(gradient, expected) < tolerance("runs", "float64").epsilon


def test_every_section_is_the_module_of_its_name_here(root):
    """It was benchmarks/densenet.py that was found in the place of benchmarks/gpu/densenet.py."""
    here = root / "benchmarks" / "gpu"
    words = "import run; print(*(run.importlib.util.find_spec(part.section).origin for part in run.PARTS), sep='\\n')"
    said = subprocess.run(
        [sys.executable, "-c", f"import importlib.util; {words}"], cwd=here, capture_output=True, text=True, check=True
    ).stdout
    assert {Path(line).parent for line in said.splitlines()} == {here}
    assert {"densenet", "memory"} < {Path(line).stem for line in said.splitlines()}


def test_make_gpu_runs_the_file(root):
    words = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "gpu", "ARGS=--tiny"]
    said = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == ".venv/bin/python benchmarks/gpu/run.py --tiny"


UNITS = re.compile(r"((^|, )(s|s a step|steps|MB|GFLOP|GFLOP a (step|call)|TFLOP/s|%|a number and step))$")
PURE = re.compile(
    r"ratio|difference|tolerance|^(runs|repeats|line steps N|programs from the cache|first state that differs)$"
)


@pytest.mark.slow
def test_all_of_it_at_tiny_sizes(root, tmp_path):
    """Every part is done, and every verdict is met."""
    command = [sys.executable, root / "benchmarks" / "gpu" / "run.py", "--tiny", "--budget", "48000", "--out", tmp_path]
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    done = subprocess.run(
        [*command, *(["--cache", cache] if cache else [])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*-tiny.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    rows = {name: section["rows"] for name, section in data["sections"].items()}
    assert data["finished"]
    assert {part["status"] for section in data["sections"].values() for part in section["parts"]} == {"done"}
    assert all(rows.values())

    verified = [row for row in rows["verify"] if row["precision"] == "float64"]
    assert len(verified) == 3 * 2 + 4 * 2 + 2
    assert all(row["ok"] and row["relative difference (norm)"] < 1e-10 for row in verified)
    assert {row["outcome"] for row in rows["reversal"]} == {"went there and back"}
    assert all(row["w_0 home to the bit"] and row["v_0 home to the bit"] for row in rows["reversal"])
    assert {row["states"] for row in rows["trajectories"]} == {"device", "host", "disk"}
    assert all(row["ok"] for row in rows["trajectories"])
    assert all(row["states of all steps equal to the bit"] for row in rows["determinism"])
    assert [row["runs"] for row in rows["seeds"]] == [1, 1, 2, 1, 8]
    check, *methods = rows["densenet"]
    assert check["ok"]
    assert len(methods) == 5
    assert all(0 < row["share of the peak, %"] < 100 and row["ratio to JAX by hand"] > 0 for row in methods)
    assert {row["method"] for row in rows["memory"]} == {row["method"] for row in methods}
    assert all(row["all, MB"] > 0 for row in rows["memory"])

    for name, section in rows.items():
        for row in section:
            for column, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert UNITS.search(column) or PURE.search(column), f"{name}: no unit in {column!r}"
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(section["title"] in page for section in data["sections"].values())
    assert np.isfinite(data["seconds"])
