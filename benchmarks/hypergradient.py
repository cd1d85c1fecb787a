"""One exact hypergradient of 18,944 L2 penalties through 1000 steps, beside what others would write. One thread.

    python benchmarks/hypergradient.py                 a few minutes; writes benchmarks/results/hypergradient.md and .json
    python benchmarks/hypergradient.py --repeats 3     quicker, noisier

Digits, tanh perceptron 64-256-10, batch 64, damped momentum α .1, γ .9, one log10 L2 per weight: as in
benchmarks/results/hypergradient.md. All contenders get the same arrays: images, batch indices, first weights. Quote the
ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _report
import _workers

PRECISIONS = ("float64", "float32")


def problem(precision: str, steps: int) -> Any:
    from hypertrail import L2, Dynamics, Problem
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    return Problem(
        network=mlp((8, 8, 1), (256,)),
        splits=make_splits(load("digits"), 1200, 400, 0, 197, seed=0),
        schedule=BatchSchedule(1200, 64, seed=0),
        steps=steps,
        hyperparameters=(L2(level="parameter", init=1e-4),),
        dynamics=Dynamics("damped", learning_rate=0.1, momentum=0.9),
        precision=precision,
    )


def work(contender: str, precision: str, steps: int, out: Path) -> None:
    """The worker: one contender, run on demand; leaves its last hypergradient in `out`."""

    def prepare() -> _workers.Run:
        import jax.numpy as jnp
        import numpy as np
        from _unrolled import CONTENDERS

        if contender != "torchopt":
            jnp.zeros(1).block_until_ready()  # JAX's own start-up belongs to the baseline
        once = CONTENDERS[contender][1](problem(precision, steps))

        def run(_: str) -> dict[str, Any]:
            gradient, kept = once()
            if gradient is not None:
                np.savez(out, **{name.replace("/", "."): one for name, one in gradient.items()})
            return {"trajectory": kept}

        return run

    _workers.serve(prepare, threads=1)


def measure(precision: str, steps: int, repeats: int, contenders: list[str], folder: Path) -> list[dict[str, Any]]:
    import numpy as np

    files = {name: folder / f"{name}-{precision}.npz" for name in contenders}
    workers = {
        name: _workers.Worker(__file__, ["--worker", name, precision, str(steps), str(files[name])], threads=1)
        for name in contenders
    }
    timed = _workers.interleave(workers, ["run"], repeats)
    for worker in workers.values():
        worker.close()
    gradients = {name: dict(np.load(file)) for name, file in files.items() if file.exists()}
    rows = []
    for name in contenders:
        row = {"contender": name, "precision": precision, **timed[name, "run"]}
        if name in gradients:
            ours, theirs = gradients["exact"], gradients[name]
            scale = max(np.abs(one).max() for one in ours.values())
            row["difference"] = float(max(np.abs(ours[k] - theirs[k]).max() for k in ours) / scale)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], labels: dict[str, str]) -> list[list[str]]:
    plain = {row["precision"]: row["seconds"] for row in rows if row["contender"] == "plain"}

    def megabytes(bytes_: int | None) -> str:
        return "–" if not bytes_ else f"{bytes_ / 1e6:.0f}"

    return [
        [
            labels[row["contender"]],
            row["precision"],
            f"{row['seconds']:.3f}",
            f"{row['seconds'] / plain[row['precision']]:.2f}",
            f"{row['cpu_seconds']:.3f}",
            f"{row['compile']:.1f}",
            megabytes(row["trajectory"]),
            megabytes(row["memory"]),
            "–" if "difference" not in row else f"{row['difference']:.1e}",
        ]
        for row in rows
    ]


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by = {(row["contender"], row["precision"]): row for row in rows}
    out = []
    for precision in PRECISIONS:
        exact, plain = by["exact", precision], by["plain", precision]
        for name, words in (("jax-grad", "`jax.grad` of `lax.scan`"), ("jax-reverse", "hand-written reverse scan")):
            if (name, precision) in by:
                ratio = exact["seconds"] / by[name, precision]["seconds"]
                out.append(_report.target(f"{precision}: time, ours / {words}", ratio, 1.0))
        if ("jax-reverse", precision) in by:
            ratio = exact["trajectory"] / by["jax-reverse", precision]["trajectory"]
            out.append(_report.target(f"{precision}: trajectory bytes, ours / w and v stored", ratio, 0.5))
        ratio = exact["seconds"] / plain["seconds"]
        out.append(_report.target(f"{precision}: time, exact (training and reverse) / plain training", ratio, 3.0))
        worst = max(row.get("difference", 0.0) for row in rows if row["precision"] == precision)
        # float64: 1000 steps of rounding 1e-16; float32: of 6e-8.
        limit = {"float64": 1e-10, "float32": 1e-2}[precision]
        out.append(_report.target(f"{precision}: largest difference from ours / largest entry", worst, limit))
    return out


NOTES = [
    "Ratio: to plain training with hypertrail in the same precision. Seconds: median; repeats of all contenders interleaved,",
    "each contender in a fresh process on one core; CPU seconds well below seconds mean that the machine had other work.",
    "Compile: first call minus median. Trajectory: the states kept, in MB (`jax.grad`: the carries that the scan must keep).",
    "Memory: growth of the peak resident set over imports and data, in MB, compiler included. Difference: largest absolute",
    "difference from hypertrail's hypergradient over its largest entry.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each contender (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="T (default %(default)s)")
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out, e.g. torchopt")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        contender, precision, steps, out = arguments.worker
        work(contender, precision, int(steps), Path(out))
        return

    from _unrolled import CONTENDERS

    environment = _report.environment(threads=1)
    names = [name for name in CONTENDERS if name not in arguments.without]
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for p in PRECISIONS for row in measure(p, arguments.steps, arguments.repeats, names, Path(folder))]
    data = {
        "environment": environment,
        "steps": arguments.steps,
        "rows": rows,
        "targets": targets(rows),
    }
    header = ["", "precision", "seconds", "ratio", "CPU s", "compile s", "trajectory MB", "memory MB", "difference"]
    labels = {name: one[0] for name, one in CONTENDERS.items()}
    title = f"Exact hypergradient: digits, tanh 64-256-10, T = {arguments.steps}, batch 64, per-parameter log10 L2, one thread"
    _report.write("hypergradient", title, data, header, table(rows, labels), NOTES)


if __name__ == "__main__":
    main()
