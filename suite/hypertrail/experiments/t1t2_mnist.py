"""T1–T2 on MNIST: do penalty and noise, tuned during one training from eight starts, end where a grid says they should?

    hypertrail run t1t2-mnist --data-dir FOLDER
    hypertrail run t1t2-mnist --data-dir FOLDER --as-published        (the choices of the authors' released code; not measured)

The picture of Luketina, Berglund, Greff, Raiko (2016): final errors over a grid of two hyperparameters, here one L2 penalty and
σ of one Gaussian noise on the input, and the way of both under T1–T2 from eight starts drawn over the grid. Each start is
trained three times: with the hyperparameters kept where they start, moved by T1–T2 (every 10th step), and from the beginning with
what T1–T2 ended at, kept; all with the same images, first weights and batches, and the same budget of gradients.

Smaller than theirs: a rectifier network 784-100-100-10 without batch norm, 2,000 training images, 1,000 steps of Adam, so that
regularisation matters and two cores can train the grid. The outer step is Adam's on log10 λ and ln σ (`--representation value`:
on λ and σ themselves, as they did, with a step for each; see online.T1T2). With `--as-published` λ and σ themselves are moved,
by Adam's step of .001 beside .002 for the weights; ∇C₂ is taken at the same weights, a move standing in the place of a step; each
tensor of ∇C₂ and of h is cut at the norm 3, and NaN is replaced by 0. What else differs from theirs is said above.

Hardware: one CPU core: 10 minutes of processor time for three seeds, MNIST files at hand.
Measured: seeds 0 to 2, float32, one core; every arm has 1,000 gradients (a moved run takes 772 steps). Test error in %, mean over
the eight starts; ±: the 95 % interval over seeds, paired where two are compared:

                                 error        − kept        − grid         best to worst start
    grid, chosen on select       6.68 ± 1.39
    kept at the start            7.78 ± .55                 +1.10 ± .93    6.69 to 8.34
    moved by T1–T2               8.22 ± .55   +.44 ± .42    +1.54 ± 1.33   7.00 to 9.30
    from its end, kept           7.81 ± .38   +.03 ± .92    +1.13 ± 1.77   6.74 to 8.61

So T1–T2 loses: the moved runs are worse than what they started from and worse than the chosen point of the grid (λ 1e-5, σ 1,
inside the grid; 42 trainings). A second training with what they found ties with both. From nine of the ten starts with σ above
.2 it grows, as the grid wants it, to as much as 1.8. Below .2 the derivative by ln σ is small (it vanishes with σ²): three of
fourteen grow by a half or more. λ, over which the grid is flat for decades, overshoots: it ends between .0024
and .018 from every start.
The paper's number: none for this network; "the resulting regularization levels are within the optimal regions".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import engines, figures, outer
from ..checks import at_least, divisor, multiple, positive
from ..edges import edge
from ..hyperparameters import L2, LN10, Noise
from ..interval import Unit, percent, verdict, with_half
from ..online import T1T2, Plain
from ..problem import Dynamics, Problem
from ..race import arms
from ..race.arms import Arm, refuse_arm
from ..rows import Row, of_metrics
from ..runs import Run, read_metrics
from ..sections import Section
from ._common import Study, bounds, built

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..display import Voice

BLOCK = 100
KINDS = ("l2", "noise")
AS_PUBLISHED = {"representation": "value", "outer_rate": 1e-3, "learning_rate": 2e-3}
WAYS = {"kept": "kept at the start", "moved": "moved by T1–T2", "again": "kept at T1–T2's end"}


@dataclass(frozen=True)
class Config(Study):
    """Settings of t1t2-mnist."""

    penalties: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """λ of the grid, and its first and last the range of the starts."""
    noises: tuple[float, ...] = (0.01, 0.1, 0.3, 0.6, 1.0, 2.0)
    """σ of the grid, likewise."""
    repeats: int = 3
    """How many seeds, from `seed` on; each has its own splits, first weights, batches and starts."""
    starts: int = 8
    """Runs of T1–T2 with each seed, from points drawn over the grid (uniform in the logarithms)."""
    steps: int = 1000
    """The budget of every run, in gradients: T of a run without T1–T2; a multiple of 100."""
    batch: int = 100
    """Examples per step."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of each hidden layer (rectifiers)."""
    learning_rate: float = 1e-3
    """Adam's, for the weights."""
    every: int = 10
    """Steps between two moves of T1–T2; it divides 100."""
    outer_rate: float = 0.05
    """Adam's, for log10 λ and ln σ (or λ and σ)."""
    representation: Literal["free", "value"] = "free"
    """What T1–T2 moves: the logarithms, or the values themselves."""
    as_published: bool = False
    """The choices of the authors' released code: its rule (see online.T1T2), representation value, outer-rate .001 and
    learning-rate .002, whatever else is asked for."""
    train: int = 2000
    """Training images."""
    valid: int = 5000
    """Images that T1–T2 looks at."""
    select: int = 5000
    """Images by which the best of the grid is chosen."""
    test: int = 10_000
    """Images that are only reported."""

    def __post_init__(self) -> None:
        for name, value in AS_PUBLISHED.items() if self.as_published else ():
            object.__setattr__(self, name, value)
        super().__post_init__()
        for name in ("penalties", "noises"):
            values = getattr(self, name)
            at_least(name, len(values), 2)
            for value in values:
                positive(name, value)
        at_least("starts", self.starts, 1)
        at_least("repeats", self.repeats, 1)
        multiple("steps", self.steps, BLOCK, "the steps between two records")
        at_least("steps", self.steps, 2 * BLOCK)
        at_least("select", self.select, 1)
        divisor("every", self.every, BLOCK, "the steps between two records")


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets.layers import Dense, GaussianNoise, Input, Nonlinearity, number_streams

    c = config
    layer: Any = GaussianNoise(Input((28, 28, 1)), "noise")
    for i, units in enumerate(c.hidden, 1):
        layer = Nonlinearity(Dense(layer, units, f"dense{i}"), "relu", f"relu{i}")
    return Problem(
        network=number_streams(Dense(layer, 10, "logits")),
        splits=make_splits(load("mnist", c.data_dir), c.train, c.valid, c.select, c.test, c.seed),
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="reshuffled"),
        steps=c.steps,
        hyperparameters=(
            L2("network", c.penalties[0], bounds=(c.penalties[0] / 10, c.penalties[-1] * 10)),
            Noise("network", c.noises[0], bounds=(c.noises[0] / 10, c.noises[-1] * 10)),
        ),
        dynamics=Dynamics("adam", c.learning_rate, 0.9),
        valid_batch=c.batch,
        seed=c.seed,
        precision=c.precision,
    )


def study(config: Config, run: Run, voice: Voice) -> None:
    engine, here = engines.load(config.engine), built(problem, config)
    refuse_arm(here, Arm("moved", moving(config)), config.steps)
    grid: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + config.repeats):
        at = replace(config, seed=seed)
        of_seed(at, run, voice, engine, here if seed == config.seed else built(problem, at), grid, runs)
    run.append({"grid": grid, "runs": runs})
    for line in verdicts(grid, runs):
        voice.say(line)


def moving(config: Config) -> T1T2:
    c = config
    theirs = {"at": "same", "clip": "each-tensor", "nonfinite": "zero"} if c.as_published else {}
    return T1T2(every=c.every, block=BLOCK, outer=outer.Adam(c.outer_rate), representation=c.representation, **theirs)


def of_seed(
    config: Config,
    run: Run,
    voice: Voice,
    engine: Any,
    here: Problem,
    grid: list[dict[str, Any]],
    runs: list[dict[str, Any]],
) -> None:
    """Every training of one seed, at the end of `grid` and `runs`."""
    from hypertrail_data.streams import generator

    c, method = config, moving(config)
    low, high = np.log([[c.penalties[end], c.noises[end]] for end in (0, -1)])
    starts = np.exp(generator(c.seed, "hyper", c.starts).uniform(low, high, (c.starts, 2)))
    total = len(c.penalties) * len(c.noises) + 3 * c.starts
    done = 0

    def train(arm: Arm, every: int) -> dict[str, Any]:
        nonlocal done
        record = arms.in_run(run, engine, here, arm, c.steps, every)
        done += 1
        voice.progress(f"seed {c.seed}, trainings", done, total)
        return record

    def at(λ: float, σ: float) -> tuple[tuple[str, float], ...]:
        return ("l2", float(λ)), ("noise", float(σ))

    for i, λ in enumerate(c.penalties):
        for j, σ in enumerate(c.noises):
            record = train(Arm(f"grid-{i}-{j}", Plain(BLOCK), at(λ, σ)), c.steps)
            grid.append({"seed": c.seed, "l2": λ, "noise": σ} | summary(record))
    for k, (λ, σ) in enumerate(starts):
        kept = train(Arm(f"start-{k}-kept", Plain(BLOCK), at(λ, σ)), c.steps)
        moved = train(Arm(f"start-{k}-moved", method, at(λ, σ)), 1)
        path = trajectory(moved)
        again = train(Arm(f"start-{k}-again", Plain(BLOCK), at(*np.clip(path[-1], *bounds(here, KINDS)))), c.steps)
        ways = {"kept": summary(kept), "moved": summary(moved), "again": summary(again)}
        runs.append({"seed": c.seed, "start": k, **ways, "path": path.tolist()})
        voice.say(
            f"seed {c.seed}, start {k}: λ {λ:.2g} → {path[-1][0]:.2g}, σ {σ:.2g} → {path[-1][1]:.2g} | test error "
            + ", ".join(f"{words} {errors(runs[-1][way])}" for way, words in WAYS.items())
        )


# -- who is chosen, and what is said ------------------------------------------------------------------------------------


def best_of(grid: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The point of the grid with the lowest mean error on `select`: its runs, seed by seed. Empty: each diverged once."""
    points: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for one in grid:
        points.setdefault((one["l2"], one["noise"]), []).append(one)
    whole = [ones for ones in points.values() if all(one["metrics"] for one in ones)]
    return min(whole, key=lambda ones: np.mean([one["metrics"]["select"]["error"] for one in ones]), default=[])


def of_seeds(runs: list[dict[str, Any]], way: str, of: Callable[[list[float]], Any] = np.mean) -> np.ndarray:
    """(seeds,) test errors in percent, the mean over a seed's starts (or its worst, by np.max); NaN where one diverged."""
    seeds = dict.fromkeys(one["seed"] for one in runs)
    return 100 * np.array([of(test_errors([one for one in runs if one["seed"] == seed], way)) for seed in seeds])


def verdicts(grid: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[str]:
    """The means of the ways, and how far moving is from keeping, training anew from keeping, and both from the grid."""
    lines, kept, best = [], of_seeds(runs, "kept"), best_of(grid)
    unit = percent(examples(grid, runs))
    chosen = 100 * np.array([one["metrics"]["test"]["error"] for one in best])
    if best:
        here = edge([point(one) for one in grid], point(best[0]))
        lines.append(f"grid, chosen on select: test error {with_half(chosen, unit)} %{f' ({here})' if here else ''}")
    for way, words in WAYS.items():
        values = of_seeds(runs, way)
        if not np.isfinite(values).all():
            lines.append(f"{words}: diverged once")
            continue
        line = f"{words}: {with_half(values, unit)} %"
        lost = sum(bool(one[way].get("blown_up")) for one in runs)
        line += f" ({lost} of {len(runs)} blown up)" if lost else ""
        for name, others in (("kept", kept), ("the grid's", chosen)):
            if way != "kept" or name != "kept":
                line += less(name, values, others, unit)
        lines.append(line)
    return lines


def less(name: str, values: np.ndarray, others: np.ndarray, unit: Unit) -> str:
    """'; less kept +0.50 ± 0.52, ties', seed by seed; '' where there is nothing to compare with."""
    if len(others) != len(values) or not np.isfinite(others).all():
        return ""
    difference = values - others
    return f"; less {name} {with_half(difference, unit.difference)}, {verdict(difference, unit.difference)}"


def point(one: dict[str, Any]) -> dict[str, float]:
    """Where in the grid a training is."""
    return {kind: one[kind] for kind in KINDS}


def examples(grid: list[dict[str, Any]], runs: list[dict[str, Any]]) -> int:
    """How many examples the test split has; 1 where every training diverged."""
    ends = [one["metrics"] for one in grid] + [one[way]["metrics"] for one in runs for way in WAYS]
    return next((metrics["test"]["examples"] for metrics in ends if metrics), 1)


def trajectory(record: dict[str, Any]) -> np.ndarray:
    """(points, 2): λ and σ at the start and after each block."""
    u = np.array([[x[0] for x in record["hyper"][kind]["network"]] for kind in KINDS]).T
    return np.exp(u * [LN10, 1.0])


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """What is left of a record: the metrics at the end (None where it diverged), steps and seconds."""
    good = record["points"] and not record["failed"]
    return {
        "metrics": record["points"][-1]["metrics"] if good else None,
        "failed": record["failed"],
        "blown_up": record["blown_up"],
        "steps": record["steps"],
        "gradients": record["gradients"],
        "seconds": float(np.sum(record["block"]["seconds"][1:])),
    }


def errors(one: dict[str, Any]) -> str:
    if not one["metrics"]:
        return "diverged"
    return f"{100 * one['metrics']['test']['error']:.2f} %{' (blown up)' if one.get('blown_up') else ''}"


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    line = read_metrics(folder)[-1]
    grid, runs = line["grid"], line["runs"]
    best, seeds = best_of(grid), len({one["seed"] for one in runs})
    rows = []
    if best:
        at, mean = (
            f"{best[0]['l2']:.2g}, {best[0]['noise']:.2g}",
            np.mean([one["metrics"]["test"]["error"] for one in best]),
        )
        rows.append(["grid, chosen on select", at, "", f"{100 * mean:.2f} %", "", ""])
    for one in runs:
        (λ, σ), (λ_end, σ_end) = one["path"][0], one["path"][-1]
        name = f"seed {one['seed']}, start {one['start']}"
        rows.append([name, f"{λ:.2g}, {σ:.2g}", f"{λ_end:.2g}, {σ_end:.2g}", *(errors(one[way]) for way in WAYS)])
    for name, of in (("mean", np.mean), ("worst", np.max)):
        rows.append([name, "", "", *(f"{of_seeds(runs, way, of).mean():.2f} %" for way in WAYS)])
    words = (
        "Test error after the same budget of gradients. The grid's point is chosen by its mean error on `select`; T1–T2 "
        f"looks at `valid` only. Over {seeds} seed{'s (each the mean of its starts; ±: 95 % interval)' * (seeds > 1)}: "
        + ". ".join(verdicts(grid, runs))
        + "."
    )
    columns = ["", "λ, σ start", "λ, σ end", *WAYS.values()]
    first = runs[0]["seed"]
    with figures.style():
        caption = (
            f"Final errors over the grid, and the way of T1–T2 from each start (square) to its end (star); seed {first}"
        )
        drawn = draw(*([one for one in ones if one["seed"] == first] for ones in (grid, runs)))
        pictures = {caption: figures.save(folder, "grid", drawn)}
    return [Section("From every start", words, columns, rows, pictures)]


def test_errors(runs: list[dict[str, Any]], way: str) -> list[float]:
    return [one[way]["metrics"]["test"]["error"] if one[way]["metrics"] else np.nan for one in runs]


def draw(grid: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    for axes, split in zip(figure.subplots(1, 2, sharex=True, sharey=True), ("valid", "test"), strict=True):
        surface(figure, axes, grid, split)
        for one in runs:
            λ, σ = np.array(one["path"]).T
            axes.plot(σ, λ, color="white", linewidth=2.6)
            axes.plot(σ, λ, color=figures.ORANGE, linewidth=1.3)
            axes.plot(σ[0], λ[0], marker="s", color=figures.ORANGE, markeredgecolor="white", markersize=6)
            axes.plot(σ[-1], λ[-1], marker="*", color=figures.ORANGE, markeredgecolor="white", markersize=13)
        axes.set(title=f"Error on {split}, %", xscale="log", yscale="log", xlabel="σ of the noise on the input")
        axes.margins(0.03)
    figure.axes[0].set_ylabel("λ of the L2 penalty")
    return figure


def surface(figure: Figure, axes: Axes, grid: list[dict[str, Any]], split: str) -> None:
    """The grid's errors as a filled map, its points marked."""
    λs, σs = (sorted({one[kind] for one in grid}) for kind in KINDS)
    error = np.full((len(λs), len(σs)), np.nan)
    for one in grid:
        if one["metrics"]:
            error[λs.index(one["l2"]), σs.index(one["noise"])] = 100 * one["metrics"][split]["error"]
    most = np.nanquantile(error, 0.85)  # a corner where nothing is learned would hide the rest
    filled = axes.contourf(σs, λs, np.minimum(error, most), levels=20, cmap="viridis_r")
    figure.colorbar(filled, ax=axes, format="%.1f")
    axes.plot(*(x.ravel() for x in np.meshgrid(σs, λs)), linestyle="none", marker=".", color="#FFFFFF", markersize=3)
    axes.grid(False)


def numbers(folder: Path) -> list[Row]:
    """A row for the best of the grid and one for each way: the mean over its starts, which each seed draws anew, and the worst
    of them, over all seeds. diverged: the share of the starts."""
    line = read_metrics(folder)[-1]
    best = best_of(line["grid"])
    words = {"way": "grid, best on select"}
    rows = [Row(words, end_values(best) | {kind: best[0][kind] for kind in KINDS})] if best else []
    for way, words in WAYS.items():
        rows.append(Row({"way": words}, end_values([one[way] for one in line["runs"]])))
    return rows


def end_values(found: list[dict[str, Any]]) -> dict[str, Any]:
    good = [of_metrics(one["metrics"]) for one in found if one["metrics"]]
    out: dict[str, Any] = {"diverged": 1 - len(good) / len(found)}
    if good:
        out = {"test_error": np.mean([one["test_error"] for one in good])} | out
        out |= {"worst_test_error": max(one["test_error"] for one in good)}
        out |= {name: np.mean([one[name] for one in good]) for name in good[0] if name not in out}
    return out
