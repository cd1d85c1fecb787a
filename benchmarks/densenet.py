"""Gradient and Hessian-vector product of one DenseNet-40-12 step, batch 64, 32×32×3, float32, beside torch. Two threads.

    python benchmarks/densenet.py                      about five minutes; writes benchmarks/results/densenet.md and .json
    python benchmarks/densenet.py --depth 13 --repeats 1       a quick look

Random images and labels, equal weights, dropout .2, one L2 penalty per weight. Ours: the compiled engine's elementary
gradient and its forward-over-reverse second-order call. Torch: channels first, contiguous, gradient by backward, HVP
by double backward. That both compute the same is checked first, dropout off: outputs in float32, and outputs, gradients
and HVPs in float64 on a few images (in float32 a rectifier at rounding distance from 0 falls either way, and its
derivative with it, so single entries of an HVP through 40 layers differ by a percent between any two programs).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _report
import _workers

BATCH, THREADS = 64, 2
CHECKED = 8  # images of the float64 comparison
STEPS = 4  # of the compiled loops, whose time is divided by it


def problem(depth: int, dropout: float, precision: str = "float32") -> Any:
    import numpy as np

    from hypertrail import L2, Dynamics, Problem
    from hypertrail_data import BatchSchedule, Splits
    from hypertrail_data.splits import Split
    from hypertrail_nets import densenet

    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        x, y = rng.normal(size=(n, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, n, dtype=np.int32)
        return Split(x, y, np.arange(n))

    train, valid = split(STEPS * BATCH), split(BATCH)
    return Problem(
        network=densenet(depth=depth, growth=12, dropout=dropout),
        splits=Splits(train, valid, split(1), split(1), np.zeros(3), np.ones(3), 10, "random"),
        schedule=BatchSchedule(STEPS * BATCH, BATCH, seed=0),
        steps=STEPS,
        hyperparameters=(L2(level="parameter", init=1e-4),),
        dynamics=Dynamics(learning_rate=0.1, momentum=0.9),
        precision=precision,
    )


def direction(problem: Any) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(1)
    return {p.name: rng.normal(size=p.shape).astype(problem.dtype) for p in problem.params}


def ours(depth: int, out: Path) -> _workers.Run:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from hypertrail import Exact, load
    from hypertrail_gpu import losses
    from hypertrail_gpu.ops import OPS
    from hypertrail_nets import get_output

    timed = problem(depth, 0.2)
    w, u = (jax.tree.map(jnp.asarray, one) for one in (timed.initial_weights(), direction(timed)))
    values = jax.tree.map(jnp.asarray, timed.values(timed.initial_hyper()))
    x, y = jnp.asarray(timed.splits.train.x[:BATCH]), jnp.asarray(timed.splits.train.y[:BATCH])
    engine, hyper = load("gpu"), timed.initial_hyper()
    gradient = jax.jit(lambda w, values, x, y, step: losses.elementary_gradient(timed, w, values, x, y, step)[:2])
    second = jax.jit(lambda w, values, x, y, step, u: losses.second_order(timed, w, values, x, y, step, u))
    trained: list[Any] = []

    def check() -> None:
        single = jax.jit(lambda w, x: get_output(timed.network, w, x, OPS, deterministic=True))(w, x)
        fine = problem(depth, 0.0, "float64")
        with jax.enable_x64(True):
            few, labels = jnp.asarray(fine.splits.train.x[:CHECKED], float), y[:CHECKED]
            values = jax.tree.map(jnp.asarray, fine.values(fine.initial_hyper()))
            w64, u64 = (jax.tree.map(jnp.asarray, one) for one in (fine.initial_weights(), direction(fine)))
            logits = jax.jit(lambda w: get_output(fine.network, w, few, OPS))(w64)
            _, g, _ = jax.jit(lambda w: losses.elementary_gradient(fine, w, values, few, labels, 0))(w64)
            hvp, _ = jax.jit(lambda w: losses.second_order(fine, w, values, few, labels, 0, u64))(w64)
            save(out, *map(jax.device_get, (single, logits, g, hvp)))

    def run(word: str) -> dict[str, Any]:
        step = np.int32(0)
        match word:
            case "check":
                check()
            case "gradient":
                jax.block_until_ready(gradient(w, values, x, y, step))
            case "hvp":
                jax.block_until_ready(second(w, values, x, y, step, u))
            case "train":  # what a user gets: inside the compiled loop, update, batch and store included
                trained[:] = [engine.train(timed, hyper, keep="memory")]
            case "reverse":
                engine.hypergradient(timed, hyper, trained[0], Exact())
        return {}

    return run


def theirs(depth: int, out: Path) -> _workers.Run:
    import numpy as np
    import torch
    from _densenet_torch import DenseNet, from_hypertrail, to_hypertrail

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)

    def tensors(problem: Any, images: int) -> tuple[Any, dict[str, Any], list[Any], Any, Any]:
        """The net, the penalties, the direction of the HVP, images and labels."""
        net = DenseNet(problem.initial_weights(), depth, 0.2)
        l2 = problem.values(problem.initial_hyper())["l2"]
        penalties = {name: from_hypertrail(name, np.asarray(one)).requires_grad_() for name, one in l2.items()}
        u = [from_hypertrail(name, one) for name, one in direction(problem).items()]
        train = problem.splits.train
        x = np.ascontiguousarray(train.x[:images].transpose(0, 3, 1, 2)).astype(problem.dtype)
        return net, penalties, u, torch.from_numpy(x), torch.from_numpy(train.y[:images]).long()

    net, penalties, u, x, y = tensors(problem(depth, 0.2), BATCH)

    def second(net: Any, penalties: dict[str, Any], u: list[Any], x: Any, y: Any) -> tuple[Any, Any]:
        w = list(net.params.values())
        g = torch.autograd.grad(net.loss(penalties, x, y), w, create_graph=True)
        products = torch.autograd.grad(g, [*w, *penalties.values()], u)
        return g, products[: len(w)]

    def check() -> None:
        fine, *others = tensors(problem(depth, 0.0, "float64"), CHECKED)
        fine.dropout = 0.0
        g, hvp = (dict(zip(fine.params, map(to_hypertrail, one), strict=True)) for one in second(fine, *others))
        save(out, net.logits(x, 0.0).detach().numpy(), fine.logits(others[2], 0.0).detach().numpy(), g, hvp)

    def run(word: str) -> dict[str, Any]:
        match word:
            case "check":
                check()
            case "gradient":
                torch.autograd.grad(net.loss(penalties, x, y), list(net.params.values()))
            case "hvp":
                second(net, penalties, u, x, y)
        return {}

    return run


def save(out: Path, single: Any, logits: Any, gradient: dict[str, Any], hvp: dict[str, Any]) -> None:
    import numpy as np

    def flat(tree: dict[str, Any]) -> Any:
        return np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])

    results = (single, logits, flat(gradient), flat(hvp))
    np.savez(out, **dict(zip(LIMITS, results, strict=True)))


# Largest difference over the largest entry that is taken for rounding: ε 6e-8 and 1e-16 through some 40 layers.
LIMITS = {"float32 outputs": 1e-4, "float64 outputs": 1e-10, "float64 gradient": 1e-10, "float64 HVP": 1e-9}


def differences(one: Path, other: Path) -> dict[str, float]:
    """Largest absolute difference over the largest entry, of each result of the check."""
    import numpy as np

    a, b = np.load(one), np.load(other)
    return {name: float(np.abs(a[name] - b[name]).max() / np.abs(a[name]).max()) for name in a.files}


NOTES = [
    "Seconds: median; repeats of both interleaved, each in a fresh process on two cores. Compile: first call minus median.",
    "HVP: the call that gives H·u and the mixed product with every penalty (torch: gradient and double backward). Rows",
    "`in the loop`: one step of `engine.train` and of the exact reverse pass as users get them, with batch, update and store;",
    "the hyper loss is shared out over the few steps of the reverse row. That row is a hypergradient of 1,010,664 penalties:",
    "its seconds for each of the T steps, and what its programs take to compile (Theano, in the thesis: 68,817 s).",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each call (default %(default)s)")
    parser.add_argument("--depth", type=int, default=40, help="depth of the DenseNet (default %(default)s)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, depth, out = arguments.worker
        prepare = {"ours": ours, "torch": theirs}[name]
        _workers.serve(lambda: prepare(int(depth), Path(out)), THREADS)
        return

    depth, environment = arguments.depth, _report.environment(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.npz" for name in ("ours", "torch")}
        workers = {n: _workers.Worker(__file__, ["--worker", n, str(depth), str(f)], THREADS) for n, f in files.items()}
        for worker in workers.values():
            worker.run("check")
        apart = differences(files["ours"], files["torch"])
        timed = _workers.interleave(workers, ["gradient", "hvp"], arguments.repeats)
        loops = _workers.interleave({"ours": workers["ours"]}, ["train", "reverse"], arguments.repeats)
        for worker in workers.values():
            worker.close()

    for report in loops.values():
        report["seconds"] /= STEPS
        report["cpu_seconds"] /= STEPS
    base = timed["ours", "gradient"]["seconds"]
    timed |= loops
    labels = {
        ("ours", "gradient"): "gradient, hypertrail",
        ("torch", "gradient"): "gradient, torch",
        ("ours", "hvp"): "HVP and mixed product, hypertrail",
        ("torch", "hvp"): "HVP and mixed product, torch",
        ("ours", "train"): "training step in the loop, hypertrail",
        ("ours", "reverse"): "reverse step in the loop, hypertrail",
    }
    rows = [
        [words, *(f"{one:.2f}" for one in (row["seconds"], row["seconds"] / base, row["cpu_seconds"], row["compile"]))]
        for words, row in ((words, timed[key]) for key, words in labels.items())
    ]
    ratio = {word: timed["ours", word]["seconds"] / timed["torch", word]["seconds"] for word in ("gradient", "hvp")}
    targets = [
        _report.target("gradient: time, ours / torch", ratio["gradient"], 1.3),
        _report.target("HVP: time, ours / torch", ratio["hvp"], 0.6),
        *(_report.target(f"{name}: largest difference / largest entry", apart[name], LIMITS[name]) for name in LIMITS),
    ]
    data = {
        "environment": environment,
        "depth": depth,
        "rows": [{"engine": engine, "call": word, **report} for (engine, word), report in timed.items()],
        "targets": targets,
    }
    title = f"One step of DenseNet-{depth}-12, batch {BATCH}, 32×32×3, float32, two threads"
    _report.write("densenet", title, data, ["", "seconds", "gradients", "CPU s", "compile s"], rows, NOTES)


if __name__ == "__main__":
    main()
