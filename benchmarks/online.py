"""What it costs to let hyperparameters move while a network trains: each online method beside plain training. One thread.

    python benchmarks/online.py                 about ten minutes; writes benchmarks/results/online.md and .json
    python benchmarks/online.py --repeats 2     quicker, noisier

Random images of MNIST's size, tanh perceptron 784-1000-1000-10, batch 128, damped momentum α .1, γ .9 (almeida and osgm: γ 0),
float32. Each contender in a fresh process, seconds per elementary step. Quote the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import _report
import _workers

BATCH, EXAMPLES = 128, 4096
LIMITS = {"adaptive": 1.35, "t1t2": 1.2, "descent": 1.05}


def contenders() -> dict[str, tuple[str, tuple, float, Any]]:
    """name → (label, declared hyperparameters, momentum, method or None for plain training)."""
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
    )

    rate, rates, penalties = LearningRate("network", 0.1), LearningRate("parameter", 0.1), L2("parameter", 1e-4)
    both = (rates, penalties)
    return {
        "plain": ("plain training, one α", (rate,), 0.9, None),
        "plain-arrays": ("plain training, α and L2 per parameter", both, 0.9, None),
        "adaptive": ("adaptive 131-4-10, α and L2 per parameter", both, 0.9, Adaptive(131, 10, 4)),
        "adaptive-undone": ("the same, states undone", both, 0.9, Adaptive(131, 10, 4, states="undone")),
        "t1t2": ("T1–T2 every 10, L2 per unit", (L2("unit", 1e-4),), 0.9, T1T2(every=10, block=130)),
        "t1t2-arrays": ("the same, L2 per parameter", (penalties,), 0.9, T1T2(every=10, block=130)),
        "descent": ("hypergradient descent, one α", (rate,), 0.9, HypergradientDescent(beta=1e-6, block=131)),
        "descent-arrays": ("the same, α per parameter", (rates,), 0.9, HypergradientDescent(beta=1e-6, block=131)),
        "almeida": ("Almeida", (rates,), 0.0, Almeida(block=131)),
        "osgm": ("OSGM, α per parameter", (rates,), 0.0, OSGM(learning_rate=1e-4, block=131)),
        "marthe": ("MARTHE(.9), one α, a move every 10", (rate,), 0.9, MARTHE(every=10, block=130)),
        "clarke": ("Clarke every 10, 5 terms", both, 0.9, Clarke(every=10, block=130)),
    }


def splits() -> Any:
    import numpy as np

    from hypertrail_data import Dataset, make_splits

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2 * EXAMPLES, 28, 28, 1)).astype(np.uint8)
    y = rng.integers(0, 10, 2 * EXAMPLES).astype(np.int32)
    return make_splits(Dataset("random", x, y, 10), EXAMPLES, EXAMPLES, 0, 0, seed=0)


def work(name: str) -> None:
    """The worker: one contender, two more blocks of its run on demand. Where the run began is not in the time."""

    def prepare() -> _workers.Run:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from hypertrail import Dynamics, Problem, load
        from hypertrail_data import BatchSchedule
        from hypertrail_nets import mlp

        jnp.zeros(1).block_until_ready()
        _, declared, momentum, method = contenders()[name]
        problem = Problem(
            network=mlp((28, 28, 1), (1000, 1000)),
            splits=splits(),
            schedule=BatchSchedule(EXAMPLES, BATCH, seed=0),
            steps=100_000,
            hyperparameters=declared,
            dynamics=Dynamics("damped", 0.1, momentum),
            valid_batch=BATCH,
        )
        running = plain(problem) if method is None else load("gpu").adapt(problem, problem.initial_hyper(), method)

        def run(_: str) -> dict[str, Any]:
            blocks = [next(running), next(running)]
            jax.block_until_ready(blocks[-1].state)
            assert all(np.isfinite(block.losses).all() for block in blocks)
            steps, gradients, hvps = (sum(map(of, blocks)) for of in COUNTS)
            return {"steps": steps, "gradients": gradients, "hvps": hvps}

        return run

    _workers.serve(prepare, threads=1)


COUNTS = (lambda block: len(block.losses), lambda block: block.cost.gradients, lambda block: block.cost.hvps)


def plain(problem: Any) -> Iterator[Any]:
    """Plain training in the same form: the engine's own compiled loop, 131 steps at a time, looked at after each."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from hypertrail.adapting import Block
    from hypertrail.records import Cost
    from hypertrail_gpu.compiled import compiled, precision

    n = 131
    with precision(problem):
        programs = compiled(problem)
        values = programs.values(problem.initial_hyper())
        state = *jax.tree.map(jnp.asarray, (problem.initial_weights(), problem.initial_velocity())), {}
        origin = -100, state[0]  # so far back that no distance is measured
    for index in itertools.count():
        with precision(problem):
            xs = programs.steps(n * index, n * (index + 1))
            state, _, (losses, *_) = programs.train_chunk(
                False, state, (origin, origin), values, programs.train_data, xs
            )
            losses = np.asarray(losses)
        yield Block(index, n * index, n * (index + 1), losses, np.empty(0), {}, {"w": state[0]}, Cost(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each contender (default %(default)s)")
    parser.add_argument("--only", nargs="*", default=None, help="contenders to run; plain is always among them")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    environment = _report.environment(threads=1)
    known = contenders()
    names = [name for name in known if arguments.only is None or name in ("plain", *arguments.only)]
    workers = {name: _workers.Worker(__file__, ["--worker", name], threads=1) for name in names}
    timed = _workers.interleave(workers, ["run"], arguments.repeats)
    for worker in workers.values():
        worker.close()
    each = {name: timed[name, "run"] for name in names}
    plain = each["plain"]["cpu_seconds"] / each["plain"]["steps"]
    ratios = {name: one["cpu_seconds"] / one["steps"] / plain for name, one in each.items()}
    rows = [
        [
            known[name][0],
            f"{1000 * one['seconds'] / one['steps']:.1f}",
            f"{1000 * one['cpu_seconds'] / one['steps']:.1f}",
            f"{ratios[name]:.2f}",
            f"{one['gradients'] / one['steps']:.2f}",
            f"{one['hvps'] / one['steps']:.2f}",
            f"{one['compile']:.1f}",
            f"{one['memory'] / 1e6:.0f}",
        ]
        for name, one in each.items()
    ]
    data = {
        "environment": environment,
        "rows": [{"contender": name, "ratio": ratios[name], **one} for name, one in each.items()],
        "targets": [
            _report.target(f"{known[name][0]}: time / plain training", ratios[name], limit)
            for name, limit in LIMITS.items()
            if name in names
        ],
    }
    header = ["", "ms a step", "CPU ms", "ratio", "gradients a step", "HVPs a step", "compile s", "memory MB"]
    title = "Online methods: MNIST-size perceptron 784-1000-1000-10, batch 128, float32, one thread"
    _report.write("online", title, data, header, rows, NOTES)


NOTES = [
    "Ratio: CPU seconds of a step over those of plain training, some 262 steps at a time in the middle of a run; medians,",
    "repeats of all contenders interleaved, each in a fresh process on one core. Gradients and HVPs a step: the method's own",
    "count (an HVP is a gradient that gave the products too). Memory: growth of the peak resident set over imports and data,",
    "compiler included. Hypergradient descent costs one more pass over g and v: memory bandwidth, no arithmetic.",
]


if __name__ == "__main__":
    main()
