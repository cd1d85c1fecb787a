"""Hypergradient descent on MNIST: does one learning rate that moves by itself replace the choice of it?

    hypertrail run hd-mnist --data-dir FOLDER
    hypertrail run hd-mnist --data-dir FOLDER --models logreg                   (softmax regression alone)
    hypertrail run hd-mnist --data-dir FOLDER --models logreg --repeats 1       (a third of that)
    hypertrail run hd-mnist --data-dir FOLDER --as-published                    (their weight decay: biases too)
    hypertrail run hd-mnist --data-dir FOLDER --mlp-epochs 100                  (as long as published; for a GPU)

Baydin, Cornish, Rubio, Schmidt, Wood (2018), with the settings of their released code: softmax regression, and a rectifier
network 784-1000-1000-10; all 60,000 training images, batches of 128, weight decay 1e-4, PyTorch's initial weights; SGD, Nesterov
(momentum .9) and Adam, each with α = .001 kept and with α moved from there by hypergradient descent (β = .001, Adam 1e-7).
What they call validation is the official test set, here `test`; no rule and no choice looks at it. Beyond their table, for
softmax regression: three seeds, the multiplicative rule, and plain training with other α, which is what a moving α competes
with. Its α is chosen by the mean loss on `select`, 10,000 of the training images, of trainings without them; the loss
reported beside the others is that of the training with this α on all 60,000, as theirs. β is the published one.

Ours differs: α stays above 1e-8 (theirs goes below 0, and stays there for whole stretches); 468 batches an epoch, instead of 468
and one of 96; the order of the images. Their weight decay reaches the biases, too: here only with `--as-published`. Measured once
(`--models logreg --repeats 1 --rates 0.001 --epochs 3`, with it and without): of nine arms no loss on test changes by more
than 8e-8 nats, and no error changes.

Hardware: one crowded CPU core: softmax regression 21 minutes for three seeds (57 trainings, most of it for the loss of all images
at each quarter of an epoch). The perceptron, two cores beside other work: 4 to 9 minutes for each arm.
Measured: float32, loss on test, theirs in brackets: softmax regression after 10 epochs, the end of their runs, seeds 0 to 2
(±: 95 % interval; − chosen: less that of the α chosen on select, paired); the perceptron, seed 0, beside theirs at the end of
the same epoch of their runs:

    softmax regression   SGD                    − chosen        SGDN                   − chosen        Adam
    α .001               .3730 ± .0037 (.3737)  +.092 ± .006    .2845 ± .0004 (.2846)  +.008 ± .007    .2718 ± .0094 (.2719)
    α .01                .2844 ± .0008          +.0037 ± .0023  .2767 ± .0072          chosen
    α .1                 .2807 ± .0028          chosen          .5052 ± .0439          +.229 ± .039
    HD                   .2863 ± .0032 (.2878)  +.0056 ± .0056  .2732 ± .0033 (.2719)  −.003 ± .010    .2722 ± .0097 (.2723)
    HD, multiplicative   .2897 ± .0030          +.0090 ± .0058  .2753 ± .0004          −.001 ± .007    .2683 ± .0018

                         SGD             SGD-HD         SGDN           SGDN-HD        Adam           Adam-HD
    perceptron, epoch 3  1.0817 (1.1132) .2968 (.2990)  .2651 (.2661)  .1387 (.1461)  .0720 (.0987)  .0732
    epoch 10              .4006 (.4074)  .2375 (.2405)  .1543 (.1499)  .0823 (.0833)  .0685 (.0802)  .0669

So theirs is reproduced (in softmax regression to .0015), and it says less than it seems: α = .001 is too small for SGD,
hypergradient descent repairs that within a quarter of an epoch (α .035) and ends where plain α = .01 ends; the chosen α, at the
upper edge of its grid, is as good or better (the multiplicative rule loses to it). For Nesterov the moving α ties with the
chosen one, for Adam with the kept one (+.0004 ± .0005; multiplicative −.004 ± .009). α of SGD-HD ends below every good fixed
one (.0006 to .004: short horizon), and with seed 0 it touches its lower bound for a while. On the perceptron it helps SGD and
Nesterov much, for all ten epochs (α of SGD-HD wanders between .005 and its lower bound, where epoch 8 ends), and Adam is ahead
of both: one seed, so this is no verdict. Adam's loss goes up and down from epoch to epoch, .065 to .098 from the third on, with
HD .060 to .084: neither the distance from theirs nor that between the two means anything. No choice of α; the 100 epochs are not
measured.
The paper's numbers: in brackets above; for the perceptron after 100 epochs .1489, .0968, .0614, .0600, .0628, –.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import engines, figures
from ..checks import at_least, positive
from ..edges import edge
from ..hyperparameters import LearningRate
from ..interval import Unit, percent, verdict, with_half
from ..online import HypergradientDescent, Plain
from ..problem import Dynamics, Problem
from ..race import arms
from ..race.arms import Arm
from ..rows import Row, means
from ..runs import Run, read_metrics
from ..sections import Section
from ._common import Study, built

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

ModelName = Literal["logreg", "mlp"]
OPTIMISERS = ("sgd", "sgdn", "adam")
NAMES = {"sgd": "SGD", "sgdn": "SGDN", "adam": "Adam"}
MODELS = {"logreg": "softmax regression", "mlp": "perceptron 784-1000-1000-10"}
BLOCKS_PER_EPOCH = 4
NATS = Unit(digits=4)  # losses

# Loss on the official test set (their validation): model → optimiser → epoch → (α kept, moved). The last epochs are the table
# of the paper, which is the end of the runs in their repository; epochs 3 and 10 of the perceptron are read in those runs.
PUBLISHED: dict[str, dict[str, dict[int, tuple[float, float | None]]]] = {
    "logreg": {
        "sgd": {10: (0.3737, 0.2878)},
        "sgdn": {10: (0.2846, 0.2719)},
        "adam": {10: (0.2719, 0.2723)},
    },
    "mlp": {
        "sgd": {3: (1.1132, 0.2990), 10: (0.4074, 0.2405), 100: (0.1489, 0.0968)},
        "sgdn": {3: (0.2661, 0.1461), 10: (0.1499, 0.0833), 100: (0.0614, 0.0600)},
        "adam": {3: (0.0987, None), 10: (0.0802, None), 100: (0.0628, None)},
    },
}


@dataclass(frozen=True)
class Config(Study):
    """Settings of hd-mnist."""

    models: tuple[ModelName, ...] = ("logreg", "mlp")
    """Which networks."""
    epochs: int = 10
    """Epochs of softmax regression (published: 10)."""
    mlp_epochs: int = 10
    """Epochs of the perceptron (published: 100, for which two cores would need hours)."""
    hidden: tuple[int, ...] = (1000, 1000)
    """Units of the perceptron's hidden layers (rectifiers)."""
    batch: int = 128
    """Examples per step."""
    learning_rate: float = 1e-3
    """α at the start, and where it is kept."""
    repeats: int = 3
    """How many seeds, from `seed` on, softmax regression is trained with; the perceptron with the first alone."""
    rates: tuple[float, ...] = (0.01, 0.1)
    """Further α for plain training of softmax regression by SGD and Nesterov; the best is chosen on `select`."""
    select: int = 10_000
    """Training images left out of the trainings by which α is chosen; all else is trained on the whole training split."""
    beta: float = 1e-3
    """β of hypergradient descent for SGD and Nesterov."""
    adam_beta: float = 1e-7
    """β for Adam."""
    relative_beta: float = 0.02
    """β of the multiplicative rule: the most by which α can change in one step, as a share of it."""
    momentum: float = 0.9
    """Nesterov's μ, and Adam's β₁."""
    weight_decay: float = 1e-4
    """As PyTorch has it: its half times Σ w² in the loss."""
    as_published: bool = False
    """The weight decay acts on the biases, too, as in the authors' released code."""
    train: int = 60_000
    """Training images."""
    test: int = 10_000
    """Images of the official test set, only reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("mlp-epochs", self.mlp_epochs, 1)
        at_least("models", len(self.models), 1)
        at_least("repeats", self.repeats, 1)
        at_least("select", self.select, 1)
        at_least("train - select", self.train - self.select, self.batch)
        for rate in self.rates:
            positive("rates", rate)

    def seeds(self, model: str) -> range:
        return range(self.seed, self.seed + (self.repeats if model == "logreg" else 1))


def problem(config: Config, model: str = "logreg", optimiser: str = "sgd", choosing: bool = False) -> Problem:
    """choosing: without the last images of the training split, which are `select`."""
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets.initial import Uniform
    from hypertrail_nets.layers import Dense, Input, Nonlinearity

    c, uniform = config, Uniform()
    layer: Any = Input((28, 28, 1))
    for i, units in enumerate(c.hidden if model == "mlp" else (), 1):
        layer = Nonlinearity(Dense(layer, units, f"dense{i}", uniform, bias_initial=uniform), "relu", f"relu{i}")
    select = c.select if choosing else 0
    splits = make_splits(load("mnist", c.data_dir), c.train - select, 0, select, c.test, c.seed)
    looked_at_by_nobody = replace(splits.train, x=splits.train.x[:1], y=splits.train.y[:1], rows=splits.train.rows[:1])
    schedule = BatchSchedule(c.train - select, c.batch, c.seed, order="reshuffled")
    kinds = {"sgd": ("heavy-ball", 0.0), "sgdn": ("nesterov", c.momentum), "adam": ("adam", c.momentum)}
    kind, momentum = kinds[optimiser]
    return Problem(
        network=Dense(layer, 10, "logits", uniform, bias_initial=uniform),
        splits=replace(splits, valid=looked_at_by_nobody),
        schedule=schedule,
        steps=schedule.steps_per_epoch * (c.mlp_epochs if model == "mlp" else c.epochs),
        hyperparameters=(LearningRate("network", c.learning_rate, bounds=(1e-8, 10.0)),),
        dynamics=Dynamics(kind, c.learning_rate, momentum, epsilon=1e-16),  # inside the root: 1e-8 outside
        l2=c.weight_decay / 2,
        l2_on="all" if c.as_published else "regularizable",
        seed=c.seed,
        precision=c.precision,
    )


def contenders(config: Config, model: str, optimiser: str, block: int) -> list[Arm]:
    """Plain and moving α, with blocks of that many steps."""
    beta = config.adam_beta if optimiser == "adam" else config.beta
    front = f"{model}-{optimiser}"
    out = [Arm(front, Plain(block)), Arm(f"{front}-hd", HypergradientDescent("additive", beta, block))]
    if model == "logreg":
        out += [Arm(f"{front}-hdm", HypergradientDescent("multiplicative", config.relative_beta, block))]
        if optimiser != "adam":
            out += [Arm(f"{front}-{α:g}", Plain(block), (("learning_rate", α),)) for α in further(config)]
    return out


def further(config: Config) -> list[float]:
    """`rates` without what is trained anyway."""
    return [α for α in dict.fromkeys(config.rates) if not math.isclose(α, config.learning_rate, rel_tol=1e-3)]


def tuned_by(optimiser: str, config: Config) -> list[float]:
    """The grid of α for plain training; none for Adam."""
    return [] if optimiser == "adam" else [config.learning_rate, *further(config)]


def block_of(problem: Problem) -> int:
    """About a quarter of an epoch, and a divisor of it."""
    n = problem.schedule.steps_per_epoch
    return max(block for block in range(1, max(1, n // BLOCKS_PER_EPOCH) + 1) if n % block == 0)


def study(config: Config, run: Run, voice: Voice) -> None:
    engine, found, choices = engines.load(config.engine), [], []
    of_seeds = [(model, replace(config, seed=seed)) for model in config.models for seed in config.seeds(model)]
    for model, at in of_seeds:
        for optimiser in OPTIMISERS:
            here = built(lambda c, m=model, o=optimiser: problem(c, m, o), at)
            block = block_of(here)
            blocks = here.schedule.steps_per_epoch // block
            every = 1 if model == "logreg" else blocks  # the loss of 70,000 images: a third of an epoch's time
            for arm in contenders(config, model, optimiser, block):

                def seen(done: int, budget: int, name: str = f"seed {at.seed}, {arm.name}") -> None:
                    voice.progress(name, done, budget)

                record = arms.in_run(run, engine, here, arm, here.steps, every, seen)
                found.append({"model": model, "optimiser": optimiser, "blocks_per_epoch": blocks, **record})
                voice.say(f"seed {at.seed}, {label(found[-1])}, {MODELS[model]}: {outcome(record)}")
            if model == "logreg" and tuned_by(optimiser, config):
                without = built(lambda c, m=model, o=optimiser: problem(c, m, o, choosing=True), at)
                for α in tuned_by(optimiser, config):
                    arm = Arm(f"choice-{optimiser}-{α:g}", Plain(block_of(without)), (("learning_rate", α),))
                    record = arms.in_run(run, engine, without, arm, without.steps, without.steps)
                    choices.append({"optimiser": optimiser, "rate": α, **record})
    for optimiser in OPTIMISERS if choices else ():
        if tuned_by(optimiser, config):
            voice.say(
                f"{NAMES[optimiser]}: chosen on select is α {chosen(choices, optimiser)}{at_edge(choices, optimiser)}"
            )
    run.append({"arms": found, "choices": choices})


def chosen(choices: list[dict[str, Any]], optimiser: str) -> float | None:
    """The α with the lowest mean loss on `select` over the seeds, of those that were finite with each; None: there is none."""
    losses = {}
    for α in dict.fromkeys(one["rate"] for one in choices if one["optimiser"] == optimiser):
        mine = [one for one in choices if (one["optimiser"], one["rate"]) == (optimiser, α)]
        if not any(one["failed"] for one in mine):
            losses[α] = np.mean([one["points"][-1]["metrics"]["select"]["loss"] for one in mine])
    return min(losses, key=losses.__getitem__, default=None)


def at_edge(choices: list[dict[str, Any]], optimiser: str) -> str:
    """' (α 0.1 at the edge of the grid)' where the chosen α is; else ''."""
    rate = chosen(choices, optimiser)
    points = [{"rate": one["rate"]} for one in choices if one["optimiser"] == optimiser]
    here = edge(points, {"rate": rate}) if rate is not None else ""
    return f" ({here})" if here else ""


def outcome(record: dict[str, Any]) -> str:
    if record["failed"]:
        return record["failed"]
    test = record["points"][-1]["metrics"]["test"]
    words = f"test loss {test['loss']:.4f}, error {100 * test['error']:.2f} %, α at the end {last_rate(record):.3g}"
    return words + (f", blown up: {record['blown_up']}" if record.get("blown_up") else "")


def last_rate(record: dict[str, Any]) -> float:
    return math.exp(record["hyper"]["learning_rate"]["network"][-1][0])


def label(record: dict[str, Any]) -> str:
    """SGD, SGD-HD, SGD-HD×, SGD, α .01."""
    name, how = NAMES[record["optimiser"]], record["method"]
    if how["name"] == "plain":
        return f"{name}, α {record['start']['learning_rate']:g}" if record["start"] else name
    return f"{name}-HD" if how["rule"] == "additive" else f"{name}-HD×"


def published(record: dict[str, Any]) -> dict[int, float]:
    """Epoch → their loss for this arm; empty where they have none."""
    which = {"SGD": 0, "SGDN": 0, "Adam": 0, "SGD-HD": 1, "SGDN-HD": 1, "Adam-HD": 1}.get(label(record))
    if which is None:
        return {}
    theirs = PUBLISHED[record["model"]][record["optimiser"]]
    return {epoch: value for epoch, pair in theirs.items() if (value := pair[which]) is not None}


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    line = read_metrics(folder)[-1]
    found, choices, sections = line["arms"], line["choices"], []
    for model in dict.fromkeys(one["model"] for one in found):
        mine = [one for one in found if one["model"] == model]
        epochs = mine[0]["steps"] // (mine[0]["blocks_per_epoch"] * mine[0]["method"]["block"])
        rows = []
        for optimiser in OPTIMISERS:
            of_optimiser = [one for one in mine if one["optimiser"] == optimiser]
            rate = chosen(choices, optimiser) if model == "logreg" else None
            tuned = [
                one
                for one in of_optimiser
                if one["method"]["name"] == "plain"
                and rate is not None
                and math.isclose(starts_at(one), rate, rel_tol=1e-3)
            ]
            for name in dict.fromkeys(map(label, of_optimiser)):
                same = [one for one in of_optimiser if label(one) == name]
                rows.append(row(same, epochs, tuned if same != tuned else []))
                rows[-1][0] += " (chosen)" if same == tuned else ""
                rows[-1][3] += at_edge(choices, optimiser) if same == tuned else ""
        seeds = len({one["seed"] for one in mine})
        words = (
            f"After {epochs} epochs, {seeds} seed{'s, ±: half of the 95 % interval' if seeds > 1 else ''}. Loss in nats and "
            "error on the official test set (the authors' validation); theirs at the same epoch, "
            "and in brackets at the end of a longer run. HD: additive rule, HD×: multiplicative. α: at the start, the largest "
            "seen at a measurement, at the end (means)."
        )
        if choices and model == "logreg":
            words += (
                " Chosen: the α of plain training with the lowest loss on images that its trainings for the choice were "
                "without; it then has the whole training split, as all here. − chosen: test loss less that, paired by seed. At "
                "the edge of the grid: a wider one might hold a better α, so the verdicts may be too kind to the moving rules."
            )
        columns = ["", "test loss", "− chosen", "", "theirs", "error, %", "train loss", "α"]
        sections.append(Section(MODELS[model][0].upper() + MODELS[model][1:], words, columns, rows))
    if choices:
        sections.append(choice(choices))
    with figures.style():
        pictures = {}
        for model in dict.fromkeys(one["model"] for one in found):
            mine = [one for one in found if one["model"] == model and not one["start"]]
            mine = [one for one in mine if one["seed"] == mine[0]["seed"]]
            pictures[
                f"{MODELS[model]}: learning rate, loss of the batches, loss on the test set; seed {mine[0]['seed']}"
            ] = figures.save(folder, model, draw(mine))
    return [*sections, Section("Pictures", pictures=pictures)]


def choice(choices: list[dict[str, Any]]) -> Section:
    """The trainings by which α is chosen."""
    rows = []
    for optimiser, α in dict.fromkeys((one["optimiser"], one["rate"]) for one in choices):
        mine = [one for one in choices if (one["optimiser"], one["rate"]) == (optimiser, α)]
        losses = "diverged" if any(one["failed"] for one in mine) else with_half(at_end(mine, "select", "loss"), NATS)
        mark = f"chosen{at_edge(choices, optimiser)}" if chosen(choices, optimiser) == α else ""
        rows.append([NAMES[optimiser], f"{α:g}", losses, mark])
    words = "Softmax regression trained without the images of select: loss there, mean over seeds."
    return Section("How α is chosen", words, ["", "α", "select loss", ""], rows)


def starts_at(one: dict[str, Any]) -> float:
    """α at the start."""
    return float(f"{math.exp(one['hyper']['learning_rate']['network'][0][0]):.4g}")


def at_end(records: list[dict[str, Any]], split: str, key: str) -> list[float]:
    return [one["points"][-1]["metrics"][split][key] for one in records]


def row(same: list[dict[str, Any]], epochs: int, tuned: list[dict[str, Any]]) -> list[str]:
    """An arm over its seeds."""
    theirs = published(same[0])
    rates = [[math.exp(x[0]) for x in one["hyper"]["learning_rate"]["network"]] for one in same]
    there, end = theirs.get(epochs), max(theirs, default=0)
    number = ("–" if there is None else f"{there:.4f}") + (f" ({theirs[end]:.4f})" if end > epochs else "")
    α = [f"{np.mean(x):.2g}" for x in ([r[0] for r in rates], list(map(max, rates)), [r[-1] for r in rates])]
    way = " → ".join(α) if same[0]["method"]["name"] != "plain" else α[0]
    if any(one["failed"] for one in same):
        return [label(same[0]), "diverged", "", "", number, "", "", way]
    test = at_end(same, "test", "loss")
    less, word = "", ""
    if tuned and not any(one["failed"] for one in tuned):
        apart = np.subtract(test, at_end(tuned, "test", "loss"))
        less, word = with_half(apart, NATS.difference), verdict(apart.tolist(), NATS.difference)
    lost = [str(one["seed"]) for one in same if one.get("blown_up")]
    word = "; ".join(part for part in (word, f"blown up with seed {', '.join(lost)}" if lost else "") if part)
    unit = percent(same[0]["points"][-1]["metrics"]["test"]["examples"])
    error = with_half([100 * x for x in at_end(same, "test", "error")], unit)
    train = f"{np.mean(at_end(same, 'train', 'loss')):.4f}"
    return [label(same[0]), with_half(test, NATS), less, word, number, error, train, way]


TICKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def draw(found: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    colours = dict(zip(OPTIMISERS, (figures.BLUE, figures.ORANGE, figures.GREEN), strict=True))
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    rate, batch, test = figure.subplots(1, 3)
    for one in found:
        name, per = label(one), one["blocks_per_epoch"]
        look = {"color": colours[one["optimiser"]], "label": name, "linewidth": 1.3,
                "linestyle": ":" if name.endswith("×") else "-" if name.endswith("HD") else "--"}  # fmt: skip
        at = [(point["block"] + 1) / per for point in one["points"]]
        rate.plot(at, [math.exp(x[0]) for x in one["hyper"]["learning_rate"]["network"]], **look)
        losses = one["block"]["loss"]
        batch.plot([(k + 0.5) / per for k in range(len(losses))], losses, **look)
        test.plot(at, [point["metrics"]["test"]["loss"] for point in one["points"]], **look)
        for epoch, value in published(one).items():
            if at and epoch <= at[-1]:
                test.plot(epoch, value, marker="x", color=look["color"], linestyle="none", markersize=6)
    rate.set(title="Learning rate", yscale="log", ylabel="α")
    rate.set_ylim(bottom=max(rate.get_ylim()[0], 1e-5))  # at its lower bound α leaves the picture
    batch.set(title="Loss of the batches", yscale="log", ylabel="nats")
    test.set(title="Loss on test (×: theirs)", yscale="log")
    for axes in (batch, test):
        low, high = axes.get_ylim()
        axes.set_yticks([x for x in TICKS if low < x < high], [f"{x:g}" for x in TICKS if low < x < high])
        axes.minorticks_off()
    for axes in (rate, batch, test):
        axes.set_xlabel("epoch")
    figure.legend(*rate.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each network, rule and measurement, means over the seeds; a training that diverged has one at its end."""
    rows = []
    for one in read_metrics(folder)[-1]["arms"]:
        words, per = {"network": one["model"], "rule": label(one)}, one["blocks_per_epoch"]
        rates = [math.exp(x[0]) for x in one["hyper"]["learning_rate"]["network"]]
        for point, rate in zip(one["points"], rates, strict=True):
            test, train = (point["metrics"][split] for split in ("test", "train"))
            values = {"test_error": test["error"], "test_loss": test["loss"], "diverged": False,
                      "train_loss": train["loss"], "train_error": train["error"], "learning_rate": rate}  # fmt: skip
            rows.append(Row(words | {"epoch": (point["block"] + 1) / per}, values))
        if one["failed"]:
            rows.append(Row(words | {"epoch": one["budget"] / (per * one["method"]["block"])}, {"diverged": True}))
    return means(rows)
