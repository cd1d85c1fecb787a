"""Not a test: what the compiled engine finds on small problems, and a program that writes it down, as several devices or as
one of several processes: `python sharing.py FOLDER DEVICES CASE …`, with JAX_NUM_PROCESSES and its like for several.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import hypertrail_data
from hypertrail import (
    L1,
    L2,
    T1T2,
    Adaptive,
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    ExampleWeight,
    FloatReversed,
    Forward,
    HypergradientDescent,
    Implicit,
    InitialScale,
    LearningRate,
    Momentum,
    Noise,
    Problem,
    Reversible,
    TrainingInput,
    Truncated,
    WeightTransform,
)
from hypertrail.errors import UsageError
from hypertrail_nets import densenet, lenet, mlp

NETWORKS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: mlp((8, 8, 1), (6,), dropout=0.2, init_scale=0.3),
    "noisy": lambda: mlp((8, 8, 1), (6,), init_scale=0.3, noise=True),
    "tiny": lambda: densenet((8, 8, 1), depth=3, growth=2, blocks=1, first_output=3, dropout=0.2),
    "lenet": lambda: lenet((8, 8, 1), maps=(3, 4), hidden=(10,), size=3, dropout=0.2),
    "densenet": lambda: densenet((8, 8, 1), depth=5, growth=3, blocks=2, first_output=4, dropout=0.2),
}
RATES = (L2("parameter", 1e-2), LearningRate("layer", 0.3), Momentum("network", 0.8))
DECLARED = {
    "penalty": (L2("parameter", 1e-2),),
    "rates": RATES,
    "everything": (*RATES, L1("unit", 1e-3), WeightTransform("input", 0.1), InitialScale("layer", 1.1)),
    "per-step": (L2("layer", 1e-2), LearningRate("parameter", 0.05, per_step=True), Momentum(init=0.8, per_step=True)),
    "examples": (ExampleWeight(init=0.9), TrainingInput(), L2("parameter", 1e-2)),
    "noise": (Noise("layer", 0.1), L2("parameter", 1e-2)),
    "few": (L2("network", 1e-2), LearningRate("network", 0.3)),
}


def problem(case: str, **changes: Any) -> Problem:
    """The problem of a case 'network declared …': the same object, which compiles once, where nothing is changed."""
    network, declared = case.split()[:2]
    return made(network, declared).with_(**changes) if changes else made(network, declared)


@cache
def made(network: str, declared: str) -> Problem:
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=80, valid=32, select=0, test=21, seed=1)
    return Problem(
        network=NETWORKS[network](),
        splits=splits,
        schedule=hypertrail_data.BatchSchedule(80, 16, seed=2),
        steps=6,
        hyperparameters=DECLARED[declared],
        dynamics=Dynamics("damped", 0.3, 0.8, schedule=((4, 0.5),)),
        valid_batch=15 if network == "tiny" else 16,  # 15 can be shared by no devices: each does all of them
        seed=3,
        precision="float64",
    )


def results(case: str) -> dict[str, Any]:
    """{what: nested arrays} of a case 'network declared item …'."""
    import hypertrail_gpu as gpu

    if case == "functional":
        return bring_your_own()
    one = problem(case)
    hyper = one.initial_hyper()
    found: dict[str, Any] = {}
    items = case.split()[2:]
    if {"exact", "truncated", "line", "evaluate"} & set(items):
        training = gpu.train(one, hyper, "memory")
        found["train"] = [training.final, training.velocity, training.running, training.losses, training.distances]
        methods = {"exact": Exact(), "truncated": Truncated(3), "line": DrMAD("C4")}
        for item in items:
            if item in methods:
                result = gpu.hypergradient(one, hyper, training, methods[item])
                found[item] = [result.gradient, result.initial_weights, result.hyper_loss, result.adjoint_norms]
    if "evaluate" in items:
        found["evaluate"] = [gpu.evaluate(one, training, split).loss for split in ("train", "test")]
        found["hyper loss"] = gpu.hyper_loss(one, training)
    ways = {
        "checkpoints": (Checkpoints(3), Exact()),
        "reversible": (Reversible(), Exact()),
        "piecewise": (Checkpoints(2), DrMAD("C6")),
        "tail": ("ends", DrMAD("C5")),
        "float": ("ends", FloatReversed()),
        "forward": ("ends", Forward()),
        "implicit": ("ends", Implicit("cg", damping=10.0)),
    }
    for item in items:
        if item in ways:
            keep, method = ways[item]
            training = gpu.train(one, hyper, keep)
            result = gpu.hypergradient(one, hyper, training, method)
            found[item] = [training.final, result.gradient]
    online = {
        "adaptive": Adaptive(steps=3, last=2, validation_batches=1),
        "t1t2": T1T2(every=2, block=6, validation_batches=1),
        "descent": HypergradientDescent(block=3),
    }
    for item in items:
        if item in online:
            blocks = list(gpu.adapt(one, hyper, online[item]))
            found[item] = [blocks[-1].state["w"], blocks[-1].hyper, [b.losses for b in blocks]]
    return found


def bring_your_own() -> dict[str, Any]:
    """The functional core, on batches that lie across the devices in use."""
    import jax
    import jax.numpy as jnp

    from hypertrail_gpu import devices, functional

    def loss(w, hyper, batch, t):
        return jnp.mean((jnp.tanh(batch[0] @ w["a"]) @ w["b"] - batch[1]) ** 2) + jnp.exp(hyper) * jnp.sum(w["b"] ** 2)

    def update(w, v, g, hyper, t):
        v = jax.tree.map(lambda v, g: 0.9 * v + g, v, g)
        return jax.tree.map(lambda w, v: w - 0.1 * v, w, v), v

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        batches = rng.normal(size=(5, 8, 3)), rng.normal(size=(5, 8, 2))
        if devices.layout().mesh is not None:
            batches = jax.device_put(batches, devices.layout().over(None, devices.AXIS))
        w = {"a": jnp.array(rng.normal(size=(3, 4))), "b": jnp.array(rng.normal(size=(4, 2)))}
        inner, hyper = functional.Inner(loss, update), jnp.array(-3.0)
        run = functional.train(inner, w, jax.tree.map(jnp.zeros_like, w), hyper, batches)
        result = functional.hypergradient(inner, lambda w, hyper: jnp.sum(jnp.sin(w["b"])), run, hyper, batches)
        return {"losses": run.losses, "hyper": result.hyper, "w0": result.w0}


def flat(tree: Any) -> np.ndarray:
    """All numbers of nested dicts and lists of arrays, float64."""
    if isinstance(tree, dict):
        tree = [tree[key] for key in sorted(tree)]
    if isinstance(tree, list | tuple):
        return np.concatenate([np.empty(0), *map(flat, tree)])
    return np.ravel(np.asarray(tree, np.float64))


def same_everywhere(array: Any) -> bool:
    """Whether every device holds the same bits."""
    first, *rest = [np.asarray(one.data) for one in array.addressable_shards]
    return all(np.array_equal(first, one) for one in rest)


def exchanges(one: Problem, training: Any) -> tuple[int, int]:
    """How often the devices sum, and how often they exchange anything else, in the program of a training chunk."""
    from hypertrail_gpu.compiled import compiled, precision

    with precision(one):
        programs = compiled(one)
        state = training.final, training.velocity, training.running
        values = programs.values(one.initial_hyper())
        xs = programs.steps(0, one.steps)
        lowered = programs.train_chunk.lower(False, state, ((0, state[0]),), values, programs.train_data, xs)
        text = lowered.compile().as_text()
    others = ("all-gather(", "all-to-all(", "collective-permute(", "reduce-scatter(")
    return text.count(" all-reduce("), sum(text.count(" " + what) for what in others)


def main(folder: Path, wanted: str, cases: list[str]) -> None:
    """FOLDER/<process>-<number of case>.npz, and FOLDER/<process>.json: what was refused, what compiled again."""
    import jax

    import hypertrail_gpu as gpu

    if gpu.devices.tasks() > 1:
        gpu.devices.join()
    gpu.devices.use(wanted)
    index, processes = gpu.devices.process()
    seen: list[str] = []
    said = {"in use": gpu.describe()["in_use"], "processes": processes, "backend": jax.default_backend()}
    for number, case in enumerate(cases):
        np.savez(folder / f"{index}-{number}.npz", **{key: flat(one) for key, one in results(case).items()})
    uneven = problem(cases[0], schedule=hypertrail_data.BatchSchedule(80, 15, seed=2))
    refusals = {"batch": (uneven, "ends"), "disk": (problem(cases[0]), folder / "trajectory"), "auto": (uneven, "auto")}
    for name, (one, keep) in refusals.items():
        try:
            gpu.train(one, one.initial_hyper(), keep)
        except UsageError as refused:
            said[name] = str(refused)
    again = problem(cases[0])
    hyper = {kind: {key: u + 0.1 for key, u in arrays.items()} for kind, arrays in again.initial_hyper().items()}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: seen.append(event) if event.endswith("backend_compile_duration") else None
    )
    training = gpu.train(again, hyper, "memory")
    gpu.hypergradient(again, hyper, training, Exact())
    said["compiled again"] = len(seen)
    said["replicas differ"] = [key for key, one in training.trajectory.read(5).items() if not same_everywhere(one)]
    if cases[0].startswith("mlp"):
        said["sums"], said["other exchanges"] = exchanges(again, training)
    (folder / f"{index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
