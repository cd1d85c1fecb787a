"""Every way back beside plain training: time, and memory that must not grow with T. Float64, one thread, one run.

    python benchmarks/ways_back.py                 some minutes; writes benchmarks/results/ways_back.md and .json
    python benchmarks/ways_back.py --repeats 3     quicker, noisier

The problem of benchmarks/hypergradient.py: digits, tanh perceptron 64-256-10, batch 64, damped momentum α .1, γ .9, one
log10 L2 per weight. A row is a training that keeps what the way needs, and its reverse pass. Quote the ratios, not the
seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _report
import _workers
from hypergradient import problem

from hypertrail.keeping import Checkpoints

STEPS = 1000
LONG = (500, 5000)  # T of the rows whose memory is compared
WAYS = {  # name → label, keep, method
    "plain": ("plain training", "ends", None),
    "memory": ("exact, every state in memory", "memory", "exact"),
    "disk": ("exact, every state in HDF5 segments", "disk", "exact"),
    "checkpoints": ("exact, from √T checkpoints", "checkpoints", "exact"),
    "reversible": ("exact, undone in int64", "reversible", "exact"),
    "drmad-C4": ("DrMAD, completion C4 (at most 600 steps of the line)", "ends", "drmad-C4"),
    "truncated-20": ("the last 20 steps only", "last", "truncated-20"),
}


def work(way: str, steps: int, folder: Path) -> None:
    """The worker: one way back, run on demand."""

    def prepare() -> _workers.Run:
        import shutil

        import jax.numpy as jnp

        import hypertrail_gpu as engine
        from hypertrail.keeping import Last, Reversible
        from hypertrail.methods import parse_method

        jnp.zeros(1).block_until_ready()  # JAX's own start-up belongs to the baseline
        one = problem("float64", steps)
        hyper = one.initial_hyper()
        _, keep, word = WAYS[way]
        keeps = {"checkpoints": Checkpoints(), "reversible": Reversible(), "last": Last(20)}

        def run(_: str) -> dict[str, Any]:
            place = folder / f"{way}-{steps}"
            shutil.rmtree(place, ignore_errors=True)  # as a descent does: the trajectory before goes first
            training = engine.train(one, hyper, place if keep == "disk" else keeps.get(keep, keep))
            kept = training.trajectory.nbytes if training.trajectory is not None else 0
            report: dict[str, Any] = {"trajectory": kept}
            if word is not None:
                result = engine.hypergradient(one, hyper, training, parse_method(word))
                report["N"] = result.diagnostics["N"]
            if training.trajectory is not None:
                training.trajectory.close()
            return report

        return run

    _workers.serve(prepare, threads=1, cores=2)  # one thread computes; the one that writes and reads files is beside it


def measure(names: list[str], steps: int, repeats: int, folder: Path) -> dict[str, dict[str, Any]]:
    arguments = {name: ["--worker", name, str(steps), str(folder)] for name in names}
    workers = {name: _workers.Worker(__file__, words, threads=1) for name, words in arguments.items()}
    timed = _workers.interleave(workers, ["run"], repeats)
    for worker in workers.values():
        worker.close()
    return {name: timed[name, "run"] for name in names}


def once(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """The median memory of three processes that each go there and back once."""
    reports = []
    for _ in range(3):
        worker = _workers.Worker(__file__, ["--worker", name, str(steps), str(folder)], threads=1)
        reports.append(worker.run())
        worker.close()
    middle = sorted(reports, key=lambda one: one["memory"])[1]
    return {**middle, "compile": 0.0, "all_memory": [one["memory"] for one in reports]}


def megabytes(amount: int) -> str:
    return f"{amount / 1e6:.1f}" if amount else "–"


def row(name: str, steps: int, one: dict[str, Any], plain: float) -> list[str]:
    ratio = f"{one['seconds'] / plain:.2f}" if plain else "–"
    numbers = [
        f"{one['seconds']:.3f}",
        ratio,
        f"{one['cpu_seconds']:.3f}",
        f"{one['compile']:.1f}" if plain else "in it",
    ]
    return [WAYS[name][0], str(steps), *numbers, megabytes(one["trajectory"]), megabytes(one["memory"])]


def targets(short: dict[str, dict[str, Any]], long: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    seconds = {name: one["seconds"] for name, one in short.items()}
    bytes_ = {name: one["trajectory"] for name, one in short.items()}
    # What recomputing holds at a time counts too: the checkpoints (w and v) and the states of one stretch. Arithmetic, from
    # the bytes of the trajectories; the process' own peak is in the table.
    stretch = bytes_["memory"] / len(Checkpoints().at(STEPS))
    few, many = (long[steps]["memory"] for steps in LONG)
    return [
        _report.target("time, undone in int64 / in memory", seconds["reversible"] / seconds["memory"], 1.3),
        _report.target("time, checkpoints / in memory", seconds["checkpoints"] / seconds["memory"], 1.4),
        _report.target(
            "bytes held, checkpoints and one stretch / all states",
            (bytes_["checkpoints"] + stretch) / bytes_["memory"],
            0.1,
        ),
        _report.target("time, C4 (training included) / plain training", seconds["drmad-C4"] / seconds["plain"], 1.4),
        _report.target("time, HDF5 / in memory", seconds["disk"] / seconds["memory"], 1.3),
        _report.target(f"peak memory, HDF5, T = {LONG[1]} / T = {LONG[0]}", many / few, 1.1),
    ]


NOTES = [
    "Ratio: to plain training. Seconds: median; repeats of all rows of T = 1000 interleaved, each way in a fresh process; one",
    "thread computes, the one that writes and reads files has a second core. Compile: first call minus median. Trajectory:",
    "bytes kept, in MB. Memory: growth of the peak resident set over imports and data, in MB, compiler included. Last two rows:",
    "one run in a fresh process, the median memory of three. The time with HDF5 depends on the disk: every segment is written",
    "and synced before its steps count as kept.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each way (default %(default)s)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, steps, folder = arguments.worker
        work(way, int(steps), Path(folder))
        return
    environment = _report.environment(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        short = measure(list(WAYS), STEPS, arguments.repeats, Path(folder))
        long = {steps: once("disk", steps, Path(folder)) for steps in LONG}
    rows = [row(name, STEPS, one, short["plain"]["seconds"]) for name, one in short.items()]
    rows += [row("disk", steps, one, 0.0) for steps, one in long.items()]
    data = {"environment": environment, "short": short, "long": long, "targets": targets(short, long)}
    header = ["", "T", "seconds", "ratio", "CPU s", "compile s", "trajectory MB", "memory MB"]
    title = "Ways back: digits, tanh 64-256-10, batch 64, per-parameter log10 L2, float64, one thread"
    _report.write("ways_back", title, data, header, rows, NOTES)


if __name__ == "__main__":
    main()
