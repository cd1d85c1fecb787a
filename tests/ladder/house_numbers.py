"""The numbers of the house: digests of trainings, hypergradients and online blocks, written down before its walls are moved.

    python tests/ladder/house_numbers.py          # writes house_numbers.json beside this file, with both engines, in float64

test_house_numbers.py holds the package to what is written there. Write it anew only where the numbers are meant to move, and
say why in the commit.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import hypertrail_data
from hypertrail import Problem, UsageError, everything
from hypertrail.engines import load
from hypertrail.refusals import refuse_plan
from hypertrail_nets import mlp

sys.path.insert(0, str(Path(__file__).parent))  # as a script it lies there already, as a test it does not
from test_online import CASES as ONLINE

FILE = Path(__file__).with_name("house_numbers.json")
# Every family of hyperparameters with damped momentum, every other kind of dynamics with two families.
PROBLEMS = [("damped", family) for family in everything.FAMILIES] + [
    (dynamics, family)
    for dynamics in ("heavy-ball", "nesterov", "damped-old", "adam")
    for family in ("penalties", "rates")
]


def digest(numbers: Any) -> dict[str, Any]:
    """What is written down of a tree of arrays: a hash of its bytes, its norm, and three inner products with fixed directions."""
    flat = flattened(numbers)
    directions = np.random.default_rng(0).standard_normal((3, flat.size))
    return {
        "sha256": hashlib.sha256(flat.tobytes()).hexdigest()[:16],
        "norm": float(np.linalg.norm(flat)),
        "products": (directions @ flat).tolist(),
    }


def flattened(tree: Any) -> np.ndarray:
    """All numbers of nested dicts of arrays, in the order of the sorted names, float64."""
    if isinstance(tree, dict):
        parts = [flattened(tree[key]) for key in sorted(tree)]
        return np.concatenate(parts) if parts else np.empty(0)
    return np.ravel(np.asarray(tree, np.float64))


def offline(engine: Any, dynamics: str, family: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every training and every way back of one problem of `hypertrail verify everything`."""
    problem = everything.problem(dynamics, family)
    hyper = problem.initial_hyper()
    runs: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in everything.ways(Path(folder)):
            keep = "disk" if isinstance(way.keep, Path) else way.keep
            name = f"{engine.name}, {dynamics}, {family}, {way.name}, keep {keep}"
            try:
                refuse_plan(problem, way.method, way.keep)
                result = everything.gradient(problem, hyper, engine, way, runs)
            except UsageError:
                continue
            yield name, digest(result)
        training = next(iter(runs.values()))
        yield f"{engine.name}, {dynamics}, {family}, weights", digest(training.final)
        yield f"{engine.name}, {dynamics}, {family}, losses", digest(training.losses)
        for run in runs.values():
            if run.trajectory is not None:
                run.trajectory.close()


def online(engine: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Two blocks of one online rule."""
    declared, dynamics, method = ONLINE[name]
    noise = any(one.kind == "noise" for one in declared)
    problem = Problem(
        network=mlp((8, 8, 1), (8,), init_scale=0.3, noise=noise),
        splits=hypertrail_data.make_splits(
            hypertrail_data.load("digits"), train=160, valid=60, select=0, test=45, seed=1
        ),
        schedule=hypertrail_data.BatchSchedule(160, 16, seed=2),
        steps=16,
        hyperparameters=declared,
        dynamics=dynamics,
        valid_batch=30,
        seed=3,
        precision="float64",
    )
    try:
        blocks = list(engine.adapt(problem, problem.initial_hyper(), method, blocks=2))
    except UsageError:
        return
    yield f"{engine.name}, online, {name}, hyperparameters", digest(blocks[-1].state["hyper"])
    yield f"{engine.name}, online, {name}, weights", digest(blocks[-1].state["w"])
    yield f"{engine.name}, online, {name}, last hypergradient", digest(blocks[-1].gradient)


def add(found: dict[str, Any], more: Iterator[tuple[str, dict[str, Any]]]) -> None:
    for name, one in more:
        assert name not in found, f"two numbers are called {name}"
        found[name] = one


def main() -> None:
    found: dict[str, Any] = {}
    for engine in (load("cpu"), load("gpu")):
        for dynamics, family in PROBLEMS:
            add(found, offline(engine, dynamics, family))
            print(engine.name, dynamics, family, len(found), file=sys.stderr, flush=True)
        for name in ONLINE:
            add(found, online(engine, name))
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
