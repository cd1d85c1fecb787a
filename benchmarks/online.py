"""What it costs to let hyperparameters move while a network trains: each online method beside plain training. One thread.

    python benchmarks/online.py                     about twenty minutes; writes benchmarks/results/online.md and .json
    python benchmarks/online.py --repeats 2         quicker, noisier
    python benchmarks/online.py --only descent      these rows alone, the others as they stand in online.json

Every contender has a process of its own, and plain training of the same network (one α) in the same process: blocks of the two
by turns, the order turned round from pair to pair, CPU seconds per elementary step; the ratio is the median over the pairs. What
else the machine does then slows both. Quote the ratios, not the seconds.

Random images; tanh perceptron 784-1000-1000-10, batch 128; a small DenseNet, depth 10, growth 12, 32 × 32 × 3, batch 16
(DenseNet-40-12 takes more than a second a step on two cores). Damped momentum α .1, γ .9 (almeida and osgm: γ 0), float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import _report
import _workers

EXAMPLES = 4096
NETS = {
    "mlp": ("perceptron 784-1000-1000-10, batch 128", (28, 28, 1), 128),
    "densenet": ("DenseNet of depth 10, growth 12, batch 16", (32, 32, 3), 16),
}
LIMITS = {"adaptive": 1.35, "t1t2": 1.2, "descent": 1.05}  # what was aimed at, on both networks
ON_DENSENET = ("plain-arrays", "adaptive", "t1t2", "descent")


def contenders() -> dict[str, tuple[str, tuple, float, Any]]:
    """name → (label, declared hyperparameters, momentum, method)."""
    from hypertrail import (
        L2,
        MARTHE,
        OSGM,
        T1T2,
        Adaptive,
        Almeida,
        Clarke,
        HypergradientDescent,
        LearningRate,
        Plain,
    )

    rate, rates, penalties = LearningRate("network", 0.1), LearningRate("parameter", 0.1), L2("parameter", 1e-4)
    both = (rates, penalties)
    return {
        "plain-arrays": ("plain training, α and L2 per parameter", both, 0.9, Plain(26)),
        "adaptive": ("adaptive 131-4-10, α and L2 per parameter", both, 0.9, Adaptive(131, 10, 4)),
        "adaptive-undone": ("the same, states undone", both, 0.9, Adaptive(131, 10, 4, states="undone")),
        "t1t2": ("T1–T2 every 10, L2 per unit", (L2("unit", 1e-4),), 0.9, T1T2(every=10, block=30)),
        "t1t2-arrays": ("the same, L2 per parameter", (penalties,), 0.9, T1T2(every=10, block=30)),
        "descent": ("hypergradient descent, one α", (rate,), 0.9, HypergradientDescent(beta=1e-6, block=13)),
        "descent-arrays": ("the same, α per parameter", (rates,), 0.9, HypergradientDescent(beta=1e-6, block=13)),
        "almeida": ("Almeida", (rates,), 0.0, Almeida(block=26)),
        "osgm": ("OSGM, α per parameter", (rates,), 0.0, OSGM(learning_rate=1e-4, block=26)),
        "marthe": ("MARTHE(.9), one α, a move every 10", (rate,), 0.9, MARTHE(every=10, block=30)),
        "clarke": ("Clarke every 10, 5 terms", both, 0.9, Clarke(every=10, block=30)),
    }


def splits(shape: tuple[int, ...]) -> Any:
    import numpy as np

    from hypertrail_data import Dataset, make_splits

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2 * EXAMPLES, *shape)).astype(np.uint8)
    y = rng.integers(0, 10, 2 * EXAMPLES).astype(np.int32)
    return make_splits(Dataset("random", x, y, 10), EXAMPLES, EXAMPLES, 0, 0, seed=0)


def work(net: str, name: str) -> None:
    """The worker: one contender and its plain partner; some pairs of blocks on demand."""

    def prepare() -> _workers.Run:
        import jax.numpy as jnp

        from hypertrail import LearningRate, Plain

        jnp.zeros(1).block_until_ready()
        _, declared, momentum, method = contenders()[name]
        ours = running(net, declared, momentum, method)
        partner: list[Iterator[Any]] = []
        turns = iter(range(10**9))

        def run(word: str) -> dict[str, Any]:
            if word == "start":  # compiles; the partner comes later, so that the memory is the method's own
                timed(ours)
                return {}
            if not partner:
                block = Plain(method.block_steps)
                partner.append(running(net, (LearningRate("network", 0.1),), momentum, block))
                timed(partner[0])
            pairs = []
            for _ in range(max(1, 131 // method.block_steps)):
                order = [partner[0], ours] if next(turns) % 2 == 0 else [ours, partner[0]]
                found = {id(one): timed(one) for one in order}
                pairs.append((found[id(partner[0])], found[id(ours)]))
            seconds, counts = zip(*[(ours[0], ours[1:]) for _, ours in pairs], strict=True)
            gradients, hvps, _ = counts[0]
            return {
                "plain": [plain[0] for plain, _ in pairs],
                "method": list(seconds),
                "wall": [one[2] for one in counts],
                "gradients": gradients,
                "hvps": hvps,
            }

        return run

    _workers.serve(prepare, threads=1)


def running(net: str, declared: tuple, momentum: float, method: Any) -> Iterator[Any]:
    from hypertrail import Dynamics, Problem, load
    from hypertrail_data import BatchSchedule
    from hypertrail_nets import densenet, mlp

    _, shape, batch = NETS[net]
    problem = Problem(
        network=mlp(shape, (1000, 1000)) if net == "mlp" else densenet(shape, depth=10),
        splits=splits(shape),
        schedule=BatchSchedule(EXAMPLES, batch, seed=0),
        steps=1_000_000,
        hyperparameters=declared,
        dynamics=Dynamics("damped", 0.1, momentum),
        valid_batch=batch,
    )
    return load("gpu").adapt(problem, problem.initial_hyper(), method)


def timed(blocks: Iterator[Any]) -> tuple[float, float, float, float]:
    """CPU seconds, gradients, HVPs and seconds of the next block, each per step."""
    import jax
    import numpy as np

    wall, cpu = time.perf_counter(), time.process_time()
    block = next(blocks)
    jax.block_until_ready(block.state)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert np.isfinite(block.losses).all()
    n = len(block.losses)
    return cpu / n, block.cost.gradients / n, block.cost.hvps / n, wall / n


def measure(net: str, names: list[str], repeats: int) -> list[dict[str, Any]]:
    """One record for each contender, all of them by turns."""
    workers = {name: _workers.Worker(__file__, ["--worker", net, name], threads=1) for name in names}
    compile_seconds = {name: worker.run("start") for name, worker in workers.items()}
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, worker in workers.items():
            reports[name].append(worker.run("pairs"))
    for worker in workers.values():
        worker.close()
    records = []
    for name, found in reports.items():
        plain, method, wall = ([x for one in found for x in one[key]] for key in ("plain", "method", "wall"))
        ratios = sorted(m / p for m, p in zip(method, plain, strict=True))
        records.append(
            {
                "net": net,
                "contender": name,
                "ratio": statistics.median(ratios),
                "quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
                "least": min(method) / min(plain),
                "pairs": len(ratios),
                "plain_cpu_seconds": statistics.median(plain),
                "cpu_seconds": statistics.median(method),
                "seconds": statistics.median(wall),
                "gradients": found[-1]["gradients"],
                "hvps": found[-1]["hvps"],
                "start": compile_seconds[name]["seconds"],
                "memory": compile_seconds[name]["memory"],
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds, some pairs of each contender (default %(default)s)"
    )
    parser.add_argument("--only", nargs="*", default=None, help="contenders to run; others keep what online.json says")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS), help="networks (default: both)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        return

    environment, known, records = _report.environment(threads=1), contenders(), []
    before = _report.RESULTS / "online.json"
    old = json.loads(before.read_text())["rows"] if before.is_file() else []
    for net in NETS:
        wanted = [name for name in known if net == "mlp" or name in ON_DENSENET]
        names = [name for name in wanted if arguments.only is None or name in arguments.only]
        names = names if net in arguments.nets else []
        new = {one["contender"]: one | {"date": environment["date"]} for one in measure(net, names, arguments.repeats)}
        kept = {one["contender"]: one for one in old if one.get("net") == net and one["contender"] in wanted}
        records += [{**kept, **new}[name] for name in wanted if name in {**kept, **new}]
    rows = [
        [
            ("DenseNet: " if one["net"] == "densenet" else "") + known[one["contender"]][0],
            f"{one['ratio']:.3f}",
            f"{one['quartiles'][0]:.3f} … {one['quartiles'][1]:.3f}",
            f"{one['least']:.3f}",
            f"{one['pairs']}",
            f"{1000 * one['plain_cpu_seconds']:.1f}",
            f"{1000 * one['cpu_seconds']:.1f}",
            f"{one['gradients']:.2f}",
            f"{one['hvps']:.2f}",
            f"{one['start']:.0f}",
            f"{one['memory'] / 1e6:.0f}",
            one["date"][5:16],
        ]
        for one in records
    ]
    data = {
        "environment": environment,
        "rows": records,
        "targets": [
            _report.target(f"{NETS[one['net']][0]}: {known[name][0]}: time / plain", one["ratio"], limit)
            for name, limit in LIMITS.items()
            for one in records
            if one["contender"] == name
        ],
    }
    header = ["", "ratio", "quartiles", "of the least", "pairs", "plain, CPU ms", "CPU ms", "gradients a step",
              "HVPs a step", "start s", "memory MB", "measured"]  # fmt: skip
    title = "Online methods beside plain training in the same process, a step, float32, one thread"
    _report.write("online", title, data, header, rows, NOTES)


NOTES = [
    f"Networks: {NETS['mlp'][0]}; {NETS['densenet'][0]}. Ratio: CPU seconds of a step over those",
    "of plain training (one α), the median over pairs of blocks by turns in one process, with its quartiles; of the least: the",
    "quickest block over the quickest plain one. Gradients and HVPs a step: the method's own count (an HVP is a gradient that",
    "gave the products too). Start: the first block, compilation included. Memory: growth of the peak resident set over imports",
    "and data until then. Rows that a command leaves out keep the numbers of the time they were measured.",
]


if __name__ == "__main__":
    main()
