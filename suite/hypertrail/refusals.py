"""Combinations that cannot work, refused with the reason and the way out, before anything is computed.

`refuse_plan` is asked before the training run, `refuse` once more before the reverse pass, where the run may be another
one than was planned. What is accepted here is what `hypertrail verify everything` walks through.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import UsageError
from .hyperparameters import Hyper, Hyperparameter, count
from .keeping import Checkpoints, Keep, Last, Reversible
from .methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated, refuse_short
from .problem import Problem
from .records import Checkpointed, Training, Undoable


def refuse_plan(problem: Problem, method: Method, keep: Keep) -> None:
    """Raise UsageError for a method that cannot give this problem's hypergradients, or not from what will be kept."""
    refuse_method(problem, method)
    if isinstance(keep, Reversible):
        refuse_reversible(problem)
    if isinstance(keep, Checkpoints):
        keep.at(problem.steps)
    if isinstance(method, Exact | Truncated):
        needed = problem.steps if isinstance(method, Exact) else min(method.steps, problem.steps)
        if keep == "ends" or (isinstance(keep, Last) and keep.steps < needed):
            raise UsageError(
                f"method {method.name} needs {needed} states, keep={keep!r} leaves fewer; keep 'memory' or Checkpoints()"
            )
    if isinstance(method, DrMAD) and method.completion == "C6" and not isinstance(keep, Checkpoints):
        raise UsageError("completion C6 walks between kept states: train with keep=Checkpoints(n)")


def refuse(problem: Problem, training: Training, method: Method) -> None:
    """Raise UsageError for a method that cannot go back from this training run."""
    if training.steps != problem.steps:
        raise UsageError(
            f"the training run took {training.steps} steps, the problem has {problem.steps}; train this problem"
        )
    refuse_method(problem, method)
    if isinstance(method, Exact | Truncated):
        refuse_states(training, method)
    if isinstance(method, DrMAD) and method.completion == "C6" and not isinstance(training.trajectory, Checkpointed):
        raise UsageError("completion C6 walks between kept states: train with keep=Checkpoints(n)")


def refuse_without_valid(problem: Problem) -> None:
    """The hyper loss is taken on the valid split."""
    if not len(problem.splits.valid):
        raise UsageError("the valid split is empty, and the hyper loss is taken on it; give it examples in make_splits")


def refuse_lengths(problem: Problem, lengths: Sequence[int]) -> None:
    """A hyperparameter per step has as many values as the problem has steps."""
    kinds = [h.kind for h in problem.hyperparameters if h.per_step]
    other = next((T for T in lengths if problem.steps != T), None)
    if kinds and other is not None:
        raise UsageError(
            f"{' and '.join(kinds)} per step: the {problem.steps} values of this problem do not fit a training of {other} steps; "
            "keep the length, or declare them without per_step"
        )


def refuse_hyper(problem: Problem, hyper: Hyper) -> None:
    """Raise UsageError for arrays that are not in the shapes of the declarations (those of another T, for instance)."""
    for kind, arrays in problem.hyper_shapes().items():
        for key, shape in arrays.items():
            found = np.shape(hyper[kind][key]) if key in hyper.get(kind, {}) else None
            if found != shape:
                raise UsageError(
                    f"{kind} {key}: {'no array' if found is None else f'an array of shape {found}'}, this problem declares "
                    f"{shape}; take problem.initial_hyper(), or what was tuned on a problem of the same declarations and steps"
                )


def refuse_method(problem: Problem, method: Method) -> None:
    """What the declarations alone tell."""
    refuse_without_valid(problem)
    rates = [h for h in problem.hyperparameters if h.kind in ("learning_rate", "momentum")]
    if isinstance(method, FloatReversed) or (isinstance(method, DrMAD) and method.completion == "C5"):
        refuse_undoing(problem, method)
    if isinstance(method, DrMAD):
        refuse_line(problem, method, rates)
    if isinstance(method, Forward):
        m = count(problem.initial_hyper())
        if m > method.most:
            raise UsageError(
                f"forward mode carries one state per hyperparameter, {m} are too many; share them or use exact"
            )
    start = problem.declared("initial_scale")
    if isinstance(method, Implicit) and method.solver == "dense":
        size = sum(one.size for one in problem.params)
        if size > method.most:
            raise UsageError(
                f"implicit-dense builds the Hessian of {size} parameters, allowed are {method.most}; use implicit-cg"
            )
    if isinstance(method, Implicit) and (rates or start):
        kinds = " and ".join(h.kind for h in (*rates, start) if h)
        raise UsageError(
            f"implicit differentiation sees only the minimum, not how it was reached: no gradient for {kinds}; use exact"
        )
    if isinstance(method, Implicit) and problem.declared("noise"):
        raise UsageError(
            "implicit differentiation takes the loss without dropout and noise: no gradient for noise; use exact"
        )
    if isinstance(method, Truncated) and start and method.steps < problem.steps:
        raise UsageError(
            f"truncated to {method.steps} of {problem.steps} steps never reaches w_0: no gradient for initial_scale; use exact "
            "or a line"
        )


def refuse_states(training: Training, method: Exact | Truncated) -> None:
    kept = training.trajectory
    if kept is None:
        raise UsageError(
            f"method {method.name} needs the trajectory: train with keep='memory', a folder or Checkpoints()"
        )
    needed = training.steps if isinstance(method, Exact) else min(method.steps, training.steps)
    if isinstance(kept, Checkpointed | Undoable):
        return
    if len(kept) < needed or kept.stop != training.steps:
        raise UsageError(
            f"the trajectory holds {len(kept)} of the {needed} states that {method.name} needs; keep them all"
        )


def refuse_undoing(problem: Problem, method: Method) -> None:
    """Undoing v ← γ v − (1−γ) g divides by γ."""
    if problem.dynamics.kind != "damped":
        raise UsageError(
            f"{method.name} undoes steps of the damped dynamics, not of {problem.dynamics.kind}; use exact"
        )
    if problem.declared("momentum") is None and problem.dynamics.momentum == 0:
        raise UsageError(f"{method.name} cannot undo a step with momentum 0, which forgets the velocity; use exact")


def refuse_line(problem: Problem, method: DrMAD, rates: list[Hyperparameter]) -> None:
    c, dynamics = method.completion, problem.dynamics.kind
    if c == "C4":
        refuse_short(problem.steps)
    if dynamics == "adam":
        raise UsageError(
            f"completion {c}: a line knows no moments, which Adam's adjoint needs at every step; use exact"
        )
    if c == "C0" and rates:
        kinds = " and ".join(h.kind for h in rates)
        raise UsageError(f"completion C0 has neither learning rate nor velocity, so no gradient for {kinds}; use C1")
    if c == "C0" and dynamics != "damped":
        raise UsageError("completion C0 is algorithm 2 of DrMAD, written for the damped dynamics; use C1 or C4")
    if dynamics == "nesterov" and rates:
        kinds = " and ".join(h.kind for h in rates)
        raise UsageError(
            f"completion {c}: under nesterov the way from point to point holds g beside v, so a line tells no velocity and "
            f"there is no gradient for {kinds}; use exact, or heavy-ball"
        )
    refuse_choices(problem, method, rates)
    if c in ("C3", "C4", "C5", "C6") and any(h.per_step for h in rates):
        raise UsageError(
            f"completion {c} walks a stretch with one learning rate, a per-step one has no gradient in it; use C1"
        )


def refuse_choices(problem: Problem, method: DrMAD, rates: list[Hyperparameter]) -> None:
    """Choices of the original programs that would change nothing here, or have no meaning."""
    kinds, choices = [h.kind for h in rates], method.choices
    if choices.line_dalpha and "learning_rate" not in kinds:
        raise UsageError("line_dalpha is about the gradient of the learning rate, which is not declared; leave it out")
    if choices.end_velocity and not rates:
        raise UsageError(
            "end_velocity is about the velocity, which only learning rate and momentum need; declare one, or leave it out"
        )
    if (choices.line_dalpha or choices.end_velocity) and problem.dynamics.kind not in ("damped", "heavy-ball"):
        raise UsageError(
            f"{' and '.join(choices.on)}: the velocity of a line that carries w_(i-1) to w_i, which {problem.dynamics.kind} "
            "has not; use damped or heavy-ball"
        )


def refuse_reversible(problem: Problem) -> None:
    """Exact reversal divides by γ, in integers."""
    if problem.dynamics.kind != "damped":
        raise UsageError(f"exact reversal undoes damped momentum, not {problem.dynamics.kind}; keep the states instead")
    if problem.declared("momentum") is None and not 2**-16 <= problem.dynamics.momentum <= 1 - 2**-16:
        raise UsageError(
            f"exact reversal needs a momentum between 2^-16 and 1 − 2^-16, got {problem.dynamics.momentum}; keep the states"
        )
