"""The front door for own models, in Python and notebooks.

    task = h.Task(loss=…, update=…, hyper_loss=…, weights=…, hyper={"decay": h.Log(1e-4)}, batches=…, valid=…)
    result = h.hypergradient(task)              # df/dλ where tuning begins
    tuned = h.tune(task, meta_iterations=20)    # descends on it
    tuned.values                                # what it found

All is computed by the compiled engine, which is imported with the first call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import methods, outer, tuning
from .engines import Progress, load
from .errors import UsageError
from .keeping import Keep
from .measures import measures
from .outer import as_rule
from .task import Gradient, Task, Trained

if TYPE_CHECKING:
    from .adapting import Block
    from .online import Online

Tree = Any


def engine(room: str) -> Any:
    """A room of the compiled engine, which is found by name: JAX is imported with the first call."""
    return importlib.import_module(f"hypertrail_gpu.{room}")


def train(task: Task, keep: Keep = "memory", hyper: Tree = None, progress: Progress | None = None) -> Trained:
    """All steps of a task's training → a `Trail`: losses, the state at the end, and what was kept of the trajectory.

    keep: 'memory', 'host', 'auto', 'ends', a Path, Checkpoints(n), Last(n) or Reversible(); see `hypertrail.keeping`.
    hyper: the arrays that are moved, in the tree of task.hyper; None: as declared.
    Cost: T gradients. Raises UsageError for a task that cannot be trained, NumericalFailure (quantity, step) for a loss that is
    not finite.
    """
    trained: Trained = engine("tasks").train(task, keep, hyper, progress)
    return trained


def hypergradient(
    task: Task | Trained, method: methods.Method | str = "exact", progress: Progress | None = None, **settings: Any
) -> Gradient:
    """df/dλ, the gradient of the mean hyper loss at the end of training with respect to the arrays that are moved.

    task: a task, which is then trained (settings as of `train`), or the `Trail` of a training.
    method: a declaration such as Truncated(20), or a name such as 'truncated-20' or 'drmad-C4'.
    → value (f), hyper (the gradient, in the tree of task.hyper), start (the gradient with respect to w_0, v_0 and the first
    state; None where the method does not go there), norms (‖dw‖ before each step back), diagnostics (the
    method's own numbers).
    Cost: that of the training, and of the method: exact, T gradients with their Hessian-vector products.
    Raises what `train` raises; UsageError for a method that cannot go back over this training.
    """
    tasks = engine("tasks")
    if isinstance(task, Task):
        task = tasks.train(task, **settings)
    elif settings:
        raise UsageError(
            f"{', '.join(settings)}: for a task that is yet to be trained; this is the trail of a training"
        )
    found: Gradient = tasks.hypergradient(task, method, progress)
    return found


def check(task: Task) -> list[str]:
    """Is the hypergradient the derivative of what training does? A line for each kind of hyperparameter.

    Compares the exact hypergradient of the first ten steps along one direction with differences of such trainings. Some
    models lie to every automatic derivative; see `hypertrail_gpu.doubts`. Raises VerificationFailure where the two differ.
    Cost: at most 8 trainings of ten steps for each kind.
    """
    gpu: Any = load("gpu")
    found: list[str] = gpu.check(gpu.TunedTask(task))
    return found


def adapt(
    task: Task, method: Online, state: Any = None, blocks: int | None = None, progress: Progress | None = None
) -> Iterator[Block]:
    """Train while `method` moves the hyperparameters, block by block: a generator of `Block` records.

    state: what an earlier block left, to go on from. blocks: how many; None: all that fit into the steps of the task.
    Cost: see the method (`hypertrail.online`).
    """
    walked: Iterator[Block] = engine("blocks").adapt(task, method, state=state, blocks=blocks, progress=progress)
    return walked


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    hyper: the arrays after the last move, in the tree of task.hyper; values: what the functions of the task are given for them.
    records: a `tuning.MetaIteration` for each training, the last one with these hyperparameters. checked: what `check` said.
    """

    hyper: Tree
    values: Tree
    records: list[tuning.MetaIteration]
    checked: list[str]

    @property
    def hyper_losses(self) -> list[float]:
        """f of each training."""
        return [record.hyper_loss for record in self.records]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """{split: {name: number}} with the last hyperparameters."""
        return {split: one.as_json() for split, one in self.records[-1].metrics.items()}

    def __str__(self) -> str:
        first, last = self.records[0], self.records[-1]
        lines = [f"hyper loss {first.hyper_loss:.4g} → {last.hyper_loss:.4g} in {last.index} updates"]
        for split, one in last.metrics.items():
            before = first.metrics[split].as_json()
            after = one.as_json()
            words = (f"{name} {before[name]:.4g} → {after[name]:.4g}" for name in after if name in measures(after))
            lines.append(f"{split}: {', '.join(words)}")
        return "\n".join(lines)


def tune(
    task: Task,
    method: methods.Method | str = "exact",
    outer: Any = outer.Adam(0.1),  # noqa: B008 – a frozen record
    meta_iterations: int = 10,
    compare_exact: bool = False,
    keep: Keep = "memory",
    check: bool = True,
    finished: Callable[[tuning.MetaIteration], None] | None = None,
) -> Tuned:
    """Descend on the hyperparameters: train, take the hypergradient, move, train again; and a training with the last ones.

    method: how the hypergradient is taken. outer: how the hyperparameters move: a rule of
    `hypertrail.outer`, or an optax transformation. compare_exact: take the
    exact hypergradient beside the method's and record how far apart they are. keep: where the trajectory of an exact pass lies.
    check: see `check`; it is done before anything is tuned. finished: called with each record, for progress.
    For a run folder, resuming, reports and clusters: `hypertrail run my_task.py`.
    Cost of one meta-iteration: T gradients, the method's cost, and a forward pass over every split.
    Raises what `train`, `hypergradient` and `check` raise.
    """
    gpu: Any = load("gpu")
    tuned = gpu.TunedTask(task)
    way = methods.parse_method(method) if isinstance(method, str) else method
    checked = gpu.check(tuned) if check else []
    records = []
    for record in tuning.tune(tuned, gpu, way, as_rule(outer), meta_iterations, compare_exact, keep=keep):
        records.append(record)
        if finished is not None:
            finished(record)
    hyper = tuned.as_tree(records[-1].hyper)
    return Tuned(hyper, tuned.values(hyper), records, checked)
