"""Which figures there are of a run, or of several side by side: their names, what they show, how they are drawn.

Only what the folders hold data for is listed, so every entry can be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import figures
from . import interactive, static, static_agreement
from .view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES, HYPER, HYPERGRADIENT, COST = "Curves", "Hyperparameters", "Hypergradients", "Cost"


@dataclass(frozen=True)
class Drawing:
    """One figure. name: of its files, and what `hypertrail plot` calls it; under: the heading that it stands under.

    draw: with Matplotlib. interact: as plotly's JSON (interactive.py); None where there is no such form.
    """

    name: str
    caption: str
    under: str
    draw: Callable[[], Figure]
    interact: Callable[[], dict[str, Any]] | None = None


def catalogue(views: Sequence[View]) -> list[Drawing]:
    """In reading order; empty for studies and for runs without a line. Figures of one run alone: see `of_one`."""
    views = [one for one in views if one.lines]
    if not views:
        return []
    many = not views[0].alone
    out = [Drawing("metrics", "Loss and error of every split after each training run", CURVES,
                   lambda: static.metrics(views), lambda: interactive.metrics(views))]  # fmt: skip
    if any(one.losses for one in views):
        of = "in the last meta-iteration of each run" if many else "in several meta-iterations"
        out.append(Drawing("training", f"Elementary loss while training, {of}; means over a fiftieth of the steps", CURVES,
                           lambda: static.training(views), lambda: interactive.training(views)))  # fmt: skip
    groups = dict.fromkeys((kind, role) for one in views for kind, roles in one.spreads.items() for role in roles)
    for kind, role in groups:
        caption = f"Hyperparameters of kind {kind}, {static.MEANING.get(role, role)}: how they spread"
        out.append(spread(kind, role, caption, views))
    if not many:
        out += of_one(views[0], HYPER)
    if static.kinds_of(views):
        out.append(Drawing("norms", "Norm of the hypergradient that moved the hyperparameters", HYPERGRADIENT,
                           lambda: static.norms(views), lambda: interactive.norms(views)))  # fmt: skip
    if any(one.compared for one in views):
        out.append(Drawing("agreement", "Agreement of the hypergradient with the exact one", HYPERGRADIENT,
                           lambda: static_agreement.agreement(views), lambda: interactive.agreement(views)))  # fmt: skip
    if not many:
        out += of_one(views[0], HYPERGRADIENT)
    where = "of each run" if many else "of each meta-iteration"
    out.append(Drawing("cost", f"Time, work and memory {where}", COST,
                       lambda: static.cost(views), lambda: interactive.cost(views)))  # fmt: skip
    return out


def spread(kind: str, role: str, caption: str, views: Sequence[View]) -> Drawing:
    return Drawing(f"hyper-{kind}-{role}", caption, HYPER, lambda: static.hyperparameters(kind, role, views),
                   lambda: interactive.hyperparameters(kind, role, views))  # fmt: skip


def of_one(view: View, under: str | None = None) -> list[Drawing]:
    """Those that several runs cannot share; all of them, or those under one heading."""
    out = []
    if "training_input" in view.spreads:
        out.append(Drawing("learned-images", "Learned training images (the first of them), at the start above and at the end "
                           "below", HYPER, lambda: static.learned_images(view)))  # fmt: skip
    if view.compared and static_agreement.tensors_compared(view)[0]:
        out.append(Drawing("agreement-layers", "Agreement of the hypergradient with the exact one, tensor by tensor",
                           HYPERGRADIENT, lambda: static_agreement.agreement_layers(view),
                           lambda: interactive.agreement_layers(view)))  # fmt: skip
    return [one for one in out if under in (None, one.under)]


def draw(drawings: Iterable[Drawing], folder: Path) -> dict[str, Path]:
    """Draw them, saved as `figures.save` does for the run `folder` → {name: file}."""
    with figures.style():
        return {one.name: figures.save(folder, one.name, one.draw()) for one in drawings}
