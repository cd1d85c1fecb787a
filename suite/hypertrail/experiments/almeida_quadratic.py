"""Step sizes that find themselves, on quadratics: Almeida's rule beside hypergradient descent, HDM and fixed rates.

    hypertrail run almeida-quadratic

½ (w − ξ)ᵀ H (w − ξ) in 20 dimensions, H with eigenvalues from 1/1000 to 1, evenly in their logarithms, from one random
start. Four problems: the eigenvectors along the axes, or turned at random; the gradient exact, or that of a batch of noisy ξ with
mean 0. Every rule starts from the same five step sizes, from far too small to nearly too large. Regret: f(w_t) over f(w_0),
averaged over the run, f the loss without noise; a rule that does not mind a bad start has the same regret in every column.

Almeida's rule and HDM have one step size for each weight, which helps along the axes and little across them. Noise decides:
the product of two gradients in a row is then mostly noise, and HDM's null step accepts what suits the batch. The budget is in
gradients and the same for all: a step of HDM takes two, so it has half the steps.

Hardware: one crowded CPU core: 3.5 minutes, compilation included.
Measured: seed 0, float64, regret from step sizes .001 / .1 / 1.9 at the start (2 is where gradient descent diverges), in
the noisy problems medians over three draws:

    rule               along the axes           the same, noisy       turned                    the same, noisy
    fixed              .48 / .013 / .00053      .48 / .019 / 1.4      .51 / .0071 / .00011      .51 / .0099 / .68
    descent, β .1      .0037 / .0036 / .00053   .014 / .014 / .011    .0008 / .0008 / .00011    .0051 / .0050 / .0064
    multiplicative .03 diverges                 .079 / .015 / .014    diverges                  .063 / .0076 / .0092
    Almeida, k .1      .012 / .0004 / .00006    .018 / .0020 / .0028  .012 / .0004 / .0001      .030 / .0087 / .0050
    HDM, η 1           .00023 / .00022 / .00018 .20 / .20 / .20       .00017 / .00018 / .00015  .097 / .097 / .097

Gain, the regret of the best of five fixed rates over that of the rule, least to most over the five starts and the draws:

    descent, β .1      .14 to 1                 1.1 to 1.8            .13 to 1                  1.4 to 2.0
    Almeida, k .1      .04 to 8.6               1.0 to 11             .01 to 1.4                .33 to 2.3
    HDM, η 1           2.3 to 2.9               .09 to .10            .6 to .7                  .10

So: without noise HDM finds the step sizes in a few steps from anywhere, and yet, for what it costs, it is behind the best fixed
rate where the axes are turned; the multiplicative rule of hypergradient descent diverges, since two gradients in a row point the
same way until α is beyond 2 and it then falls as slowly as it has risen. With noise HDM never arrives (its null step judges by
the batch). Almeida's rule then gains nothing over the best fixed rate from a start of .001 (.97 to 1.1 along the axes, .33 to
.40 across them); along the axes it gains from better starts, 3.1 to 11 in two draws and 2.2 to 3.9 in the third, across them
up to 2.3. Hypergradient descent with a bold β gains little, but always, where there is noise. And the best fixed rate is known
only after five runs; but β and k are settings too, and with k .01 or β .01 half of the gain is gone.
No verdict: the problems without noise are one draw each, and there the best fixed rate is 1.9, at the edge of the five.
The paper's number: none that we could lay beside it (Almeida, Langlois, Amaral, Plakhov 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import engines, figures
from ..adapting import numpy_state
from ..checks import at_least, at_most, multiple, positive
from ..edges import edge
from ..errors import NumericalFailure
from ..hyperparameters import LearningRate
from ..interval import too_few
from ..online import OSGM, Almeida, HypergradientDescent, Online, Plain
from ..problem import Dynamics, Problem
from ..race.arms import Arm
from ..rows import Row
from ..runs import Run, read_metrics
from ..sections import Section
from ._common import Precision, Study, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

PROBLEMS = {
    "along the axes": (False, False),
    "along the axes, noisy": (False, True),
    "turned": (True, False),
    "turned, noisy": (True, True),
}  # name → (turned, noisy)
BLOCK = 20  # gradients between two looks at f
STEPS = 10  # of a block: what a rule of two gradients a step takes between two looks
BOUNDS = (1e-6, 10.0)  # of every step size

# label → (level of the step size, rule with blocks of that many steps)
ARMS: dict[str, tuple[str, Callable[[int], Online]]] = {
    "fixed": ("network", Plain),
    "hypergradient descent, β .01": ("network", lambda n: HypergradientDescent(beta=0.01, block=n)),
    "hypergradient descent, β .1": ("network", lambda n: HypergradientDescent(beta=0.1, block=n)),
    "multiplicative, β .003": ("network", lambda n: HypergradientDescent("multiplicative", 0.003, n)),
    "multiplicative, β .03": ("network", lambda n: HypergradientDescent("multiplicative", 0.03, n)),
    "Almeida, k .01": ("parameter", lambda n: Almeida(0.01, block=n)),
    "Almeida, k .1": ("parameter", lambda n: Almeida(0.1, block=n)),
    "HDM, η .1": ("parameter", lambda n: OSGM(0.1, block=n)),
    "HDM, η 1": ("parameter", lambda n: OSGM(1.0, block=n)),
}


@dataclass(frozen=True)
class Config(Study):
    """Settings of almeida-quadratic."""

    precision: Precision = "float64"
    """float64: losses down to 1e-20 can be told apart. float32: half the digits."""
    weights: int = 20
    """Dimensions."""
    condition: float = 1000.0
    """The largest eigenvalue of H over the smallest; the largest is 1."""
    noise: float = 0.3
    """Standard deviation of ξ's mean over a batch, in the noisy problems; that of the start is 1."""
    batch: int = 16
    """Rows per step."""
    examples: int = 4096
    """Rows ξ of the training split; their mean is 0."""
    steps: int = 2000
    """The budget of every run, in gradients: T of a rule that takes one a step (HDM takes two); a multiple of 20."""
    rates: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 1.9)
    """Step sizes at the start; 2 is where gradient descent begins to diverge."""
    repeats: int = 3
    """Draws of noise and batches, in the noisy problems; start and directions stay."""
    tolerance: float = 0.01
    """When f has fallen to this share of its start, a rule has arrived."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("weights", self.weights, 2)
        at_most("examples times weights", self.examples * self.weights, 10**8, "every problem draws so many numbers")
        at_least("repeats", self.repeats, 1)
        multiple("steps", self.steps, BLOCK, "the gradients between two looks at f")
        at_least("rates", len(self.rates), 1)
        for rate in self.rates:
            positive("rates", rate)
        positive("noise", self.noise)
        positive("condition - 1", self.condition - 1)


@dataclass(frozen=True, eq=False)
class Quadratic(Problem):
    """L = mean over the batch of ½ (w − ξ)ᵀ H (w − ξ); ξ are the rows x of the splits, w the one weight array of the network."""

    H: np.ndarray | None = None
    """(n, n), symmetric and positive definite."""

    def data_loss(
        self,
        ops: Any,
        weights: Any,
        x: Any,
        y: Any,
        step: Any,
        collect: Any = None,
        values: Any = None,
        key: Any = None,
    ) -> Any:
        away = weights["logits/W"].reshape(1, -1) - x.reshape(x.shape[0], -1)
        return 0.5 * ((away @ np.asarray(self.H, self.precision)) * away).sum(axis=1).mean()

    def excess(self, w: np.ndarray) -> float:
        """f(w) = ½ wᵀ H w, whose minimum is 0."""
        w = np.asarray(w, np.float64).ravel()
        return float(0.5 * w @ self.H @ w)


def problem(config: Config, name: str = "along the axes, noisy", level: str = "network", draw: int = 0) -> Quadratic:
    from hypertrail_data import BatchSchedule, Split, Splits
    from hypertrail_data.streams import generator
    from hypertrail_nets import softmax_regression

    c = config
    turned, noisy = PROBLEMS[name]
    H = np.diag(np.logspace(-np.log10(c.condition), 0.0, c.weights))
    if turned:
        Q = np.linalg.qr(generator(c.seed, "hyper").normal(size=H.shape))[0]
        H = Q @ H @ Q.T
    ξ = generator(c.seed + draw, "noise").normal(size=(c.examples, 1, c.weights, 1))
    ξ = c.noise * np.sqrt(c.batch) * noisy * (ξ - ξ.mean(axis=0))

    def split(rows: int) -> Split:
        return Split(ξ[:rows].astype(c.precision), np.zeros(rows, np.int32), np.arange(rows))

    nothing = np.zeros(1, np.float32)
    return Quadratic(
        network=softmax_regression((1, c.weights, 1), 1, init_scale=1.0),
        splits=Splits(split(c.examples), split(1), split(0), split(0), nothing, nothing + 1, 1, "quadratic"),
        schedule=BatchSchedule(c.examples, c.batch, c.seed + draw, order="reshuffled"),
        steps=c.steps,
        hyperparameters=(LearningRate(level=level, init=c.rates[0], bounds=BOUNDS),),
        dynamics=Dynamics("heavy-ball", c.rates[0], 0.0),
        seed=c.seed,
        precision=c.precision,
        H=H,
    )


def study(config: Config, run: Run, voice: Voice) -> None:
    engine = engines.load(config.engine)
    arms = {label: arm for label, arm in ARMS.items() if config.engine == "gpu" or not label.startswith("HDM")}
    found, wanted = (
        [],
        [(name, d) for name, (_, noisy) in PROBLEMS.items() for d in range(config.repeats if noisy else 1)],
    )
    for i, (name, draw) in enumerate(wanted):
        of_level = {level: built(lambda c, n=name, level=level, d=draw: problem(c, n, level, d), config) for level in
                    ("network", "parameter")}  # fmt: skip
        for j, (label, (level, make)) in enumerate(arms.items()):
            part = run.part(
                f"problem-{list(PROBLEMS).index(name)}-draw-{draw}-arm-{list(ARMS).index(label)}",
                lambda p=of_level[level], m=make: {"runs": [walk(engine, p, rate, m(STEPS)) for rate in config.rates]},
            )
            found.append({"problem": name, "draw": draw, "arm": label, **part})
            voice.progress("rules", i * len(arms) + j + 1, len(wanted) * len(arms))
        best = min(found[-len(arms) :], key=lambda one: worst(one["runs"]))
        voice.say(
            f"{name}, draw {draw}: least regret from its worst start has {best['arm']}, {worst(best['runs']):.3g}; "
            f"the best fixed rate's is {spread(gains(found[-len(arms) :], name, best['arm']))} times its, start by start"
        )
    for name in PROBLEMS:
        voice.say(f"{name}: {'; '.join(remarks(found, name, config.rates))}")
    run.append({"tolerance": config.tolerance, "rates": list(config.rates), "runs": found})


def walk(engine: Any, problem: Quadratic, rate: float, method: Online) -> dict[str, Any]:
    """One run from w_0 with this step size at the start: f over f(w_0) every 20 gradients, and where it diverged, if it did.

    What a block costs is what the engine says. Cost: problem.steps gradients, whatever the rule; diverged counts them, too.
    """
    hyper = Arm("walk", method, (("learning_rate", rate),)).first_hyper(problem)
    start = problem.excess(problem.initial_weights()["logits/W"])
    curve: list[float] = []
    spent = 0
    try:
        for block in engine.adapt(problem, hyper, method):
            spent += block.cost.price
            f = problem.excess(numpy_state(block.state)["w"]["logits/W"]) / start
            if spent % BLOCK == 0:
                curve.append(f)
            if not f <= 1e6:
                return {"curve": curve, "diverged": spent}
            if spent >= problem.steps:
                break
    except NumericalFailure:
        return {"curve": curve, "diverged": spent}
    return {"curve": curve, "diverged": None}


# -- what is said of a run ----------------------------------------------------------------------------------------------


def regret(one: dict[str, Any]) -> float:
    """Mean of f over f(w_0) over the run, infinite where it diverged."""
    return float("inf") if one["diverged"] is not None else float(np.mean(one["curve"]))


def worst(runs: list[dict[str, Any]]) -> float:
    return max(map(regret, runs))


def arrival(one: dict[str, Any], tolerance: float) -> float:
    """Gradients until f is below the tolerance for the first time, to a look; infinite where it never is."""
    there = np.flatnonzero(np.array(one["curve"]) < tolerance)
    return float("inf") if not len(there) else BLOCK * (int(there[0]) + 1)


def middle(found: list[dict[str, Any]], name: str, label: str, of: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """The median over the draws of what `of` says of a run, for each step size at the start; infinite where most diverge."""
    rows = [[of(one) for one in part["runs"]] for part in found if part["problem"] == name and part["arm"] == label]
    return np.sort(np.array(rows), axis=0)[len(rows) // 2]


def gains(found: list[dict[str, Any]], name: str, label: str) -> np.ndarray:
    """(draws, starts): the regret of the draw's best fixed rate over that of the rule; below 1: the fixed rate is better."""
    of = {one["arm"]: [] for one in found}
    for one in found:
        if one["problem"] == name:
            of[one["arm"]].append([regret(run) for run in one["runs"]])
    return np.min(of["fixed"], axis=1, keepdims=True) / np.array(of[label])


def remarks(found: list[dict[str, Any]], name: str, rates: Sequence[float]) -> list[str]:
    """What weakens a verdict on this problem: too few draws of it, and a best fixed rate at the edge of the rates."""
    fixed = [part for part in found if part["problem"] == name and part["arm"] == "fixed"]
    best = [rates[int(np.argmin([regret(run) for run in part["runs"]]))] for part in fixed]
    points = [{"learning_rate": rate} for rate in rates]
    marks = dict.fromkeys(f"best fixed rate {edge(points, {'learning_rate': rate}) or f'α {rate:g}'}" for rate in best)
    return [mark for mark in (too_few(len(fixed), "draw"), *marks) if mark]


def spread(gains: np.ndarray) -> str:
    """From the least to the most."""
    low, high = (f"{x:.2g}" for x in (gains.min(), gains.max()))
    return low if low == high else f"{low} to {high}"


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    line = read_metrics(folder)[-1]
    found, rates, tolerance = line["runs"], line["rates"], line["tolerance"]
    labels = list(dict.fromkeys(one["arm"] for one in found))
    sections = []
    for name in PROBLEMS:
        rows = []
        for label in labels:
            regrets = middle(found, name, label, regret)
            steps = middle(found, name, label, lambda one: arrival(one, tolerance))
            cells = [cell(r, s) for r, s in zip(regrets, steps, strict=True)]
            rows.append([label, *cells, spread(gains(found, name, label))])
        noisy = PROBLEMS[name][1]
        words = (
            f"Regret, and in brackets the gradients until f is below {tolerance:g} of its start, for each step size at the start"
            + (" (medians over the draws)." if noisy else ".")
            + " Equal budgets of gradients: a step of HDM costs two, of the others one. Gain: the regret of the best fixed rate "
            f"over that of the rule, least to most over the starts{' and the draws' * noisy}. "
            + f"{'; '.join(remarks(found, name, rates))}."
        )
        sections.append(
            Section(name[0].upper() + name[1:], words, ["", *(f"{rate:g}" for rate in rates), "gain"], rows)
        )
    with figures.style():
        pictures = {
            "Regret against the step size at the start": figures.save(
                folder, "regret", draw_regret(found, rates, labels)
            ),
            f"Loss without noise over the run, from a step size of {rates[1 % len(rates)]:g}": figures.save(
                folder, "curves", draw_curves(found, 1 % len(rates), labels)
            ),
        }
    return [*sections, Section("Pictures", pictures=pictures)]


def cell(regret: float, steps: float) -> str:
    if not np.isfinite(regret):
        return "diverges"
    return f"{regret:.2g} ({steps:.0f})" if np.isfinite(steps) else f"{regret:.2g} (–)"


def look(label: str) -> dict[str, Any]:
    """One colour for each kind of rule; its bolder setting is dashed."""
    kinds = {"fixed": figures.BLACK, "hypergradient": figures.BLUE, "multiplicative": figures.PURPLE,
             "Almeida": figures.ORANGE, "HDM": figures.GREEN}  # fmt: skip
    kind = next(one for one in kinds if label.startswith(one))
    same = [one for one in ARMS if one.startswith(kind)]
    return {"color": kinds[kind], "linestyle": "-" if label == same[0] else "--", "linewidth": 1.4}


def draw_regret(found: list[dict[str, Any]], rates: list[float], labels: list[str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 7.2), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, PROBLEMS, strict=True):
        for label in labels:
            values = middle(found, name, label, regret)
            values[~np.isfinite(values)] = np.nan
            axes.plot(rates, values, marker="o", label=label, **look(label))
        axes.set(title=name[0].upper() + name[1:], xscale="log", yscale="log")
    for axes in figure.axes[2:]:
        axes.set_xlabel("step size at the start")
    for axes in figure.axes[::2]:
        axes.set_ylabel("regret")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_curves(found: list[dict[str, Any]], index: int, labels: list[str]) -> Figure:
    """f over f(w_0), first draw, all rules from the same step size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 7.2), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2, sharex=True).flat, PROBLEMS, strict=True):
        for label in labels:
            part = next(one for one in found if one["problem"] == name and one["arm"] == label and one["draw"] == 0)
            curve = [1.0, *part["runs"][index]["curve"]]
            axes.plot(BLOCK * np.arange(len(curve)), curve, label=label, **look(label))
        axes.set(title=name[0].upper() + name[1:], yscale="log")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-10), top=30)
    for axes in figure.axes[2:]:
        axes.set_xlabel("gradients")
    for axes in figure.axes[::2]:
        axes.set_ylabel("f / f(w₀)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each problem and rule, medians over the draws: the least regret over the starts, at which start it is, the share
    of the starts from which f becomes small, from which it diverges, and regret and steps from each of them.
    """
    line = read_metrics(folder)[-1]
    found, rates = line["runs"], line["rates"]
    rows = []
    for name in dict.fromkeys(one["problem"] for one in found):
        for label in dict.fromkeys(one["arm"] for one in found):
            regrets = middle(found, name, label, regret)
            steps = middle(found, name, label, lambda one: arrival(one, line["tolerance"]))
            values = {"least_regret": regrets.min(), "arrived": np.isfinite(steps).mean(),
                      "diverged": 1 - np.isfinite(regrets).mean(), "best_rate": rates[int(regrets.argmin())]}  # fmt: skip
            for rate, one, n in zip(rates, regrets, steps, strict=True):
                values |= {f"regret_from_{rate:g}": one, f"steps_from_{rate:g}": n}
            rows.append(Row({"problem": name, "rule": label}, values))
    return rows
