"""One figure of a run, into a file: `hypertrail plot RUN FIGURE --out FILE.pdf`. Without a name: which ones there are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import figures
from ..errors import UsageError
from ..runs import FIGURES, read_metrics, write_atomic
from ..runs.reading import refuse_links
from ..sections import Section
from ..terminal import complain, say
from .catalogue import Drawing, catalogue
from .view import View, views
from .writing import NOTHING_YET, sections_so_far

FORMATS = ("png", "pdf", "svg")


def main(folder: Path, name: str | None, out: Path | None) -> int:
    """`hypertrail plot`: prints the list, or draws one figure and prints its path. out: None for figures/ of the run."""
    form = "png" if out is None else out.suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"--out {out}, expected a file that ends in .{', .'.join(FORMATS)}")
    (view,) = views([folder])
    drawings = {one.name: one for one in catalogue([view])}
    with tempfile.TemporaryDirectory() as scratch, figures.into(Path(scratch), form):
        sections = sections_so_far(view)
        own = own_pictures(sections)
        if name is None:
            return show(view, drawings, own, sections)
        if name not in drawings and name not in own:
            known = ", ".join([*drawings, *own]) or "none yet"
            raise UsageError(f"no figure {name!r} in {folder}, expected one of: {known}{why(sections)}")
        with figures.style():
            drawn = own[name][1] if name in own else figures.save(folder, name, drawings[name].draw())
        if out is None:
            refuse_links(folder)
        target = out or folder / FIGURES / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, drawn.read_bytes())
    say(f"figure: {target}")
    return 0


def own_pictures(sections: Sequence[Section]) -> dict[str, tuple[str, Path]]:
    """name → (caption, file) of what the experiment itself draws."""
    found = [item for section in sections for item in section.pictures.items()]
    return {path.stem: (caption, path) for caption, path in found}


def why(sections: Sequence[Section]) -> str:
    """Why the experiment draws nothing yet, where that is so."""
    said = [section.text for section in sections if section.title == NOTHING_YET]
    return f". {said[0]}" if said else ""


def show(
    view: View, drawings: dict[str, Drawing], own: dict[str, tuple[str, Path]], sections: Sequence[Section]
) -> int:
    captions = {name: one.caption for name, one in drawings.items()}
    captions |= {name: caption for name, (caption, _) in own.items()}
    lines = len(read_metrics(view.folder))
    if not captions and not lines:
        say(f"{view.folder} has no figures yet: it has not written a line")
    elif not captions:
        say(f"{view.folder} has no figures{'' if view.state == 'done' else ' yet'}{why(sections)}")
    elif why(sections):
        complain(why(sections)[2:])
    width = max(map(len, captions), default=0)
    for name, caption in captions.items():
        say(f"{name:<{width}}  {caption}")
    return 0
