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

The cosine of C1 with the exact hypergradient is .63 (T = 2000), of C4 .28. So a tenth of the steps buys a factor of 7 to 13 of
the reverse pass and 2 to 3 of the whole, not 45; the memory saved against reversal in integers is a factor of 6, not 100.
The paper's numbers: 45 times faster, 100 times less memory (Fu et al. 2016, section 4).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import diagnostics, engines, figures
from ..checks import at_least
from ..hyperparameters import Hyper
from ..keeping import Checkpoints, Keep, Reversible
from ..methods import Exact, Method, parse_method
from ..problem import Problem
from ..rows import Row
from ..runs import Run, arrays, read_metrics
from ..runs.names import PARTS
from ..sections import Section
from . import drmad_mnist
from ._common import Study, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

PAPER = 45, 100  # times DrMAD's time and memory, of the exact way with Python integers
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
    """A line for each way: seconds of training and reverse pass, bytes of states, cosine with the exact hypergradient.

    Each way is a part of the study, its hypergradient beside it.
    """

    def gradient(name: str) -> Path:
        return run.path / PARTS / f"{engine.name}-{name}.npz"

    def compute(name: str) -> dict[str, Any]:
        row, found = timed(engine, problem, name, *ways[name], voice)
        if found is not None:
            arrays.save(gradient(name), found)
        return row

    rows = {}
    for name in ways:
        row = rows[name] = run.part(f"{engine.name}-{name}", lambda name=name: compute(name), [gradient(name)])
        voice.say(f"{engine.name}, {LABELS[name]}: {row['training']:.2f} s and {row.get('reverse', 0.0):.2f} s back")
    exact = arrays.load(gradient("memory"))
    for name, row in rows.items():
        if "reverse" in row:
            row["cosine"] = diagnostics.agreement(arrays.load(gradient(name)), exact)["transform"].total.cosine
        run.append(row)


def timed(
    engine: Any, problem: Problem, name: str, keep: Keep, method: Method | None, voice: Voice
) -> tuple[dict[str, Any], Hyper | None]:
    """One way, twice; the second time counts. Its row, and its hypergradient where it has one."""
    hyper, found = problem.initial_hyper(), None
    for second in (False, True):
        if isinstance(keep, Path):
            shutil.rmtree(keep, ignore_errors=True)
        training = engine.train(problem, hyper, keep)
        row = {"engine": engine.name, "steps": problem.steps, "way": name, "training": training.cost.seconds}
        if method is not None:
            result = engine.hypergradient(problem, hyper, training, method)
            row |= {"reverse": result.cost.seconds, "bytes": result.cost.trajectory_bytes}
            row |= {"N": result.diagnostics["N"]}
            found = result.gradient
        if training.trajectory is not None:
            training.trajectory.close()
        voice.progress(f"{engine.name}: {LABELS[name]}", 1 + second, 2)
    if isinstance(keep, Path):
        shutil.rmtree(keep, ignore_errors=True)
    return row, found


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    lines = read_metrics(folder)
    caption = "Time and memory of every way, in units of DrMAD's (C1)"
    with figures.style():
        pictures = {caption: figures.save(folder, "ways", draw(lines))}
    by_engine = {
        engine: {line["way"]: line for line in lines if line["engine"] == engine}
        for engine in dict.fromkeys(line["engine"] for line in lines)
    }
    sections = [of_engine(engine, mine) for engine, mine in by_engine.items()]
    return [*sections, Section("Side by side", pictures=pictures)]


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
            row += [
                f"{line['bytes'] / 1e6:.2f}",
                f"{line['bytes'] / yard['bytes']:.1f}",
                diagnostics.in_words(line["cosine"]),
            ]
        else:
            row += ["–", f"{whole(line) / whole(yard):.1f}", *["–"] * 4]
        rows.append(row)
    columns = ["", "train s", "back s", "× time", "× back", "MB", "× memory", "cosine"]
    text = (
        f"T = {mine['plain']['steps']:,}. × time: training and reverse pass, over those of DrMAD (C1); × back: the reverse pass "
        "alone; MB: states kept for it; cosine: with the exact hypergradient. "
        f"The paper says {PAPER[0]} (time) and {PAPER[1]} (memory) for the exact way with Python integers."
    )
    words = {"cpu": "The reference engine (NumPy, float64)", "gpu": "The compiled engine"}
    return Section(words[engine], text, columns, rows)


def draw(lines: list[dict[str, Any]]) -> Figure:
    """Bars for every way and engine: time and memory in units of DrMAD's, and where the paper put the exact way."""
    from matplotlib.figure import Figure

    colours = {"gpu": figures.BLUE, "cpu": figures.ORANGE}
    words = {"gpu": "compiled engine", "cpu": "reference engine"}
    names = [name for name in LABELS if any(line["way"] == name and "reverse" in line for line in lines)]
    found = list(dict.fromkeys(line["engine"] for line in lines))
    figure = Figure(figsize=(9.5, 0.9 + 0.42 * len(names)), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(found)
    for k, engine in enumerate(found):
        mine = {line["way"]: line for line in lines if line["engine"] == engine and "reverse" in line}
        yard = mine[YARDSTICK]
        label = f"{words[engine]}, T = {yard['steps']:,}"
        at = [names.index(name) + (k - (len(found) - 1) / 2) * height for name in mine]
        for axes, units in (
            (time, [whole(line) / whole(yard) for line in mine.values()]),
            (memory, [line["bytes"] / yard["bytes"] for line in mine.values()]),
        ):
            bars = axes.barh(at, units, height, color=colours[engine], label=label)
            axes.bar_label(bars, [f"{x:,.0f}" if x >= 100 else f"{x:.2g}" for x in units], padding=2, fontsize=7)
    for axes, limit, what in (
        (time, PAPER[0], "training and reverse pass"),
        (memory, PAPER[1], "memory of the trajectory"),
    ):
        axes.axvline(limit, color=figures.BLACK, linestyle=":", label="the paper's exact way")
        axes.set(xscale="log", xlabel=f"{what}, in units of DrMAD's (C1)")
        axes.set_xlim(right=axes.get_xlim()[1] * 2)
        axes.grid(axis="y", visible=False)
    time.set_yticks(range(len(names)), [LABELS[name] for name in names])
    time.invert_yaxis()
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each engine and way: seconds of training and reverse pass together and apart, bytes of states, cosine."""
    return [
        Row({"engine": line["engine"], "way": line["way"]}, {"seconds": whole(line)}
            | {name: line[name] for name in ("bytes", "cosine", "training", "reverse", "N") if "reverse" in line})
        for line in read_metrics(folder)
    ]  # fmt: skip
