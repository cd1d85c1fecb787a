"""The meta loop: train, measure, take the hypergradient, move the hyperparameters, train again.

`tune` is a generator of records and touches no file; `into_run` drives it and writes a run folder. Both are engine
agnostic. After the last update the network is trained once more, so that the last record shows what the last
hyperparameters do, not what the last but one did.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hypertrail_data import DataError, TrajectoryError

from . import diagnostics, memory, outer, stopping
from .blown_up import blown_up, norm
from .engines import Engine
from .errors import NumericalFailure, UsageError
from .hyperparameters import Hyper
from .keeping import Checkpoints, Keep, Last, from_middle, parse_keep
from .methods import DrMAD, Exact, Method, Truncated
from .problem import Problem
from .records import Cost, Hypergradient, Metrics, Training
from .refusals import refuse_lengths, refuse_other_shapes, refuse_plan, refuse_without_valid
from .runs import Run, arrays, reading, refuse_other_data
from .runs.midway import Middle, Midway
from .runs.names import HYPERGRADIENTS, STATES, STEPS, TRAINING, TRAJECTORY
from .vanished import vanished

Report = Callable[[int, str, int, int], None]  # (meta-iteration, stage, done, in all), called between chunks of steps


@dataclass(frozen=True)
class Start:
    """Where the loop begins: the meta-iteration, the hyperparameters and outer state before it."""

    index: int
    hyper: Hyper
    state: outer.State


@dataclass(frozen=True)
class MetaIteration:
    """One training run and what it led to.

    hyper: in force while training; after, state: hyperparameters and outer state after the update. metrics: loss and error
    of every split that is not empty. hypergradient, exact, agreement: None in the closing record, exact and agreement
    also where nothing was compared. costs: by stage: train, evaluate, hypergradient, exact. losses: (T,) elementary loss of
    each step before it was taken. warnings: what makes its numbers doubtful, in sentences: a training that has blown up without
    overflow, a hyperparameter that is 0 in the precision of the run.
    """

    index: int
    steps: int
    metrics: dict[str, Metrics]
    hyper_loss: float
    hyper: Hyper
    after: Hyper
    state: outer.State
    hypergradient: Hypergradient | None = None
    exact: Hypergradient | None = None
    agreement: dict[str, diagnostics.KindAgreement] | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        line: dict[str, Any] = {
            "meta_iteration": self.index,
            "steps": self.steps,
            "metrics": {split: one.as_json() for split, one in self.metrics.items()},
            "hyper_loss": self.hyper_loss,
            "cost": {stage: asdict(cost) for stage, cost in self.costs.items()},
            "hyper": {kind: summary(self.hyper[kind]) for kind in self.hyper},
        }
        if self.warnings:
            line["warnings"] = list(self.warnings)
        if self.hypergradient is not None:
            line["method"] = self.hypergradient.method
            line["diagnostics"] = plain(self.hypergradient.diagnostics)
            line["norm"] = {kind: norm(one) for kind, one in self.hypergradient.gradient.items()}
        if self.agreement is not None:
            line["agreement"] = diagnostics.as_json(self.agreement)
        return line


def tune(
    problem: Problem,
    engine: Engine,
    method: Method,
    rule: outer.Rule,
    meta_iterations: int,
    compare_exact: bool = False,
    steps: Callable[[int], int] | None = None,
    keep: Keep = "memory",
    report: Report | None = None,
    start: Start | None = None,
    midway: Callable[[int], Midway] | None = None,
    problem_for: Callable[[int], Problem] | None = None,
) -> Iterator[MetaIteration]:
    """meta_iterations + 1 records (without those before `start`); every training starts from the same w_0, unless `problem_for`
    says otherwise.

        repeat k = 0 … meta_iterations − 1:  w_T ← train(λ),  h ← df(w_T)/dλ,  λ ← rule(λ, h), clipped
        and once more:                       w_T ← train(λ)

    compare_exact: take the exact hypergradient beside the method's (which alone moves λ) and measure the agreement.
    midway: the file in which the training of meta-iteration k keeps its middle, and its end while the reverse passes are at
    work; None: it keeps none.
    steps: T of meta-iteration k; None: the problem's.
    problem_for: the problem of meta-iteration k, the closing one included; None: `problem` every time. It must be a pure
    function of k, so that a run that was stopped goes on to the same bits, and must declare the same hyperparameters. Other
    seeds, batches or examples (of the same sizes) compile nothing anew.
    keep: where the trajectory goes when the exact pass needs it.
    Cost of one meta-iteration: T gradients, the method's cost, 3 T more gradients where exact is asked, every split
    forward once. Raises NumericalFailure and what the engine raises; what was yielded before stays good. Stopped, between
    two chunks of steps, where a signal has asked: the end of the meta-iteration may be hours away.
    """
    if meta_iterations < 0:
        raise UsageError(f"meta-iterations {meta_iterations}, expected 0 or more")
    also_exact = beside(compare_exact, method)
    refuse_without_valid(problem)
    if steps is not None:
        refuse_lengths(problem, [steps(k) for k in range(meta_iterations + 1)])
    if start is None:
        start = beginning(problem, rule)
    hyper, state, shapes = start.hyper, start.state, problem.hyper_shapes()
    lengths = {problem.steps} if steps is None else {steps(k) for k in range(meta_iterations)}
    for T in sorted(lengths) if meta_iterations else ():
        refuse_plan(problem.with_(steps=T), method, keep_for(method, also_exact, keep))
    for k in range(start.index, meta_iterations + 1):
        if problem_for is not None:
            problem = problem_for(k)
            refuse_other_shapes(problem, shapes, k)
        T = problem.steps if steps is None else steps(k)
        if problem.steps != T:  # a new problem compiles anew, so only where it must be
            problem = problem.with_(steps=T)
        last = k == meta_iterations
        kept = keep_for(method, also_exact, keep)
        if last and kept != "memory":  # in memory the closing training keeps them too: that program is compiled already
            kept = "ends"
        middle = midway and midway(k)
        training = engine.train(problem, hyper, kept, stage(report, k, "train", T), middle)
        end = partial(put_end, middle, training) if middle and from_middle(kept) else None
        costs = {"train": training.cost}
        warnings = doubts(problem, hyper, training)
        clock = time.perf_counter()
        with let_go_after_failure(training):
            metrics = {split: engine.evaluate(problem, training, split) for split in problem.split_names}
            refuse_nonfinite(metrics, k, T)
        costs["evaluate"] = Cost(seconds=time.perf_counter() - clock)
        if last:
            with let_go_after_failure(training):
                f = engine.hyper_loss(problem, training)
            let_go(training)
            yield MetaIteration(
                k, T, metrics, f, hyper, hyper, state, costs=costs, losses=training.losses, warnings=warnings
            )
            return
        exact = agreement = None
        with let_go_after_failure(training):
            result = engine.hypergradient(problem, hyper, training, method, stage(report, k, "hypergradient", T, end))
            costs["hypergradient"] = result.cost
            if also_exact:
                exact = engine.hypergradient(problem, hyper, training, Exact(), stage(report, k, "exact", T, end))
                costs["exact"] = exact.cost
        f = result.hyper_loss
        let_go(training)
        for one in (result, exact):
            if one is not None:
                one.gradient = in_order(one.gradient, hyper)
                outer.refuse_nonfinite(one.gradient, k)
        if exact is not None:
            agreement = diagnostics.agreement(result.gradient, exact.gradient)
        after, state = outer.update(rule, problem.hyperparameters, hyper, result.gradient, state)
        yield MetaIteration(
            k, T, metrics, f, hyper, after, state, result, exact, agreement, costs, training.losses, warnings
        )
        hyper = after


def into_run(
    run: Run,
    problem: Problem,
    engine: Engine,
    method: Method,
    rule: outer.Rule,
    meta_iterations: int,
    compare_exact: bool = False,
    steps: Callable[[int], int] | None = None,
    trajectory: str = "memory",
    report: Report | None = None,
    finished: Callable[[MetaIteration], None] | None = None,
    problem_for: Callable[[int], Problem] | None = None,
) -> list[dict[str, Any]]:
    """`tune`, written to a run folder as it goes; returns the lines of metrics.jsonl. Goes on where an earlier start ended.

    The state before meta-iteration k is on the disk before it starts, the hypergradient before the state that it led to, that
    state before the line that speaks of it: whatever stops the run, the last good state is there, and what follows it is
    computed again to the same bits (`taken_up`): from the middle or the end of its training where that is kept (midway.py), else
    from its beginning. trajectory: a word that `keeping.parse_keep` knows
    ('disk': HDF5 in trajectory/, each in the place of the one before). finished: called after each record is written. Raises what
    `tune` raises, Stopped after a saved meta-iteration too.
    """

    def data_of(k: int) -> str:
        return (problem if problem_for is None else problem_for(k)).digest

    start, lines = taken_up(run, problem, rule, meta_iterations)
    for line in lines if problem_for is None else lines[-1:]:  # of several data sets the last one is looked at
        sha256 = data_of(line["meta_iteration"])
        refuse_other_data(f"meta-iteration {line['meta_iteration']}", sha256, line.get("data", sha256))
    folder = run.path / TRAJECTORY
    keep = parse_keep(trajectory, folder)
    before = {start.index: arrays.as_nested(start.hyper, start.state)}

    def midway(k: int) -> Midway:
        return Midway(run.path / TRAINING, k, mark(run, problem, k, before[k]))

    if start.index <= meta_iterations:
        kept = "ends" if start.index == meta_iterations else keep_for(method, beside(compare_exact, method), keep)
        told = middle_or_nothing(midway(start.index), problem, folder if kept == folder else None)
        if told and not run.fresh:
            run.log(told)
    loop = tune(
        problem, engine, method, rule, meta_iterations, compare_exact, steps, keep, report, start, midway, problem_for
    )
    for record in begin_again_after_damage(loop, run):
        k = record.index
        files = save_arrays(run, record)
        used = {"host": memory.peak(), "device": engine.device_memory()}
        lines.append({**record.as_json(), "memory": used, "files": files, "data": data_of(k)})
        run.append(lines[-1])
        (run.path / TRAINING).unlink(missing_ok=True)
        before = {k + 1: arrays.as_nested(record.after, record.state)}
        if finished is not None:
            finished(record)
        if record.hypergradient is not None:
            stopping.here(f"meta-iteration {record.index}")
        if keep == folder and record.index < meta_iterations - 1:
            shutil.rmtree(folder, ignore_errors=True)
    return lines


def mark(run: Run, problem: Problem, k: int, before: dict[str, Any]) -> str:
    """A word that only the training of meta-iteration k of this run has: it comes from the settings, the data, and the state
    before."""
    text = f"{run.identity} {problem.digest} {k} {arrays.digest(before)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_arrays(run: Run, record: MetaIteration) -> dict[str, str]:
    """Write the arrays of a record; {file: its sha256}, for the line that speaks of them."""
    files: dict[Path, str] = {}
    if record.hypergradient is not None:
        gradients = {"hypergradient": record.hypergradient.gradient}
        if record.exact is not None:
            gradients["exact"] = record.exact.gradient
        path = run.hypergradient(record.index)
        files[path] = arrays.save(path, gradients)
        path = run.state(record.index + 1)
        files[path] = arrays.save_state(path, record.after, record.state)
    path = run.steps(record.index)
    files[path] = arrays.save(path, every_step(record))
    return {run.name_of(path): sha256 for path, sha256 in files.items()}


def begin_again_after_damage(loop: Iterator[MetaIteration], run: Run) -> Iterator[MetaIteration]:
    """The same records. Where a stored segment turns out to be damaged, the training is let go of and what to do is said."""
    try:
        yield from loop
    except TrajectoryError as damage:
        if damage.segment is None:
            raise
        (run.path / TRAINING).unlink(missing_ok=True)
        raise DataError(
            f"{run.path / TRAJECTORY}: segment {damage.segment} is damaged; run the same command with --run-dir {run.path}: the "
            "training of this meta-iteration begins again"
        ) from damage


def every_step(record: MetaIteration) -> dict[str, np.ndarray]:
    """What was measured at every step: loss, forwards; adjoint (and exact_adjoint), ‖dw‖ of the reverse pass, last step first."""
    found = {"loss": record.losses}
    for name, one in (("adjoint", record.hypergradient), ("exact_adjoint", record.exact)):
        if one is not None:
            found[name] = one.adjoint_norms
    return found


def doubts(problem: Problem, hyper: Hyper, training: Training) -> tuple[str, ...]:
    """What makes the numbers of a training doubtful though they are finite, in sentences. Cost: a pass over weights and λ."""
    lost = blown_up(norm(training.initial), norm(training.final), training.losses[0], training.losses[-1])
    return (
        *([f"the training has blown up: {lost}"] if lost else []),
        *vanished(problem.hyperparameters, hyper, problem.dtype),
    )


def beginning(problem: Problem, rule: outer.Rule) -> Start:
    hyper = problem.initial_hyper()
    return Start(0, hyper, rule.start(hyper))


def taken_up(run: Run, problem: Problem, rule: outer.Rule, meta_iterations: int) -> tuple[Start, list[dict[str, Any]]]:
    """Where the run in this folder goes on, and the lines of what lies before; the rest is cut off and done again.

    A meta-iteration is done where its line, its hypergradient and the state after it are there. The closing record has its line
    alone; where it was written and more meta-iterations are asked for now, it is redone as one of them. A new folder begins
    with state 0.
    """
    lines = run.keep_lines(meta_iterations + 1)
    whole = whole_lines(run, lines)
    done = min(whole, meta_iterations)
    while done and "method" not in lines[done - 1]:
        done -= 1
    first = beginning(problem, rule)
    start = state_of(run, lines, done, first)
    while start is None:
        done -= 1
        start = state_of(run, lines, done, first)
    closed = whole == len(lines) == meta_iterations + 1 == done + 1
    if closed:
        start = Start(done + 1, start.hyper, start.state)
    lines = run.keep_lines(start.index)
    arrays.save_state(run.state(0), first.hyper, first.state)
    for folder, kept in ((STATES, done + 1), (HYPERGRADIENTS, done), (STEPS, start.index)):
        for path in (run.path / folder).glob("*.npz"):
            if path.stem.isdecimal() and int(path.stem) >= kept and not path.is_dir():
                path.unlink()
    if not run.fresh:
        run.log(f"goes on at meta-iteration {start.index}" if not closed else "goes on with the report")
    return start, lines


def whole_lines(run: Run, lines: Sequence[Mapping[str, Any]]) -> int:
    """How many lines from the first one on are of the meta-iterations 0, 1, 2 … and speak of files that are as they were."""
    for k, line in enumerate(lines):
        if line.get("meta_iteration") != k:
            return k
        if not reading.files_are_whole(run.path, dict(line)):
            run.log(f"meta-iteration {k} is done again: one of its files is not as it was written")
            return k
    return len(lines)


def middle_or_nothing(midway: Midway, problem: Problem, folder: Path | None) -> str:
    """See to it that the first training finds its middle, with all states before it in `folder` (None: none are kept), or
    nothing at all. What it finds, in words."""
    middle = midway.read()
    if middle is not None and not (fits(middle, problem) and (folder is None or covers(folder, middle.step, midway))):
        middle = None
    if middle is None:
        midway.forget()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return ""
    return f"the training goes on at step {middle.step}"


def fits(middle: Middle, problem: Problem) -> bool:
    """Whether the arrays of a middle are those of a training of this problem."""
    there = {"w": middle.w, "v": middle.v, "running": middle.running}
    like = {"w": problem.initial_weights(), "v": problem.initial_velocity(), "running": problem.initial_running()}
    return arrays.alike(there, like)


def covers(folder: Path, step: int, midway: Midway) -> bool:
    """Whether a stored trajectory of this training holds the states 0 … step − 1, all of them as they were written. Costs reading
    them."""
    from hypertrail_data import StoredTrajectory  # h5py: only where states lie on the disk

    try:
        with StoredTrajectory.open(folder) as trajectory:
            if trajectory.meta.get("mark") != midway.mark or trajectory.start != 0 or trajectory.stop < step:
                return False
            trajectory.verify()
            return True
    except DataError:
        return False


def state_of(run: Run, lines: Sequence[dict[str, Any]], k: int, first: Start) -> Start | None:
    """The state before meta-iteration k; None where it is not there, not whole, or not of this problem. The first is not read:
    it is declared."""
    if k == 0:
        return first
    path = run.state(k)
    sha256 = reading.files_of(lines[k - 1 : k]).get(run.name_of(path))
    if sha256 is None:
        return None
    try:
        hyper, state = arrays.load_state(path, sha256)
    except (UsageError, DataError):
        return None
    like = arrays.as_nested(first.hyper, first.state)
    return Start(k, hyper, state) if arrays.alike(arrays.as_nested(hyper, state), like) else None


def beside(compare_exact: bool, method: Method) -> bool:
    """Whether the exact hypergradient is taken beside the method's: not where they are the same."""
    return compare_exact and not isinstance(method, Exact)


def keep_for(method: Method, also_exact: bool, keep: Keep) -> Keep:
    """What a training run must keep for the method (and the exact one beside it); `keep` is how, where all states count."""
    if isinstance(method, DrMAD) and method.completion == "C6":
        return keep if isinstance(keep, Checkpoints) else Checkpoints()  # the exact pass goes from checkpoints as well
    if also_exact or isinstance(method, Exact):
        return keep
    return Last(method.steps) if isinstance(method, Truncated) else "ends"


def let_go(training: Training) -> None:
    """Close the trajectory: it may fill the memory, and the next one is about to grow."""
    if training.trajectory is not None:
        training.trajectory.close()


@contextmanager
def let_go_after_failure(training: Training) -> Iterator[None]:
    try:
        yield
    except BaseException:  # a signal counts too
        let_go(training)
        raise


def in_order(gradient: Hyper, hyper: Hyper) -> Hyper:
    """The same arrays in the order of `hyper`, that of the network (JAX sorts by name)."""
    return outer.tree(lambda u, h: h, hyper, gradient)


def put_end(midway: Midway, training: Training) -> None:
    """See to it that the end of the training is on the disk, once that is due: what stops a reverse pass does not cost the
    training then. States that are kept in a folder are put there before."""
    if not midway.due() or midway.ended:
        return
    if training.trajectory is not None:
        training.trajectory.flush()
    one = training
    midway.write(
        Middle(one.steps, one.final, one.velocity, one.running, one.losses, one.distances, one.cost.seconds), ended=True
    )


def stage(
    report: Report | None, k: int, name: str, total: int, save: Callable[[], None] | None = None
) -> Callable[[int, int], None]:
    """A stage's own progress; it is announced at once, as what comes first may be minutes of compilation.

    Between two chunks is also where a signal stops it, after `save`.
    """

    def progress(done: int, total: int) -> None:
        if report is not None:
            report(k, name, done, total)
        if save is not None:
            save()
        stopping.here(f"step {done} of {total} ({name}, meta-iteration {k})")

    progress(0, total)
    return progress


def warnings_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """'meta-iteration 3: the training has blown up: …' for every warning in these lines of metrics.jsonl that are of one."""
    return [
        f"meta-iteration {line['meta_iteration']}: {sentence}"
        for line in lines
        if "meta_iteration" in line
        for sentence in line.get("warnings", ())
    ]


def summary(kind: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean and extremes of one kind's unconstrained arrays."""
    flat = np.concatenate([np.asarray(u, dtype=np.float64).reshape(-1) for u in kind.values()])
    return {"mean": float(flat.mean()), "min": float(flat.min()), "max": float(flat.max())}


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """Diagnostics as JSON holds them: NumPy scalars to Python's, what is not a finite number or a word left out."""
    out = {}
    for key, value in record.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, (str, bool, int)) or (isinstance(value, float) and np.isfinite(value)):
            out[key] = value
    return out


def refuse_nonfinite(metrics: dict[str, Metrics], k: int, steps: int) -> None:
    """NumericalFailure for a loss or a metric that is not finite: the elementary loss may be finite where a split's is not."""
    for split, measured in metrics.items():
        for name, value in measured.as_json().items():
            if not np.isfinite(value):
                raise NumericalFailure(f"{name} on {split} in meta-iteration {k}", steps, "lower the learning rate")
