"""report.html at the end of every run, one file with everything in it; and the folder with the interactive page about runs.

Both are the same page (page.py) of the same figures (catalogue.py).
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .. import figures
from ..errors import UsageError
from ..runs import REPORT
from ..runs.reading import refuse_links
from ..runs.writing import write_atomic
from ..sections import Section, own_sections
from ..terminal import complain, say
from .catalogue import Drawing, catalogue, draw, of_one
from .page import GENERATOR, PLOTLY, Page, Picture
from .view import View, views

INDEX, FILES = "index.html", "files.json"
NOTHING_YET = "What the experiment shows of itself"
WITHOUT = "plotly is not installed, so the figures of this page are still pictures; pip install 'hypertrail[report]'"


def write_report(folder: Path, state: str | None = None, own: Sequence[Section] | None = None) -> Path:
    """Draw the figures of a run anew and write its report.html; returns its path. UsageError for a folder that is no run.

    Works for a run that is finished, failed or still going: it shows what there is. state: what to say of it, where the
    run's own last file is yet to come. own: what the experiment itself shows, where that was asked for already.
    """
    view = View(folder, said=state)
    own = sections_so_far(view) if own is None else own
    drawings = catalogue([view])
    files = draw(drawings, folder)
    pictures = by_heading(drawings, {name: [path] for name, path in files.items()}, live=False)
    write_atomic(folder / REPORT, Page([view], pictures, {view.letter: own}).html())
    return folder / REPORT


def write_folder(folders: Sequence[Path], out: Path | None = None) -> tuple[Path, bool]:
    """The page about one run or several, with its figures and plotly beside it; returns (index.html, whether it is interactive).

    out: its folder; None: report/ in the run's own, whose report.html and figures are written anew as well, or a new
    reports/<time> in the folder that holds all of several. The figures lie in figures/ as PNG and PDF, those that are of one of
    several runs in a folder with its letter. An earlier report is replaced: what it alone had written (files.json) goes, what
    others put beside it stays. UsageError where a folder is no run, or where `out` holds anything else.
    """
    shown = views(folders)
    plotly = plotly_script()
    into_the_run = out is None and len(folders) == 1
    if into_the_run:
        refuse_links(folders[0])
    out = out or default_folder(folders)
    refuse_occupied(out)
    drawn = out / "figures"
    pictures: dict[str, list[Picture]] = {}
    own: dict[str, Sequence[Section]] = {}
    drawings = catalogue(shown)
    with figures.into(drawn, "png", "pdf") as written:
        pictures |= by_heading(drawings, both(draw(drawings, out)), plotly is not None)
    for one in shown:
        alone = of_one(one) if len(shown) > 1 else []
        with figures.into(drawn / one.letter if len(shown) > 1 else drawn, "png", "pdf") as more:
            own[one.letter] = sections_so_far(one)
            files = both(draw(alone, out))
        written += more
        pictures[one.letter] = [picture(drawing, files, plotly is not None) for drawing in alone]
    out.mkdir(parents=True, exist_ok=True)
    if plotly is not None:
        write_atomic(out / PLOTLY, plotly)
    write_atomic(out / INDEX, Page(shown, pictures, own, out, plotly is not None).html())
    replace(out, [*written, out / INDEX, *([out / PLOTLY] if plotly is not None else [])])
    if into_the_run:
        (folders[0] / "figures").mkdir(exist_ok=True)
        for file in drawn.glob("*.png"):
            write_atomic(folders[0] / "figures" / file.name, file.read_bytes())
        write_atomic(folders[0] / REPORT, Page(shown, pictures, own).html())
    return out / INDEX, plotly is not None


def sections_so_far(view: View) -> list[Section]:
    """What the experiment shows of itself; where it cannot yet, as its run has not come to an end, why."""
    try:
        return own_sections(view.folder)
    except Exception as problem:
        if view.state == "done":
            raise
        words = f"Nothing to show of a run that is {view.state.split(':')[0]} ({type(problem).__name__}: {problem})."
        return [Section(NOTHING_YET, words)]


def plotly_script() -> str | None:
    """The library as the installed plotly package has it; None without it."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        return None
    return get_plotlyjs()


def default_folder(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / "report"
    common = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    base = common / "reports" / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def refuse_occupied(out: Path) -> None:
    """UsageError for a folder that holds something and is not an earlier report."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder with --out")
    index = out / INDEX
    if index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:1000]:
        return
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and is not an earlier report; name a new folder with --out")


def replace(out: Path, written: Sequence[Path]) -> None:
    """Remove what the earlier report in `out` wrote and this one did not, and write down what this one did."""
    new = sorted({path.relative_to(out).as_posix() for path in written})
    try:
        old = json.loads((out / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or of an earlier version, which wrote down nothing
        old = []
    for name in set(map(str, old)) - set(new) if isinstance(old, list) else ():
        path = out / name
        if path.parent.resolve().is_relative_to(out.resolve()) and path.is_file():
            path.unlink()
            remove_empty(path.parent, out)
    write_atomic(out / FILES, json.dumps(new, indent=1) + "\n")


def remove_empty(folder: Path, out: Path) -> None:
    """A folder in `out` and those above it, as long as nothing is in them."""
    while folder != out and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def both(files: dict[str, Path]) -> dict[str, list[Path]]:
    return {name: [path, path.with_suffix(".pdf")] for name, path in files.items()}


def by_heading(drawings: Sequence[Drawing], files: dict[str, list[Path]], live: bool) -> dict[str, list[Picture]]:
    out: dict[str, list[Picture]] = {}
    for drawing in drawings:
        out.setdefault(drawing.under, []).append(picture(drawing, files, live))
    return out


def picture(drawing: Drawing, files: dict[str, list[Path]], live: bool) -> Picture:
    interactive = drawing.interact() if live and drawing.interact is not None else None
    return Picture(drawing.caption, files[drawing.name], interactive)


def main(folders: Sequence[Path], out: Path | None) -> int:
    """`hypertrail report`."""
    index, live = write_folder(folders, out)
    if not live:
        complain(WITHOUT)
    say(f"report: {index}")
    return 0
