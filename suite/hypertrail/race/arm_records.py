"""The record of an arm: what was asked, what each block cost, what was measured on the way, and the file it is saved in."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hypertrail_data import DataError

from ..adapting import Adapted, Block, State, numpy_state
from ..blown_up import blown_up, norm
from ..engines import Engine
from ..errors import NumericalFailure, UsageError
from ..hyperparameters import NETWORK, Hyper
from ..online import Plain
from ..problem import Problem
from ..runs import arrays

if TYPE_CHECKING:
    from .arms import Arm

Record = dict[str, Any]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def over(record: Record) -> bool:
    """Whether the budget is spent to the last gradient."""
    return record["gradients"] >= record["budget"]


def begun(problem: Problem, arm: Arm, budget: int, every: int, path: Path, run: str) -> tuple[Record, State | None]:
    """The record and state that `path` holds; those of the start where there is no such file, or where it is not whole or of
    another arm or run."""
    first: Record = {
        "arm": arm.name,
        "schedule": arm.schedule,
        "method": {"name": arm.method.name, **as_json(asdict(arm.method))},
        "start": dict(arm.start),
        "seed": problem.seed,
        "budget": budget,
        "every": every,
    }
    start: Record = first | {
        "steps": 0, "gradients": 0, "hvps": 0, "price": 0, "failed": None, "blown_up": None, "norms": [],
        "block": {"steps": [], "loss": [], "hyper_loss": [], "seconds": [], "processor": []},
        "points": [],
        "hyper": {},
        "evaluation_seconds": 0.0,
    }  # fmt: skip
    try:
        saved = arrays.load(path)
        record, state = json.loads(bytes(saved["record"])), saved["state"]
        same = (
            str(saved["run"]) == run and set(record) == set(start) and all(record[key] == first[key] for key in first)
        )
    except (UsageError, DataError, KeyError, TypeError, ValueError, RecursionError):
        return start, None
    return (record, state) if same else (start, None)


def count(record: Record, block: Block, processor: float) -> None:
    """A block is done: what it cost, and its losses. The price of a block is that of the first one, which is whole."""
    record["price"] = record["price"] or block.cost.price
    record["gradients"] += block.cost.price
    record["hvps"] += block.cost.hvps
    record["steps"] = int(block.state["step"])
    for key, value in {
        "steps": len(block.losses),
        "loss": float(block.losses.mean()),
        "hyper_loss": float(block.hyper_losses.mean()) if block.hyper_losses.size else None,
        "seconds": block.cost.seconds,
        "processor": processor,
    }.items():
        record["block"][key].append(value)


def measure_start(record: Record, engine: Engine, problem: Problem, arm: Arm) -> None:
    """What the network does before its first step: the point of step 0, with the declared start of every hyperparameter."""
    hyper = arm.first_hyper(problem)
    values = problem.values(hyper)
    initial = problem.scaled(problem.initial_weights(), values)
    start = Adapted(
        final=initial,
        weights=problem.effective(np, initial, values),
        velocity=problem.initial_velocity(),
        running=problem.initial_running(),
        hyper=hyper,
        losses=np.zeros(0),
        hyper_losses=np.zeros(0),
        blocks=[],
        steps=0,
        inputs=values["training_input"]["x"] if "training_input" in values else None,
    )
    measure(record, engine, problem, start, arm, block=-1)


def measure(record: Record, engine: Engine, problem: Problem, here: Adapted, arm: Arm, block: int) -> None:
    """Loss and error of every split after this block (−1: before the first), and how the hyperparameters spread there.

    Raises NumericalFailure where a loss is not finite. A training that has blown up without overflow is marked.
    """
    clock = time.perf_counter()
    metrics = {s: engine.evaluate(problem, here, s).as_json() for s in problem.split_names}
    if not all(np.isfinite(one["loss"]) for one in metrics.values()):
        split = next(s for s, one in metrics.items() if not np.isfinite(one["loss"]))
        raise NumericalFailure(f"loss on {split}", here.steps)
    record["points"].append(
        {"block": block, "step": record["steps"], "gradients": record["gradients"], "metrics": metrics}
    )
    record["norms"].append(norm(here.final))
    first = record["points"][0]["metrics"]["train"]["loss"]
    record["blown_up"] = blown_up(record["norms"][0], record["norms"][-1], first, metrics["train"]["loss"])
    for kind, tensors in spreads(arm, here.hyper).items():
        for key, one in tensors.items():
            record["hyper"].setdefault(kind, {}).setdefault(key, []).append(one)
    record["evaluation_seconds"] += time.perf_counter() - clock


def spreads(arm: Arm, hyper: Hyper) -> dict[str, dict[str, list[float]]]:
    """{kind: {tensor: [mean, quantiles]}} to six digits; of a method that moves nothing one entry, for all is the same."""
    out: dict[str, dict[str, list[float]]] = {}
    for kind, tensors in hyper.items():
        if isinstance(arm.method, Plain):
            tensors = {NETWORK: next(iter(tensors.values()))}
        out[kind] = {}
        for key, u in tensors.items():
            flat = np.asarray(u, dtype=np.float64).ravel()
            out[kind][key] = [float(f"{x:.6g}") for x in (flat.mean(), *np.quantile(flat, QUANTILES))]
    return out


def save(path: Path, record: Record, state: State, run: str) -> None:
    """Record and state, together or not at all. run: the identity of the run that they are of."""
    text = json.dumps(record, allow_nan=False).encode()
    arrays.save(path, {"run": np.array(run), "record": np.frombuffer(text, np.uint8), "state": numpy_state(state)})


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """A method's settings as JSON gives them back."""
    return json.loads(json.dumps(settings, default=str))
