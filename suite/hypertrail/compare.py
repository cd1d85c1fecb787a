"""Two run folders side by side: what was asked, the metrics by meta-iteration, the hypergradients, where the runs part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import arrays, diagnostics
from .engines import SPLITS
from .errors import UsageError
from .runs import differences, read_config, read_metrics, status
from .tolerances import tolerance


@dataclass(frozen=True)
class Pair:
    """One meta-iteration of both runs. metrics: name → (a, b, relative difference); agreement: of a's hypergradient with
    b's, by kind, empty in the closing one or where the two runs do not have the same hyperparameters."""

    index: int
    metrics: dict[str, tuple[float, float, float]]
    agreement: dict[str, diagnostics.Agreement]

    def largest(self) -> tuple[str, float]:
        """The quantity that differs most, and by how much."""
        by = {name: values[2] for name, values in self.metrics.items()}
        by |= {f"hypergradient of {kind}": one.difference for kind, one in self.agreement.items()}
        worst = max(by, key=lambda name: by[name])
        return worst, by[worst]


def pairs(a: Path, b: Path) -> list[Pair]:
    """The meta-iterations that both runs have. UsageError where a folder is no run."""
    out = []
    for one, two in zip(meta_iterations(a), meta_iterations(b), strict=False):
        metrics = {"hyper loss": (one["hyper_loss"], two["hyper_loss"])}
        for split in (s for s in SPLITS if s in one["metrics"] and s in two["metrics"]):
            for what in ("loss", "error"):
                metrics[f"{split} {what}"] = (one["metrics"][split][what], two["metrics"][split][what])
        index = one["meta_iteration"]
        out.append(Pair(index, {k: (*v, relative(*v)) for k, v in metrics.items()}, gradients(a, b, index)))
    return out


def meta_iterations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a meta loop; a study has none."""
    return [line for line in read_metrics(folder) if "meta_iteration" in line]


def relative(a: float, b: float) -> float:
    """|a − b| / max(|a|, |b|); 0 where both are 0."""
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def gradients(a: Path, b: Path, index: int) -> dict[str, diagnostics.Agreement]:
    files = [folder / "hypergradients" / f"{index:04d}.npz" for folder in (a, b)]
    if not all(file.is_file() for file in files):
        return {}
    one, two = (arrays.load(file)["hypergradient"] for file in files)
    shapes = [{(k, n): x.shape for k, tensors in g.items() for n, x in tensors.items()} for g in (one, two)]
    if shapes[0] != shapes[1]:
        return {}
    return {kind: both.total for kind, both in diagnostics.agreement(one, two).items()}


def parting(found: list[Pair], epsilon: float) -> tuple[int, str, float] | None:
    """The first meta-iteration in which something differs by more than epsilon, with the quantity that differs most."""
    for pair in found:
        what, difference = pair.largest()
        if difference > epsilon:
            return pair.index, what, difference
    return None


def main(a: Path, b: Path) -> int:
    """`hypertrail compare`: prints tables and the verdict; 0 whatever the verdict is."""
    records = [read_config(folder) for folder in (a, b)]
    found = pairs(a, b)
    if not found:
        raise UsageError(
            f"{a} and {b} have no meta-iteration in common; compare meta loops, when each has a line of metrics"
        )
    from .display import console, table

    out = console()
    for letter, folder, record in zip("AB", (a, b), records, strict=True):
        out.print(f"{letter}  {folder}  ({record['experiment']}, {status(folder)})", markup=False)
    out.print(f"config: {differences(*records)}", markup=False)
    out.print()
    out.print(table("Metrics", ["meta-iteration", "quantity", "A", "B", "relative difference"], rows(found)))
    gradient_rows = [
        [str(pair.index), kind, f"{one.cosine:.6f}", f"{100 * one.signs:.2f} %", f"{one.difference:.1e}"]
        for pair in found
        for kind, one in pair.agreement.items()
    ]
    if gradient_rows:
        columns = ["meta-iteration", "kind", "cosine", "equal signs", "relative difference"]
        out.print(table("Hypergradients, A against B", columns, gradient_rows))
    out.print(verdict(found, records), markup=False)
    return 0


def rows(found: list[Pair]) -> list[list[str]]:
    out = []
    for pair in found:
        for i, (name, (one, two, difference)) in enumerate(pair.metrics.items()):
            out.append(["" if i else str(pair.index), name, f"{one:.6g}", f"{two:.6g}", f"{difference:.1e}"])
    return out


def verdict(found: list[Pair], records: list[dict[str, Any]]) -> str:
    precision = "float32" if "float32" in [r["config"].get("precision") for r in records] else "float64"
    allowed = tolerance("runs", precision)
    parted = parting(found, allowed.epsilon)
    if parted is None:
        worst = max(pair.largest()[1] for pair in found)
        return f"the runs agree in all {len(found)} meta-iterations to {allowed.epsilon:.0e} (largest difference {worst:.1e})"
    index, what, difference = parted
    limit = f"{allowed.epsilon:.0e} ({precision})"
    return f"the runs part in meta-iteration {index}: {what} differs by {difference:.1e}, more than {limit}"
