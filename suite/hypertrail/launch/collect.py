"""Many runs in one table and one figure: mean and interval over the seeds, cell by cell.

    runs.csv      one row per run: experiment, seed, settings that differ, state, folder, numbers of its last line
    lines.csv     one row per line of metrics of every finished run
    cells.csv     one row per cell, line and number: n, mean, standard deviation, 95 % interval (Student's t) over the seeds
    <experiment>.png    curves and ends, by cell

A cell is what runs of one experiment have in common when seeds are left aside. Only finished runs count. Of a line of a study,
words and whole numbers say what it is about, the other numbers are what was found.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .. import figures, runs
from ..arrays import write_atomic
from ..engines import SPLITS
from ..errors import UsageError
from ..interval import Estimate, estimate
from . import gathering, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = tuple[tuple[str, Any], ...]  # (setting, value) …
Line = tuple[dict[str, Any], dict[str, float]]  # what it is about, what was found


@dataclass(frozen=True)
class Options:
    """Settings of collect."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Launches (runs/launches/…), runs, or folders of runs."""
    out: Path | None = None
    """Folder for the tables and figures. Where nothing is said: collected/ in the first of the folders."""


@dataclass(frozen=True)
class Collected:
    """One run. lines: empty where it is not finished, or where a run of the same configuration counts already."""

    folder: Path
    experiment: str
    seed: int
    state: str
    cell: Cell
    lines: list[Line]


def main(options: Options) -> int:
    """`hypertrail collect`: writes the tables and figures, shows the ends. UsageError where no run is finished."""
    found = collect(options.folders)
    if not any(one.lines for one in found):
        raise UsageError(
            f"none of the {len(found)} runs is finished with a line of metrics; hypertrail status shows how far they are"
        )
    out = options.out or options.folders[0] / "collected"
    out.mkdir(parents=True, exist_ok=True)
    grouped = groups(found)
    write_atomic(out / "runs.csv", as_csv(table_of_runs(found)))
    write_atomic(out / "lines.csv", as_csv(table_of_lines(found)))
    write_atomic(out / "cells.csv", as_csv(table_of_cells(grouped)))
    from ..display import console, table

    screen = console()
    for name in dict.fromkeys(one.experiment for one in grouped):
        mine = [one for one in grouped if one.experiment == name]
        with figures.style():
            image = io.BytesIO()
            figure(name, mine).savefig(image, dpi=figures.DPI, facecolor="white", metadata={"Software": None})
        write_atomic(out / f"{name}.png", image.getvalue())
        screen.print(table(f"{name}: at the end, mean ± 95 % interval over seeds (Student's t)", *ends(mine)))
        print(f"figure: {out / f'{name}.png'}")
    left = sum(not one.lines for one in found)
    print(f"{len(found) - left} runs counted" + (f", {left} not (unfinished, or the same as another)" if left else ""))
    print(f"tables: {out / 'runs.csv'}, {out / 'lines.csv'}, {out / 'cells.csv'}")
    return 0


# -- what is there ------------------------------------------------------------------------------------------------------


def collect(folders: Sequence[Path]) -> list[Collected]:
    """Every run that was begun, with its lines where it counts: finished, and the newest of its configuration."""
    begun = [one for one in gathering.gather(folders) if one.record is not None]
    fields = gathering.varying(begun)
    counted: dict[str, Path] = {}
    for one in begun:
        if (one.folder / runs.DONE).is_file():
            rival = counted.get(one.record["hash"])
            if rival is None or (rival / runs.DONE).stat().st_mtime < (one.folder / runs.DONE).stat().st_mtime:
                counted[one.record["hash"]] = one.folder
    out = []
    for one in begun:
        config = one.record["config"]
        cell = tuple((key, plain(config.get(key))) for key in fields[one.experiment])
        counts = counted.get(one.record["hash"]) == one.folder
        lines = [line_of(line) for line in runs.read_metrics(one.folder)] if counts else []
        out.append(Collected(one.folder, one.experiment, one.seed, runs.status(one.folder), cell, lines))
    return out


def plain(value: Any) -> Any:
    """A setting in one word."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def line_of(line: dict[str, Any]) -> Line:
    """A line of metrics.jsonl → what it is about (words, whole numbers), what was found (other numbers)."""
    if "meta_iteration" in line:
        found = {"hyper_loss": line["hyper_loss"]}
        for split in (one for one in SPLITS if one in line["metrics"]):
            found |= {f"{split}_{what}": line["metrics"][split][what] for what in ("loss", "error")}
        return {"meta_iteration": line["meta_iteration"]}, found
    about = {key: value for key, value in line.items() if isinstance(value, (str, int))}
    return about, {key: value for key, value in line.items() if isinstance(value, float) and math.isfinite(value)}


# -- over the seeds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What the runs of one cell say in the lines that are about the same. numbers: name → the value of each seed."""

    experiment: str
    cell: Cell
    about: Cell
    numbers: dict[str, list[float]]

    @property
    def series(self) -> str:
        """The cell, and the words of its lines: what a curve is called."""
        return grid.words_of(dict(self.cell) | {k: v for k, v in self.about if isinstance(v, str)})

    def estimates(self) -> dict[str, Estimate]:
        return {name: estimate(values) for name, values in self.numbers.items()}


def groups(found: Sequence[Collected]) -> list[Group]:
    """In the order in which the lines come."""
    out: dict[tuple[str, Cell, Cell], Group] = {}
    for one in found:
        before: list[dict[str, Any]] = []
        for about, numbers in one.lines:
            times = before.count(about)  # lines of one run that say nothing about how they differ
            before.append(about)
            key = (one.experiment, one.cell, tuple((about | ({"again": times} if times else {})).items()))
            group = out.setdefault(key, Group(*key, {}))
            for name, value in numbers.items():
                group.numbers.setdefault(name, []).append(value)
    return list(out.values())


def curves(found: Sequence[Group]) -> dict[str, list[Group]]:
    """Series → its groups, from the first line to the last."""
    out: dict[str, list[Group]] = {}
    for one in found:
        out.setdefault(one.series, []).append(one)
    return out


# -- tables -------------------------------------------------------------------------------------------------------------


def table_of_runs(found: Sequence[Collected]) -> list[dict[str, Any]]:
    out = []
    for one in found:
        row = {"experiment": one.experiment, "seed": one.seed, **dict(one.cell), "state": one.state}
        row |= {"folder": str(one.folder), "counts": bool(one.lines)}
        out.append(row | beside(row, *(one.lines[-1] if one.lines else ())))
    return out


def table_of_lines(found: Sequence[Collected]) -> list[dict[str, Any]]:
    out = []
    for one in found:
        for line in one.lines:
            row = {"experiment": one.experiment, "seed": one.seed, **dict(one.cell)}
            out.append(row | beside(row, *line))
    return out


def table_of_cells(found: Sequence[Group]) -> list[dict[str, Any]]:
    out = []
    for group in found:
        for name, e in group.estimates().items():
            low, high = (None, None) if e.half is None else (e.mean - e.half, e.mean + e.half)
            row = {"experiment": group.experiment, **dict(group.cell)}
            row |= beside(row, dict(group.about))
            out.append(row | {"number": name, "n": e.n, "mean": e.mean, "sd": e.sd, "low": low, "high": high})
    return out


def beside(row: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    """More columns for a row; what is there under the same name keeps it."""
    return {f"line_{key}" if key in row else key: value for one in more for key, value in one.items()}


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of any keys; a column for each, in the order in which they come; numbers to the last digit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def ends(found: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """The last line of every series: columns and rows of words."""
    last = {name: one[-1].estimates() for name, one in curves(found).items()}
    names = shown(found)
    columns = ["settings", "n", *names]
    rows = [
        [name or "all", str(max(e.n for e in found.values())), *(words(one, found.get(one)) for one in names)]
        for name, found in last.items()
        if found
    ]
    return columns, rows


def words(name: str, e: Estimate | None) -> str:
    """Errors in percent."""
    if e is None:
        return ""
    factor, unit = (100, " %") if name.endswith("_error") else (1, "")
    half = "" if e.half is None else f" ± {factor * e.half:.2g}"
    return f"{factor * e.mean:.4g}{half}{unit}"


def shown(found: Sequence[Group]) -> list[str]:
    """The numbers for the eye: of a meta loop hyper loss and the error that was not optimised, of a study its first three."""
    names = list(dict.fromkeys(name for group in found for name in group.numbers))
    if "hyper_loss" not in names:
        moving = [one for one in names if len({value for group in found for value in group.numbers.get(one, ())}) > 1]
        return (moving or names)[:3]
    return ["hyper_loss", *[one for one in ("test_error", "select_error", "valid_error") if one in names][:1]]


# -- figure -------------------------------------------------------------------------------------------------------------

SHADES = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.PURPLE, figures.BLACK, figures.GREY)


def figure(experiment: str, found: Sequence[Group]) -> Figure:
    """A row for each number: along the lines (left, where there is more than one), and at the end, seed by seed (right)."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series, names = curves(found), shown(found)
    along = max(len(one) for one in series.values()) > 1
    map_ = matplotlib.colormaps["viridis"]
    shades = SHADES if len(series) <= len(SHADES) else [map_(i / (len(series) - 1)) for i in range(len(series))]
    columns = 2 if along else 1
    height = max(2.6, 0.9 + 0.26 * len(series))
    size = (9.5 if along else 6.5, height * len(names) + 0.25 * len(series) + 0.5)
    out = Figure(figsize=size, layout="constrained")
    grid_of = out.subplots(len(names), columns, squeeze=False, width_ratios=[3, 2] if along else [1])
    axis = x_of(found)
    for name, panels in zip(names, grid_of, strict=True):
        factor, label = (
            (100, f"{name.replace('_', ' ')} (%)") if name.endswith("_error") else (1, name.replace("_", " "))
        )
        for i, ((which, line), shade) in enumerate(zip(series.items(), shades, strict=False)):
            if along:
                draw_along(panels[0], name, factor, axis, line, shade, which)
            draw_end(panels[-1], name, factor, i, line[-1], shade, which)
        if along:
            panels[0].set(xlabel=(axis or "line of metrics").replace("_", "-"), ylabel=label)
            panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1].set(xlabel=label, yticks=range(len(series)), ylim=(len(series) - 0.4, -0.6))
        panels[-1].set_yticklabels([] if along else [one or "all" for one in series])
    grid_of[0][-1].set_title("at the end: each seed, mean, 95 % interval")
    if along:
        grid_of[0][0].set_title("mean and 95 % interval over seeds (Student's t)")
        out.legend(
            *grid_of[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=1 if len(series) > 3 else 2
        )
    out.suptitle(experiment, x=0.01, ha="left", fontweight="bold")
    return out


def x_of(found: Sequence[Group]) -> str | None:
    """The whole number of a line that counts: the last one that takes more than one value."""
    keys = dict.fromkeys(key for group in found for key, value in group.about if type(value) is int)
    moving = [key for key in keys if len({dict(group.about).get(key) for group in found}) > 1]
    return moving[-1] if moving else None


def draw_along(
    axes: Any, name: str, factor: float, axis: str | None, line: list[Group], shade: Any, which: str
) -> None:
    there = [(i, one) for i, one in enumerate(line) if name in one.numbers]
    if not there:
        return
    x = [i if axis is None else dict(one.about)[axis] for i, one in there]
    e = [estimate(one.numbers[name]) for _, one in there]
    n = sorted({one.n for one in e})
    label = f"{which or 'all'}  (n = {n[0] if len(n) == 1 else f'{n[0]} to {n[-1]}'})"
    mean = [factor * one.mean for one in e]
    axes.plot(x, mean, color=shade, marker=".", label=label)
    half = [factor * (one.half or 0.0) for one in e]
    axes.fill_between(
        x, [m - h for m, h in zip(mean, half, strict=True)], [m + h for m, h in zip(mean, half, strict=True)],
        color=shade, alpha=0.18, linewidth=0,
    )  # fmt: skip


def draw_end(axes: Any, name: str, factor: float, i: int, one: Group, shade: Any, which: str) -> None:
    if name not in one.numbers:
        return
    e = estimate(one.numbers[name])
    values = [factor * value for value in one.numbers[name]]
    axes.plot(values, [i + 0.18] * e.n, color=shade, marker="|", linestyle="none", alpha=0.7)
    half = None if e.half is None else factor * e.half
    axes.errorbar(factor * e.mean, i - 0.08, xerr=half, color=shade, marker="o", markersize=5, capsize=3)
