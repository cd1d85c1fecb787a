"""Runs side by side in one program (`hypertrail_gpu.many`) beside the same runs one by one. Float32, one thread.

    python benchmarks/many.py                 some minutes; writes benchmarks/results/many.md and .json
    python benchmarks/many.py --repeats 3     quicker, noisier

A run is a training that keeps its states and the exact hypergradient; digits, one log10 L2 per weight, S settings of it. Quote
the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
from typing import Any

import _report
import _workers

STEPS = 200
CASES = {  # name → label, S
    "tiny-8": ("perceptron 64-16-10, batch 16", 8),
    "mlp-8": ("perceptron 64-256-10, batch 64", 8),
    "lenet-4": ("convolutions 3×3, 6 and 12 maps, batch 32", 4),
}


def problem(case: str) -> Any:
    from hypertrail import L2, Dynamics, Problem
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import lenet, mlp

    networks = {
        "tiny-8": lambda: (mlp((8, 8, 1), (16,)), 16),
        "mlp-8": lambda: (mlp((8, 8, 1), (256,)), 64),
        "lenet-4": lambda: (lenet((8, 8, 1), maps=(6, 12), hidden=(32,), size=3), 32),
    }
    network, batch = networks[case]()
    return Problem(
        network=network,
        splits=make_splits(load("digits"), 1200, 400, 0, 197, seed=0),
        schedule=BatchSchedule(1200, batch, seed=0),
        steps=STEPS,
        hyperparameters=(L2(level="parameter", init=1e-4),),
        dynamics=Dynamics("damped", learning_rate=0.1, momentum=0.9),
        precision="float32",
    )


def work(case: str) -> None:
    """The worker: the runs of one case, 'alone' or 'together', on demand."""

    def prepare() -> _workers.Run:
        import hypertrail_gpu as gpu
        from hypertrail import Exact
        from hypertrail_gpu import many

        S = CASES[case][1]
        problems = (problem(case),) * S
        first = problems[0].initial_hyper()
        hypers = [{"l2": {name: u + 0.1 * i for name, u in first["l2"].items()}} for i in range(S)]

        def run(how: str) -> dict[str, Any]:
            if how == "together":
                trainings = many.train(problems, hypers, "memory")
                many.hypergradient(problems, hypers, trainings, Exact())
            else:
                for one, hyper in zip(problems, hypers, strict=True):
                    gpu.hypergradient(one, hyper, gpu.train(one, hyper, "memory"), Exact())
            return {}

        return run

    _workers.serve(prepare, threads=1)


NOTES = [
    "CPU seconds of the process (other work on the machine does not count in them), of all S runs, median, repeats interleaved.",
    "Compile: wall clock of the first call less the median, all S runs. One thread of a processor: nothing lies idle there that",
    "a second run could use. On a GPU this was not measured.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each (default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    environment = _report.environment(threads=1)
    workers = {name: _workers.Worker(__file__, ["--worker", name], threads=1) for name in CASES}
    timed = _workers.interleave(workers, ["alone", "together"], arguments.repeats)
    for worker in workers.values():
        worker.close()
    rows, targets = [], []
    for name, (label, S) in CASES.items():
        alone, together = timed[name, "alone"], timed[name, "together"]
        ratio = together["cpu_seconds"] / alone["cpu_seconds"]
        numbers = [f"{one['cpu_seconds']:.3f}" for one in (alone, together)]
        compiling = [f"{one['compile']:.1f}" for one in (alone, together)]
        rows.append([label, str(S), *numbers, f"{ratio:.2f}", *compiling])
        targets.append(_report.target(f"CPU time, {label}, {S} side by side / one by one", ratio, 1.0))
    data = {"environment": environment, "timed": {" ".join(k): v for k, v in timed.items()}, "targets": targets}
    header = [
        "",
        "S",
        "one by one CPU s",
        "side by side CPU s",
        "ratio",
        "compile, one by one s",
        "compile, side by side s",
    ]
    title = f"Runs side by side: training and exact hypergradient, T = {STEPS}, float32, one thread"
    _report.write("many", title, data, header, rows, NOTES)


if __name__ == "__main__":
    main()
