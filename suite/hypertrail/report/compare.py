"""Two run folders side by side: what was asked, every meta-iteration, every step of its training, and where the runs part.

Meant for the reference engine's run against the compiled engine's, and for the same command on two machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import diagnostics, threads
from ..errors import UsageError
from ..hyperparameters import Hyper
from ..measures import SPLITS, measures
from ..runs import differences, read_config, read_metrics, status
from ..runs.writing import write_atomic
from ..spreadsheet import as_sheet
from ..terminal import visible
from ..tolerances import Tolerance, tolerance
from .view import View

if TYPE_CHECKING:
    from hypertrail_data import StoredTrajectory

LOSS, WEIGHTS, VELOCITY, ADJOINT = "elementary loss", "weights", "velocities", "‖dw‖ on the way back"


@dataclass(frozen=True)
class Steps:
    """One quantity at every step of one meta-iteration: a's, b's (of weights and velocities: their norms), both (n,), and the
    relative difference (n,). On the way back step 0 is the first one taken."""

    what: str
    a: np.ndarray
    b: np.ndarray
    difference: np.ndarray

    def first_beyond(self, epsilon: float) -> int | None:
        beyond = np.flatnonzero(~(self.difference <= epsilon))  # what is not a number is beyond
        return int(beyond[0]) if beyond.size else None


@dataclass(frozen=True)
class Pair:
    """One meta-iteration of both runs.

    metrics: name → (a, b, relative difference). hyper: kind → relative difference of the hyperparameters in force. steps:
    what both kept of every step. agreement: of a's hypergradient with b's, "l2", and "l2, exact" where both took that beside;
    with every tensor; empty in the closing meta-iteration, or where the two do not have the same hyperparameters.
    """

    index: int
    metrics: dict[str, tuple[float, float, float]]
    agreement: dict[str, diagnostics.KindAgreement]
    hyper: dict[str, float] = field(default_factory=dict)
    steps: Sequence[Steps] = ()

    def judged(self) -> list[list[tuple[str, float, Steps | None]]]:
        """[(quantity, difference, its steps), …] of each stage, in the order of time. Errors are not judged: they jump by
        whole examples."""
        steps = [(one.what, largest(one.difference), one) for one in self.steps]
        return [
            [(f"hyperparameters of {kind}", difference, None) for kind, difference in self.hyper.items()],
            [one for one in steps if one[0] != ADJOINT],
            [(name, values[2], None) for name, values in self.metrics.items() if not name.endswith("error")],
            [one for one in steps if one[0] == ADJOINT],
            [(f"hypergradient of {kind}", both.total.difference, None) for kind, both in self.agreement.items()],
        ]

    def largest(self) -> tuple[str, float]:
        """The quantity that differs most, and by how much."""
        what, difference, _ = max((one for stage in self.judged() for one in stage), key=lambda one: one[1])
        return what, difference


@dataclass(frozen=True)
class Parting:
    """Where two runs part: the first quantity, in the order of time, that differs by more than is allowed, and at which step."""

    index: int
    what: str
    difference: float
    step: int | None = None

    def __str__(self) -> str:
        at = "" if self.step is None else f", step {self.step}" + (" of the way back" if self.what == ADJOINT else "")
        return f"meta-iteration {self.index}{at}: relative difference of {self.what} {self.difference:.1e}"


# -- what both runs have --------------------------------------------------------------------------------------------------


def pairs(a: Path, b: Path) -> list[Pair]:
    """The meta-iterations that both runs have. UsageError where a folder is no run."""
    out = []
    weights, sides = trajectories(a, b), (View(a), View(b))
    for one, two in zip(*(side.lines for side in sides), strict=False):
        metrics = {"hyper loss": (one["hyper_loss"], two["hyper_loss"])}
        for split in (s for s in SPLITS if s in one["metrics"] and s in two["metrics"]):
            shared = [what for what in measures(one["metrics"][split]) if what in two["metrics"][split]]
            for what in shared:
                metrics[f"{split} {what}"] = (one["metrics"][split][what], two["metrics"][split][what])
        k = one["meta_iteration"]
        steps = [*kept_steps(sides, k), *(weights[1] if weights[0] == k else ())]
        out.append(
            Pair(k, {n: (*v, relative(*v)) for n, v in metrics.items()}, gradients(sides, k), hyper(sides, k), steps)
        )
    return out


def meta_iterations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a meta loop; a study has none."""
    return [line for line in read_metrics(folder) if "meta_iteration" in line]


def relative(a: float, b: float) -> float:
    """|a − b| / max(|a|, |b|); 0 where both are 0."""
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def largest(differences: np.ndarray) -> float:
    """The largest of them; infinite where one is not a number."""
    return float(np.where(np.isnan(differences), np.inf, differences).max(initial=0.0))


Sides = tuple[View, View]


def both(sides: Sides, folder: str, k: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What two runs have in folder/<k>.npz; None where one of them has no such file."""
    one, two = (side.arrays(f"{folder}/{k:04d}.npz") for side in sides)
    return None if one is None or two is None else (one, two)


def gradients(sides: Sides, k: int) -> dict[str, diagnostics.KindAgreement]:
    found = both(sides, "hypergradients", k)
    out = {}
    for name, suffix in (("hypergradient", ""), ("exact", ", exact")):
        if found and all(name in one for one in found) and alike(*(one[name] for one in found)):
            of = diagnostics.agreement(*(one[name] for one in found))
            out |= {kind + suffix: one for kind, one in of.items()}
    return out


def hyper(sides: Sides, k: int) -> dict[str, float]:
    found = both(sides, "states", k)
    if not found or not alike(*(one["hyper"] for one in found)):
        return {}
    return {kind: one.total.difference for kind, one in diagnostics.agreement(*(one["hyper"] for one in found)).items()}


def alike(one: Hyper, two: Hyper) -> bool:
    shapes = [{(k, n): x.shape for k, tensors in g.items() for n, x in tensors.items()} for g in (one, two)]
    return shapes[0] == shapes[1]


def kept_steps(sides: Sides, k: int) -> list[Steps]:
    """Losses forwards and adjoint norms backwards, where both runs kept them and took as many steps."""
    found = both(sides, "steps", k)
    out = []
    for key, what in (("loss", LOSS), ("adjoint", ADJOINT)):
        if (
            found
            and all(one.get(key, np.zeros(0)).size for one in found)
            and found[0][key].shape == found[1][key].shape
        ):
            one, two = (x[key].astype(np.float64) for x in found)
            out.append(Steps(what, one, two, elementwise(one, two)))
    return out


def elementwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`relative` of every pair."""
    size = np.maximum(np.abs(a), np.abs(b))
    return np.abs(a - b) / np.where(size > 0, size, 1.0)


# -- trajectories ---------------------------------------------------------------------------------------------------------


def trajectories(a: Path, b: Path) -> tuple[int | None, list[Steps]]:
    """(meta-iteration, weights and velocities at every step) where both runs have one and the same trajectory on the disk."""
    kept, why = common_weights(a, b)
    if why:
        return None, []
    from hypertrail_data import StoredTrajectory

    with StoredTrajectory.open(a / "trajectory") as one, StoredTrajectory.open(b / "trajectory") as two:
        names = list(one.read(one.start))
        walks = {what: [name for name in names if name.startswith(front)]
                 for what, front in ((WEIGHTS, "w/"), (VELOCITY, "v/"))}  # fmt: skip
        found: dict[str, list[tuple[float, float, float]]] = {what: [] for what, mine in walks.items() if mine}
        for t in range(one.start, min(one.stop, two.stop)):
            x, y = one.read(t), two.read(t)
            for what, rows in found.items():
                of = diagnostics.agree([(diagnostics.flat(x[n]), diagnostics.flat(y[n])) for n in walks[what]])
                rows.append((of.norm, of.reference_norm, of.difference))
    return kept, [Steps(what, *np.array(rows).T) for what, rows in found.items()]


def kept_of(folder: Path, trajectory: StoredTrajectory) -> int | None:
    """The meta-iteration that the trajectory in a run's folder is of: what it says itself, or, where an earlier version wrote it,
    the last with a hypergradient of a run that is done; None where that is not certain.
    """
    if "meta_iteration" in trajectory.meta:
        return int(trajectory.meta["meta_iteration"])
    moved = [line["meta_iteration"] for line in meta_iterations(folder) if "method" in line]
    return max(moved, default=None) if status(folder) == "done" else None


def why_no_weights(a: Path, b: Path) -> str:
    """Why weights are not compared, and how to get them; '' where they are."""
    return common_weights(a, b)[1]


def common_weights(a: Path, b: Path) -> tuple[int | None, str]:
    """(the meta-iteration whose trajectory both runs have kept, why there is none)."""
    from hypertrail_data import StoredTrajectory, TrajectoryError

    layouts, kept = [], []
    for letter, folder in (("A", a), ("B", b)):
        if not (folder / "trajectory").is_dir():
            return None, (
                f"{letter} kept no trajectory on the disk; run both with --trajectory disk (and --compare-exact, where the "
                "method does not walk over every state)"
            )
        if status(folder) == "unfinished":
            return None, f"{letter} is unfinished, and its trajectory may change at any time"
        try:
            with StoredTrajectory.open(folder / "trajectory") as one:
                if not len(one):
                    return None, f"the trajectory of {letter} is empty"
                layouts.append((one.start, {name: x.shape for name, x in one.read(one.start).items()}))
                kept.append(kept_of(folder, one))
        except TrajectoryError as problem:
            return None, f"the trajectory of {letter} cannot be read: {problem}"
        if kept[-1] is None:
            return (
                None,
                f"which meta-iteration the trajectory of {letter} is of is not certain: an earlier version wrote it",
            )
    if kept[0] != kept[1]:
        return None, f"the trajectory of A is of meta-iteration {kept[0]}, that of B of {kept[1]}; run both as often"
    for letter, folder in (("A", a), ("B", b)):
        if kept[0] not in [line["meta_iteration"] for line in meta_iterations(folder)]:
            return None, f"the trajectories are of meta-iteration {kept[0]}, in which {letter} failed"
    if layouts[0] != layouts[1]:
        return None, "the trajectories are of different networks or do not begin at the same step"
    return kept[0], ""


# -- the verdict ----------------------------------------------------------------------------------------------------------


def parting(found: list[Pair], epsilon: float) -> Parting | None:
    """The first stage of the first meta-iteration in which something differs by more than epsilon.

    In it the first step where something does, and of what does there (or, without steps, of all) what differs most.
    """
    for pair in found:
        for stage in pair.judged():
            beyond = [(what, difference, steps) for what, difference, steps in stage if not difference <= epsilon]
            if not beyond:
                continue
            firsts = {steps.what: steps.first_beyond(epsilon) for _, _, steps in beyond if steps is not None}
            if not firsts:
                what, difference, _ = max(beyond, key=lambda one: one[1])
                return Parting(pair.index, what, difference)
            step = min(at for at in firsts.values() if at is not None)
            there = {
                steps.what: float(steps.difference[step])
                for _, _, steps in beyond
                if steps and firsts[steps.what] == step
            }
            what = max(there, key=lambda one: there[one])
            return Parting(pair.index, what, there[what], step)
    return None


def allowed_between(records: Sequence[dict[str, Any]]) -> tuple[Tolerance, str]:
    """(the entry of the tolerance table, the coarser of the two precisions)."""
    precision = "float32" if "float32" in [r["config"].get("precision") for r in records] else "float64"
    return tolerance("runs", precision), precision


# -- the command ----------------------------------------------------------------------------------------------------------


def main(a: Path, b: Path, out: Path | None = None) -> int:
    """`hypertrail compare`: prints tables and the verdict; 0 whatever it is. out: a folder for compare.csv and the figure."""
    records = [read_config(folder) for folder in (a, b)]
    found = pairs(a, b)
    if not found:
        raise UsageError(
            f"{a} and {b} have no meta-iteration in common; compare meta loops, when each has a line of metrics"
        )
    from ..display import console, table

    allowed, precision = allowed_between(records)
    screen = console()
    for letter, folder, record in zip("AB", (a, b), records, strict=True):
        screen.print(visible(f"{letter}  {folder}  ({record['experiment']}, {status(folder)})"), markup=False)
    screen.print(visible(f"config: {differences(*records)}"), markup=False)
    for line in filter(None, (threads.difference(a, b), other_data(View(a), View(b)))):
        screen.print(line, markup=False)
    screen.print()
    screen.print(table("Metrics", ["meta-iteration", "quantity", "A", "B", "relative difference"], rows(found)))
    shown = step_rows(found, allowed.epsilon)
    if shown:
        columns = [
            "meta-iteration",
            "quantity",
            "steps",
            "largest difference",
            "at step",
            f"first beyond {allowed.epsilon:.0e}",
        ]
        screen.print(table("Step by step", columns, shown))
    for line in not_compared(a, b, found):
        screen.print(line, markup=False)
    shown = gradient_rows(found)
    if shown:
        columns = ["meta-iteration", "kind", "relative error", "cosine", "equal signs", "worst tensor", "its error"]
        screen.print(table("Hypergradients, A against B", columns, shown))
    screen.print(verdict(found, allowed, precision), markup=False)
    if out is not None:
        from .compare_figure import save

        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "compare.csv", as_csv(found))
        save(out, found, allowed.epsilon, why_no_weights(a, b))
        screen.print(f"table: {out / 'compare.csv'}  figure: {out / 'compare.png'}, .pdf", markup=False)
    return 0


def other_data(a: View, b: View) -> str:
    """What is to be said of the data of two runs: '' where they are the same, or where one does not say."""
    one, two = ({used["sha256"] for used in view.data.values()} for view in (a, b))
    if not one or not two or one == two:
        return ""
    return f"data: sha256 {min(one - two or one)[:12]}.., not {min(two - one or two)[:12]}..; the runs saw other images or labels"


def rows(found: list[Pair]) -> list[list[str]]:
    out = []
    for pair in found:
        for i, (name, (one, two, difference)) in enumerate(pair.metrics.items()):
            out.append(["" if i else str(pair.index), name, f"{one:.6g}", f"{two:.6g}", f"{difference:.1e}"])
        for kind, difference in pair.hyper.items():
            out.append(["", f"hyperparameters of {kind}", "", "", f"{difference:.1e}"])
    return out


def step_rows(found: list[Pair], epsilon: float) -> list[list[str]]:
    out = []
    for pair in found:
        for i, one in enumerate(pair.steps):
            at, first = int(np.argmax(np.nan_to_num(one.difference, nan=np.inf))), one.first_beyond(epsilon)
            out.append(["" if i else str(pair.index), one.what, f"{len(one.a):,}", f"{largest(one.difference):.1e}", f"{at:,}",
                        "–" if first is None else f"{first:,}"])  # fmt: skip
    return out


def not_compared(a: Path, b: Path, found: list[Pair]) -> list[str]:
    """What is missing from the tables, what stands in its place, and how to get it."""
    lines = []
    if not any(one.what == LOSS for pair in found for one in pair.steps):
        lines.append(
            "elementary losses: not compared, as not both runs kept as many of them (runs of earlier versions kept none); the "
            "losses after each training are above"
        )
    why = why_no_weights(a, b)
    if why:
        lines.append(f"weights: not compared, {why}. Elementary losses and metrics stand in for them")
    if not any(pair.agreement for pair in found):
        lines.append("hypergradients: not compared, as the runs have none of the same hyperparameters")
    return lines


def gradient_rows(found: list[Pair]) -> list[list[str]]:
    out = []
    for pair in found:
        for i, (kind, one) in enumerate(pair.agreement.items()):
            worst = max(one.layers, key=lambda name, of=one: of.layers[name].difference)
            cosine = diagnostics.in_words(one.total.cosine, 6)
            out.append(["" if i else str(pair.index), kind, f"{one.total.difference:.1e}", cosine,
                        f"{100 * one.total.signs:.2f} %", worst, f"{one.layers[worst].difference:.1e}"])  # fmt: skip
    return out


def verdict(found: list[Pair], allowed: Tolerance, precision: str) -> str:
    parted = parting(found, allowed.epsilon)
    if parted is None:
        worst = max(pair.largest()[1] for pair in found)
        return f"the runs agree in all {len(found)} meta-iterations to {allowed.epsilon:.0e} (largest difference {worst:.1e})"
    return f"the runs part in {parted}, more than {allowed.epsilon:.0e} ({precision}: {allowed.reason})"


def as_csv(found: list[Pair]) -> str:
    """One line for each number that was compared; step is empty where there is none."""
    return as_sheet(["meta_iteration", "step", "quantity", "a", "b", "relative_difference"], compared_numbers(found))


def compared_numbers(found: list[Pair]) -> Iterator[list[Any]]:
    for pair in found:
        for kind, difference in pair.hyper.items():
            yield [pair.index, "", f"hyperparameters of {kind}", "", "", difference]
        for one in pair.steps:
            for t, row in enumerate(zip(one.a, one.b, one.difference, strict=True)):
                yield [pair.index, t, one.what, *(float(x) for x in row)]
        for name, values in pair.metrics.items():
            yield [pair.index, "", name, *values]
        for kind, both_ in pair.agreement.items():
            for name, one in (("", both_.total), *both_.layers.items()):
                what = f"hypergradient of {kind}" + (f", {name}" if name else "")
                yield [pair.index, "", f"norm of the {what}", one.norm, one.reference_norm, one.difference]
                yield [pair.index, "", f"cosine of the {what}", one.cosine, "", ""]
                yield [pair.index, "", f"equal signs of the {what}", one.signs, "", ""]
