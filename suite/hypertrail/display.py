"""What a run says while it works and at its end: a progress bar on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import diagnostics, terminal
from .measures import ERROR, LOSS, SPLITS, count_of, measures, of_lines, shown
from .sections import Section
from .tuning import MetaIteration, warnings_of

WIDTH = 400  # columns where there is no terminal: no table of a log file is cut


class Screen(Console):
    """A console whose reader may go away (`hypertrail run … | head -1`) or never have been there: work goes on without it."""

    def on_broken_pipe(self) -> None:
        self.gone()

    def gone(self) -> None:
        """Say nothing more; what Python would still write at its end goes nowhere."""
        self.quiet = True
        terminal.leave(sys.stdout)

    def print(self, *what: Any, **how: Any) -> None:
        try:
            super().print(*what, **how)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk behind it can still be caught
        except (OSError, ValueError):  # ValueError: a closed stream, or an encoding that lacks a letter
            self.gone()


def console() -> Console:
    """The screen; wide where there is none, so that tables in log files are whole."""
    out = Screen(highlight=False, soft_wrap=True)
    return out if out.is_terminal else Screen(highlight=False, soft_wrap=True, width=WIDTH)


class Voice:
    """Where the words of a run go: the screen, and `log` for each plain line."""

    def __init__(self, log: Callable[[str], None] = lambda line: None) -> None:
        self.console = console()
        self.log = log
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task: Any = None

    def __enter__(self) -> Voice:
        with self.without_a_bar_after_failure():
            self.bar.start()
        return self

    def __exit__(self, *what: object) -> None:
        with self.without_a_bar_after_failure():
            self.bar.stop()

    def say(self, line: str) -> None:
        """One line to screen and log."""
        self.log(terminal.visible(line))
        self.console.print(terminal.visible(line), markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """How far one stage is, for the bar."""
        if self.bar.disable:
            return
        with self.without_a_bar_after_failure():
            if self.task is None or self.bar.tasks[-1].description != what:
                if self.task is not None:
                    self.bar.remove_task(self.task)
                self.task = self.bar.add_task(what, total=total)
            self.bar.update(self.task, completed=done, total=total)

    @contextlib.contextmanager
    def without_a_bar_after_failure(self) -> Iterator[None]:
        """A terminal that cannot draw the bar gets the plain lines alone; the run goes on."""
        try:
            yield
        except Exception as problem:
            self.bar.disable = True
            self.log(f"no progress bar: {type(problem).__name__}: {problem}")

    def report(self, k: int, stage: str, done: int, total: int) -> None:
        """Steps of one stage of a meta-iteration."""
        self.progress(f"meta-iteration {k}  {stage}", done, total)

    def finished(self, record: MetaIteration) -> None:
        self.say(line_of(record))


def line_of(record: MetaIteration) -> str:
    """One meta-iteration in one line."""
    words = [f"meta-iteration {record.index}: T {record.steps}"]
    for split, measured in record.metrics.items():
        found = measured.as_json()
        words.append(" ".join([split, *(named(what, found[what]) for what in measures(found))]))
    words.append(f"hyper loss {record.hyper_loss:.4f}")
    for kind, one in (record.agreement or {}).items():
        words.append(f"{kind}: cosine {diagnostics.in_words(one.total.cosine)} signs {100 * one.total.signs:.1f} %")
    words.append(f"{sum(c.seconds for c in record.costs.values()):.1f} s")
    words += [f"WARNING: {sentence}" for sentence in record.warnings]
    return " | ".join(words)


def named(what: str, value: float) -> str:
    """A number of a line: the loss and the error rate of a classifier are known by their looks, others say what they are."""
    return shown(what, value) if what in (LOSS, ERROR) else f"{what} {shown(what, value)}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """First column left, the others right."""
    out = Table(
        title=Text(terminal.visible(title)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        out.add_column(Text(terminal.visible(column)), justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        out.add_row(*(Text(terminal.visible(cell)) for cell in row))
    return out


def end_table(lines: Sequence[dict[str, Any]]) -> Table:
    """Loss and error of every split at the start and at the end."""
    start, end = lines[0], lines[-1]
    rows, names, unit = [], of_lines([start]), "examples"
    for split in (s for s in SPLITS if s in start["metrics"]):
        a, b = start["metrics"][split], end["metrics"][split]
        unit, _ = count_of(a)
        both = [shown(what, line.get(what)) for what in names for line in (a, b)]
        rows.append([split, *both, f"{count_of(a)[1]}"])
    empty = [""] * (2 * len(names) - 1)
    rows.append(["hyper loss", f"{start['hyper_loss']:.4f}", f"{end['hyper_loss']:.4f}", *empty])
    columns = ["split", *(f"{what}, {when}" for what in names for when in ("start", "end")), unit]
    return table(f"After {end['meta_iteration']} updates", columns, rows)


def agreement_table(lines: Sequence[dict[str, Any]]) -> Table | None:
    """Agreement with the exact hypergradient in the first and the last meta-iteration that has it, by kind."""
    compared = [line for line in lines if "agreement" in line]
    if not compared:
        return None
    rows = []
    for kind in compared[0]["agreement"]:
        for line in dict.fromkeys((0, len(compared) - 1)):
            one = compared[line]["agreement"][kind]["total"]
            rows.append([kind, str(compared[line]["meta_iteration"]), *agreement_cells(one)])
    columns = ["kind", "meta-iteration", "cosine", "equal signs", "norm ratio"]
    return table(f"{compared[0]['method']} against the exact hypergradient", columns, rows)


def agreement_cells(one: dict[str, Any]) -> list[str]:
    ratio = one["norm_ratio"]
    return [
        diagnostics.in_words(one["cosine"]),
        f"{100 * one['signs']:.1f} %",
        "–" if ratio is None else f"{ratio:.3g}",
    ]


def seconds_line(lines: Sequence[dict[str, Any]]) -> str:
    """Where the time went, stage by stage."""
    stages: dict[str, float] = {}
    for line in lines:
        for stage, cost in line["cost"].items():
            stages[stage] = stages.get(stage, 0.0) + cost["seconds"]
    parts = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items())
    return f"seconds: {sum(stages.values()):.1f} ({parts})"


def show_end(voice: Voice, lines: Sequence[dict[str, Any]], sections: Sequence[Section], report: Path) -> None:
    """The last words of a run: tables, seconds, the path of the report; the same into the log.

    lines: of a meta loop; none for a study. sections: what the experiment itself shows.
    """
    for one in (end_table(lines), agreement_table(lines)) if lines else ():
        if one is not None:
            show_table(voice, one)
    for section in sections:
        if section.rows:
            show_table(voice, table(section.title, section.columns, section.rows))
        if section.text:
            voice.say(section.text)
    for sentence in warnings_of(lines):
        voice.say(f"warning: {sentence}")
    if lines:
        voice.say(seconds_line(lines))
    voice.say(f"report: {report}")


def show_table(voice: Voice, one: Table) -> None:
    """To the screen, and plain into the log."""
    import io

    voice.console.print(one)
    plain = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    plain.print(one)
    for line in plain.file.getvalue().splitlines():  # type: ignore[attr-defined]
        voice.log(line.rstrip())
