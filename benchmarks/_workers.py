"""Each contender in its own fresh process, on its own number of threads; their repeats interleaved: A B C A B C …

The parent sends a word per run and reads one line of JSON back, so at any moment one process works and the others wait.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from hypertrail.memory import peak

Run = Callable[[str], dict[str, Any]]  # what to run → anything to report beside the seconds


def environment(threads: int) -> dict[str, str]:
    """The environment that keeps NumPy, XLA and torch to so many threads (the affinity does the rest)."""
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # Threads that wait must sleep: with a neighbour on the machine, spinning ones made torch five times as slow.
    env |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        env["NPROC"] = "1"  # the size of XLA's own pool, which would take every core there is
    return env | {"JAX_PLATFORMS": "cpu"}


def serve(prepare: Callable[[], Run], threads: int, cores: int | None = None) -> None:
    """The worker's side: pin to `cores` (as many as threads), prepare (imports, data), then run what is asked until the end."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-(cores or threads) :])
    run = prepare()
    baseline = peak()
    say({"ready": True})
    for line in sys.stdin:
        started, worked = time.perf_counter(), time.process_time()
        report = run(line.strip())
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        say({"seconds": seconds, "cpu_seconds": cpu, "memory": peak() - baseline, **report})


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


class Worker:
    """The parent's side of one contender: `python <script> <arguments>`."""

    def __init__(self, script: str, arguments: list[str], threads: int) -> None:
        env = {**os.environ, **environment(threads)}
        command = [sys.executable, script, *arguments]
        self.name = " ".join(arguments)
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.listen()

    def listen(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the worker ended with code {self.process.wait()}; its error is above")
        return json.loads(line)

    def run(self, what: str = "run") -> dict[str, Any]:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.listen()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def interleave(workers: dict[str, Worker], words: list[str], repeats: int) -> dict[tuple[str, str], dict[str, Any]]:
    """{(worker, word): its last report, with medians of 'seconds' and 'cpu_seconds', and 'all' seconds.

    'compile': the first run (apart from the repeats) less the median.
    """
    first = {(name, word): worker.run(word) for name, worker in workers.items() for word in words}
    later: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in first}
    for _ in range(repeats):
        for (name, word), reports in later.items():
            reports.append(workers[name].run(word))
    out = {}
    for key, reports in later.items():
        seconds = [report["seconds"] for report in reports]
        median, cpu = statistics.median(seconds), statistics.median(report["cpu_seconds"] for report in reports)
        compile_seconds = max(first[key]["seconds"] - median, 0.0)
        out[key] = {**reports[-1], "seconds": median, "cpu_seconds": cpu, "all": seconds, "compile": compile_seconds}
    return out
