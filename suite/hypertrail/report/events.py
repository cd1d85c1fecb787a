"""A run folder as TensorBoard's event files: scalars, and histograms of the hyperparameters. Written without TensorFlow.

| tag | step | what |
|---|---|---|
| loss/SPLIT, error/SPLIT, loss/hyper loss | meta-iteration | metrics, error in percent |
| agreement/cosine KIND, …/equal signs KIND, …/norm ratio KIND | meta-iteration | with the exact hypergradient |
| hypergradient/norm KIND | meta-iteration | |
| cost/seconds STAGE, cost/gradients STAGE | meta-iteration | a gradient with Hessian-vector product counts as two |
| memory/host, memory/device | meta-iteration | MiB, highest so far |
| KIND/TENSOR | meta-iteration | histogram of the unconstrained values; of a single value a scalar |
| training/elementary loss | elementary step | in runs of their own, training-0000 …, one for each meta-iteration |
| NUMBER/CURVE | its axis where that is whole numbers, else 0, 1, … | of a study that is done: its numbers (rows.py) |

TensorBoard keeps float32.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import experiments, rows
from ..errors import UsageError
from ..measures import measures, scale
from ..runs.reading import refuse_links
from ..terminal import say
from .view import View, views

BUCKETS = 40
Scalar = tuple[str, float, int]  # tag, value, step


def export(view: View, folder: Path) -> int:
    """Write one run's event files into `folder`, and those of its trainings into folders in it; returns how many events.

    UsageError where a folder holds event files already (TensorBoard would show both), or without the package.
    """
    refuse_occupied(folder)
    written = write(folder, view, scalars(view), histograms(view))
    for k, losses in view.losses.items():
        points = (("training/elementary loss", float(loss), t) for t, loss in enumerate(losses))
        written += write(folder / f"training-{k:04d}", view, points, ())
    return written


def scalars(view: View) -> Iterator[Scalar]:
    for line in view.lines:
        k = line["meta_iteration"]
        for split, one in line["metrics"].items():
            for what in measures(one):
                yield f"{what}/{split}", scale(what) * one[what], k
        yield "loss/hyper loss", line["hyper_loss"], k
        for kind, norm in line.get("norm", {}).items():
            yield f"hypergradient/norm {kind}", norm, k
        for kind, both in line.get("agreement", {}).items():
            for key in ("cosine", "signs", "norm_ratio"):
                if both["total"][key] is not None:
                    yield f"agreement/{NAMES[key]} {kind}", both["total"][key], k
        for stage, cost in line["cost"].items():
            yield f"cost/seconds {stage}", cost["seconds"], k
            if stage != "evaluate":
                yield f"cost/gradients {stage}", cost["gradients"] + 2 * cost["hvps"], k
        for place, most in line.get("memory", {}).items():
            if most:
                yield f"memory/{place}", most / 2**20, k
    for tag, values in tensors(view):
        for k, one in enumerate(values):
            if one.size == 1:
                yield tag, one.item(), k
    if not view.lines and view.state == "done":
        yield from of_rows(rows.of_run(view.folder) or [])


def of_rows(found: Sequence[rows.Row]) -> Iterator[Scalar]:
    """The numbers of a study. A curve is named by the labels that tell it apart."""
    labels = [row.labels for row in found]
    axis, curves = rows.axis(labels), {}
    for row in found:
        name = " ".join(f"{key}={value}" for key, value in rows.series(row.labels, labels).items()) or "all"
        curves.setdefault(name, []).append(row)
    for name, mine in curves.items():
        at = [row.labels.get(axis) for row in mine]
        steps = at if all(isinstance(one, int) for one in at) else range(len(mine))
        for row, step in zip(mine, steps, strict=True):
            for number, value in row.values.items():
                yield f"{number}/{name}", value, step


NAMES = {"cosine": "cosine", "signs": "equal signs", "norm_ratio": "norm ratio"}


def histograms(view: View) -> Iterator[tuple[str, np.ndarray, int]]:
    for tag, values in tensors(view):
        for k, one in enumerate(values):
            if one.size > 1:
                yield tag, one, k


def tensors(view: View) -> Iterator[tuple[str, list[np.ndarray]]]:
    for kind, roles in view.spreads.items():
        for role in roles.values():
            for name, values in role.items():
                yield f"{kind}/{name}", values


def why_not(view: View) -> str:
    if not is_study(view.record["experiment"]):
        return "it has not written a line"
    return (
        "its experiment says no numbers" if view.state == "done" else "the numbers of a study are there when it is done"
    )


def is_study(name: str) -> bool:
    return name in experiments.names() and experiments.is_study(experiments.load(name))


def write(folder: Path, view: View, points: Any, spreads: Any) -> int:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ModuleNotFoundError as missing:
        raise UsageError(f"this needs {missing.name}; pip install 'hypertrail[track]'") from missing
    began = started(view)
    writer = EventFileWriter(str(folder))
    n = 0
    try:
        for tag, value, step in points:
            writer.add_event(Event(wall_time=began + step, step=step, summary=scalar_pb(tag, value)))
            n += 1
        for tag, values, step in spreads:
            summary = histogram_pb(tag, values, buckets=BUCKETS)
            writer.add_event(Event(wall_time=began + step, step=step, summary=summary))
            n += 1
    finally:
        writer.close()
    return n


def started(view: View) -> float:
    """When the run began, in seconds since 1970; events lie a second apart, as a run keeps no time of each line."""
    time = view.env.get("time")
    return datetime.datetime.fromisoformat(time).timestamp() if time else 0.0


def refuse_occupied(folder: Path) -> None:
    if folder.is_dir() and any(folder.rglob("*tfevents*")):
        raise UsageError(
            f"{folder} holds event files already, which TensorBoard would show as well; remove it or name another --out"
        )


def refuse_name(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError as found:
        raise UsageError(
            f"the name {folder} is not UTF-8, and TensorBoard writes to no such path; name an --out"
        ) from found


def main(folders: Sequence[Path], out: Path | None) -> int:
    """`hypertrail export-tensorboard`. Runs of the same name are told apart by their letters."""
    shown = views(folders)
    names = [one.name for one in shown]
    places = [one.folder / "tensorboard" if out is None else out / (one.name if names.count(one.name) == 1 else
              f"{one.name}-{one.letter}") for one in shown]  # fmt: skip
    for one in shown:
        if not one.lines and next(scalars(one), None) is None:
            raise UsageError(f"{one.folder} has nothing to export: {why_not(one)}; leave it out")
    for one, place in zip(shown, places, strict=True):
        refuse_name(place)
        if out is None:
            refuse_links(one.folder)
        refuse_occupied(place)
    for one, place in zip(shown, places, strict=True):
        n = export(one, place)
        say(f"event files: {place} ({n:,} values)")
    say(f"look at them: tensorboard --logdir {out or (places[0] if len(places) == 1 else places[0].parent.parent)}")
    return 0
