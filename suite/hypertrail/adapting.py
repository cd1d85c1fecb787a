"""A run whose hyperparameters move while it trains: blocks, the state between them, and what both engines need to agree on.

    for block in engine.adapt(problem, hyper, method):      # a generator: stop when you like
        arrays.save(path, block.state)                      # nested dicts of arrays, all that the next block starts from
    for block in engine.adapt(problem, hyper, method, state=arrays.load(path)):   # goes on, bit for bit on a CPU
        ...

The state may be changed between two blocks, by an agent from outside for example: a changed hyperparameter array of the same
shape compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypertrail_nets import Layer, Parameter

from .errors import UsageError
from .hyperparameters import LN10, OF_THE_START, Hyper, count
from .mantissa import refuse_beyond
from .online import LEARNING_RATE, MARTHE, OSGM, Adaptive, Almeida, Online, Plain
from .problem import Problem
from .records import Cost, Params
from .refusals import held, refuse_without_valid

Array = Any
State = dict[str, Any]  # {"w", "v", "running", "hyper", "memory"}: nested dicts of arrays; {"step", "block"}: int64 ()


@dataclass
class Block:
    """One block of an adaptive run.

    index: 0 for the first block of a run; start, stop: the elementary steps whose batches it saw, stop not included.
    losses: elementary loss of each step before it was taken, (stop − start,), or fewer where a move stands in the place of a
    step (T1T2). hyper_losses: the validation losses that its moves looked at, one for each move (empty where the method looks
    at none). gradient: the last hypergradient, shapes as in hyper, NumPy ({} where the method has none to show). hyper: in
    force at the end. skipped: moves left out (T1T2). state: all that the next block starts from, in the arrays of the engine.
    cost: of this block.
    """

    index: int
    start: int
    stop: int
    losses: np.ndarray
    hyper_losses: np.ndarray
    gradient: Hyper
    state: State
    cost: Cost
    skipped: int = 0

    @property
    def hyper(self) -> Hyper:
        """In force at the end, as NumPy arrays."""
        return numpy_state(self.state["hyper"])


@dataclass
class Adapted:
    """Where an adaptive run ended, in the form that `engine.evaluate` and `engine.hyper_loss` take.

    final, velocity: the weights as training moved them, and v; weights: what the network computes with; running: batch norm's
    averages; hyper: in force at the end. losses: of every step taken, those done again included; hyper_losses: of every
    move; blocks: (start, stop) of each block. steps: where in the schedule the state stands. inputs: the learned images, where
    there are some.
    """

    final: Params
    weights: Params
    velocity: Params
    running: Params
    hyper: Hyper
    losses: np.ndarray
    hyper_losses: np.ndarray
    blocks: list[tuple[int, int]]
    steps: int
    cost: Cost = field(default_factory=Cost)
    inputs: np.ndarray | None = None


def gather(problem: Problem, blocks: Iterable[Block]) -> Adapted:
    """Let all blocks run → where they ended. UsageError where there are none. Cost: theirs; memory: one state and the losses."""
    last: Block | None = None
    losses, hyper_losses, spans, cost = [], [], [], Cost()
    for last in blocks:
        losses.append(last.losses)
        hyper_losses.append(last.hyper_losses)
        spans.append((last.start, last.stop))
        cost = Cost(cost.gradients + last.cost.gradients, cost.hvps + last.cost.hvps, cost.seconds + last.cost.seconds)
    if last is None:
        raise UsageError("the run is over: no block is left to be done")
    state = numpy_state(last.state)
    values = problem.values(state["hyper"])
    return Adapted(
        final=state["w"],
        weights=problem.effective(np, state["w"], values),
        velocity=state["v"],
        running=state["running"],
        hyper=state["hyper"],
        losses=np.concatenate(losses),
        hyper_losses=np.concatenate(hyper_losses),
        blocks=spans,
        steps=int(state["step"]),
        cost=cost,
        inputs=values["training_input"]["x"] if "training_input" in values else None,
    )


def numpy_state(state: Mapping[str, Any]) -> State:
    """The same nested dicts with NumPy arrays for whatever arrays the engine uses."""
    return {k: numpy_state(one) if isinstance(one, Mapping) else np.asarray(one) for k, one in state.items()}


def taken_up(template: Any, state: Any, where: str = "state") -> Any:
    """`state` in the structure of `template`: what a file left out because it was empty comes back as empty.

    Raises UsageError where an array is missing, has another shape or dtype, or is one too many: the state is that of another
    problem, method or precision.
    """
    if not isinstance(template, Mapping):
        if np.shape(state) != np.shape(template) or state.dtype != template.dtype:
            raise UsageError(
                f"{where} is {state.dtype} {np.shape(state)}, this run has {template.dtype} {np.shape(template)}; "
                "go on with the problem, method and engine that saved it"
            )
        return state
    surplus = set(state) - set(template)
    missing = {key for key, one in template.items() if key not in state and not empty(one)}
    if surplus or missing:
        raise UsageError(
            f"{where} has {sorted(surplus) or 'nothing'} too many and lacks {sorted(missing) or 'nothing'}; "
            "go on with the problem, method and engine that saved it"
        )
    return {key: taken_up(one, state.get(key, {}), f"{where}/{key}") for key, one in template.items()}


def empty(template: Any) -> bool:
    return isinstance(template, Mapping) and all(map(empty, template.values()))


# -- what both engines agree on ------------------------------------------------------------------------------------------


def moved_kinds(problem: Problem, method: Online) -> tuple[str, ...]:
    """The declared kinds that this method moves; the others stay at what `hyper` says."""
    if isinstance(method, Plain):
        return ()
    kinds = [h.kind for h in problem.hyperparameters]
    return tuple(kind for kind in kinds if not method.movable or kind in method.movable)


def blocks_left(problem: Problem, method: Online, step: int) -> int:
    """How many more blocks fit into the T steps of the problem, from `step` on. Steps that do not fill a block are left out."""
    room = problem.steps - step - method.block_steps
    return 0 if room < 0 else 1 + room // method.advance


def blocks_asked(problem: Problem, method: Online, step: int, blocks: int | None) -> int:
    """How many blocks to do from `step` on: `blocks`, or all that fit. UsageError for more than that, or fewer than none."""
    left = blocks_left(problem, method, step)
    if blocks is not None and not 0 <= blocks <= left:
        raise UsageError(
            f"{blocks} blocks of {method.name}, expected 0 to {left}: so many fit into the {problem.steps} steps of the problem"
        )
    return left if blocks is None else blocks


def validation_size(problem: Problem) -> int:
    return problem.valid_batch or len(problem.splits.valid)


def validation_rows(problem: Problem, batches: int, number: int) -> np.ndarray:
    """(M, B) int32: the rows of the valid split that move `number` of a run looks at: M distinct random batches.

    No example twice within a move. A pure function of (problem.seed, number): stream 'hyper'. batches = 0: the split's fixed
    batches, as the hyper loss has them. A rest smaller than a batch takes no part, as there.
    """
    from hypertrail_data.streams import generator

    B = validation_size(problem)
    usable = len(problem.splits.valid) // B * B
    if batches == 0:
        return np.arange(usable, dtype=np.int32).reshape(-1, B)
    rng = generator(problem.seed, "hyper", number)
    return rng.choice(usable, size=(batches, B), replace=False).astype(np.int32)


def output_weights(network: Layer) -> tuple[Parameter, ...]:
    """The W of the output layer: of the last layer that has parameters those with two axes or more, the last for the classes."""
    layer = network
    while not layer.params and layer.incoming:
        layer = layer.incoming[0]
    return tuple(p for p in layer.params if len(p.shape) >= 2)


def unconstrained(kind: str, value: Array, xp: Any = np) -> Array:
    """The representation of a value, in arrays of `xp`: log10 for l2, ln for l1 and learning_rate, itself for transform."""
    if kind == "transform":
        return value
    return xp.log(value) / LN10 if kind == "l2" else xp.log(value)


def refuse(problem: Problem, method: Online) -> None:
    """Raise UsageError for a method that cannot run on this problem, before anything is computed."""
    if not isinstance(method, Online):
        raise UsageError(f"adapt takes an online method (Adaptive, T1T2, …), not {method!r}")
    refuse_settings_of_tasks(method)
    plain = isinstance(method, Plain)
    for one in problem.hyperparameters:
        if one.per_step and not plain:
            raise UsageError(f"{method.name} moves {one.kind} while the network trains; declare it without per_step")
    kinds = moved_kinds(problem, method)
    if start := [kind for kind in kinds if kind in OF_THE_START]:
        raise UsageError(
            f"{method.name} moves what is in force while the network trains, w_0 is past: no {' and '.join(start)}"
        )
    for one in problem.hyperparameters:
        if one.kind in kinds and one.couples:
            raise UsageError(
                f"{method.name} clips each number for itself, {one.kind} has a projection of all of them together; use Box(), or "
                "move it between whole trainings"
            )
    if not kinds and not plain:
        declared = ", ".join(h.kind for h in problem.hyperparameters)
        raise UsageError(
            f"{method.name} moves {' or '.join(method.movable)}, declared is {declared}; declare one of them"
        )
    if blocks_left(problem, method, 0) < 1:
        raise UsageError(
            f"a block of {method.name} takes {method.block_steps} steps, the problem has {problem.steps}; "
            "lower the block or train longer"
        )
    if hasattr(method, "validation_batches"):
        refuse_without_valid(problem)
    batches = getattr(method, "validation_batches", 0)
    if batches * validation_size(problem) > len(problem.splits.valid):
        raise UsageError(
            f"{batches} validation batches of {validation_size(problem)} are more than the {len(problem.splits.valid)} "
            "examples of the valid split; set valid_batch on the problem, or lower validation_batches"
        )
    if isinstance(method, Adaptive):
        refuse_adaptive(problem, method)
    if isinstance(method, Almeida | OSGM):
        refuse_momentum(problem, method)
    if isinstance(method, MARTHE):
        m = count(problem.initial_hyper())
        if m > method.most:
            raise UsageError(
                f"{method.name} carries one state per hyperparameter, {m} are too many; share them or use Adaptive"
            )


def refuse_settings_of_tasks(method: Online) -> None:
    """What names entries of a Task's hyperparameters: a Problem has kinds, and says itself which of them is what."""
    usual = {"averaged": (), "rate": LEARNING_RATE} | ({} if isinstance(method, Adaptive) else {"moves": ()})
    for name, default in usual.items():
        if getattr(method, name, default) != default:
            raise UsageError(
                f"{method.name} {name}={getattr(method, name)!r} is for a Task; leave it out for a Problem"
            )


def refuse_adaptive(problem: Problem, method: Adaptive) -> None:
    for one in problem.hyperparameters:
        method.move(one.kind)
    if method.states == "undone":
        gamma = problem.dynamics.momentum
        if problem.dynamics.kind != "damped" or (problem.declared("momentum") is None and gamma == 0):
            raise UsageError(
                f"states='undone' divides by the momentum of the damped dynamics, this problem has "
                f"{problem.dynamics.kind} with {gamma:g}; keep the states"
            )
        momenta, K = held(problem, "momentum", None), method.last
        refuse_beyond(
            "adaptive with states='undone'", K, momenta, K, problem.precision, "lower last, or keep the states"
        )


def refuse_momentum(problem: Problem, method: Online) -> None:
    """Rules that are their own update: x ← x − p g."""
    if problem.declared("momentum") is not None or problem.dynamics.momentum != 0:
        raise UsageError(
            f"{method.name} is gradient descent without momentum; set Dynamics(momentum=0) and do not declare Momentum"
        )
    if problem.dynamics.kind not in ("damped", "heavy-ball"):
        raise UsageError(f"{method.name} is gradient descent, not {problem.dynamics.kind}; use damped with momentum 0")
    level = problem.declared("learning_rate").level  # type: ignore[union-attr]  # moved_kinds found it
    if isinstance(method, Almeida) and level != "parameter":
        raise UsageError(
            f"almeida has one learning rate for each parameter, declared is level {level!r}; use 'parameter'"
        )
