"""A catalogue of small problems for the reference engine, and an independent derivation of its hypergradients.

The independent one is autograd through the whole unrolled training: no adjoint of ours is in it, only the operations (which have
tests of their own) and the losses as `Problem` states them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import value_and_grad

import hypertrail_data
from hypertrail import (
    L1,
    L2,
    Dynamics,
    ExampleWeight,
    InitialScale,
    InitialWeight,
    LearningRate,
    Momentum,
    Problem,
    TrainingInput,
    WeightTransform,
)
from hypertrail_cpu.losses import hyper_loss
from hypertrail_cpu.ops import OPS
from hypertrail_cpu.training import forward
from hypertrail_nets import densenet, get_output, mlp

Nested = dict[str, Any]

NETWORKS = {
    "tanh": lambda: mlp((8, 8, 1), (12, 8), dropout=0.2),
    "relu": lambda: mlp((8, 8, 1), (12,), nonlinearity="relu", dropout=0.2),
    "densenet": lambda: densenet((8, 8, 1), depth=5, growth=3, blocks=2, first_output=4, dropout=0.2),
}
DYNAMICS = {
    "damped": Dynamics("damped", 0.3, 0.6, schedule=((3, 0.5),)),
    "heavy-ball": Dynamics("heavy-ball", 0.1, 0.6, schedule=((3, 0.5),)),
    "nesterov": Dynamics("nesterov", 0.1, 0.6, schedule=((3, 0.5),)),
    "damped-old": Dynamics("damped-old", 0.3, 0.6, schedule=((3, 0.5),)),
    # A large ε: with 1e-8 a difference quotient of 1e-6 is no small change where gradients are small.
    "adam": Dynamics("adam", 0.02, 0.6, schedule=((3, 0.5),), second_momentum=0.9, epsilon=1e-4),
}
# Everything at once, in two mixtures of sharing levels; the inits are large enough for each to matter in a few steps.
DECLARED = {
    "coarse": (
        L2("layer", 2e-2),
        L1("network", 3e-3),
        LearningRate("network", 0.2, per_step=True),
        Momentum("network", 0.6),
        WeightTransform("input", 0.1),
    ),
    "fine": (
        L2("parameter", 2e-2),
        L1("unit", 3e-3),
        LearningRate("parameter", 0.2),
        Momentum("layer", 0.6, per_step=True),
        WeightTransform("layer", -0.1),
    ),
    "layered": (LearningRate("layer", 0.2), Momentum("layer", 0.6), WeightTransform("parameter", 0.05)),
    "penalties": (L2("parameter", 2e-2), L1("parameter", 3e-3)),
    "examples": (
        ExampleWeight(init=0.7),
        TrainingInput(),
        InitialScale("unit", 1.3),
        L2("layer", 2e-2),
        WeightTransform("layer", -0.1),
        LearningRate("network", 0.2),
    ),
    "start": (InitialScale("parameter", 0.8), L1("layer", 3e-3)),
    "weights at the start": (InitialWeight("parameter"), L2("layer", 2e-2), Momentum("network", 0.6)),
    "scaled and shifted": (InitialScale("layer", 1.3), InitialWeight("unit", 0.1), L2("layer", 2e-2)),
    "linear examples": (ExampleWeight(init=0.7, representation="linear"), L2("layer", 2e-2)),
}


@dataclass(frozen=True)
class Repeating:
    """Batches of 12 rows that hold each of 5 examples twice or more; the next step shares some of them."""

    examples: int = 120
    batch: int = 12
    steps_per_epoch: int = 10

    def indices(self, start: int, stop: int) -> np.ndarray:
        return np.stack([(3 * t + np.arange(12) % 5) % self.examples for t in range(start, stop)])


@pytest.fixture(scope="session")
def splits() -> hypertrail_data.Splits:
    return hypertrail_data.make_splits(hypertrail_data.load("digits"), train=120, valid=40, select=0, test=30, seed=3)


@pytest.fixture(scope="session")
def make(splits: hypertrail_data.Splits) -> Callable[..., Problem]:
    """make(network, declared, dynamics, steps=…): a problem with minibatches, dropout, a rate schedule and two valid batches."""

    def make(
        network: str = "tanh", declared: str = "penalties", dynamics: str | Dynamics = "damped", **changes: Any
    ) -> Problem:
        settings: dict[str, Any] = {
            "network": NETWORKS[network](),
            "splits": splits,
            "schedule": Repeating()
            if declared in ("examples", "linear examples")
            else hypertrail_data.BatchSchedule(len(splits.train), 12, seed=5),
            "steps": 6,
            "hyperparameters": DECLARED[declared],
            "dynamics": DYNAMICS[dynamics] if isinstance(dynamics, str) else dynamics,
            "valid_batch": 20,
            "seed": 7,
            "precision": "float64",
        }
        return Problem(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def scatter() -> Callable[..., Nested]:
    """scatter(nested, rng, size): the same arrays, each with normal noise of that size added."""

    def scatter(nested: Nested, rng: np.random.Generator, size: float) -> Nested:
        if isinstance(nested, dict):
            return {key: scatter(one, rng, size) for key, one in nested.items()}
        return nested + size * rng.standard_normal(np.shape(nested))

    return scatter


@pytest.fixture(scope="session")
def run_from() -> Callable[..., float]:
    """run_from(problem, hyper, w_0, v_0): f(w_T) by the engine's own forward loop; v_0 = 0 where it is not given."""

    def run_from(problem: Problem, hyper: Nested, w: Nested | None = None, v: Nested | None = None) -> float:
        values = problem.values(hyper)
        w = problem.scaled(problem.initial_weights(), values) if w is None else w
        v = problem.initial_velocity() if v is None else v
        *_, last = forward(problem, values, w, v)
        return hyper_loss(problem, problem.effective(np, last.w_next, values))

    return run_from


@pytest.fixture(scope="session")
def unrolled() -> Callable[..., tuple[float, tuple[Nested, Nested, Nested]]]:
    """unrolled(problem, hyper): f and its gradients in (hyper, w_0, v_0), by autograd through the whole training."""
    value_of = {
        "l2": lambda u: 10.0**u,
        "l1": anp.exp,
        "learning_rate": anp.exp,
        "momentum": lambda u: anp.exp(u) / (1 + anp.exp(u)),
        "transform": lambda u: u,
        "initial_scale": anp.exp,
        "initial_weight": lambda u: u,
    }

    def train(problem: Problem, initial: Nested, hyper: Nested, w: Nested, v: Nested) -> Any:
        values: Nested = problem.constants()
        for one in problem.hyperparameters:
            arrays = hyper[one.kind]
            if one.kind in ("example_weight", "training_input"):
                continue
            names = [p.name for p in problem.params if one.reaches(p)]
            values[one.kind] = {
                n: value_of[one.kind](arrays["network" if one.level == "network" else n]) for n in names
            }

        def rate(kind: str, name: str, t: int) -> Any:
            declared = problem.declared(kind)
            return values[kind][name][t] if declared and declared.per_step else values[kind][name]

        def loss(w: Nested, t: int) -> Any:
            rows = problem.schedule.indices(t, t + 1)[0]
            x, y = problem.splits.train.x[rows].astype(float), problem.splits.train.y[rows]
            if "training_input" in hyper:
                x = hyper["training_input"]["x"][rows]
            weights = problem.effective(anp, {name: w[name] for name in names}, values)
            logits = get_output(problem.network, weights, x, OPS, key=problem.noise_key, step=t)
            losses = OPS.cross_entropy(logits, y)
            if "example_weight" in hyper:
                u = hyper["example_weight"]["train"][rows]
                linear = problem.declared("example_weight").representation == "linear"
                losses = losses * (u if linear else 1 / (1 + anp.exp(-u)))
            return anp.sum(losses) / len(rows) + problem.penalty(anp, w, values)

        names = [p.name for p in problem.params]
        w, v = {name: w[name] for name in names}, {name: v[name] for name in names}
        if "initial_scale" in values:  # around the scaled w_0 that came in, so that its own gradient is there too
            drawn, now = problem.initial_weights(), problem.values(initial)["initial_scale"]
            w = {name: w[name] + (values["initial_scale"][name] - now[name]) * drawn[name] for name in names}
        if "initial_weight" in values:
            now = problem.values(initial)["initial_weight"]
            w = {name: w[name] + values["initial_weight"][name] - now[name] for name in names}
        kind, beta, epsilon = problem.dynamics.kind, problem.dynamics.second_momentum, problem.dynamics.epsilon
        for t in range(problem.steps):
            _, g = value_and_grad(loss)(w, t)
            factor = problem.dynamics.factors(problem.steps)[t]
            moved = {}
            for name in names:
                gamma, before = rate("momentum", name, t), v[name]
                if kind == "adam":
                    m = gamma * before[0] + (1 - gamma) * g[name]
                    s = beta * before[1] + (1 - beta) * g[name] ** 2
                    v[name] = anp.stack([m, s])
                    way = -(m / (1 - gamma ** (t + 1))) * (s / (1 - beta ** (t + 1)) + epsilon) ** -0.5
                elif kind.startswith("damped"):
                    v[name] = gamma * before - (1 - gamma) * g[name]
                    way = before if kind == "damped-old" else v[name]
                else:
                    v[name] = gamma * before + g[name]
                    way = -(g[name] + gamma * v[name]) if kind == "nesterov" else -v[name]
                moved[name] = w[name] + factor * rate("learning_rate", name, t) * way
            w = moved
        weights = problem.effective(anp, w, values)
        batches = list(zip(*problem.valid_batches(), strict=True))
        return sum(problem.valid_loss(OPS, weights, x, y) for x, y in batches) / len(batches)

    def unrolled(problem: Problem, hyper: Nested) -> tuple[float, tuple[Nested, Nested, Nested]]:
        w = problem.scaled(problem.initial_weights(), problem.values(hyper))
        v = problem.initial_velocity()
        return value_and_grad(lambda s: train(problem, hyper, *s))((hyper, w, v))

    return unrolled
