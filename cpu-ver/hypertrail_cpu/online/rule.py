"""What a rule is, and what several of them share: sums over what shares a value, validation gradients, outer moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypertrail import outer
from hypertrail.adapting import State, validation_rows
from hypertrail.errors import NumericalFailure
from hypertrail.hyperparameters import NETWORK, Hyper, Hyperparameter, unbroadcast
from hypertrail.online import Online
from hypertrail.problem import Problem, Values
from hypertrail.records import Params

from ..losses import hyper_gradient

Arrays = dict[str, np.ndarray]


@dataclass
class Report:
    """What a block found: losses of its steps, validation losses of its moves, the last hypergradient, moves left out."""

    losses: list[float] = field(default_factory=list)
    hyper_losses: list[float] = field(default_factory=list)
    gradient: Hyper = field(default_factory=dict)
    skipped: int = 0


class Rule:
    """An online method on one problem. Subclasses say what it remembers (`start`) and what it does (`block`)."""

    def __init__(self, problem: Problem, method: Any) -> None:
        self.problem = problem
        self.method: Online | Any = method

    def start(self, hyper: Hyper, w: Params, v: Params) -> State:
        """The memory before the first block: nested dicts of arrays."""
        return {}

    def block(self, state: State) -> tuple[State, Report]:
        """(w, v, running, hyper, memory) one block later; nothing is changed in place. Step and block are counted by the loop."""
        raise NotImplementedError


def shared(one: Hyperparameter, terms: Params) -> Arrays:
    """Σ over what shares a value: {parameter name: its full shape} → {key: shape of the held array}."""
    if one.level == NETWORK:
        return {NETWORK: np.array(sum(np.sum(d) for d in terms.values()))}
    return {name: unbroadcast(d, share(one, np.shape(d))) for name, d in terms.items()}


def share(one: Hyperparameter, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the array that a tensor of this shape has at the levels learning rates have."""
    return {"layer": (), "unit": shape[-1:], "parameter": shape}[one.level]


def by_name(one: Hyperparameter, arrays: Arrays, names: Any) -> Params:
    """The held values for each parameter."""
    return {name: arrays[NETWORK if one.level == NETWORK else name] for name in names}


def validation_gradient(
    problem: Problem, w: Params, values: Values, batches: int, number: int, step: int
) -> tuple[float, Params, dict[str, Params]]:
    """`losses.hyper_gradient` on the batches of move `number`. Cost: M gradients. NumericalFailure("hyper loss", step)."""
    rows, valid = validation_rows(problem, batches, number), problem.splits.valid
    f, dw, direct = hyper_gradient(problem, w, values, (valid.x[rows].astype(np.float64), valid.y[rows]))
    if not np.isfinite(f):
        raise NumericalFailure("hyper loss", step, "a smaller learning rate may help")
    return f, dw, direct


def size_of(h: Hyper) -> float:
    """‖h‖ over all hyperparameters together."""
    return float(np.sqrt(sum(np.sum(d**2) for arrays in h.values() for d in arrays.values())))


def diverged(step: int) -> NumericalFailure:
    """For a hypergradient that is not finite. step: how many had been taken when it was looked at."""
    return NumericalFailure("hypergradient", step, "lower the learning rate, its bounds or the method's step")


def start_outer(rule: outer.Rule, hyper: Hyper) -> State:
    """The outer rule's state as nested dicts of arrays."""
    begun = rule.start(hyper)
    return {"count": np.array(begun.count), "slots": begun.slots}


def move_outer(rule: outer.Rule, hyper: Hyper, h: Hyper, memory: State) -> tuple[Hyper, State]:
    """One outer step, without clipping."""
    moved, after = rule.step(hyper, h, outer.State(int(memory["count"]), memory["slots"]))
    return moved, {"count": np.array(after.count), "slots": after.slots}
