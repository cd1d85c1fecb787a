"""Learning rates and momenta of every layer at every step of a training, and its initial scales, all learned: 1,608 numbers.

    hypertrail run schedules-mnist --data-dir FOLDER

Maclaurin, Duvenaud, Adams (2015), with the settings of their code: a tanh network 784-50-50-50-10 on 10,000 images of MNIST
(pixels in [0, 1]), 100 steps of 200 examples, no penalty; for each of the 8 tensors ln α = −1 and γ = .9 at each of the 100 steps
(another of their runs starts from .5) and initial scale e⁻³; 50 updates of all their logarithms (logit γ) by their own Adam, step
.04, along the exact hypergradient. The meta-loss is the TRAINING loss: the valid split of this problem IS its train split, so
the two rows of every table agree; the 10,000 images that the paper validates on are `select`, reported only, like `test`.

By default every training starts from the same drawn weights and goes through the images in the same order. With
--new-seed-each-update both are drawn anew in each meta-iteration, as in the paper. At the end the last hyperparameters train once
more under 20 seeds that no update has used, which shows what the schedules are worth elsewhere: 20 trainings, 2,000 gradients,
beside the 5,100 gradients and 5,000 products of the updates.

Hardware: two CPU cores: 1.5 minutes (half a minute of processor time), MNIST files at hand.
Measured: seed 0, float32, after 50 updates; the norm is that of the hypergradient of ln α, at first, at its smallest and largest:

                                                  train loss      test error         norm
                                                  .642 → .140     18.43 → 6.72 %     .035, .0060, .055
    --no-learn-scales                             .642 → .202     18.43 → 7.54 %     .035, .0089, .035
    --momentum 0.5                                .551 → .143     16.71 → 6.63 %     .065, .0072, .24
    --momentum 0.5 --no-learn-scales              .551 → .481     16.71 → 14.44 %    .065, .011, 1.5e16: chaos
    the last with --outer adam, shorter steps     .551 → .249     16.71 → 8.49 %     .065, .013, 1.2: the edge of chaos

On the 20 held-out seeds, mean and 95 % interval (seed 0, float32, 50 updates):

                                train loss, own seed    train loss, held out    test error, held out
    one seed for all updates    .140                    .2153 ± .0051           7.72 ± .14 %
    --new-seed-each-update      .169                    .1793 ± .0046           6.92 ± .17 %

With one seed for all updates the train loss on that seed is two thirds of what it is on others: schedules and scales have learned
its weights and batches by heart. A new seed each time costs nothing and gives schedules that are worth more on other seeds. (Its
own seed is that of the closing training, which no update has used either.) Its hypergradient of ln α has the norms .033, .0084,
.25 and is ten times its smallest from update 45 on.

Without the initial scales to learn, γ = .5 drives the learning rates up until training is chaotic: the norm is ten times its
smallest after 26 updates (38 with Adam), and from then on the loss jumps about.
The paper's number: recorded by their code, train loss .638 → .141; from a start tuned by Bayesian optimisation error 7.0 %, then
up to 8.5 % while the hypergradient grew tenfold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import figures, interval
from ..checks import at_least, positive
from ..errors import NumericalFailure
from ..hyperparameters import InitialScale, LearningRate, Momentum
from ..outer import Adam, AdamHips, Rule
from ..problem import Problem
from ..runs import arrays, read_metrics, read_part
from ..runs.names import PARTS
from ..sections import Section
from ._common import Common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice
    from ..engines import Engine
    from ..runs import Run

RULES: dict[str, type[Rule]] = {"adam-hips": AdamHips, "adam": Adam}
HELD_OUT = "held-out"  # the name of a part of the run, before the number of updates and that of the seed
GROWN = 10.0  # times its smallest norm so far: the hypergradient is on its way to mean nothing (see chaos)


@dataclass(frozen=True)
class Config(Common):
    """Settings of schedules-mnist."""

    method: str = "exact"
    """How the hypergradient is taken; of the approximate ones only drmad-C1 and C2 know schedules."""
    meta_iterations: int = 50
    """How many times the schedules move."""
    hidden: tuple[int, ...] = (50, 50, 50)
    """Units of each hidden layer (tanh)."""
    steps: int = 100
    """T, elementary steps of one training run."""
    batch: int = 200
    """Examples per step."""
    learning_rate: float = exp(-1)
    """α of every layer at every step, at the start."""
    momentum: float = 0.9
    """γ of every layer at every step, at the start."""
    init_scale: float = exp(-3)
    """Standard deviation of the first weights and biases."""
    learn_scales: bool = True
    """Learn the initial scale of each of the 8 tensors as well."""
    outer: Literal["adam-hips", "adam"] = "adam-hips"
    """How ln α and logit γ move: by the Adam of the paper's code (no momentum, long first steps) or by Kingma and Ba's."""
    outer_rate: float = 0.04
    """Step of the outer rule."""
    train: int = 10_000
    """Training images, whose loss is also the hyper loss."""
    select: int = 10_000
    """Images held out, only reported."""
    test: int = 10_000
    """Images that are only reported (of the official test set)."""
    new_seed_each_update: bool = False
    """Take new initial weights and batches in every meta-iteration, as the paper does; a function of seed and meta-iteration."""
    held_out: int = 20
    """How many seeds that no update has used train the network once more with the last hyperparameters; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("momentum", self.momentum)
        at_least("held-out", self.held_out, 0)


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    splits = make_splits(load("mnist", c.data_dir), c.train, 0, c.select, c.test, c.seed, standardise=False)
    schedules = (
        LearningRate(level="layer", init=c.learning_rate, per_step=True, bounds=(1e-7, 100.0)),
        Momentum(level="layer", init=c.momentum, per_step=True),
    )
    return Problem(
        network=mlp((28, 28, 1), c.hidden, 10, "tanh", init_scale=c.init_scale),
        splits=replace(splits, valid=splits.train),
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.steps,
        hyperparameters=(*schedules, InitialScale(level="layer")) if c.learn_scales else schedules,
        seed=c.seed,
        precision=c.precision,
    )


def rule(config: Config) -> Rule:
    return RULES[config.outer](config.outer_rate)


def problem_for(config: Config, problem: Problem, k: int) -> Problem:
    """The problem of meta-iteration k: one and the same, or one with the weights and batches of a seed of its own."""
    from hypertrail_data import derived_seed

    return problem.reseeded(derived_seed(config.seed, "updates", k)) if config.new_seed_each_update else problem


# -- the last hyperparameters, on seeds that no update has seen -----------------------------------------------------------


def after(config: Config, problem: Problem, engine: Engine, run: Run, voice: Voice) -> None:
    """Train with the last hyperparameters under every held-out seed, one part of the run each.

    Cost: held_out trainings of T gradients, and a forward pass over train and test for each.
    """
    from hypertrail_data import derived_seed

    path = run.state(config.meta_iterations)
    hyper, _ = arrays.load_state(path)

    def trained(seed: int) -> dict[str, Any]:
        other = problem.reseeded(seed)
        try:
            training = engine.train(other, hyper)
        except NumericalFailure as failure:
            return {"seed": seed, "failed": str(failure)}
        train, test = (engine.evaluate(other, training, split) for split in ("train", "test"))
        return {"seed": seed, "train_loss": train.loss, "test_error": test.error, "gradients": training.cost.gradients}

    for i in range(config.held_out):
        voice.progress("held-out seeds", i, config.held_out)
        seed = derived_seed(config.seed, "held-out", i)
        run.part(f"{HELD_OUT}-{path.stem}-{i:02d}", lambda seed=seed: trained(seed))


# -- its own part of the report -----------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    lines = read_metrics(folder)
    moved = [line for line in lines if "norm" in line]  # the closing training moves nothing
    if not moved:
        return []
    k = np.array([line["meta_iteration"] for line in moved])
    norms = {kind: np.array([line["norm"][kind] for line in moved]) for kind in moved[0]["norm"]}
    rows = []
    for kind, norm in norms.items():
        grown = np.flatnonzero(norm > GROWN * np.minimum.accumulate(norm))
        since = str(k[grown[0]]) if len(grown) else "never"
        numbers = (f"{one:.3g}" for one in (norm[0], norm.min(), norm.max(), norm[-1]))
        rows.append([kind.replace("_", " "), *numbers, since])
    columns = ("hypergradient of", "norm, first", "smallest", "largest", "last", f"{GROWN:g} times its smallest from")
    words = (
        "A hypergradient that grows while the loss no longer falls is the sign of chaos: the schedules are at the edge where"
        " training stops being predictable, and it is time to stop. Valid is train here: the training loss is optimised."
    )
    paths = sorted((folder / "states").glob("[0-9]*.npz"))
    hyper, _ = arrays.load_state(paths[-1])
    updates = int(paths[-1].stem)
    with figures.style():
        pictures = {
            f"Schedules of every tensor after {updates} updates": figures.save(folder, "schedules", schedules(hyper)),
            "Norm of the hypergradient, and the loss that it descends": figures.save(
                folder, "norm", growth(k, norms, lines)
            ),
        }
    return [Section("Schedules", words, columns, rows, pictures), *held_out(folder, paths[-1].stem, lines)]


def held_out(folder: Path, updates: str, lines: list[dict[str, Any]]) -> list[Section]:
    """Train loss and test error on the held-out seeds, beside those of the training that closes the run."""
    names = sorted(path.stem for path in (folder / PARTS).glob(f"{HELD_OUT}-{updates}-*.json"))
    parts = [read_part(folder, name) for name in names]
    good = [part for part in parts if "failed" not in part]
    if len(good) < 2:
        return []
    end = lines[-1]["metrics"]
    losses, errors = interval.Unit(digits=4), interval.percent(end["test"]["examples"])
    rows = [
        [f"{len(good)} held-out seeds", interval.with_half([part["train_loss"] for part in good], losses),
         interval.with_half([100 * part["test_error"] for part in good], errors)],
        ["the closing training", f"{end['train']['loss']:.4f}", f"{100 * end['test']['error']:.2f}"],
    ]  # fmt: skip
    gradients = sum(part["gradients"] for part in good)
    words = (
        f"The hyperparameters after {int(updates)} updates, with initial weights and batches that no update has used: the mean"
        f" and its 95 % interval. Cost: {gradients:,} gradients."
    )
    if diverged := len(parts) - len(good):
        words += f" {diverged} of {len(parts)} trainings diverged and are left out."
    return [Section("Held-out seeds", words, ("trained with", "train loss", "test error, %"), rows)]


def schedules(hyper: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Learning rates above, momenta below; weights on the left, biases on the right."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    roles = {"W": "weights", "b": "biases"}
    for column, role in enumerate(roles):
        names = [name for name in hyper["learning_rate"] if name.endswith(f"/{role}")]
        for i, name in enumerate(names):
            look: dict[str, Any] = {
                "color": colormaps["viridis"](0.9 - 0.9 * i / max(1, len(names) - 1)),
                "linewidth": 1.3,
            }
            grid[0, column].plot(np.exp(hyper["learning_rate"][name]), label=name.rpartition("/")[0], **look)
            grid[1, column].plot(1 / (1 + np.exp(-hyper["momentum"][name])), **look)
        grid[0, column].set_title(f"Learning rates, {roles[role]}")
        grid[1, column].set(title=f"Momenta, {roles[role]}", xlabel="elementary step", ylim=(-0.02, 1.02))
    grid[0, 0].set(ylabel="α")
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set(ylabel="γ")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def growth(k: np.ndarray, norms: dict[str, np.ndarray], lines: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = (figures.BLUE, figures.ORANGE, figures.GREEN)
    for (kind, norm), colour, marker in zip(norms.items(), colours, "os^", strict=False):
        left.plot(k, norm, color=colour, marker=marker, markersize=3, label=kind.replace("_", " "))
    left.set(title="Norm of the hypergradient", yscale="log", ylabel="norm", xlabel="meta-iteration")
    left.legend()
    right.plot([line["meta_iteration"] for line in lines], [line["hyper_loss"] for line in lines], color=figures.BLUE,
               marker="o", markersize=3)  # fmt: skip
    right.set(title="Training loss after the last step", ylabel="nats per example", xlabel="meta-iteration")
    right.set_ylim(bottom=0)
    return figure
