"""Combinations that cannot work, refused with the reason and the way out, before anything is computed.

`refuse_plan` is asked before the training run, `refuse` once more before the reverse pass, where the run may be another
one than was planned. What is accepted here is what `hypertrail verify everything` walks through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from . import memory
from .errors import UsageError
from .hyperparameters import OF_THE_START, Hyper, Hyperparameter, count
from .keeping import Checkpoints, Keep, Last, Reversible
from .mantissa import refuse_beyond
from .methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated, refuse_short, tail_of
from .problem import Problem
from .records import Checkpointed, Training, Undoable


def refuse_plan(problem: Problem, method: Method, keep: Keep) -> None:
    """Raise UsageError for a method that cannot give this problem's hypergradients, or not from what will be kept."""
    if not isinstance(problem, Problem):  # a task knows by itself what it cannot do
        return problem.refuse_plan(method, keep)
    refuse_method(problem, method)
    starts = keep.at(problem.steps) if isinstance(keep, Checkpoints) else None
    refuse_numbers(problem, method, None, starts)
    if isinstance(keep, Reversible):
        refuse_reversible(problem)
    if isinstance(method, Exact | Truncated):
        needed = problem.steps if isinstance(method, Exact) else min(method.steps, problem.steps)
        if keep == "ends" or (isinstance(keep, Last) and keep.steps < needed):
            raise UsageError(
                f"method {method.name} needs {needed} states, keep={keep!r} leaves fewer; keep 'memory' or Checkpoints()"
            )
    if isinstance(method, DrMAD) and method.completion == "C6" and not isinstance(keep, Checkpoints):
        raise UsageError("completion C6 walks between kept states: train with keep=Checkpoints(n)")


def refuse(problem: Problem, training: Training, method: Method, hyper: Hyper | None = None) -> None:
    """Raise UsageError for a method that cannot go back from this training run. hyper: what it ran with; None: the inits."""
    if training.steps != problem.steps:
        raise UsageError(
            f"the training run took {training.steps} steps, the problem has {problem.steps}; train this problem"
        )
    refuse_method(problem, method)
    kept = training.trajectory
    refuse_numbers(problem, method, hyper, kept.at if isinstance(kept, Checkpointed) else None)
    if isinstance(method, Exact | Truncated):
        refuse_states(training, method)
    if isinstance(method, DrMAD) and method.completion == "C6" and not isinstance(training.trajectory, Checkpointed):
        raise UsageError("completion C6 walks between kept states: train with keep=Checkpoints(n)")


def refuse_without_valid(problem: Problem) -> None:
    """The hyper loss is taken on the valid split."""
    if isinstance(problem, Problem) and not len(problem.splits.valid):
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


def refuse_other_shapes(problem: Problem, shapes: dict[str, dict[str, tuple[int, ...]]], k: int) -> None:
    """Raise UsageError where the problem of meta-iteration k declares other hyperparameters than the first one."""
    if problem.hyper_shapes() != shapes:
        raise UsageError(
            f"the problem of meta-iteration {k} declares hyperparameters of other kinds or shapes than the one before; "
            "change its seed, batches or examples only"
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
    start = [h for h in problem.hyperparameters if h.kind in OF_THE_START]
    if isinstance(method, Implicit) and method.solver == "dense":
        size = sum(one.size for one in problem.params)
        if size > method.most:
            raise UsageError(
                f"implicit-dense builds the Hessian of {size} parameters, allowed are {method.most}; use implicit-cg"
            )
    if isinstance(method, Implicit) and (rates or start):
        kinds = " and ".join(h.kind for h in (*rates, *start))
        raise UsageError(
            f"implicit differentiation sees only the minimum, not how it was reached: no gradient for {kinds}; use exact"
        )
    if isinstance(method, Implicit) and problem.declared("noise"):
        raise UsageError(
            "implicit differentiation takes the loss without dropout and noise: no gradient for noise; use exact"
        )
    if isinstance(method, Truncated) and start and method.steps < problem.steps:
        raise UsageError(
            f"truncated to {method.steps} of {problem.steps} steps never reaches w_0: no gradient for "
            f"{' and '.join(h.kind for h in start)}; use exact or a line"
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


# -- numbers: momenta and learning rates with which a pass would return noise or zeros ----------------------------------


def refuse_numbers(problem: Problem, method: Method, hyper: Hyper | None, starts: Sequence[int] | None) -> None:
    """Raise UsageError where the momenta or learning rates of this run make the pass of a method meaningless.

    hyper: what the run has; None: the inits. starts: the steps of the checkpoints, for C6.
    """
    T = problem.steps
    momenta = held(problem, "momentum", hyper)
    if isinstance(method, FloatReversed) and not method.beyond:
        way_out = "use exact, fewer steps or float64, or FloatReversed(beyond=True) to watch it fail"
        refuse_beyond(method.name, T, momenta, T, problem.precision, way_out)
    if not isinstance(method, DrMAD):
        return
    stretches = {"C3": [(0, T)], "C4": [(0, T)]}.get(method.completion, [])
    if method.completion == "C5":
        K = tail_of(method, momenta, T)
        refuse_beyond(
            f"{method.name} with a tail of {K}", K, momenta, T, problem.precision, "use a shorter tail or exact"
        )
        stretches = [(0, T - K)]
    if method.completion == "C6" and starts is not None:
        stretches = list(zip(starts, [*starts[1:], T], strict=True))
    refuse_still(problem, method, hyper, stretches)


def refuse_still(problem: Problem, method: DrMAD, hyper: Hyper | None, stretches: Sequence[tuple[int, int]]) -> None:
    """A stretch is walked with the learning rate of its last step: at 0 nothing would come back. And a line's velocity is
    what it moves by over the learning rate, which cannot be 0."""
    still = np.flatnonzero(smallest_rates(problem, hyper) == 0)
    for start, stop in stretches:
        if stop - start > 1 and stop - 1 in still:
            raise UsageError(
                f"completion {method.completion} walks steps {start} to {stop - 1} with the learning rate of the last of them, "
                "and the schedule makes that 0: every derivative would be 0; let the schedule end above 0, or use exact"
            )
    N = {"C1": max(1, problem.steps // 10), "C2": problem.steps}.get(method.completion, 0)
    if problem.needs_velocity() and len(inside := still[(still > 0) & (still < N)]):
        raise UsageError(
            f"completion {method.completion} divides by the learning rate of step {inside[0]} to find the velocity, and the "
            "schedule makes that 0; keep the schedule above 0, or use exact"
        )


def smallest_rates(problem: Problem, hyper: Hyper | None) -> np.ndarray:
    """(T,) α of each step in the precision of the problem, the schedule's factor included: of the tensors, the smallest."""
    declared = problem.declared("learning_rate")
    values = held(problem, "learning_rate", hyper)
    if declared is not None and declared.per_step:
        smallest: np.ndarray = np.min([one.reshape(len(one), -1).min(axis=1) for one in values], axis=0)
    else:
        smallest = np.asarray(min(float(np.min(one)) for one in values))
    return problem.dynamics.factors(problem.steps).astype(problem.dtype) * smallest.astype(problem.dtype)


def held(problem: Problem, kind: str, hyper: Hyper | None) -> list[np.ndarray]:
    """The values of learning rate or momentum: of what hyper holds, else the init, else the constant of the dynamics."""
    declared = problem.declared(kind)
    if declared is None:
        return [np.asarray(getattr(problem.dynamics, kind), np.float64)]
    if hyper is None:
        shape = (problem.steps,) if declared.per_step else ()
        return [np.full(shape, declared.init)]
    return [np.asarray(declared.value(np.asarray(u, np.float64))) for u in hyper[kind].values()]


LEAST = 2.0**-16  # of γ and of 1 − γ, for a fraction of 2^16


def refuse_reversible(problem: Problem) -> None:
    """Exact reversal divides by γ, in integers: by a fraction of 2^16 that must be neither 0 nor 1."""
    if problem.dynamics.kind != "damped":
        raise UsageError(f"exact reversal undoes damped momentum, not {problem.dynamics.kind}; keep the states instead")
    declared = problem.declared("momentum")
    if declared is None:
        refuse_momenta([np.asarray(problem.dynamics.momentum)])
        return
    refuse_momenta([np.asarray(declared.init)])
    low, high = declared.bounds
    if not (reversible(low) and reversible(high)):
        raise UsageError(
            f"exact reversal needs a momentum between 2^-16 and 1 − 2^-16, and the declared bounds [{low:g}, {high:g}] let it "
            "leave them; narrow the bounds, or keep the states"
        )


def refuse_momenta(momenta: Iterable[np.ndarray]) -> None:
    """Raise UsageError for the first momentum, of any tensor and any step, that is no fraction of 2^16 between 0 and 1."""
    for gamma in momenta:
        outside = np.ravel(gamma)[~np.ravel(reversible(gamma))]
        if len(outside):
            raise UsageError(
                f"exact reversal needs a momentum between 2^-16 and 1 − 2^-16, got {float(outside[0]):g}; narrow its bounds, or "
                "keep the states"
            )


def reversible(gamma: float | np.ndarray) -> np.ndarray:
    """Whether a momentum can be undone in integers; False for NaN. The last digits of float32 do not count: logit γ and back
    changes them."""
    gamma = np.asarray(gamma, np.float64)
    return (gamma >= LEAST * (1 - 1e-5)) & (1 - gamma >= LEAST * (1 - 1e-2))


def refuse_too_large(problem: Problem) -> None:
    """UsageError for a problem whose weights and hyperparameters alone do not fit into the memory of this machine.

    A training and its reverse pass hold five arrays of the size of the weights (w, v, g, dw, dv) in the precision of the problem
    and three of that of the hyperparameters (λ, its gradient, its buffer) in float64. Nothing of that size is made here.
    """
    if not isinstance(problem, Problem):  # the arrays of a task are there already
        return
    weights = sum(math.prod(one.shape) for one in problem.params)
    hypers = sum(math.prod(shape) for shapes in problem.hyper_shapes().values() for shape in shapes.values())
    needed, there = 5 * problem.dtype.itemsize * weights + 3 * 8 * hypers, memory.of_machine()
    if needed > there:
        raise UsageError(
            f"{weights:,} weights and {hypers:,} hyperparameters need {needed / 2**30:,.0f} GiB at least, and this machine has "
            f"{there / 2**30:,.0f}; ask for a smaller network, or for fewer hyperparameters (a sharing level above parameter)"
        )
