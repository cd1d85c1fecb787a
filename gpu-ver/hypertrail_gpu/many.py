"""Several runs in one compiled program on one device, side by side by `jax.vmap`: seeds, or settings of the hyperparameters.

    problems = many.seeds(problem, range(8))                  # eight problems that differ in w_0, batches and masks
    trainings = many.train(problems, hypers)                  # hypers: one for each run
    results = many.hypergradient(problems, hypers, trainings, Exact())
    errors = [one.error for one in many.evaluate(problems, trainings, "test")]

The records are those of `train`, `hypergradient` and `evaluate`, run by run, and the numbers are the same up to rounding
(float64: 1e-10). A program compiles once for each tuple of problems; keep it. Worth it where one run leaves the device idle:
small networks on a GPU. POOR on a processor: see gpu-ver/README.md for what was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import NumericalFailure, UsageError, VerificationFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.methods import EXACT_STEP, MEASURED_STEPS, DrMAD, Exact, Method, Truncated
from hypertrail.problem import Problem, Values
from hypertrail.records import Checkpointed, Cost, Hypergradient, Metrics, Training, Undoable, hypergradient_cost
from hypertrail.refusals import refuse, refuse_hyper
from hypertrail_data import MemoryTrajectory
from hypertrail_nets import get_all_layers

from . import devices, losses
from .compiled import CHUNK_BYTES, Compiled, chunk_length, precision
from .drmad import line
from .evaluation import batches_of
from .keeping import SHARE, cut, free_memory
from .methods import check
from .providers import Stored
from .reverse import LINE_SPAN

Array = Any
Tree = Any

LINES = ("C1", "C2", "C3", "C4")
# In which two runs may differ; in all else they are the same problem.
FREE = ("seed", "splits", "schedule")


def seeds(problem: Problem, numbers: Iterable[int]) -> tuple[Problem, ...]:
    """The problem with these seeds, of initial weights, batches and masks; the split stays."""
    return tuple(problem.with_(seed=s, schedule=replace(problem.schedule, seed=s)) for s in numbers)


def train(problems: Sequence[Problem], hypers: Sequence[Hyper], keep: str = "ends") -> list[Training]:
    """The S training runs of `training.train`, at once. keep: 'ends', or 'memory' (every state, on the device).

    problems: S of them that differ in seed, splits (of the same sizes) and schedule (of the same batch) alone; they may be
    the same. hypers: one for each. Cost: S T gradients; Cost.seconds is each run's share of the whole.
    Raises UsageError for problems that are not alike, for a `keep` that is neither, and where the estimate (`bytes_needed`)
    is more than half of the free memory; NumericalFailure, naming run and step, at the first loss that is not finite.
    """
    if keep not in ("ends", "memory"):
        raise UsageError(f"keep={keep!r} for runs side by side, expected 'ends' or 'memory'; take others run by run")
    refuse_counts(problems, hypers)
    for problem, hyper in zip(problems, hypers, strict=True):
        refuse_hyper(problem, hyper)
    started = time.perf_counter()
    with precision(problems[0]):
        programs = together(tuple(problems))
        refuse_memory(programs, keep == "memory")
        S, T = len(problems), problems[0].steps
        values = programs.values(stack(hypers))
        apart = programs.apart(values)
        initial = [p.scaled(p.initial_weights(), scales(v)) for p, v in zip(problems, apart, strict=True)]
        w0, v0 = stack(initial), stack([p.initial_velocity() for p in problems])
        state = (w0, v0, stack([p.initial_running() for p in problems]))
        kept = [MemoryTrajectory() for _ in problems]
        history = []
        for start, stop, states in cut(0, T, programs.chunk, keep == "memory"):
            xs = programs.steps(start, stop)
            state, sizes, done = programs.train_chunk[states](state, ((0, w0),), values, programs.data, xs)
            some, distances, pieces = done
            look(np.asarray(some), np.asarray(sizes), start)
            history.append((np.asarray(some, np.float64), np.asarray(distances, np.float64)[..., 0]))
            if states:
                for trajectory, piece in zip(kept, programs.apart(pieces), strict=True):
                    trajectory.append(start, piece)
        ends = jax.tree.map(np.asarray, programs.apart((*state, programs.weights(state[0], values))))
    steps_losses, distances = (np.concatenate(one, axis=1) for one in zip(*history, strict=True))
    seconds = (time.perf_counter() - started) / S
    runs = []
    for i, (final, velocity, running, weights) in enumerate(ends):
        trajectory = kept[i] if keep == "memory" else None
        runs.append(
            Training(
                initial=initial[i],
                final=final,
                weights=weights,
                velocity=velocity,
                running=running,
                losses=steps_losses[i],
                distances=distances[i][:MEASURED_STEPS],
                steps=T,
                trajectory=trajectory,
                cost=Cost(T, 0, seconds, 0 if trajectory is None else trajectory.nbytes),
                inputs=programs.inputs(apart[i]),
            )
        )
    return runs


def hypergradient(
    problems: Sequence[Problem], hypers: Sequence[Hyper], trainings: Sequence[Training], method: Method
) -> list[Hypergradient]:
    """The S hypergradients of `methods.hypergradient`, at once. method: Exact or Truncated over kept states, or DrMAD C1 to C4.

    trainings: of these problems with these hyperparameters, from `train` here or from the engine's. Lines of different
    lengths are walked until the longest is done. Cost: S times the method's; Cost.seconds is each run's share.
    Raises UsageError for other methods (take them run by run) and as the engine does, NumericalFailure naming the run.
    """
    if not isinstance(method, Exact | Truncated | DrMAD) or (
        isinstance(method, DrMAD) and method.completion not in LINES
    ):
        raise UsageError(
            f"{method.name} for runs side by side, expected exact, truncated or drmad-{' -'.join(LINES)}; take it run by run"
        )
    if isinstance(method, DrMAD) and method.choices.on:
        raise UsageError(f"{method.name} for runs side by side: choices of the original programs; take it run by run")
    refuse_counts(problems, hypers, trainings)
    for problem, training in zip(problems, trainings, strict=True):
        refuse(problem, training, method)
        if not isinstance(method, DrMAD) and isinstance(training.trajectory, Checkpointed | Undoable):
            raise UsageError("runs side by side read every state: train with keep='memory', or go back run by run")
    started = time.perf_counter()
    with precision(problems[0]):
        programs = together(tuple(problems))
        first = problems[0]
        hyper = jax.tree.map(lambda u: jnp.asarray(u, first.dtype), stack(hypers))
        values = programs.values(hyper)
        f, dw, dvalues = programs.hyper_gradient(stack([one.final for one in trainings]), values, programs.valid)
        f = np.asarray(f, np.float64)
        refuse_run(f, "hyper loss", first.steps)
        adjoint = (dw, stack([p.initial_velocity() for p in problems]), dvalues)
        if isinstance(method, DrMAD):
            (dw, dv, dvalues), norms = walk_lines(programs, adjoint, problems, trainings, method, values)
        else:
            (dw, dv, dvalues), norms = walk_states(programs, adjoint, trainings, method, values)
        if first.declared("initial_scale"):
            drawn = stack([p.initial_weights() for p in problems])
            dvalues = programs.pull_start(dvalues, values, drawn, dw)
        gradients = jax.tree.map(
            lambda a: np.asarray(a, np.float64), programs.apart(programs.pull_back(hyper, dvalues))
        )
        starts = jax.tree.map(np.asarray, programs.apart((dw, dv)))
    seconds = (time.perf_counter() - started) / len(problems)
    results = []
    for i, gradient in enumerate(gradients):
        check(gradient)
        results.append(
            Hypergradient(
                gradient=gradient,
                initial_weights=starts[i][0],
                initial_velocity=starts[i][1],
                hyper_loss=float(f[i]),
                adjoint_norms=norms[i][::-1].astype(np.float64),
                method=method.name,
                cost=hypergradient_cost(problems[i], trainings[i], method, len(norms[i]), seconds),
                diagnostics={
                    "N": len(norms[i]),
                    "zero": [kind for kind, one in gradient.items() if not any(map(np.any, one.values()))],
                },
            )
        )
    return results


def evaluate(problems: Sequence[Problem], trainings: Sequence[Training], split: str) -> list[Metrics]:
    """`evaluation.evaluate` of S runs, at once. Cost: S forward passes over the split; memory: S times the split."""
    refuse_counts(problems, trainings)
    with precision(problems[0]):
        programs = together(tuple(problems))
        found = [batches_of(p, t, split) for p, t in zip(problems, trainings, strict=True)]
        weights, running = stack([one.weights for one in trainings]), stack([one.running for one in trainings])
        out = np.asarray(programs.metrics(weights, running, stack([batches for batches, _ in found])), np.float64)
    examples = found[0][1]
    means = out.transpose(0, 2, 1, 3).reshape(len(problems), 2, -1)[..., :examples].mean(axis=-1)
    return [Metrics(loss=float(loss), error=float(error), examples=examples) for loss, error in means]


def walk_states(
    programs: Together, adjoint: Tree, trainings: Sequence[Training], method: Method, values: Tree
) -> tuple[Tree, list[np.ndarray]]:
    """`reverse.reverse_states`, all runs in step."""
    T = programs.keyed.problem.steps
    first = max(T - method.steps, 0) if isinstance(method, Truncated) else 0
    norms = np.empty((len(trainings), T))
    providers = [Stored(one, programs.chunk, programs.keyed.problem.dtype).backwards(first) for one in trainings]
    for pieces in zip(*providers, strict=True):
        start, stop, _ = pieces[0]
        states = [states for _, _, states in pieces]
        if programs.keyed.keeps_velocity and not all(any(k.startswith("v/") for k in one) for one in states):
            raise UsageError(
                "a trajectory holds no velocities, which learning rate and momentum need; train again with these "
                "hyperparameters declared"
            )
        adjoint, some = programs.reverse_chunk(adjoint, states, values, programs.data, programs.steps(start, stop))
        norms[:, start:stop] = some
        refuse_run(norms[:, start:stop], "adjoint of the weights ‖dw‖", start, last=True)
    if first == 0:
        for training, state in zip(trainings, states, strict=True):
            if any(np.any(np.asarray(state["w/" + name][0]) != one) for name, one in training.initial.items()):
                raise VerificationFailure("a trajectory does not lead back to the w_0 of its run; train again")
    return adjoint, list(norms[:, first:])


def walk_lines(
    programs: Together,
    adjoint: Tree,
    problems: Sequence[Problem],
    trainings: Sequence[Training],
    method: DrMAD,
    values: Tree,
) -> tuple[Tree, list[np.ndarray]]:
    """`reverse.reverse_line`, every run on its own line; those that have arrived wait."""
    lines = [line(p, t, method) for p, t in zip(problems, trainings, strict=True)]
    lengths = np.array([N for _, N in lines])
    norms = np.empty((len(lines), max(lengths)))
    keyed = [one._replace(t=(*one.t, *keys(p, len(one.rho)))) for p, (one, _) in zip(problems, lines, strict=True)]
    paths = stack(keyed)
    for stop in range(max(lengths), 0, -LINE_SPAN):
        start = max(stop - LINE_SPAN, 0)
        span = np.minimum(start, lengths).astype(np.int32), np.minimum(stop, lengths).astype(np.int32)
        adjoint, some = programs.reverse_line(adjoint, paths, values, programs.data, span)
        norms[:, start:stop] = np.asarray(some)[:, start:stop]
        refuse_run(norms[:, start:stop], "adjoint of the weights ‖dw‖", start, last=True)
    return adjoint, [one[:N] for one, N in zip(norms, lengths, strict=True)]


# -- the programs ---------------------------------------------------------------------------------------------------------


class Keyed(Compiled):
    """The programs of a problem whose mask key comes with the step: t = (step, row, factor, and the two words of the key)."""

    def __init__(self, problem: Problem, layout: devices.Layout) -> None:
        super().__init__(problem, layout)
        self.large = []  # a walk by rows is not for `vmap`

    def loss(self, w: Tree, values: Values, batch: tuple[Array, Array], t: tuple) -> tuple[Array, Tree]:
        return losses.elementary_loss(self.problem, w, self.complete(values), *batch, t[0], t[3:])

    def rates(self, values: Values, t: tuple) -> tuple[dict[str, Array], dict[str, Array]]:
        return super().rates(values, t[:3])


def together(problems: tuple[Problem, ...]) -> Together:
    """The programs of these very problems; the last four tuples are remembered, with their data on the device."""
    if devices.layout().count > 1:
        raise UsageError(f"runs side by side take one device, {devices.layout().count} are in use; devices.use(1)")
    return _together(problems)


@lru_cache(maxsize=4)
def _together(problems: tuple[Problem, ...]) -> Together:
    return Together(problems)


class Together:
    """The programs of `Compiled` with a leading axis of runs. Data that all runs share are there once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        refuse_unlike(problems)
        self.problems = problems
        self.keyed = p = Keyed(problems[0], devices.Layout())
        self.chunk = chunk_length(problems[0], CHUNK_BYTES // len(problems))
        self.inputs = p.inputs
        if all(one.splits is problems[0].splits for one in problems):
            self.data, self.valid, axis = p.train_data, p.valid_data, None
        else:
            splits = [one.splits.train for one in problems]
            x, y = stack([one.x for one in splits]), stack([one.y for one in splits])
            self.data, self.valid, axis = (
                (x.astype(problems[0].dtype), y),
                stack([one.valid_batches() for one in problems]),
                0,
            )
        t = (None, None, None, 0, 0)
        xs, origins = (0, t), ((None, 0),)

        def runs(f: Any, *axes: Any) -> Any:
            return jax.jit(jax.vmap(f, axes))

        self.values, self.weights = runs(p._values, 0), runs(p._weights, 0, 0)
        self.pull_back, self.pull_start = runs(p._pull_back, 0, 0), runs(p._pull_start, 0, 0, 0, 0)
        self.train_chunk = {
            keep: runs(partial(p._train_chunk, keep), 0, origins, 0, axis, xs) for keep in (False, True)
        }
        reverse = jax.vmap(p._reverse_chunk, (0, 0, 0, axis, xs))
        self.reverse_chunk = jax.jit(lambda adjoint, states, *rest: reverse(adjoint, stack(states), *rest))
        self.reverse_line = runs(partial(p._reverse_line, EXACT_STEP), 0, 0, 0, axis, 0)
        self.hyper_gradient = runs(p._hyper_gradient, 0, 0, axis)
        self.metrics = runs(p._metrics, 0, 0, 0)
        S = len(problems)
        self.apart = jax.jit(lambda tree: [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(S)])

    def steps(self, start: int, stop: int) -> tuple:
        """`Compiled.steps`, the indices and keys with an axis of runs in front."""
        _, t = self.keyed.steps(start, stop)
        indices = np.stack([p.schedule.indices(start, stop) for p in self.problems])
        return indices, (*t, *np.stack([keys(p, stop - start) for p in self.problems], axis=1))


def keys(problem: Problem, steps: int) -> np.ndarray:
    """(2, steps) uint32: the two words of the mask key, at every step."""
    return np.repeat(np.array(problem.noise_key, np.uint32)[:, None], steps, axis=1)


def stack(trees: Sequence[Tree]) -> Tree:
    """One tree whose arrays have a leading axis of runs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def scales(values: Values) -> Values:
    return {kind: jax.tree.map(np.asarray, one) for kind, one in values.items() if kind == "initial_scale"}


# -- what must hold -----------------------------------------------------------------------------------------------------


def refuse_counts(problems: Sequence[Problem], *others: Sequence[Any]) -> None:
    counts = [len(problems), *map(len, others)]
    if len(set(counts)) > 1 or not problems:
        raise UsageError(
            f"{' / '.join(map(str, counts))} problems and hyperparameters or trainings, expected one of each for each run, at "
            "least one"
        )


def refuse_unlike(problems: Sequence[Problem]) -> None:
    a = problems[0]
    for b in problems[1:]:
        unlike = [key for key in a.__dataclass_fields__ if key not in FREE and getattr(a, key) != getattr(b, key)]
        if sizes(a) != sizes(b):
            unlike.append(f"sizes of splits and batch, {sizes(a)} and {sizes(b)}")
        if unlike:
            raise UsageError(
                f"runs side by side may differ in {', '.join(FREE)}; these differ in {', '.join(unlike)}. "
                "Make them of one problem: many.seeds(problem, …), problem.with_(seed=…)"
            )


def sizes(problem: Problem) -> tuple[int, ...]:
    s = problem.splits
    return (len(s.train), len(s.valid), len(s.select), len(s.test), problem.schedule.batch)


def bytes_needed(programs: Together, states: bool) -> int:
    """An estimate of what the runs have on the device: kept states, eight of each run at work (w, v, g, adjoints, values),
    three times the activations of a batch (forward, backward, tangent), and data of their own."""
    p = programs.keyed.problem
    kept = p.steps * programs.keyed.state_bytes if states else 0
    activations = sum(math.prod(layer.shape) for layer in get_all_layers(p.network)) * p.dtype.itemsize
    weights = sum(one.size for one in p.params) * p.dtype.itemsize
    own = sum(one.nbytes for one in jax.tree.leaves((programs.data, programs.valid)))
    return len(programs.problems) * (kept + 8 * weights + 3 * p.schedule.batch * activations) + own


def refuse_memory(programs: Together, states: bool) -> None:
    needed, free = bytes_needed(programs, states), SHARE * free_memory()[0]
    if needed > free:
        fit = int(len(programs.problems) * free / needed)
        raise UsageError(
            f"{len(programs.problems)} runs side by side need about {needed / 1e9:.1f} GB, half of the free memory is "
            f"{free / 1e9:.1f} GB; run {max(fit, 1)} at a time, or keep less"
        )


def look(losses: np.ndarray, sizes: np.ndarray, start: int) -> None:
    """Raise for the first loss of a chunk (S, k) that is not finite, or for weights that are not at its end."""
    hint = "lower the learning rate or its bounds"
    refuse_run(losses, "elementary loss", start, hint)
    refuse_run(sizes, "elementary weights", start + losses.shape[1], hint)


def refuse_run(
    numbers: np.ndarray, quantity: str, start: int, hint: str = "the reverse pass diverged", last: bool = False
) -> None:
    """Raise NumericalFailure with the run and the first (or last) step of (S,) or (S, steps) numbers that are not finite."""
    bad = np.argwhere(~np.isfinite(numbers.reshape(len(numbers), -1)))
    if len(bad):
        run, step = max(bad, key=lambda one: one[1]) if last else min(bad, key=lambda one: one[1])
        raise NumericalFailure(f"{quantity} of run {run}", start + int(step), hint)
