"""RTHO on MNIST: learning rate, momentum and penalty tuned while the network trains, once, against a grid of whole trainings.

    hypertrail run rtho-mnist --data-dir FOLDER

Real-time hyperparameter optimisation (Franceschi, Donini, Frasconi, Pontil 2017) moves all three every Δ steps along the
forward-mode derivative of the loss on `valid`; a tanh network 784-50-10, 5,000 training images, batches of 100, heavy ball, 2,000
steps, from two bad starts. Beside it: the start kept, MARTHE (a fading memory), RTHO with its memory emptied after each move,
plain training with what RTHO ended at, and a grid of 60 plain trainings. On `select` one point of the grid is chosen, and one
moving rule for each start: those two are compared, on `test`. A run that moves costs more gradients than one training and fewer
than the grid; so it is also compared, for equal gradients, with a random search: the best, on `select`, of as many trainings of
the grid as it pays for (`searches`).

RTHO's derivative is exact only as long as nothing has moved. The second table lays it beside the exact one: that of a training
of as many steps with the present hyperparameters from the beginning, differentiated backwards; once with hyperparameters kept
(they agree to rounding) and once with them moved.

Hardware: one CPU core: 15 minutes of processor time for three seeds, MNIST files at hand.
Measured: seeds 0 to 2, float32, test error in % after 2,000 steps (±: 95 % interval; − grid: less that of the grid's chosen,
paired), median α, μ, λ at the end; a moving run costs 14,040 to 18,000 gradients, a kept one 2,000, the grid 120,000, each seed:

                         slow (.003, .5, 1e-5)                             over-regularised (.03, .5, 1e-2)
                         test          − grid                              test         − grid
    kept                 9.44 ± .82    2.8 ± .9                            7.81 ± .20   1.2 ± .6
    RTHO, Δ 2            8.34 ± 2.90   1.7 ± 3.2  1e-4, .01, 1e-7          diverged with one seed
    RTHO, Δ 5            7.00 ± 1.42   .4 ± 1.9   .042, .93, 2.1e-5 *      6.59 ± .51   −.0 ± .8   .003, .098, 3.6e-4
    RTHO, Δ 10           7.11 ± .92    .5 ± 1.2   .024, .91, 5.6e-5        6.47 ± .45   −.2 ± .6   .11, .71, 4.5e-4 *
    RTHO, Δ 50           7.89 ± .54    1.3 ± .9   .010, .79, 3.2e-7        6.87 ± .41   .2 ± .8    .099, .78, 7.0e-4
    RTHO, Δ 200          8.98 ± .73    2.3 ± .9   .0046, .61, 3.2e-6       7.14 ± .22   .5 ± .7    .046, .61, 3.2e-3
    RTHO, Δ 50, emptied  8.45 ± .35    1.8 ± .7   .0053, .64, 5.4e-7       6.99 ± .19   .4 ± .6    .043, .60, 7.4e-4
    MARTHE(.99), Δ 50    8.22 ± .32    1.6 ± .6   .0064, .69, 4.1e-7       6.94 ± .10   .3 ± .5    .053, .65, 6.3e-4
    end of Δ 50, kept    7.55 ± .35    .9 ± .6                             6.54 ± .23   −.1 ± .7
    grid of 60           6.63 ± .49               .3, .5, 1e-3
    * the rule that select chooses

So every moving run is better than its start, and the more so the more often it moves, down to Δ 5 and 10 (Adam's step is the same
for each move; Δ 10 wins .8 ± .5 and .4 ± .2 points over Δ 50). Δ 2 is too often: α runs into its lower bound, or training
diverges. The rules that select chooses tie with the grid, whose chosen point now lies inside it, and with a random search in
the grid for the same gradients, the best of seven trainings (6.83 ± .22 %: .2 ± 1.5 and −.4 ± .7 points). The rules with Δ 50 and
200 lose to the grid from the slow start. Training anew with the end of RTHO is not clearly better than the run that found it
(−.3 ± .4 in both). The memory over all steps is worth .6 ± .3 points over an emptied one from the slow start and nothing from the
other (.1 ± .2).
Beside the exact hypergradient (seed 0, float64, slow start, Δ 50): the same to 5e-15 at all lengths while nothing moves. Moved,
it is 1.02, 1.005, .96 of it (α, μ, λ) after 100 steps, 1.15, 1.08, 1.12 after 400, 2.1, 2.0, −.03 after 1,600: twice too long,
and λ has lost its sign.
The paper's number: none for MNIST; there a phone recogniser, where RTHO beat random search in a tenth of the time or less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import engines, figures, outer
from ..checks import at_least, divisor, multiple
from ..errors import UsageError
from ..hyperparameters import L2, LearningRate, Momentum
from ..interval import Unit, verdict, with_half
from ..interval import percent as per_cent
from ..keeping import Checkpoints
from ..methods import Exact
from ..online import MARTHE, RTHO, Online, Plain
from ..problem import Dynamics, Problem
from ..race import arms, race
from ..race.arms import Arm, refuse_arm
from ..race.race import Runner
from ..rows import Row, means, of_metrics
from ..runs import Run, read_metrics
from ..sections import Section
from ._common import Study, bounds, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

BLOCK = 200
# name → (α, μ, λ) at the start
STARTS = {"slow": (0.003, 0.5, 1e-5), "over-regularised": (0.03, 0.5, 1e-2)}
KINDS = ("learning_rate", "momentum", "l2")
# Wide enough to contain its best point: a narrower one had it in a corner (.3, .5, 1e-3).
GRID = ((0.01, 0.03, 0.1, 0.3, 1.0), (0.1, 0.5, 0.9, 0.97), (1e-4, 1e-3, 1e-2))


@dataclass(frozen=True)
class Config(Study):
    """Settings of rtho-mnist."""

    repeats: int = 3
    """How many seeds, from `seed` on; each has its own splits, first weights and batches."""
    every: tuple[int, ...] = (2, 5, 10, 50, 200)
    """Δ, steps between two moves of RTHO; each divides 200."""
    others: int = 50
    """Δ of the other moving rules, and of the RTHO whose end is kept in a training of its own; one of `every`."""
    outer_rate: float = 0.05
    """Adam's, for ln α, logit μ and log10 λ."""
    mu: float = 0.99
    """How fast MARTHE's memory fades."""
    steps: int = 2000
    """T, elementary steps of every run; a multiple of 200."""
    batch: int = 100
    """Examples per step."""
    hidden: tuple[int, ...] = (50,)
    """Units of each hidden layer (tanh)."""
    train: int = 5000
    """Training images."""
    valid: int = 2000
    """Images of the loss that moves the hyperparameters, all of them at every move."""
    select: int = 5000
    """Images by which the best of the grid and the best of the moving rules are chosen."""
    test: int = 10_000
    """Images that are only reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple("steps", self.steps, BLOCK, "the steps between two records")
        at_least("select", self.select, 1)
        at_least("every", len(self.every), 1)
        at_least("repeats", self.repeats, 1)
        for every in self.every:
            divisor("every", every, BLOCK, "the steps between two records")
        if self.others not in self.every:
            raise UsageError(f"others {self.others}, expected one of every: {', '.join(map(str, self.every))}")


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    α, μ, λ = STARTS["slow"]
    here = Problem(
        network=mlp((28, 28, 1), c.hidden, 10, "tanh"),
        splits=make_splits(load("mnist", c.data_dir), c.train, c.valid, c.select, c.test, c.seed),
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="reshuffled"),
        steps=c.steps,
        hyperparameters=(
            LearningRate("network", α, bounds=(1e-4, 1.0)),
            Momentum("network", μ, bounds=(0.01, 0.99)),
            L2("network", λ, bounds=(1e-7, 1e-1)),
        ),
        dynamics=Dynamics("heavy-ball", α, μ),
        valid_batch=min(500, c.valid),
        seed=c.seed,
        precision=c.precision,
    )
    # An arm's budget in gradients must not be above the problem's steps; no run takes more than T steps of them.
    return here.with_(steps=max(budget(method, here, c) for method in moving(c).values()))


def moving(config: Config) -> dict[str, Online]:
    """label → rule, all with blocks of the same length."""
    rule, Δ = outer.Adam(config.outer_rate), config.others
    return {
        **{f"RTHO, Δ {every}": RTHO(every=every, block=BLOCK, outer=rule) for every in config.every},
        f"RTHO, Δ {Δ}, emptied": RTHO(every=Δ, block=BLOCK, outer=rule, restart=True),
        f"MARTHE({config.mu:g}), Δ {Δ}": MARTHE(every=Δ, block=BLOCK, outer=rule, mu=config.mu, validation_batches=0),
    }


def study(config: Config, run: Run, voice: Voice) -> None:
    engine, here = engines.load(config.engine), built(problem, config)
    for method in moving(config).values():
        refuse_arm(here, Arm("moved", method), budget(method, here, config))
    found = []
    for seed in range(config.seed, config.seed + config.repeats):
        at = here if seed == config.seed else built(problem, replace(config, seed=seed))
        found += of_seed(config, run, voice, engine, at)
    checks = []
    for moved in (False, True):
        part = run.part(
            f"exact-{'moved' if moved else 'kept'}", lambda m=moved: {"at": list(check(engine, here, config, m))}
        )
        checks.append({"moved": moved, **part})
        voice.say(
            f"RTHO over exact, hyperparameters {'moved' if moved else 'kept'}: " + "; ".join(map(ratios, part["at"]))
        )
    run.append({"arms": found, "checks": checks})
    for line in verdicts(found):
        voice.say(line)


def of_seed(config: Config, run: Run, voice: Voice, engine: Any, here: Problem) -> list[dict[str, Any]]:
    """Every training of one seed."""
    found: list[dict[str, Any]] = []

    def train(label: str, arm: Arm, every: int = 1) -> dict[str, Any]:
        """T steps, whatever they cost."""
        record = arms.in_run(run, engine, here, arm, budget(arm.method, here, config), every)
        found.append({"label": label, **record})
        return record

    seed = f"seed {here.seed}"
    for i, point in enumerate(product(*GRID)):
        train("grid", Arm(f"grid-{i}", Plain(BLOCK), start(point)), config.steps)
        voice.progress(f"{seed}, trainings of the grid", i + 1, len(list(product(*GRID))))
    for s, (name, point) in enumerate(STARTS.items()):
        voice.say(f"{seed}, {name}, kept: {outcome(train('kept', Arm(f'start-{s}-kept', Plain(BLOCK), start(point))))}")
        for a, (label, method) in enumerate(moving(config).items()):
            record = train(label, Arm(f"start-{s}-moved-{a}", method, start(point)))
            voice.say(f"{seed}, {name}, {label}: {outcome(record)}")
            if method == RTHO(every=config.others, block=BLOCK, outer=method.outer) and not record["failed"]:
                end = np.clip(path(record)[-1], *bounds(here, KINDS))
                again = train("its end, kept", Arm(f"start-{s}-again", Plain(BLOCK), start(end)))
                voice.say(f"{seed}, {name}, its end kept from the beginning: {outcome(again)}")
    return found


def budget(method: Online, problem: Problem, config: Config) -> int:
    """What T steps cost, in gradients."""
    return config.steps // BLOCK * method.cost(problem).price


def start(point: Any) -> tuple[tuple[str, float], ...]:
    return tuple((kind, float(x)) for kind, x in zip(KINDS, point, strict=True))


def path(record: dict[str, Any]) -> np.ndarray:
    """(points, 3): α, μ, λ at each measurement, the start among them."""
    u = {kind: np.array([x[0] for x in record["hyper"][kind]["network"]]) for kind in KINDS}
    return np.stack([np.exp(u["learning_rate"]), 1 / (1 + np.exp(-u["momentum"])), 10 ** u["l2"]], axis=1)


# -- who is chosen, on select -------------------------------------------------------------------------------------------


def runner(found: list[dict[str, Any]], prefix: str) -> Runner | None:
    """Of the arms whose names begin so, the one with the lowest mean error on select; None where all diverged with a seed."""
    records: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        if one["arm"].startswith(prefix):
            records.setdefault(one["arm"], []).append(one)
    return race.choose(prefix, list(records), records, "seconds")


def verdicts(found: list[dict[str, Any]]) -> list[str]:
    """For each start: the moving rule that select chooses, its test error, and how far that is from the chosen of the grid and
    from a random search in the grid that costs as much as one run of the rule."""
    grid, lines = runner(found, "grid-"), []
    for s, name in enumerate(STARTS):
        best = runner(found, f"start-{s}-moved-")
        if best is None:
            lines.append(f"{name}: every moving rule diverged with some seed")
            continue
        unit, errors = unit_of(best), percent(best)
        marks = "".join(f" ({remark})" for remark in race.remarks(best))
        line = f"{name}: select chooses {best.first['label']}{marks}, test error {with_half(errors, unit)} %"
        if grid is not None:
            apart, marks = errors - percent(grid), "".join(f" ({remark})" for remark in race.remarks(grid))
            line += f"; less that of the grid, {with_half(percent(grid), unit)} %{marks}: "
            line += f"{with_half(apart, unit.difference)}, {verdict(apart, unit.difference)}"
        n, searched = searches(found, best)
        if n:
            apart = errors - searched
            line += f"; less that of a random search for the same gradients, the best of {n} trainings of the grid, "
            line += (
                f"{with_half(searched, unit)} %: {with_half(apart, unit.difference)}, {verdict(apart, unit.difference)}"
            )
        lines.append(line)
    return lines


def searches(found: list[dict[str, Any]], moved: Runner) -> tuple[int, np.ndarray]:
    """How many trainings of the grid a run of this rule pays for, and (seeds,) the test error in percent that a random search
    of so many ends with: on average over all choices of n points of the grid, in each the lowest error on `select` wins.

    With the points in the order of their errors on select, the k-th (from 0) of N wins in C(N − 1 − k, n − 1) of C(N, n)
    choices. One search for each seed; a training that diverged loses to all others. (0, …) where a run pays for none or all.
    """
    out = []
    for record in moved.records:
        points = [one for one in found if one["label"] == "grid" and one["seed"] == record["seed"]]
        whole = [one for one in points if not one["failed"] and one["points"]]
        price = points[0]["budget"] if points else 0
        n = record["gradients"] // price if price else 0
        if not 1 <= n <= len(whole):
            return 0, np.zeros(0)
        ends = sorted(((end(one, "select"), end(one, "test")) for one in whole), key=lambda pair: pair[0])
        N = len(points)
        chances = [math.comb(N - 1 - k, n - 1) / math.comb(N, n) for k in range(len(ends))]
        out.append(100 * float(np.average([test for _, test in ends], weights=chances)))
    return n, np.array(out)


def end(record: dict[str, Any], split: str) -> float:
    """The error at the end."""
    return record["points"][-1]["metrics"][split]["error"]


def unit_of(one: Runner) -> Unit:
    """Test errors in percent."""
    return per_cent(one.examples("test"))


def percent(one: Runner, split: str = "test") -> np.ndarray:
    """(seeds,) errors at the end."""
    return 100 * one.at_end(split)


# -- beside the exact hypergradient ---------------------------------------------------------------------------------------


def check(engine: Any, problem: Problem, config: Config, moved: bool) -> Iterator[dict[str, Any]]:
    """RTHO's h at some of its moves beside the exact hypergradient of a training of as many steps at its λ. float64.

    Moves after 1, 2, 4, … times Δ steps. Cost: T gradients and m T products, and for each of them a training with its exact pass.
    """
    Δ, first = config.others, STARTS["slow"]
    here = problem.with_(precision="float64", steps=config.steps)
    rule = outer.Adam(config.outer_rate) if moved else outer.GradientDescent(1e-300)
    hyper = Arm("check", Plain(), start(first)).first_hyper(here)
    wanted = {Δ * 2**k for k in range(20)}
    for block in engine.adapt(here, hyper, RTHO(every=Δ, block=Δ, outer=rule)):
        if block.stop in wanted:
            of_length = here.with_(steps=block.stop)
            training = engine.train(of_length, hyper, Checkpoints())
            exact = engine.hypergradient(of_length, hyper, training, Exact())
            h = {kind: float(block.gradient[kind]["network"]) for kind in KINDS}
            wanted_h = {kind: float(exact.gradient[kind]["network"]) for kind in KINDS}
            yield {"step": block.stop, "rtho": h, "exact": wanted_h}
        hyper = block.hyper


def ratios(one: dict[str, Any]) -> str:
    """step 50: 1.000, 1.000, 1.000 — RTHO's derivative over the exact one, for each hyperparameter."""
    return f"step {one['step']}: " + ", ".join(f"{one['rtho'][kind] / one['exact'][kind]:.3g}" for kind in KINDS)


# -- what it shows ------------------------------------------------------------------------------------------------------

SIGNS = ("α", "μ", "λ")


def outcome(record: dict[str, Any]) -> str:
    if record["failed"]:
        return record["failed"]
    metrics, last = record["points"][-1]["metrics"], path(record)[-1]
    values = ", ".join(f"{sign} {x:.2g}" for sign, x in zip(SIGNS, last, strict=True))
    return f"test error {100 * metrics['test']['error']:.2f} % at {values}"


def show(folder: Path) -> list[Section]:
    line = read_metrics(folder)[-1]
    found, T = line["arms"], line["arms"][0]["steps"]
    seeds, grid = len({one["seed"] for one in found}), runner(found, "grid-")
    of_grid = [one for one in found if one["label"] == "grid"]
    rows = []
    if grid is not None:
        rows.append(row(f"grid of {len({one['arm'] for one in of_grid})} (chosen)", grid.records, None))
        rows[0][-1] = f"{sum(one['gradients'] for one in of_grid) // seeds:,}"
    for s, name in enumerate(STARTS):
        best, mine = runner(found, f"start-{s}-moved-"), of_start(found, s)
        for label in dict.fromkeys(one["label"] for one in mine):
            same = [one for one in mine if one["label"] == label]
            mark = " (chosen)" if best is not None and same[0]["arm"] == best.arm else ""
            rows.append(row(f"{name}: {label}{mark}", same, grid))
    words = (
        f"After {T:,} steps, mean over {seeds} seed{'s' if seeds > 1 else ''}; ±: half of the 95 % interval. Errors in percent, "
        "hyperparameters at the end (median), and what the run cost in gradients (a tangent counts as two; the grid: all its "
        "trainings). Chosen: the lowest error on `select`, of the grid and of the moving rules of each start, which descend on "
        "`valid`; − grid: test less that of the grid's chosen, seed by seed. " + ". ".join(verdicts(found)) + "."
    )
    columns = ["", "test", "− grid", "select", "valid", *SIGNS, "gradients"]
    sections = [Section("Runs that move, and a grid", words, columns, rows)]
    rows = []
    for one in line["checks"]:
        for at in one["at"]:
            each = [f"{at['rtho'][kind] / at['exact'][kind]:.6g}" for kind in KINDS]
            rows.append(["moved" if one["moved"] else "kept", f"{at['step']}", *each])
    kept = [abs(at["rtho"][kind] / at["exact"][kind] - 1) for one in line["checks"] if not one["moved"] for at in one["at"]
            for kind in KINDS]  # fmt: skip
    words = (
        "RTHO's derivative over the exact one, of a training of as many steps with the present hyperparameters from the "
        f"beginning. 1: the same (while they are kept, to {max(kept):.1g}); negative: it points the other way."
    )
    sections.append(Section("RTHO beside the exact hypergradient", words, ["hyperparameters", "steps", *SIGNS], rows))
    first = [one for one in found if one["seed"] == found[0]["seed"]]
    with figures.style():
        pictures = {
            "Hyperparameters and test error over the run, first seed": figures.save(folder, "paths", draw_paths(first)),
            "Test error against what was spent, first seed": figures.save(folder, "spent", draw_spent(first)),
        }
    return [*sections, Section("Pictures", pictures=pictures)]


def of_start(found: list[dict[str, Any]], s: int) -> list[dict[str, Any]]:
    return [one for one in found if one["arm"].startswith(f"start-{s}-")]


def row(label: str, same: list[dict[str, Any]], grid: Runner | None) -> list[str]:
    """An arm over its seeds."""
    last = [*(f"{x:.2g}" for x in np.median([path(one)[-1] for one in same], axis=0)), f"{same[0]['gradients']:,}"]
    if any(one["failed"] for one in same):
        return [label, "diverged", "", "", "", *last]
    mine = Runner(label, same[0]["arm"], same, "seconds")
    unit, less = unit_of(mine), ""
    if grid is not None and len(grid.records) == len(same):
        less = with_half(percent(mine) - percent(grid), unit.difference)
    select, valid = (f"{percent(mine, split).mean():.2f}" for split in ("select", "valid"))
    return [label, with_half(percent(mine), unit), less, select, valid, *last]


def look(label: str, labels: list[str]) -> dict[str, Any]:
    colours = (figures.BLUE, figures.GREEN, figures.PURPLE, figures.ORANGE, figures.BLACK, figures.GREY)
    if label == "kept":
        return {"color": figures.GREY, "linestyle": "--", "linewidth": 1.2}
    if label == "its end, kept":
        return {"color": figures.BLACK, "linestyle": ":", "linewidth": 1.4}
    return {"color": colours[labels.index(label) % len(colours)], "linewidth": 1.4}


def draw_paths(found: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    titles = ("Learning rate α", "Momentum μ", "Penalty λ", "Test error, %")
    for s, (name, panels) in enumerate(zip(STARTS, figure.subplots(len(STARTS), 4, sharex=True), strict=True)):
        mine = of_start(found, s)
        labels = [one["label"] for one in mine if one["label"] not in ("kept", "its end, kept")]
        for one in mine:
            steps = [point["step"] for point in one["points"]]
            for axes, x in zip(panels, path(one).T, strict=False):
                axes.plot(steps, x, label=one["label"], **look(one["label"], labels))
            error = [100 * point["metrics"]["test"]["error"] for point in one["points"]]
            panels[3].plot(steps, error, **look(one["label"], labels))
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title if s == 0 else "")
            axes.set_yscale("linear" if title.startswith("Momentum") else "log")
        panels[0].set_ylabel(f"start: {name}")
    for axes in figure.axes[-4:]:
        axes.set_xlabel("elementary step")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_spent(found: list[dict[str, Any]]) -> Figure:
    """Test error of each run against its gradients, and of the best of the grid (on select) against those of all trainings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    grid = [one for one in found if one["label"] == "grid" and not one["failed"]]
    spent = np.cumsum([one["gradients"] for one in grid])
    best = [runner(grid[: k + 1], "grid-").at_end("test")[0] for k in range(len(grid))]  # type: ignore[union-attr]
    for s, (name, axes) in enumerate(zip(STARTS, figure.subplots(1, len(STARTS), sharey=True), strict=True)):
        mine = of_start(found, s)
        labels = [one["label"] for one in mine if one["label"] not in ("kept", "its end, kept")]
        for one in mine:
            x = [point["gradients"] for point in one["points"]]
            y = [100 * point["metrics"]["test"]["error"] for point in one["points"]]
            axes.plot(x, y, label=one["label"], **look(one["label"], labels))
        axes.step(
            spent, 100 * np.array(best), where="post", color=figures.BLACK, linewidth=1, label="grid, best so far"
        )
        axes.set(title=f"Start: {name}", xscale="log", yscale="log", xlabel="gradients")
        axes.set_ylabel("test error, %" if s == 0 else "")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each start, rule and measurement, the best of the grid beside each start, means over the seeds; and RTHO's
    derivatives over the exact ones."""
    line = read_metrics(folder)[-1]
    found = line["arms"]
    grid = runner(found, "grid-")
    rows = []
    for s, name in enumerate(STARTS):
        for one in grid.records if grid is not None else ():
            rows += at_points({"start": name, "rule": "grid, best on select"}, one)
        for one in of_start(found, s):
            rows += at_points({"start": name, "rule": one["label"]}, one)
    T = max(row.labels["step"] for row in rows)
    rows += [
        Row({"start": name, "rule": one["label"], "step": T}, {"diverged": True})
        for s, name in enumerate(STARTS) for one in of_start(found, s) if one["failed"]
    ]  # fmt: skip
    for one in line["checks"]:
        words = {"start": "slow", "rule": f"RTHO over exact, hyperparameters {'moved' if one['moved'] else 'kept'}"}
        for at in one["at"]:
            over = {f"{kind}_ratio": at["rtho"][kind] / at["exact"][kind] for kind in KINDS if at["exact"][kind]}
            rows.append(Row(words | {"step": at["step"]}, over))
    return means(rows)


def at_points(words: dict[str, str], one: dict[str, Any]) -> list[Row]:
    """A row for each measurement of a run."""
    rows = []
    for point, values in zip(one["points"], path(one), strict=True):
        metrics = of_metrics(point["metrics"])
        first = {"test_error": metrics["test_error"], "test_loss": metrics["test_loss"], "diverged": False}
        rows.append(Row(words | {"step": point["step"]}, first | metrics | dict(zip(KINDS, values, strict=True))))
    return rows
