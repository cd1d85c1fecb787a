"""Many runs in one table and one figure: mean and interval over the seeds, cell by cell.

    runs.csv      one row per run: experiment, seed, settings that differ, state, folder, numbers of its last line
    lines.csv     one row per line of metrics of every finished run
    cells.csv     one row per cell, line and number: n, mean, standard deviation, 95 % interval (Student's t) over the seeds;
                  no interval is narrower than one example, and none leaves the values that are possible
    <experiment>.png    curves and ends, by cell; where they are many <experiment>-<label>-<value>.png

A cell is what runs of one experiment have in common when seeds are left aside. Only finished runs count, and of runs of one cell
whose numbers are all the same, whatever their seeds, only the first: what draws nothing at random has no scatter. What a line is
about and what was measured the experiment says itself (rows.py). The end of a number is the last line that has it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hypertrail_data import DataError

from .. import figures, rows, runs
from ..errors import UsageError, looking_at
from ..interval import Estimate, Unit, estimate, in_words
from ..rows import Row
from ..runs.writing import write_atomic
from ..spreadsheet import as_csv
from ..terminal import complain, say, visible
from ..tuning import warnings_of
from . import gathering, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = tuple[tuple[str, Any], ...]  # (setting, value) …
MANY = 12  # curves in one figure; where there are more, each value of a label gets a figure of its own


@dataclass(frozen=True)
class Options:
    """Settings of collect."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Launches (runs/launches/…), runs, or folders of runs."""
    out: Path | None = None
    """Folder for the tables and figures. Where nothing is said: collected/ in the first of the folders."""


@dataclass(frozen=True)
class Collected:
    """One run. lines: empty where it is not finished, where a run of the same configuration counts already, or where it cannot
    be read; why: in words, of the last alone.
    """

    folder: Path
    experiment: str
    seed: int | None
    state: str
    cell: Cell
    lines: list[Row]
    why: str = ""
    same: int | None = None  # the seed of the run of the same cell that has the same numbers, and counts


def main(options: Options) -> int:
    """`hypertrail collect`: writes the tables and figures, shows the ends. UsageError where no run is finished.

    A run that is damaged is left out; which, and why, is said on stderr.
    """
    found = collect(options.folders)
    for reason in dict.fromkeys(one.why for one in found if one.why):
        complain(f"warning: left out: {reason}")
    for one in found:
        if one.same is not None:
            complain(
                f"warning: {one.folder} has the same numbers as the run of seed {one.same}, which counts for both: "
                f"{one.experiment} drew nothing at random"
            )
    for one in (one for one in found if one.lines):
        for sentence in warnings_of(runs.read_metrics(one.folder)):
            complain(f"warning: {one.folder}: {sentence}")
    if not any(one.lines for one in found):
        raise UsageError(
            f"none of the {len(found)} runs is finished with numbers to collect; hypertrail status shows how far they are"
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
        for title, mine in pages(name, [one for one in grouped if one.experiment == name]):
            file = out / f"{re.sub(r'[^A-Za-z0-9.]+', '-', title).strip('-')}.png"
            with figures.style():
                image = io.BytesIO()
                figure(title, mine).savefig(image, dpi=figures.DPI, facecolor="white", metadata={"Software": None})
            write_atomic(file, image.getvalue())
            screen.print(table(f"{title}: at the end, mean ± 95 % interval over seeds (Student's t)", *ends(mine)))
            say(f"figure: {file}")
    left = sum(not one.lines or one.same is not None for one in found)
    reasons = "unfinished, or the same as another" + (", or left out" if any(one.why for one in found) else "")
    say(f"{len(found) - left} runs counted" + (f", {left} not ({reasons})" if left else ""))
    say(f"tables: {out / 'runs.csv'}, {out / 'lines.csv'}, {out / 'cells.csv'}")
    return 0


# -- what is there ------------------------------------------------------------------------------------------------------


def collect(folders: Sequence[Path]) -> list[Collected]:
    """Every run that was begun, with its lines where it counts: finished, and the newest of its configuration."""
    there = gathering.gather(folders)
    begun = [one for one in there if one.record is not None]
    fields = gathering.varying(begun)
    out = [
        Collected(one.folder, one.experiment, None, "damaged", (), [], f"{one.folder}, as {one.damage}")
        for one in there
        if one.damage
    ]
    lines = lines_of(begun)
    for one in begun:
        config = one.record["config"]
        cell = tuple((key, plain(config.get(key))) for key in fields[one.experiment])
        mine, why = lines.get(one.folder, ([], ""))
        out.append(Collected(one.folder, one.experiment, one.seed, state_of(one.folder), cell, mine, why))
    return equal_runs(out)


def state_of(folder: Path) -> str:
    try:
        return runs.status(folder)
    except (DataError, OSError) as damage:
        return f"damaged: {damage}"


def equal_runs(found: Sequence[Collected]) -> list[Collected]:
    """The same runs, those marked whose numbers are all equal to those of a run of their cell that comes before."""
    out: list[Collected] = []
    for one in found:
        twin = next(
            (
                other for other in out
                if (other.experiment, other.cell) == (one.experiment, one.cell) and other.same is None
                and other.seed != one.seed and equal(other.lines, one.lines)
            ),
            None,
        )  # fmt: skip
        out.append(one if twin is None else replace(one, same=twin.seed))
    return out


def equal(a: Sequence[Row], b: Sequence[Row]) -> bool:
    """Whether two runs found the same, clocks and memory left out. Whole numbers alone are no evidence: two seeds may both have
    diverged, or made the same count of errors."""
    measured = [
        [
            (labels, {name: x for name, x in values.items() if not any(word in name for word in MACHINE)})
            for labels, values in run
        ]
        for run in (a, b)
    ]
    return measured[0] == measured[1] and any(x % 1 for _, values in measured[0] for x in values.values())


# Numbers with one of these in their names say how fast or how large, not what was found.
MACHINE = ("seconds", "bytes", "training", "reverse")


def lines_of(begun: Sequence[gathering.Found]) -> dict[Path, tuple[list[Row], str]]:
    """Folder → (rows, why there are none): of every configuration the newest finished run, and one that is older where that
    cannot be read."""
    finished = [one for one in begun if (one.folder / runs.DONE).is_file()]
    counted, out = set(), {}
    for one in sorted(finished, key=lambda one: (one.folder / runs.DONE).stat().st_mtime, reverse=True):
        if one.record["hash"] not in counted:
            out[one.folder] = read(one)
            if out[one.folder][0]:
                counted.add(one.record["hash"])
    return out


def read(one: gathering.Found) -> tuple[list[Row], str]:
    """The rows of a finished run; where it has none, why."""
    try:
        with looking_at(one.folder):
            found = rows.of_run(one.folder)
    except (DataError, UsageError, OSError) as damage:  # UsageError: a file is not there any more
        return [], f"{one.folder}, as {damage}"
    if found is None:
        return [], f"the runs of {one.experiment}, as it does not say its numbers (`numbers` in its module)"
    return found, ""


def plain(value: Any) -> Any:
    """A setting in one word."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


# -- over the seeds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What the runs of one cell say in the lines that are about the same. numbers: name → the value of each seed."""

    experiment: str
    cell: Cell
    about: Cell
    numbers: dict[str, list[float]]

    @property
    def labels(self) -> dict[str, Any]:
        return dict(self.cell) | dict(self.about)

    def unit(self, name: str) -> Unit:
        """What the number of this name is; errors in percent."""
        counts = {key.removesuffix("_examples"): min(x) for key, x in self.numbers.items() if key.endswith("_examples")}
        return rows.unit_of(name, counts)

    def estimate(self, name: str) -> Estimate:
        """Over the seeds, in the unit of the number: errors in percent."""
        return estimate([scale(name) * x for x in self.numbers[name]], self.unit(name))


def groups(found: Sequence[Collected]) -> list[Group]:
    """In the order in which the lines come."""
    out: dict[tuple[str, Cell, Cell], Group] = {}
    for one in (one for one in found if one.same is None):
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
    """Series (cell and labels without the axis, in words) → its groups, along the axis."""
    axis, cells = axis_of(found), rows.moving_keys([dict(one.cell) for one in found])
    about = [dict(one.about) for one in found]
    out: dict[str, list[Group]] = {}
    for one, labels in zip(found, about, strict=True):
        cell = {key: value for key, value in one.cell if key in cells}
        out.setdefault(visible(grid.words_of(cell | rows.series(labels, about))), []).append(one)
    return {name: sorted(line, key=lambda one: along(one, axis)) for name, line in out.items()}


def axis_of(found: Sequence[Group]) -> str | None:
    return rows.axis([dict(one.about) for one in found])


def along(one: Group, axis: str | None) -> float:
    """Where a group lies on the axis; at the end where it is about no such number."""
    return dict(one.about).get(axis, float("inf")) if axis else 0.0


def pages(title: str, found: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """[(title, groups)]: all at once, or where that is too many curves, by the first label that keeps some of them apart."""
    axis, moving = axis_of(found), rows.moving_keys([one.labels for one in found])
    apart = next((key for key in moving if key != axis and all(key in one.labels for one in found)), None)
    if len(curves(found)) <= MANY or apart is None:
        return [(title, list(found))]
    out = []
    for value in dict.fromkeys(one.labels[apart] for one in found):
        out += pages(f"{title}, {apart} {value}", [one for one in found if one.labels[apart] == value])
    return out if len(out) < len(curves(found)) else [(title, list(found))]


# -- tables -------------------------------------------------------------------------------------------------------------


def table_of_runs(found: Sequence[Collected]) -> list[dict[str, Any]]:
    out = []
    for one in found:
        row = {"experiment": one.experiment, "seed": one.seed, **dict(one.cell), "state": one.state}
        row |= {"folder": str(one.folder), "counts": bool(one.lines) and one.same is None}
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
        for name in group.numbers:
            e, factor = group.estimate(name), scale(name)
            row = {"experiment": group.experiment, **dict(group.cell)}
            row |= beside(row, dict(group.about))
            of = {"mean": e.mean, "sd": e.sd, "low": e.low, "high": e.high}
            of = {key: None if x is None else x / factor for key, x in of.items()}
            out.append(row | {"number": name, "n": e.n, **of})
    return out


def beside(row: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    """More columns for a row; what is there under the same name keeps it."""
    return {f"line_{key}" if key in row else key: value for one in more for key, value in one.items()}


def ends(found: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Of every series the last line that has the number."""
    names, table = shown(found), []
    for series, line in drawn(found).items():
        last = {name: one for name in names if (one := end(line, name)) is not None}
        n = max(len(one.numbers[name]) for name, one in last.items())
        table.append([series or "all", str(n), *(words(name, last.get(name)) for name in names)])
    return ["settings", "n", *names], table


def end(line: Sequence[Group], name: str) -> Group | None:
    """The last of the groups that has the number."""
    return next((one for one in reversed(line) if name in one.numbers), None)


def drawn(found: Sequence[Group]) -> dict[str, list[Group]]:
    """The curves that have one of the numbers for the eye."""
    names = shown(found)
    return {key: line for key, line in curves(found).items() if any(end(line, name) for name in names)}


def words(name: str, one: Group | None) -> str:
    """Mean and interval; errors in percent."""
    if one is None:
        return ""
    return in_words(one.estimate(name), one.unit(name)) + (" %" if scale(name) == 100 else "")


def scale(name: str) -> int:
    """What a number is multiplied by to be shown: errors are shares, and shown in percent."""
    return 100 if name.endswith("_error") else 1


def shown(found: Sequence[Group]) -> list[str]:
    """The numbers for the eye: of a meta loop hyper loss, the error that was not optimised and the cosine with the exact
    hypergradient, of a study its first three that move."""
    there = dict.fromkeys(name for group in found for name in group.numbers)
    names = [name for name in there if not name.endswith("_examples")]
    if not all("meta_iteration" in dict(group.about) for group in found):
        moving = [one for one in names if len({value for group in found for value in group.numbers.get(one, ())}) > 1]
        return (moving or names)[:3]
    error = [one for one in ("test_error", "select_error", "valid_error") if one in names][:1]
    return ["hyper_loss", *error, *[one for one in names if one.endswith("_cosine")][:1]]


# -- figure -------------------------------------------------------------------------------------------------------------

WIDE = 50.0  # numbers over so wide a range that are not whole lie on a logarithmic axis
SHADES = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.PURPLE, figures.BLACK, figures.GREY)


def figure(experiment: str, found: Sequence[Group]) -> Figure:
    """A row for each number: along the lines (left, where there is more than one), and at the end, seed by seed (right)."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series, names = drawn(found), shown(found)
    axis = axis_of(found)
    lines = axis is not None
    map_ = matplotlib.colormaps["viridis"]
    shades = SHADES if len(series) <= len(SHADES) else [map_(i / (len(series) - 1)) for i in range(len(series))]
    columns = 2 if lines else 1
    height = max(2.6, 0.9 + 0.26 * len(series))
    size = (9.5 if lines else 6.5, height * len(names) + 0.25 * len(series) + 0.5)
    out = Figure(figsize=size, layout="constrained")
    grid_of = out.subplots(len(names), columns, squeeze=False, width_ratios=[3, 2] if lines else [1])
    for panels in grid_of[1:] if lines else ():
        panels[0].sharex(grid_of[0][0])
    for name, panels in zip(names, grid_of, strict=True):
        label = name.replace("_", " ") + (" (%)" if scale(name) == 100 else "")
        for i, ((which, line), shade) in enumerate(zip(series.items(), shades, strict=False)):
            if lines:
                draw_along(panels[0], name, str(axis), line, shade, which)
            draw_end(panels[-1], name, i, end(line, name), shade)
        if lines:
            at = [float(x) for one in found if (x := dict(one.about).get(axis)) is not None]
            panels[0].set(xlabel=str(axis).replace("_", "-"), ylabel=label)
            if min(at) > 0 and max(at) / min(at) > WIDE and any(x % 1 for x in at):
                panels[0].set_xscale("log")
            else:
                panels[0].xaxis.set_major_locator(MaxNLocator(integer=all(x % 1 == 0 for x in at)))
        panels[-1].set(xlabel=label, yticks=range(len(series)), ylim=(len(series) - 0.4, -0.6))
        panels[-1].set_yticklabels([] if lines else [one or "all" for one in series])
    grid_of[0][-1].set_title("at the end: each seed, mean, interval")
    if lines:
        grid_of[0][0].set_title("mean and 95 % interval over seeds (Student's t)")
        out.legend(
            *grid_of[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=1 if len(series) > 3 else 2
        )
    out.suptitle(experiment, x=0.01, ha="left", fontweight="bold")
    return out


def draw_along(axes: Any, name: str, axis: str, line: list[Group], shade: Any, which: str) -> None:
    there = [one for one in line if name in one.numbers and axis in dict(one.about)]
    if not there:
        return
    x = [dict(one.about)[axis] for one in there]
    e = [one.estimate(name) for one in there]
    n = sorted({one.n for one in e})
    label = f"{which or 'all'}  (n = {n[0] if len(n) == 1 else f'{n[0]} to {n[-1]}'})"
    axes.plot(x, [one.mean for one in e], color=shade, marker=".", label=label)
    low = [one.mean if one.low is None else one.low for one in e]
    high = [one.mean if one.high is None else one.high for one in e]
    axes.fill_between(x, low, high, color=shade, alpha=0.18, linewidth=0)


def draw_end(axes: Any, name: str, i: int, one: Group | None, shade: Any) -> None:
    if one is None:
        return
    e = one.estimate(name)
    values = [scale(name) * value for value in one.numbers[name]]
    axes.plot(values, [i + 0.18] * e.n, color=shade, marker="|", linestyle="none", alpha=0.7)
    around = None if e.low is None or e.high is None else [[e.mean - e.low], [e.high - e.mean]]
    axes.errorbar(e.mean, i - 0.08, xerr=around, color=shade, marker="o", markersize=5, capsize=3)
