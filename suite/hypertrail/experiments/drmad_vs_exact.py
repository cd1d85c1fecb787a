"""DrMAD's headline, "at least 45 times faster and consumes 100 times less memory", measured against every exact way back.

    hypertrail run drmad-vs-exact --data-dir FOLDER
    hypertrail run drmad-vs-exact --data-dir FOLDER --reference-steps 0        (the compiled engine alone)

The problem of DrMAD's experiment 1 (drmad_mnist.py: 784-50-50-50-10, T = 2000, one weight transform per input unit). The paper
compared N = T/10 steps in floating point with T steps whose integers are Python's (hypergrad's reversal). Here DrMAD (C1 as
its authors' code, and C4) stands beside the exact hypergradient from states in memory, on disk, from checkpoints and
undone in int64, in the compiled engine; and, in the reference engine on fewer steps, beside the reversal whose buffer is
a Python integer of any length for each number, which is what the paper timed.

Each way is timed twice and the second time counts: the first one compiles. A way's time is that of its training run (the
reversible one works in integers) and of its reverse pass.

Hardware: two CPU cores: 1.5 minutes.
Measured: seed 0; time and memory in units of those of C1: training and reverse pass, in brackets the reverse pass alone:

                                       compiled, T = 2000      reference, T = 200      memory (T = 2000; 200)
    exact, states in memory            2.0 (6.7)               2.4 (5.1)               1000; 100
    exact, states in HDF5              2.7 (8.0)               2.9 (5.2)               1000; 100, on disk
    exact, √T checkpoints              3.0 (13)                3.3 (7.6)               40; 10
    exact, undone in integers          2.8 (10)                3.7 (7.5)               6; 1.5
    exact, undone with Python integers –                       8.1 (14)                –; 3.2
    DrMAD, C4                          1.2 (2.9)               2.3 (4.8)               1; 1

The cosine of C1 with the exact hypergradient is .63 (T = 2000), of C4 .28. So a tenth of the steps buys a factor of 7 to 10 of
the reverse pass and 2 to 3 of the whole, not 45; the memory saved against reversal in integers is a factor of 6, not 100.
The paper's numbers: 45 times faster, 100 times less memory (Fu et al. 2016, section 4).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import diagnostics, engines, figures
from ..keeping import Checkpoints, Keep, Reversible
from ..methods import Exact, Method, parse_method
from ..problem import Problem
from ..runs import Run, read_metrics
from ..sections import Section
from . import drmad_mnist
from ._common import Study, at_least, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

YARDSTICK = "drmad-C1-first"  # the authors' code
LABELS = {
    "plain": "training alone",
    YARDSTICK: "DrMAD, C1 as its authors' code",
    "drmad-C4": "DrMAD, C4",
    "memory": "exact, states in memory",
    "disk": "exact, states in HDF5",
    "checkpoints": "exact, √T checkpoints",
    "reversible": "exact, undone in int64",
    "unbounded": "exact, undone with Python integers",
}


@dataclass(frozen=True)
class Config(Study):
    """Settings of drmad-vs-exact."""

    steps: int = 2000
    """T in the engine of --engine."""
    reference_steps: int = 200
    """T in the reference engine, where Python integers are slow; 0 leaves it out."""
    train: int = 15_000
    """Training images."""
    valid: int = 5_000
    """Images of the hyper loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 20)
        at_least("reference-steps", self.reference_steps, 0)


def problem(config: Config) -> Problem:
    c = config
    return drmad_mnist.problem(
        drmad_mnist.Config(
            steps=c.steps, train=c.train, valid=c.valid, test=0, seed=c.seed, precision=c.precision, data_dir=c.data_dir
        )
    )


def study(config: Config, run: Run, voice: Voice) -> None:
    of_steps = built(problem, config)
    ways: dict[str, tuple[Keep, Method | None]] = {
        "plain": ("ends", None),
        YARDSTICK: ("ends", parse_method(YARDSTICK)),
        "drmad-C4": ("ends", parse_method("drmad-C4")),
        "memory": ("memory", Exact()),
        "disk": (run.path / "trajectory", Exact()),
        "checkpoints": (Checkpoints(), Exact()),
        "reversible": (Reversible(), Exact()),
    }
    compare(engines.load(config.engine), of_steps, ways, run, voice)
    if config.reference_steps:
        few = of_steps.with_(steps=config.reference_steps, precision="float64")
        slow = ways | {"unbounded": (Reversible(unbounded=True), Exact())}
        compare(engines.load("cpu"), few, slow, run, voice)


def compare(engine: Any, problem: Problem, ways: dict[str, tuple[Keep, Method | None]], run: Run, voice: Voice) -> None:
    """A line for each way: seconds of training and reverse pass, bytes of states, cosine with the exact hypergradient."""
    hyper, rows, exact = problem.initial_hyper(), {}, None
    for name, (keep, method) in ways.items():
        for second in (False, True):
            if isinstance(keep, Path):
                shutil.rmtree(keep, ignore_errors=True)
            training = engine.train(problem, hyper, keep)
            row = {"engine": engine.name, "steps": problem.steps, "way": name, "training": training.cost.seconds}
            if method is not None:
                result = engine.hypergradient(problem, hyper, training, method)
                row |= {"reverse": result.cost.seconds, "bytes": result.cost.trajectory_bytes}
                row |= {"N": result.diagnostics["N"], "gradient": result.gradient}
            if training.trajectory is not None:
                training.trajectory.close()
            voice.progress(f"{engine.name}: {LABELS[name]}", 1 + second, 2)
        rows[name] = row
        exact = row["gradient"] if name == "memory" else exact
        voice.say(f"{engine.name}, {LABELS[name]}: {row['training']:.2f} s and {row.get('reverse', 0.0):.2f} s back")
    if isinstance(ways["disk"][0], Path):
        shutil.rmtree(ways["disk"][0], ignore_errors=True)
    for row in rows.values():
        if "gradient" in row:
            row["cosine"] = diagnostics.agreement(row.pop("gradient"), exact)["transform"].total.cosine
        run.append(row)


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    lines = read_metrics(folder)
    sections = []
    for engine in dict.fromkeys(line["engine"] for line in lines):
        mine = {line["way"]: line for line in lines if line["engine"] == engine}
        sections.append(of_engine(engine, mine))
    caption = "Time and memory of every way, in units of DrMAD's (C1)"
    with figures.style():
        sections[-1] = Section(
            sections[-1].title,
            sections[-1].text,
            sections[-1].columns,
            sections[-1].rows,
            {caption: figures.save(folder, "ways", draw(lines))},
        )
    return sections


def whole(line: dict[str, Any]) -> float:
    return line["training"] + line.get("reverse", 0.0)


def of_engine(engine: str, mine: dict[str, dict[str, Any]]) -> Section:
    yard = mine[YARDSTICK]
    rows = []
    for name, line in mine.items():
        row = [LABELS[name], f"{line['training']:.2f}"]
        if "reverse" in line:
            row += [
                f"{line['reverse']:.2f}",
                f"{whole(line) / whole(yard):.1f}",
                f"{line['reverse'] / yard['reverse']:.1f}",
            ]
            row += [f"{line['bytes'] / 1e6:.2f}", f"{line['bytes'] / yard['bytes']:.1f}", f"{line['cosine']:.3f}"]
        else:
            row += ["–", f"{whole(line) / whole(yard):.1f}", *["–"] * 4]
        rows.append(row)
    columns = ["", "train s", "back s", "× time", "× back", "MB", "× memory", "cosine"]
    text = (
        f"T = {mine['plain']['steps']:,}. × time: training and reverse pass, over those of DrMAD (C1); × back: the reverse pass "
        "alone; MB: states kept for it; cosine: with the exact hypergradient. The paper says 45 (time) and 100 (memory) "
        "for the exact way with Python integers."
    )
    words = {"cpu": "The reference engine (NumPy, float64)", "gpu": "The compiled engine"}
    return Section(words[engine], text, columns, rows)


def draw(lines: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = {"gpu": figures.BLUE, "cpu": figures.ORANGE}
    words = {"gpu": "compiled engine", "cpu": "reference engine"}
    for engine in dict.fromkeys(line["engine"] for line in lines):
        mine = {line["way"]: line for line in lines if line["engine"] == engine and "reverse" in line}
        yard = mine[YARDSTICK]
        x = [line["bytes"] / yard["bytes"] for line in mine.values()]
        y = [whole(line) / whole(yard) for line in mine.values()]
        axes.loglog(x, y, "o", color=colours[engine], label=words[engine])
        for name, at, up in zip(mine, x, y, strict=True):
            axes.annotate(LABELS[name], (at, up), (5, 3), textcoords="offset points", fontsize=7, color=colours[engine])
    axes.plot(100, 45, "*", markersize=11, color=figures.BLACK, label="the paper's exact way")
    axes.set(
        xlabel="memory of the trajectory, in units of DrMAD's", ylabel="training and reverse pass, in units of DrMAD's"
    )
    axes.set_xlim(right=axes.get_xlim()[1] * 6)
    axes.legend(loc="lower right")
    return figure
