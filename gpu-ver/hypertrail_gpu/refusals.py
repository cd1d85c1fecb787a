"""What a task cannot be: said before anything is computed, with the name of what is wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.task import Task
from hypertrail.users_code import told

from .batches import Memory
from .declared import marks
from .inner import State, elementary_loss, is_symmetric, measured, seen, step
from .trees import floats, is_float, named

Tree = Any


def refuse_misfit(task: Task, s: State, hyper: Tree, batches: Memory) -> None:
    """The weights are floating point arrays, the loss is one number, and a step hands back what it was given: the same trees,
    shapes and dtypes. Traces the step once for each set of shapes, and remembers it."""
    arrays, tree = jax.tree.flatten((s, hyper, batches.like()))
    key = "fits", tree, *((a.shape, a.dtype) for a in arrays)
    if key in task.programs:
        return
    batch = batches.look(0)
    if marks(task) is not None and task.rows is None:
        raise UsageError(
            "a hyperparameter with a row per example is given without rows(batch), which says what rows of it a batch reads"
        )
    t = jax.ShapeDtypeStruct((), jnp.int32)
    with told("loss"):
        result = jax.eval_shape(lambda s, h, b, t: task_loss(task, s, h, b, t), s, hyper, batch, t)
    refuse_loss(result, s.carried)
    task.programs["symmetric"] = is_symmetric(task, s, hyper, batch)
    with told("a step (the gradient of loss, and update)"):
        after, _ = jax.eval_shape(lambda s, h, b, t: step(task, s, seen(task, h, b), b, t, t), s, hyper, batch, t)
    refuse_weights(s.w)
    before, after = named(s), named(after)
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = (shape_of(tree[name]) if name in tree else "nothing" for tree in (before, after))
        if was != now:
            raise UsageError(f"a step turns {name[1:]} from {was} into {now}; it must keep trees, shapes and dtypes")
    task.programs[key] = True


def refuse_measures(task: Task, s: State, hyper: Tree, valid: Memory) -> None:
    """The hyper loss and the metrics are one number each, on a validation batch. Traces them once for each set of shapes."""
    batch = valid.look(0)
    key = "measures", jax.tree.structure((s, hyper, batch)), *map(shape_of, jax.tree.leaves((s, hyper, batch)))
    if key in task.programs:
        return
    functions = {"hyper_loss": task.hyper_loss} | {f"metric {name}": metric for name, metric in task.metrics.items()}
    for what, function in functions.items():
        with told(what):
            result = jax.eval_shape(partial(measured, task, function), s.w, s.carried, hyper, batch)
        good = hasattr(result, "shape") and not result.shape
        if not good or (what == "hyper_loss" and not is_float(result)):
            kind = "floating point number" if what == "hyper_loss" else "number"
            raise UsageError(f"{what} gave {described(result)}, expected one {kind}")
    task.programs[key] = True


def refuse_no_arrays(task: Task, hyper: Tree) -> None:
    """Weights and hyperparameters are arrays and numbers, the weights of floating point."""
    refuse_leaves("hyper", hyper)
    if not jax.tree.leaves(floats(hyper)):
        raise UsageError(
            f"hyper: no floating point array among {list(named(hyper)) or 'nothing'}; there is nothing to tune"
        )
    if task.start is None:
        refuse_leaves("weights", task.weights)
        refuse_leaves("state", task.state)
        refuse_weights(task.weights)


def refuse_leaves(what: str, tree: Tree) -> None:
    for name, leaf in named(tree).items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            kind = getattr(leaf, "__qualname__", type(leaf).__qualname__)
            raise UsageError(
                f"{what}{name} is {kind}, expected arrays; let the functions close over what is none (equinox.partition, "
                "nnx.split)"
            )


def task_loss(task: Task, s: State, hyper: Tree, batch: Tree, t: Any) -> Any:
    hyper = seen(task, hyper, batch)
    return (
        task.loss(s.w, hyper, batch, t) if s.carried is None else elementary_loss(task, s.w, s.carried, hyper, batch, t)
    )


def refuse_loss(result: Any, carried: Tree) -> None:
    pair = isinstance(result, tuple) and len(result) == 2
    if carried is not None and not pair:
        raise UsageError(f"the task carries a state, so loss must give (L, next state); it gave {described(result)}")
    loss = result[0] if carried is not None else result
    if not hasattr(loss, "shape") or loss.shape or not is_float(loss):
        more = (
            "; further results need a state that carries them, Task(state=…); Inner(has_aux=True) drops them"
            if pair and carried is None
            else ""
        )
        raise UsageError(f"loss gave {described(loss)}, expected one floating point number{more}")


def refuse_weights(w: Tree, word: str = "weights") -> None:
    for name, leaf in named(w).items() or {"": None}.items():
        if leaf is None or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            what = "nothing" if leaf is None else shape_of(leaf)
            raise UsageError(
                f"{word}{name}: {what}, expected floating point arrays; put what is not trained into the state, or let the loss "
                "close over it (equinox.partition, nnx.split)"
            )


def shape_of(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"


def described(result: Any) -> str:
    return shape_of(result) if hasattr(result, "shape") else type(result).__name__
