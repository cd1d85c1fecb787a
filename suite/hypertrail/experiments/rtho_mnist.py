"""RTHO on MNIST: learning rate, momentum and penalty tuned while the network trains, once, against a grid of whole trainings.

    hypertrail run rtho-mnist --data-dir FOLDER

Real-time hyperparameter optimisation (Franceschi, Donini, Frasconi, Pontil 2017) moves all three every Δ steps along the
forward-mode derivative of the loss on `valid`; a tanh network 784-50-10, 5,000 training images, batches of 100, heavy ball, 2,000
steps, from two bad starts. Beside it: the start kept, MARTHE (a fading memory), RTHO with its memory emptied after each move,
plain training with what RTHO ended at, and the best of a grid of 24 plain trainings, chosen on `select`.

RTHO's derivative is exact only as long as nothing has moved. The second table lays it beside the exact one: that of a training
of as many steps with the present hyperparameters from the beginning, differentiated backwards; once with hyperparameters kept
(they agree to rounding) and once with them moved.

Hardware: one CPU core: 3 minutes of processor time, compilation included, MNIST files at hand.
Measured: seed 0, float32, test error after 2,000 steps, and α, μ, λ at the end; a moving run costs 14,000 to 14,800 gradients,
a kept one 2,000, the grid 48,000:

                         slow (.003, .5, 1e-5)           over-regularised (.03, .5, 1e-2)
    kept                 9.82 %                          7.89 %
    RTHO, Δ 10           7.47 %  .014, .83, 1.5e-5       6.66 %  .11, .86, 4.6e-4
    RTHO, Δ 50           8.04 %  .010, .79, 3.2e-7       7.02 %  .097, .77, 1.8e-3
    RTHO, Δ 200          9.31 %  .0046, .61, 3.2e-6      7.20 %  .046, .61, 3.2e-3
    RTHO, Δ 50, emptied  8.61 %  .0055, .65, 5.2e-7      7.04 %  .042, .59, 7.7e-4
    MARTHE(.99), Δ 50    8.37 %  .0067, .70, 4.0e-7      6.89 %  .049, .62, 6.5e-4
    end of Δ 50, kept    7.71 %                          6.53 %
    grid of 24           6.38 %  .1, .9, 1e-3

So every moving run is better than its start, and the more so the more often it moves (Adam's step is the same for each move);
none reaches the grid, whose price is that of three or four of them. Training anew with the end of RTHO is better than the run
that found it, by .3 and .5 points. The memory over all steps is worth .6 points over an emptied one from the slow start and
nothing from the other.
Beside the exact hypergradient (float64, slow start, Δ 50): the same to 5e-15 at all lengths while nothing moves. Moved, it is
1.02, 1.005, .96 of it (α, μ, λ) after 100 steps, 1.15, 1.08, 1.12 after 400, 2.1, 2.0, −.03 after 1,600: twice too long, and λ
has lost its sign.
The paper's number: none for MNIST; there a phone recogniser, where RTHO beat random search in a tenth of the time or less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import engines, figures, outer
from ..checks import at_least, divisor, multiple
from ..hyperparameters import L2, LearningRate, Momentum
from ..keeping import Checkpoints
from ..methods import Exact
from ..online import MARTHE, RTHO, Online, Plain
from ..problem import Dynamics, Problem
from ..race import arms
from ..race.arms import Arm, refuse_arm
from ..runs import Run, read_metrics
from ..sections import Section
from ._common import Study, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

BLOCK = 200
# name → (α, μ, λ) at the start
STARTS = {"slow": (0.003, 0.5, 1e-5), "over-regularised": (0.03, 0.5, 1e-2)}
KINDS = ("learning_rate", "momentum", "l2")
GRID = ((0.01, 0.03, 0.1, 0.3), (0.5, 0.9), (1e-5, 1e-4, 1e-3))


@dataclass(frozen=True)
class Config(Study):
    """Settings of rtho-mnist."""

    every: tuple[int, ...] = (10, 50, 200)
    """Δ, steps between two moves of RTHO; each divides 200. The middle one is also that of the other moving rules."""
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
    """Images by which the best of the grid is chosen."""
    test: int = 10_000
    """Images that are only reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple("steps", self.steps, BLOCK, "the steps between two records")
        at_least("select", self.select, 1)
        at_least("every", len(self.every), 1)
        for every in self.every:
            divisor("every", every, BLOCK, "the steps between two records")

    @property
    def middle(self) -> int:
        return self.every[len(self.every) // 2]


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
    dearest = max(price_of_block(method, here, c.engine) for method in moving(c).values())
    return here.with_(steps=c.steps // BLOCK * dearest)


def moving(config: Config) -> dict[str, Online]:
    """label → rule, all with blocks of the same length."""
    rule, Δ = outer.Adam(config.outer_rate), config.middle
    return {
        **{f"RTHO, Δ {every}": RTHO(every=every, block=BLOCK, outer=rule) for every in config.every},
        f"RTHO, Δ {Δ}, emptied": RTHO(every=Δ, block=BLOCK, outer=rule, restart=True),
        f"MARTHE({config.mu:g}), Δ {Δ}": MARTHE(every=Δ, block=BLOCK, outer=rule, mu=config.mu, validation_batches=0),
    }


def study(config: Config, run: Run, voice: Voice) -> None:
    engine, here = engines.load(config.engine), built(problem, config)
    found: list[dict[str, Any]] = []
    for method in moving(config).values():
        refuse_arm(here, Arm("moved", method), budget(method, here, config))

    def train(label: str, arm: Arm, every: int = 1) -> dict[str, Any]:
        """T steps, whatever they cost."""
        record = arms.in_run(run, engine, here, arm, budget(arm.method, here, config), every)
        found.append({"label": label, **record})
        return record

    for i, point in enumerate(product(*GRID)):
        train("grid", Arm(f"grid-{i}", Plain(BLOCK), start(point)), config.steps)
        voice.progress("trainings of the grid", i + 1, len(list(product(*GRID))))
    voice.say(f"grid, best on select: {outcome(best_of(found))}")
    for s, (name, point) in enumerate(STARTS.items()):
        voice.say(f"{name}, kept: {outcome(train('kept', Arm(f'start-{s}-kept', Plain(BLOCK), start(point))))}")
        for a, (label, method) in enumerate(moving(config).items()):
            record = train(label, Arm(f"start-{s}-moved-{a}", method, start(point)))
            voice.say(f"{name}, {label}: {outcome(record)}")
            if method == RTHO(every=config.middle, block=BLOCK, outer=method.outer) and not record["failed"]:
                again = Arm(f"start-{s}-again", Plain(BLOCK), start(np.clip(path(record)[-1], *bounds(here))))
                voice.say(f"{name}, its end kept from the beginning: {outcome(train('its end, kept', again))}")
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


def price_of_block(method: Online, problem: Problem, engine: str) -> int:
    """In gradients: its steps; for the rules that move, two more for each tangent of a step, and the batches of `valid`. The
    reference engine takes the gradient of a step twice."""
    if not isinstance(method, MARTHE):
        return BLOCK
    batches = len(problem.splits.valid) // (problem.valid_batch or len(problem.splits.valid))
    return BLOCK * ((2 if engine == "cpu" else 1) + 2 * len(KINDS)) + BLOCK // method.every * batches


def budget(method: Online, problem: Problem, config: Config) -> int:
    """What T steps cost, in gradients."""
    return config.steps // BLOCK * price_of_block(method, problem, config.engine)


def start(point: Any) -> tuple[tuple[str, float], ...]:
    return tuple((kind, float(x)) for kind, x in zip(KINDS, point, strict=True))


def bounds(problem: Problem) -> tuple[list[float], list[float]]:
    low, high = zip(*(problem.declared(kind).bounds for kind in KINDS), strict=True)  # type: ignore[union-attr]
    return list(low), list(high)


def path(record: dict[str, Any]) -> np.ndarray:
    """(points, 3): α, μ, λ at the start and at each measurement."""
    u = {kind: np.array([x[0] for x in record["hyper"][kind]["network"]]) for kind in KINDS}
    return np.stack([np.exp(u["learning_rate"]), 1 / (1 + np.exp(-u["momentum"])), 10 ** u["l2"]], axis=1)


def best_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    good = [one for one in found if one["label"] == "grid" and not one["failed"]]
    return min(good, key=lambda one: one["points"][-1]["metrics"]["select"]["error"])


# -- beside the exact hypergradient ---------------------------------------------------------------------------------------


def check(engine: Any, problem: Problem, config: Config, moved: bool) -> Iterator[dict[str, Any]]:
    """RTHO's h at some of its moves beside the exact hypergradient of a training of as many steps at its λ. float64.

    Moves after 1, 2, 4, … times Δ steps. Cost: T gradients and m T products, and for each of them a training with its exact pass.
    """
    Δ, first = config.middle, STARTS["slow"]
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
    grid, best = [one for one in found if one["label"] == "grid"], best_of(found)
    rows = [["grid of " + str(len(grid)), *cells(best), f"{len(grid) * best['gradients']:,}"]]
    for s, name in enumerate(STARTS):
        rows += [[f"{name}: {one['label']}", *cells(one), f"{one['gradients']:,}"] for one in of_start(found, s)]
    words = (
        f"After {T:,} steps: errors, hyperparameters at the end, and what the run cost in gradients (a tangent counts as two; "
        "the grid: all its trainings). The grid's best is chosen by its error on `select`; the moving rules descend on `valid`."
    )
    columns = ["", "test", "select", "valid", *SIGNS, "gradients"]
    sections = [Section("One run that moves, and a grid", words, columns, rows)]
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
    with figures.style():
        pictures = {
            "Hyperparameters and test error over the run": figures.save(folder, "paths", draw_paths(found)),
            "Test error against what was spent": figures.save(folder, "spent", draw_spent(found)),
        }
    return [*sections, Section("Pictures", pictures=pictures)]


def of_start(found: list[dict[str, Any]], s: int) -> list[dict[str, Any]]:
    return [one for one in found if one["arm"].startswith(f"start-{s}-")]


def cells(one: dict[str, Any]) -> list[str]:
    values = [f"{x:.2g}" for x in path(one)[-1]]
    if one["failed"]:
        return ["diverged", "", "", *values]
    metrics = one["points"][-1]["metrics"]
    return [*(f"{100 * metrics[split]['error']:.2f} %" for split in ("test", "select", "valid")), *values]


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
            steps, values = [0, *(point["step"] for point in one["points"])], path(one)
            for axes, x in zip(panels, values.T, strict=False):
                axes.plot(steps[: len(x)], x[: len(steps)], label=one["label"], **look(one["label"], labels))
            error = [100 * point["metrics"]["test"]["error"] for point in one["points"]]
            panels[3].plot(steps[1:], error, **look(one["label"], labels))
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
    best = [best_of(grid[: k + 1])["points"][-1]["metrics"]["test"]["error"] for k in range(len(grid))]
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
