"""How far each completion of DrMAD is from the exact hypergradient, for short, middle and long trainings.

    hypertrail run completions-mnist --data-dir FOLDER
    hypertrail run completions-mnist --data-dir FOLDER --lengths 200 --meta-iterations 5        (a minute)

The network of DrMAD's experiment 1 (784-50-50-50-10, batches of 50, γ .95, α .05; drmad_mnist.py), with one L2 penalty and one
learning rate per parameter, as in the thesis. At every meta-iteration all methods look at the SAME training run; the exact
hypergradient alone moves the hyperparameters (by signs), so every method is asked at the same twenty points. C0 has no learning
rate in it: it is asked for the penalties only, and only at the first meta-iteration, where all rates are alike. C6 is asked
twice: with 10 kept states and with √T.

Hardware: one core of an AMD EPYC: 24 minutes, 18 of them for T = 20,000; of an Intel Xeon: 45, 33 of them (`--lengths 200 2000`:
6 and 12).
Measured: seed 0, float32, cosine with the exact hypergradient at the first meta-iteration, penalties / learning rates:

    T         C1-first     C2           C3           C4           C5            C6, √T states  last 200 steps
    200       .99 / .99    1.00 / .99   1.00 / .99   1.00 / .99   1.00 / 1.00   1.00 / 1.00    exact
    2000      .59 / .41    .02 / −.03   .53 / .42    .13 / .10    .35 / .14     .57 / .47      .62 / .23
    20,000    .02 / −.01   not finite   .52 / .08    .13 / .01    .17 / .01     .76 / .25      .55 / .00

and it decays over the meta-iterations, that of C6 with √T states too (T = 2000: .57 to .21 for the penalties, after .90 at the
fourth). C0 explodes (T = 2000: 3e10 times too long) and so does C2. So: a line through two states is a good stand-in for 200
steps and none for 2000; with √T kept states (C6) it stays useful where T is 20,000, at a quarter of the time of the exact pass
from the same states; for the penalties the last 200 steps alone beat every line through two states.
With --even-batches, the rule of earlier releases, at T = 20,000 C3 has .39 / .05, C4 .12 / .08, C5 .22 / .05 and C6 .76 / .24;
elsewhere its numbers are within .12 of these. Evenly spaced steps alias with the epoch of 300 minibatches, which has a fixed
order: C3's 200 minibatches are 3 different ones there.
The thesis, on this network: T = 200 starts near .98 (C4) and .99 (C5) and decays over 20 meta-iterations; T = 20,000 about .09;
learning rates worse than penalties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import diagnostics, engines, figures, outer, stopping
from ..checks import at_least
from ..engines import Progress
from ..errors import NumericalFailure
from ..hyperparameters import L2, Hyper, LearningRate
from ..keeping import Checkpoints
from ..methods import EVEN, SPREAD_OF, DrMAD, Exact, Method, Truncated, parse_method
from ..problem import Problem
from ..records import Hypergradient, Training
from ..refusals import refuse_plan
from ..rows import Row
from ..runs import Run, arrays, read_metrics
from ..runs.names import PARTS
from ..sections import Section
from . import drmad_mnist
from ._common import Study, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

COMPLETIONS = ("drmad-C0", "drmad-C1", "drmad-C1-first", *(f"drmad-C{n}" for n in range(2, 7)))
FEW = 10  # states of the thriftier C6
THESIS = {(200, "drmad-C4"): ".98", (200, "drmad-C5"): ".99", (20_000, "drmad-C4"): ".09"}  # penalties, at the start
MEASURES = {
    "cosine": "Cosine with the exact one",
    "signs": "Equal signs, %",
    "norm_ratio": "Norm over that of the exact one",
}  # of a hypergradient
WORDS = {"l2": "L2 penalties", "learning_rate": "learning rates"}


@dataclass(frozen=True)
class Config(Study):
    """Settings of completions-mnist."""

    lengths: tuple[int, ...] = (200, 2000, 20_000)
    """T of the trainings that are looked at, one after the other."""
    meta_iterations: int = 20
    """How many times the exact hypergradient moves the hyperparameters; the methods are compared at each."""
    methods: tuple[str, ...] = (*COMPLETIONS, "truncated-20", "truncated-200")
    """What is compared with the exact hypergradient."""
    even_batches: bool = False
    """Give each line the minibatches of evenly spaced steps, as in earlier releases: at T = 20,000 drmad-C3 then sees 3 of the
    300. Without it, each is that of a step drawn from one of N equal stretches of the run."""
    l2: float = 1e-4
    """Every penalty at the start."""
    learning_rate: float = 0.05
    """Every learning rate at the start."""
    momentum: float = 0.95
    """γ."""
    outer_rate: float = 0.1
    """How far log10 of each penalty and ln of each learning rate moves per meta-iteration."""
    train: int = 15_000
    """Training images."""
    valid: int = 5_000
    """Images of the hyper loss."""
    test: int = 5_000
    """Images that are only reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("lengths", len(self.lengths), 1)
        for steps in self.lengths:
            at_least("lengths", steps, FEW)
        at_least("meta-iterations", self.meta_iterations, 1)
        for word in self.methods:
            parse_method(word)


def problem(config: Config) -> Problem:
    """The problem of the first length."""
    c = config
    like = drmad_mnist.Config(
        steps=c.lengths[0], momentum=c.momentum, train=c.train, valid=c.valid, test=c.test, seed=c.seed,
        precision=c.precision, data_dir=c.data_dir,
    )  # fmt: skip
    return drmad_mnist.problem(like).with_(
        hyperparameters=(
            L2("parameter", c.l2, bounds=(1e-8, 1e-2)),
            LearningRate("parameter", c.learning_rate, bounds=(1e-3, 0.5)),
        ),
        l2=0.0,
    )


def ready(config: Config) -> None:
    """Refuse data that are not there and methods that cannot go, before anything is computed."""
    first = problem(config)
    for T in config.lengths:
        for method in (asked(word, config) for word in config.methods):
            of_length = penalties_alone(first) if method == DrMAD("C0") else first
            refuse_plan(of_length.with_(steps=T), method, Checkpoints())


def penalties_alone(problem: Problem) -> Problem:
    """The problem of the printed algorithm (C0), which knows no learning rates."""
    return problem.with_(hyperparameters=(problem.hyperparameters[0],), dynamics=problem.dynamics)


def study(config: Config, run: Run, voice: Voice) -> None:
    engine, first = engines.load(config.engine), built(problem, config)
    for T in config.lengths:
        descend(config, engine, first.with_(steps=T), run, voice)


def descend(config: Config, engine: Any, problem: Problem, run: Run, voice: Voice) -> None:
    """Twenty updates by the exact hypergradient, and at each what every method says. Each is a part of the study.

    Where the exact hypergradient is not finite it ends; the longer trainings may go on: each begins anew.
    """
    T, rule = problem.steps, outer.Sign(config.outer_rate)
    hyper = problem.initial_hyper()
    state = rule.start(hyper)
    for k in range(config.meta_iterations):
        after = run.path / PARTS / f"T{T}-{k + 1:02d}.npz"

        def compute(
            k: int = k, after: Path = after, hyper: Hyper = hyper, state: outer.State = state
        ) -> dict[str, Any]:
            try:
                lines, exact = compared(config, engine, problem, hyper, k, voice)
            except NumericalFailure as end:
                return {"stopped": str(end)}
            arrays.save_state(after, *outer.update(rule, problem.hyperparameters, hyper, exact.gradient, state))
            return {"lines": lines}

        part = run.part(f"T{T}-{k:02d}", compute, [after])
        if "stopped" in part:
            voice.say(f"T {T}: stopped, {part['stopped']}")
            run.append({"steps": T, "stopped": part["stopped"]})
            return
        for line in part["lines"]:
            run.append(line)
        f, error = part["lines"][0]["hyper_loss"], part["lines"][0]["test_error"]
        voice.say(f"T {T}, meta-iteration {k}: hyper loss {f:.4f}, test error {100 * error:.2f} %")
        hyper, state = arrays.load_state(after)


def compared(
    config: Config, engine: Any, problem: Problem, hyper: Hyper, k: int, voice: Voice
) -> tuple[list[dict[str, Any]], Hypergradient]:
    """Meta-iteration k: a line for the exact hypergradient and one for each method, all of the same training run."""
    T = problem.steps
    without_rates = penalties_alone(problem)

    def progress(done: int, total: int) -> None:
        voice.progress(f"T {T}, training {k}", done, total)
        stopping.here(f"step {done} of {total} (training {k}, which is begun again)")

    training = engine.train(problem, hyper, Checkpoints(), progress)
    few = engine.train(problem, hyper, Checkpoints(min(FEW, T)), progress)
    exact = engine.hypergradient(problem, hyper, training, Exact(), progress)
    outer.refuse_nonfinite(exact.gradient, k)
    test = engine.evaluate(problem, training, "test")
    lines: list[dict[str, Any]] = [
        {"steps": T, "update": k, "method": "exact", "hyper_loss": exact.hyper_loss, "test_error": test.error}
        | cost(exact, training)
    ]
    for word in config.methods:
        for name, method, seen in ways(asked(word, config), training, few):
            alone = method == DrMAD("C0") and k == 0  # once is enough: it is the printed algorithm, without α
            if method == DrMAD("C0") and not alone:
                continue
            found = ask(engine, without_rates if alone else problem, hyper, seen, method, exact, progress)
            lines.append({"steps": T, "update": k, "method": name} | found)
    return lines, exact


def asked(word: str, config: Config) -> Method:
    """The method of that name; even_batches: where it spreads minibatches over the run, it spreads them evenly."""
    method = parse_method(word)
    if not (config.even_batches and isinstance(method, DrMAD)):
        return method
    spreads = method.completion in SPREAD_OF and not method.first_batches
    return replace(method, spread="even") if spreads else method


def ways(method: Method, training: Training, few: Training) -> list[tuple[str, Method, Training]]:
    """The method with each training that it is asked about, and what a row of the table calls it."""
    name = f"{method.name}-{method.steps}" if isinstance(method, Truncated) else method.name
    if isinstance(method, DrMAD) and method.completion == "C6":
        return [(f"{name}, {FEW} states", method, few), (f"{name}, √T states", method, training)]
    return [(name, method, training)]


def ask(
    engine: Any,
    problem: Problem,
    hyper: Hyper,
    training: Training,
    method: Method,
    exact: Hypergradient,
    progress: Progress,
) -> dict[str, Any]:
    """What a method says of this training run, beside the exact hypergradient; or why it says nothing."""
    kinds = [h.kind for h in problem.hyperparameters]
    try:
        result = engine.hypergradient(problem, {kind: hyper[kind] for kind in kinds}, training, method, progress)
    except NumericalFailure as failure:
        return {"failed": str(failure)}
    truth = {kind: exact.gradient[kind] for kind in kinds}
    agreement = diagnostics.agreement(result.gradient, truth)
    return {"agreement": {kind: figures_of(one.total) for kind, one in agreement.items()}} | cost(result, training)


def figures_of(one: diagnostics.Agreement) -> dict[str, float | None]:
    return {"cosine": one.cosine, "signs": one.signs, "norm_ratio": one.norm_ratio}


def cost(result: Hypergradient, training: Training) -> dict[str, Any]:
    return {
        "N": result.diagnostics["N"],
        "seconds": result.cost.seconds,
        "bytes": result.cost.trajectory_bytes,
        "training_seconds": training.cost.seconds,
    }


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    lines = read_metrics(folder)
    lengths = list(dict.fromkeys(line["steps"] for line in lines))
    sections = [at_length([line for line in lines if line["steps"] == T], T) for T in lengths]
    compared = [line for line in lines if "agreement" in line]
    if compared:
        with figures.style():
            pictures = {
                f"{words} over the meta-iterations": figures.save(folder, key.replace("_", "-"), draw(compared, key))
                for key, words in MEASURES.items()
            }
        sections.append(Section("Over the meta-iterations", pictures=pictures))
    return sections


def at_length(lines: list[dict[str, Any]], T: int) -> Section:
    """The table of one length: every method at the start and over all meta-iterations."""
    asked = [line for line in lines if "method" in line]
    names = list(dict.fromkeys(line["method"] for line in asked))
    rows = []
    for name in names:
        mine = [line for line in asked if line["method"] == name]
        good = [line for line in mine if "agreement" in line]
        row = [name]
        if good:
            first = [good[0]["agreement"].get(kind, {}) for kind in WORDS]
            row += [" / ".join(number(one.get("cosine")) for one in first)]
            row += [" / ".join(percent(one.get("signs")) for one in first)]
            row += [" / ".join(ratio(one.get("norm_ratio")) for one in first)]
            row += [
                " / ".join(say(over_all(good, kind, key)) for kind in WORDS)
                for key, say in (("cosine", number), ("signs", percent), ("norm_ratio", ratio))
            ]
        else:
            row += ["1" if name == "exact" else "not finite", *[""] * 5]
        timed = [line["seconds"] for line in mine if "seconds" in line]
        seconds = f"{np.median(timed[1:] or timed):.2f}" if timed else "–"
        row += [f"{mine[0].get('N', '–')}", seconds, f"{mine[0]['bytes'] / 1e6:.1f}" if timed else "–"]
        row.append(THESIS.get((T, name.removesuffix(EVEN)), ""))
        rows.append(row)
    columns = ["", "cosine λ / α", "signs, %", "norm", "mean cosine", "mean signs, %", "median norm", "N", "s", "MB",
               "thesis"]  # fmt: skip
    updates = 1 + max((line.get("update", 0) for line in lines), default=0)
    stopped = [line["stopped"] for line in lines if "stopped" in line]
    text = (
        f"At the first of {updates} meta-iterations: cosine, equal signs and ratio of norms to the exact hypergradient, for the "
        "penalties (λ) and the learning rates (α); mean, median: over all meta-iterations. s: seconds of the "
        "reverse pass alone (median without the first, which compiles); MB: states kept for it; thesis: its cosine."
        + (f" Stopped: {stopped[0]}." if stopped else "")
    )
    return Section(f"T = {T:,}", text, columns, rows)


def over_all(lines: list[dict[str, Any]], kind: str, key: str) -> float | None:
    """The mean over the meta-iterations, of norms the median: they run over decades."""
    found = [line["agreement"][kind][key] for line in lines if kind in line["agreement"]]
    found = [x for x in found if x is not None]
    return float((np.median if key == "norm_ratio" else np.mean)(found)) if found else None


def number(x: float | None) -> str:
    return "–" if x is None else f"{x:.3f}"


def percent(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.0f}"


def ratio(x: float | None) -> str:
    return "–" if x is None else f"{x:.2g}"


def draw(lines: list[dict[str, Any]], key: str) -> Figure:
    """A panel for each length and kind: one measure of every method against the meta-iteration."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lengths = list(dict.fromkeys(line["steps"] for line in lines))
    names = list(dict.fromkeys(line["method"] for line in lines if line["method"] != "drmad-C0"))
    colours = [figures.BLUE, figures.ORANGE, figures.GREEN, figures.PURPLE, figures.BLACK, figures.GREY]
    figure = Figure(figsize=(1.2 + 3.1 * len(lengths), 6.2), layout="constrained")
    grid = figure.subplots(len(WORDS), len(lengths), squeeze=False, sharey=True)
    for row, kind in zip(grid, WORDS, strict=True):
        for axes, T in zip(row, lengths, strict=True):
            for i, name in enumerate(names):
                mine = [
                    one for one in lines if one["steps"] == T and one["method"] == name and kind in one["agreement"]
                ]
                values = np.array([one["agreement"][kind][key] for one in mine], float)  # None: NaN, a gap
                axes.plot(
                    [one["update"] for one in mine], values * (100 if key == "signs" else 1), label=name,
                    color=colours[i % len(colours)], linestyle="-" if i < len(colours) else "--", marker="o",
                    markersize=2.5, linewidth=1.2,
                )  # fmt: skip
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.axhline({"cosine": 0, "signs": 50, "norm_ratio": 1}[key], color=figures.GREY, linewidth=0.8)
            axes.set(title=f"{WORDS[kind]}, T = {T:,}", yscale="log" if key == "norm_ratio" else "linear")
    for axes in grid[-1]:
        axes.set_xlabel("meta-iteration")
    for axes in grid[:, 0]:
        axes.set_ylabel(MEASURES[key])
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, 2 * len(lengths)))
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each length, method and meta-iteration: agreement with the exact hypergradient, seconds, bytes; then the exact
    one's own, with hyper loss and test error."""
    asked = sorted(
        (line for line in read_metrics(folder) if "method" in line), key=lambda line: line["method"] == "exact"
    )
    rows = []
    for line in asked:
        labels = {"steps": line["steps"], "method": line["method"], "update": line["update"]}
        agreement = {f"{kind}_{what}": one[what] for what in ("cosine", "signs", "norm_ratio")
                     for kind, one in line.get("agreement", {}).items()}  # fmt: skip
        names = ("hyper_loss", "test_error", "seconds", "training_seconds", "bytes", "N")
        failed = {} if line["method"] == "exact" else {"failed": "failed" in line}
        rows.append(Row(labels, agreement | {name: line[name] for name in names if name in line} | failed))
    return rows
