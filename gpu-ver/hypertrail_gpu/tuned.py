"""A task as the meta loop sees it: hyperparameters as {kind: {key: array}}, and the four questions that it asks an engine.

A declared leaf is a kind by itself, called by its path: hyper["decay"]["hidden"] is "decay.hidden". Its keys are the groups that
share a number, or "value". Plain arrays are of one kind where the first word of their paths is the same. Leaves that are not
floating point do not move and are left out.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr

from hypertrail.engines import Progress
from hypertrail.errors import UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.keeping import Keep
from hypertrail.methods import Forward, Implicit, Method
from hypertrail.records import Cost, Hypergradient, Metrics, Params, Training
from hypertrail.runs.midway import Midway
from hypertrail.task import Arrays, Rows, Stream, Task
from hypertrail.users_code import told

from . import declared, refusals, replay, tasks, trail
from .batches import fed, feed
from .beginning import beginning, given_values, in_precision
from .judging import means, validation
from .midway import as_dicts
from .trees import is_float, named, stored, word_of

Tree = Any
VALUE = "value"  # the key of a leaf that is a kind by itself


@dataclass(frozen=True)
class Moved:
    """One kind of hyperparameters: how its arrays are put back on what is allowed.

    leaf: the declaration, or None for plain arrays.
    """

    kind: str
    leaf: Any

    @property
    def init(self) -> float:
        """A value that the kind begins with."""
        return 0.0 if self.leaf is None else float(np.asarray(self.leaf.init).flat[0])

    per_step = False  # a task has one length, so its schedules always fit

    @property
    def couples(self) -> bool:
        """Whether `project` looks at all numbers of an array together."""
        projection = getattr(self.leaf, "projection", None)
        return projection is not None and projection.couples

    def project(self, u: np.ndarray) -> np.ndarray:
        return u if self.leaf is None else self.leaf.project(u)

    def free(self, value: Any) -> Any:
        return value if self.leaf is None else self.leaf.free(value)

    def value(self, u: Any, xp: Any = np) -> Any:
        return u if self.leaf is None else self.leaf.value(u, xp)


class TunedTask:
    """A task with what it is tuned on, for `hypertrail.tuning`. Building it looks at batches and shapes; nothing is trained.

    All is computed in the x64 mode of JAX in which this object is made.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        tasks.refuse_no_task(task)
        self.task, self.seed = task, seed
        self.x64 = jax.config.read("jax_enable_x64")
        self.steps = fed(task, "batches").steps
        self.start = declared.initial(task, self.steps)
        refusals.refuse_no_arrays(task, self.start)
        begun = beginning(task, self.start, self.steps)
        refusals.refuse_measures(task, begun.state, begun.values, validation(task))
        leaves = declared.paths(task)
        self.paths: dict[str, tuple[str, str]] = {}  # {the path of an array: (kind, key)}
        moved: dict[str, Moved] = {}
        for path, array in jax.tree_util.tree_flatten_with_path(self.start)[0]:
            if not is_float(array):
                continue
            front, leaf = leaves.of(path)
            plain = leaf is None
            kind = word(path[:1] if plain else front) or "hyper"
            self.paths[keystr(path)] = kind, word(path[1:] if plain else path[len(front) :]) or VALUE
            moved[kind] = Moved(kind, leaf)
        if not moved:
            raise UsageError(
                f"hyper: no floating point array among {list(named(self.start)) or 'nothing'}; nothing can be tuned"
            )
        if len(set(self.paths.values())) < len(self.paths):
            raise UsageError(
                f"hyper: two arrays have one name among {list(self.paths)}; use keys of letters, digits and '_'"
            )
        self.hyperparameters = tuple(moved.values())
        self.splits = Data(
            digest(task), {name: feed(batches, name).steps for name, batches in all_batches(task).items()}
        )

    def precision(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(self.x64)

    @property
    def digest(self) -> str:
        return self.splits.digest

    # -- hyperparameters as nested dicts --------------------------------------------------------------------------------------

    def initial_hyper(self) -> Hyper:
        with self.precision():
            return self.as_hyper(in_precision(self.task, self.start))

    def hyper_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {kind: {key: a.shape for key, a in arrays.items()} for kind, arrays in self.initial_hyper().items()}

    def as_hyper(self, tree: Tree) -> Hyper:
        """A tree like the task's hyperparameters → nested dicts of float64 arrays."""
        hyper: Hyper = {}
        leaves = named(tree)
        for name, (kind, key) in self.paths.items():
            hyper.setdefault(kind, {})[key] = np.asarray(leaves[name], np.float64)
        return hyper

    def as_tree(self, hyper: Hyper) -> Tree:
        """Undoes `as_hyper`; what does not move is as it was."""

        def leaf(path: Any, was: Any) -> Any:
            name = keystr(path)
            if name not in self.paths:
                return was
            kind, key = self.paths[name]
            return hyper[kind][key]

        return jax.tree_util.tree_map_with_path(leaf, self.start)

    def values(self, tree: Tree) -> Tree:
        """What the functions of the task are given for these arrays."""
        with self.precision():
            return given_values(self.task, in_precision(self.task, tree), self.steps)

    # -- what the meta loop asks ----------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        """The precision in which the hyperparameters are used."""
        with self.precision():
            leaves = named(in_precision(self.task, self.start))
        return np.dtype(leaves[next(iter(self.paths))].dtype)

    @property
    def split_names(self) -> tuple[str, ...]:
        """What `evaluate` can be asked for."""
        return tuple(splits_of(self.task))

    def initial_weights(self) -> Params:
        return self.first()["w"]

    def initial_velocity(self) -> Params:
        return self.first()["v"]

    def initial_running(self) -> Params:
        return self.first()["running"]

    def first(self) -> dict[str, Params]:
        """The state before step 0, by part."""
        with self.precision():
            return as_dicts(beginning(self.task, self.start, self.steps).state)

    def refuse_plan(self, method: Method, keep: Keep) -> None:
        """Raise UsageError for a method that cannot go back over a training of this task, or not from what is kept."""
        with self.precision():
            begun = beginning(self.task, self.start, self.steps)
            replay.refuse_plan(self.task, begun, fed(self.task, "batches").like(), self.steps, method, keep)

    def with_(self, steps: int) -> TunedTask:
        if steps == self.steps:
            return self
        raise UsageError(f"a task has the {self.steps} steps of its batches, not {steps}; make another task for them")

    def train(self, hyper: Hyper, keep: Keep, progress: Progress | None, midway: Midway | None) -> Training:
        with self.precision():
            hasher = tasks.train(self.task, keep, self.as_tree(hyper), progress, midway)
            start, end = as_dicts(hasher.start), as_dicts(hasher.end)
            return Training(
                initial=start["w"],
                final=end["w"],
                weights=end["w"],
                velocity=end["v"],
                running=end["running"],
                losses=hasher.losses,
                distances=hasher.distances,
                steps=hasher.steps,
                trajectory=Kept(hasher),
                cost=Cost(hasher.steps, seconds=hasher.seconds, trajectory_bytes=hasher.kept.nbytes),
            )

    def hypergradient(self, training: Training, method: Method, progress: Progress | None) -> Hypergradient:
        with self.precision():
            clock = time.perf_counter()
            hasher = training.trajectory.trail
            result = tasks.hypergradient(hasher, method, progress)
            cost = self.cost(hasher, method, result)
            cost.seconds = time.perf_counter() - clock
            begun = {"w": {}, "v": {}} if result.start is None else as_dicts(result.start)
            return Hypergradient(
                gradient=self.as_hyper(result.hyper),
                initial_weights=begun["w"],
                initial_velocity=begun["v"],
                hyper_loss=result.value,
                adjoint_norms=result.norms,
                method=method.name,
                cost=cost,
                diagnostics={"replayed": result.replayed, **result.diagnostics},
            )

    def cost(self, hasher: trail.Trail, method: Method, result: trail.Result) -> Cost:
        """By the rule of `records.Cost`."""
        looks = validation(self.task).steps
        if isinstance(method, Forward):
            m = sum(np.size(a) for arrays in self.initial_hyper().values() for a in arrays.values())
            return Cost(hasher.steps + looks, hasher.steps * m)
        if isinstance(method, Implicit):
            return Cost(looks, result.diagnostics["iterations"] + 2)
        return Cost(looks + result.recomputed, result.steps, trajectory_bytes=hasher.kept.nbytes)

    def hyper_loss(self, training: Training) -> float:
        with self.precision():
            return means(training.trajectory.trail, validation(self.task))["loss"]

    def evaluate(self, training: Training, split: str) -> Metrics:
        """The mean hyper loss, and the task's metrics, over the batches of a split, each of which counts alike."""
        with self.precision():
            batches = splits_of(self.task).get(split)
            if batches is None:
                raise UsageError(f"split {split!r}, expected one of {', '.join(splits_of(self.task))}")
            hasher = training.trajectory.trail
            values = means(hasher, feed(batches, split))
            return Metrics(values.pop("loss"), values.pop("error", None), None, values, feed(batches, split).steps)


@dataclass(frozen=True)
class Data:
    """What a run keeps of the data of a task. sizes: {what: number of batches}."""

    digest: str
    sizes: dict[str, int]
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return {"name": "task", "sizes": self.sizes, "sha256": self.digest, "notes": list(self.notes)}


def tunable(make: Callable[[], Task], precision: str, seed: int = 0) -> TunedTask:
    """The task that make() gives, for the meta loop. precision: 'float64' turns on JAX's x64 mode for it, and for it alone."""
    with jax.enable_x64(precision == "float64"):
        return TunedTask(make(), seed)


class Kept:
    """What a training of a task kept, as a record holds it."""

    def __init__(self, hasher: trail.Trail) -> None:
        self.trail = hasher

    @property
    def nbytes(self) -> int:
        return self.trail.kept.nbytes

    def flush(self) -> None:
        self.trail.kept.flush()

    def close(self) -> None:
        self.trail.kept.close()


def splits_of(task: Task) -> dict[str, Any]:
    """{name: batches} of what can be measured: the validation batches, and the further splits of the task."""
    splits = {} if task.valid is None else {"valid": task.valid}
    for name in task.splits:
        if name == "valid" or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UsageError(f"splits: name {name!r}, expected lower case letters, digits and '_', and not 'valid'")
    for name in task.metrics:
        if name in ("loss", "examples", "batches") or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UsageError(
                f"metrics: name {name!r}, expected lower case letters, digits and '_', and not loss, examples or batches"
            )
    return {**splits, **task.splits}


def word(path: tuple[Any, ...]) -> str:
    """A path in a tree as one word that a file can have: 'decay.hidden'."""
    return ".".join(filter(None, (word_of(entry).replace("/", ".") for entry in path)))


def all_batches(task: Task) -> dict[str, Any]:
    return {"batches": task.batches, **splits_of(task)}


def digest(task: Task) -> str:
    """sha256 over the data of a task: all of what is in memory, and the first and the last batch of a stream."""
    hasher = hashlib.sha256()
    for name, batches in all_batches(task).items():
        for tree in parts(batches):
            hasher.update(f"{name} {jax.tree.structure(tree)}".encode())
            for key, array in stored(tree).items():
                hasher.update(f"{key} {array.dtype} {array.shape} ".encode())
                hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def parts(batches: Any) -> Iterator[Tree]:
    if isinstance(batches, Stream):
        with told("read(t)"):
            first, last = batches.read(0), batches.read(batches.steps - 1)
        yield {"steps": np.asarray(batches.steps), "first": first, "last": last}
    elif isinstance(batches, Rows):
        yield {"data": batches.data, "indices": np.asarray(batches.indices)}
    else:
        yield batches.tree if isinstance(batches, Arrays) else batches
