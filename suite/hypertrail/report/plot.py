"""One figure of a run, into a file: `hypertrail plot RUN FIGURE --out FILE.pdf`. Without a name: which ones there are."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .. import figures
from ..errors import UsageError
from ..sections import own_sections
from .catalogue import Drawing, catalogue
from .view import views

FORMATS = ("png", "pdf", "svg")


def main(folder: Path, name: str | None, out: Path | None) -> int:
    """`hypertrail plot`: prints the list, or draws one figure and prints its path. out: None for figures/ of the run."""
    form = "png" if out is None else out.suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"--out {out}, expected a file that ends in .{', .'.join(FORMATS)}")
    drawings = {one.name: one for one in catalogue(views([folder]))}
    with tempfile.TemporaryDirectory() as scratch, figures.into(Path(scratch), form):
        own = own_pictures(folder)
        if name is None:
            return show(folder, drawings, own)
        if name not in drawings and name not in own:
            known = ", ".join([*drawings, *own]) or "none yet"
            raise UsageError(f"no figure {name!r} in {folder}, expected one of: {known}")
        with figures.style():
            drawn = own[name][1] if name in own else figures.save(folder, name, drawings[name].draw())
        target = out or folder / "figures" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn, target)
    print(f"figure: {target}")
    return 0


def own_pictures(folder: Path) -> dict[str, tuple[str, Path]]:
    """name → (caption, file) of what the experiment itself draws."""
    found = [item for section in own_sections(folder) for item in section.pictures.items()]
    return {path.stem: (caption, path) for caption, path in found}


def show(folder: Path, drawings: dict[str, Drawing], own: dict[str, tuple[str, Path]]) -> int:
    captions = {name: one.caption for name, one in drawings.items()}
    captions |= {name: caption for name, (caption, _) in own.items()}
    if not captions:
        print(f"{folder} has no figures yet: it has not written a line")
    width = max(map(len, captions), default=0)
    for name, caption in captions.items():
        print(f"{name:<{width}}  {caption}")
    return 0
