"""The picture that DrMAD rests on: the loss along the straight line from w_0 to w_T, and beyond, for five networks.

    hypertrail run interpolation --data-dir FOLDER
    hypertrail run interpolation --networks softmax mlp lenet densenet          (handwritten digits only: needs no files)

DrMAD replaces the trajectory by w(β) = (1 − β) w_0 + β w_T (Fu et al. 2016), because the loss is known to fall along
that line (Goodfellow, Vinyals, Saxe 2015). Here each network is trained as in its experiment and the loss is taken at β from
−¼ to 1¼: on the whole train split (without penalties) and on the whole valid split, dropout off; where there is batch norm, each
split is normalised by its own statistics at that β. Three numbers per curve between β = 0 and 1:

    falls      share of the little steps that go down; 100 % is monotone
    barrier    highest point above the chord, max L(β) − (1 − β) L(0) − β L(1); 0 for a convex curve
    max rise   the longest way up, max over β < β' of L(β') − L(β); 0 for a monotone curve (Lucas et al. 2021)

A monotone line does not make a good hypergradient: what counts there is the Hessian along the line, and the order of the steps.

Hardware: two CPU cores: half a minute, MNIST files at hand.
Measured: seed 0, float32: monotone for all five networks on both splits (falls 100 %, max rise 0). No barrier either, but for
mnist-mlp: .240 on train, .231 on valid; there the loss stays flat near w_0 and falls in the middle. On the train split every
line goes on falling beyond w_T. And yet on that last network DrMAD's hypergradient is noise after ten updates (see drmad-mnist).
The paper's number: none; Goodfellow et al. find the line monotone for nearly every network they try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import engines, figures, stopping
from ..checks import at_least
from ..hyperparameters import L2
from ..problem import Dynamics, Problem
from ..records import Training
from ..rows import Row
from ..runs import Run, arrays, read_metrics
from ..sections import Section
from . import drmad_digits, drmad_mnist
from ._common import Study, built, listed, numbered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

Name = Literal["softmax", "mlp", "lenet", "densenet", "mnist-mlp"]
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Config(Study):
    """Settings of interpolation."""

    networks: tuple[Name, ...] = ("softmax", "mlp", "lenet", "densenet", "mnist-mlp")
    """softmax, mlp (64-64-10, tanh), lenet, densenet (that of drmad-digits): on handwritten digits; mnist-mlp: drmad-mnist's."""
    steps: int | None = None
    """T of every network; default: 200 on the digits (densenet 100), 2000 on MNIST."""
    points: int = 40
    """Values of β between w_0 and w_T; beyond the ends they go on for a quarter of that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("networks", len(self.networks), 1)
        at_least("points", self.points, 4)


def on_digits(config: Config, network: Callable[..., Any]) -> Problem:
    """A small network on the splits of drmad-digits, α .5, γ .9, penalty 1e-4."""
    like = drmad_digits.problem(drmad_digits.Config(seed=config.seed))
    return like.with_(
        network=network((8, 8, 1)),
        steps=config.steps or 200,
        hyperparameters=(L2(level="network", init=1e-4),),
        dynamics=Dynamics(learning_rate=0.5, momentum=0.9),
        precision=config.precision,
    )


def problem_of(config: Config, name: Name) -> Problem:
    from hypertrail_nets import lenet, mlp, softmax_regression

    same = {"seed": config.seed, "precision": config.precision}
    if config.steps is not None:
        same["steps"] = config.steps
    return {
        "softmax": lambda: on_digits(config, softmax_regression),
        "mlp": lambda: on_digits(config, lambda shape: mlp(shape, (64,), 10, "tanh")),
        "lenet": lambda: on_digits(config, lambda shape: lenet(shape, 10, hidden=(60,), size=3)),
        "densenet": lambda: drmad_digits.problem(drmad_digits.Config(**same)),
        "mnist-mlp": lambda: drmad_mnist.problem(drmad_mnist.Config(**same, data_dir=config.data_dir)),
    }[name]()


def ready(config: Config) -> None:
    """Build every problem once: data that are missing are missed before the first training."""
    for name in config.networks:
        problem_of(config, name)


def study(config: Config, run: Run, voice: Voice) -> None:
    engine = engines.load(config.engine)
    β = np.arange(-(config.points // 4), config.points + config.points // 4 + 1) / config.points
    for name in config.networks:
        part = run.part(name, lambda name=name: trained(config, engine, name, β, voice))
        curves = {split: numbered(part[split]) for split in SPLITS}
        arrays.save(run.path / f"{name}.npz", {"beta": β, **curves})
        for split, losses in curves.items():
            run.append({"network": name, "split": split, "steps": part["steps"], **shape(β, losses)})
        ends = [curves["train"][β == b][0] for b in (0, 1)]
        voice.say(f"{name}: T {part['steps']}, train loss {ends[0]:.4f} → {ends[1]:.4f}")


def trained(config: Config, engine: Any, name: Name, β: np.ndarray, voice: Voice) -> dict[str, Any]:
    """The part of one network: its T and both curves."""
    problem = built(lambda config: problem_of(config, name), config)

    def progress(done: int, total: int) -> None:
        voice.progress(name, done, total)
        stopping.here(f"step {done} of {total} ({name}, which is begun again)")

    training = engine.train(problem, problem.initial_hyper(), "ends", progress)
    curves = along_the_line(engine, problem, training, β)
    return {"steps": problem.steps} | {split: listed(losses) for split, losses in curves.items()}


def along_the_line(engine: Any, problem: Problem, training: Training, β: np.ndarray) -> dict[str, np.ndarray]:
    """{'train', 'valid'}: (n,) loss of the whole split at (1 − β) w_0 + β w_T. Cost: n forward passes over each split.

    The loss of a split is the hyper loss of a problem whose valid split it is: a pure function of the weights.
    """
    start = problem.effective(np, training.initial, problem.values(problem.initial_hyper()))
    out = {}
    for split in SPLITS:
        asked = problem.with_(splits=replace(problem.splits, valid=getattr(problem.splits, split)), valid_batch=None)
        line = ({name: (1 - b) * start[name] + b * w for name, w in training.weights.items()} for b in β)
        out[split] = np.array([engine.hyper_loss(asked, replace(training, weights=cast(w, problem))) for w in line])
    return out


def cast(w: dict[str, np.ndarray], problem: Problem) -> dict[str, np.ndarray]:
    return {name: one.astype(problem.dtype) for name, one in w.items()}


def shape(β: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """The numbers of one curve; all but `lowest_at` between β = 0 and 1."""
    here = (β >= 0) & (β <= 1)
    b, f = β[here], losses[here]
    return {
        "start": float(f[0]),
        "end": float(f[-1]),
        "falls": float((np.diff(f) <= 0).mean()),
        "barrier": float((f - (1 - b) * f[0] - b * f[-1]).max()),
        "max_rise": float((f - np.minimum.accumulate(f)).max()),
        "lowest_at": float(β[losses.argmin()]),
    }


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    lines = read_metrics(folder)
    rows = [
        [one["network"], one["split"], f"{one['steps']:,}", f"{one['start']:.3f}", f"{one['end']:.3f}",
         f"{100 * one['falls']:.0f} %", f"{one['barrier']:.3f}", f"{one['max_rise']:.4f}", f"{one['lowest_at']:.3f}"]
        for one in lines
    ]  # fmt: skip
    columns = ("network", "split", "T", "loss at 0", "at 1", "falls", "barrier", "max rise", "lowest at β")
    words = (
        "β = 0 is w_0, β = 1 is w_T. Falls: share of the steps between them that go down. Barrier: highest point above the chord."
        " Max rise: the longest way up between them. Loss in nats, no penalties, dropout off, batch norm by the statistics"
        " of the split itself."
    )
    names = list(dict.fromkeys(one["network"] for one in lines))
    with figures.style():
        caption = "Loss along the line through the first and the last weights"
        pictures = {
            caption: figures.save(folder, "line", draw({name: arrays.load(folder / f"{name}.npz") for name in names}))
        }
    return [Section("Along the line", words, columns, rows, pictures)]


def draw(curves: dict[str, dict[str, np.ndarray]]) -> Figure:
    from matplotlib.figure import Figure

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(9.5, 0.5 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, one) in zip(grid.flat, curves.items(), strict=False):
        β = one["beta"]
        for split in SPLITS:
            axes.plot(β, one[split], label=split, **{**figures.STYLE[split], "marker": "none"})
            ends = np.isin(β, (0, 1))
            axes.plot(β[ends], one[split][ends], figures.STYLE[split]["marker"], color=figures.STYLE[split]["color"])
        both = np.array([one[split] for split in SPLITS])
        axes.set_ylim(0, 1.05 * min(both.max(), 1.3 * both[:, (β >= 0) & (β <= 1)].max()))
        axes.set(title=name, xlabel="β", ylabel="loss (nats)")
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_visible(False)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each network and split."""
    names = ("barrier", "max_rise", "falls", "start", "end", "lowest_at")
    return [
        Row({"network": line["network"], "split": line["split"]}, {name: line[name] for name in names})
        for line in read_metrics(folder)
    ]
