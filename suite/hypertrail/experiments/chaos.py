"""Where hypergradients stop meaning anything: the loss after 50 steps against one learning rate, smooth, then chaotic.

    hypertrail run chaos --data-dir FOLDER

Maclaurin, Duvenaud, Adams (2015), on when gradients are meaningful, with the settings of their code: a tanh network
784-200-50-10 on 1,000 images of MNIST (pixels in [0, 1]), batches of 250 in a fixed order, 50 steps, γ = .9, initial scale
e⁻², no penalty, 1,000 values of ln α from .5 to 2.5, and the loss is that of the TRAINING images (the valid split of this
problem is its train split). Every value is one training and one exact hypergradient; only numbers change from one to the next,
so the programs are compiled once. Each hypergradient is held against the slope of the curve through its two neighbours.

In the chaotic part the adjoint grows by many orders of magnitude; where float32 cannot hold it, the hypergradient is left out,
and counted. What stands there depends on every rounding: another machine or precision draws another curve.

Hardware: two CPU cores: 11 minutes, MNIST files at hand (--values 100: one minute).
Measured: seed 0, float32: smooth up to ln α = 1.65, where the hypergradient is the slope of the curve to .012 % (median of 575
values) and never above 1.9; from there to 2.5 it has nothing to do with the slope (median difference 100 % of the larger),
reaches 6.9e17 where the curve has no slope above 2.2e4, and overflows for 55 of 423 values. The lowest loss, .0044, lies
before the edge, at ln α = 1.49.
The paper's number: none, a picture of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import engines, figures
from ..checks import at_least, positive
from ..errors import NumericalFailure, UsageError
from ..hyperparameters import LearningRate
from ..methods import Exact
from ..problem import Dynamics, Problem
from ..rows import Row
from ..runs import Run, arrays, read_metrics
from ..sections import Section
from ._common import Study, built, listed, numbered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

WINDOW = 20  # values over which agreement is judged
PART = 20  # values that are kept together: what is lost at most when the study is stopped
LARGEST = 16  # ln α; its bounds are 1e-7 and 1e7
HALF = 0.5  # a hypergradient that is off by half is of no use


@dataclass(frozen=True)
class Config(Study):
    """Settings of chaos."""

    values: int = 1000
    """How many values of ln α."""
    low: float = 0.5
    """The smallest ln α."""
    high: float = 2.5
    """The largest ln α."""
    hidden: tuple[int, ...] = (200, 50)
    """Units of each hidden layer (tanh)."""
    steps: int = 50
    """T, elementary steps of one training run."""
    batch: int = 250
    """Examples per step."""
    momentum: float = 0.9
    """γ."""
    init_scale: float = exp(-2)
    """Standard deviation of the first weights and biases."""
    train: int = 1000
    """Training images, whose loss is also the hyper loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("values", self.values, 3)
        positive("high - low", self.high - self.low)
        for name, value in (("low", self.low), ("high", self.high)):
            if not abs(value) <= LARGEST:
                raise UsageError(f"{name} {value:g}, expected -{LARGEST} … {LARGEST}: a logarithm of a learning rate")


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    c = config
    splits = make_splits(load("mnist", c.data_dir), c.train, 0, 0, 0, c.seed, standardise=False)
    return Problem(
        network=mlp((28, 28, 1), c.hidden, 10, "tanh", init_scale=c.init_scale),
        splits=replace(splits, valid=splits.train),
        schedule=BatchSchedule(c.train, c.batch, c.seed, order="fixed"),
        steps=c.steps,
        hyperparameters=(LearningRate(level="network", init=exp(c.low), bounds=(1e-7, 1e7)),),
        dynamics=Dynamics(momentum=c.momentum),
        seed=c.seed,
        precision=c.precision,
    )


def study(config: Config, run: Run, voice: Voice) -> None:
    engine, of_learning_rates = engines.load(config.engine), built(problem, config)
    values = np.linspace(config.low, config.high, config.values)

    def some(start: int) -> dict[str, Any]:
        """The part of PART values from `start` on."""
        curve = []
        for i, value in enumerate(values[start : start + PART]):
            curve.append(one_value(engine, of_learning_rates, value))
            voice.progress("values of ln α", start + i + 1, config.values)
        losses, slopes = np.array(curve).T
        return {"losses": listed(losses), "slopes": listed(slopes)}

    curve: list[tuple[float, float]] = []
    for start in range(0, config.values, PART):
        part = run.part(f"from-{start:05d}", lambda start=start: some(start))
        curve += zip(numbered(part["losses"]), numbered(part["slopes"]), strict=True)
        if len(curve) == config.values or start // PART % 5 == 4:
            voice.say(f"ln α {values[len(curve) - 1]:.3f}: loss {curve[-1][0]:.4f} | hypergradient {curve[-1][1]:.4g}")
    losses, slopes = np.array(curve).T
    arrays.save(run.path / "curve.npz", {"values": values, "losses": losses, "slopes": slopes})
    run.append({"parts": parts(values, losses, slopes)})


def one_value(engine: Any, problem: Problem, value: float) -> tuple[float, float]:
    """(loss after T steps, its exact derivative with respect to ln α); NaN for what is not finite. Cost: about 4 T gradients."""
    hyper = {"learning_rate": {"network": np.array(value)}}
    try:
        training = engine.train(problem, hyper, "memory")
    except NumericalFailure:
        return np.nan, np.nan
    try:
        result = engine.hypergradient(problem, hyper, training, Exact())
        return result.hyper_loss, float(result.gradient["learning_rate"]["network"])
    except NumericalFailure:
        return engine.hyper_loss(problem, training), np.nan
    finally:
        training.trajectory.close()


# -- how far the hypergradient can be trusted ---------------------------------------------------------------------------


def differences(values: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """(n − 2,) slope of the curve at each inner value, through its two neighbours; off by O(spacing²) where it is smooth."""
    return (losses[2:] - losses[:-2]) / (values[2:] - values[:-2])


def disagreement(values: np.ndarray, losses: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(n − 2,) |h − d| / max(|h|, |d|) at each inner value: 0 is agreement, from ½ on h is of no use; 1 where h is not finite."""
    h, d = slopes[1:-1], differences(values, losses)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(h - d) / np.maximum(np.abs(h), np.abs(d))
    return np.where(np.isfinite(off), off, 1.0)


def onset(off: np.ndarray) -> int:
    """The first of `off` from which on half of a window of values is off by more than half; len(off) if there is none."""
    for i in range(len(off)):
        if np.median(off[i : i + WINDOW]) > HALF and off[i] > HALF:
            return i
    return len(off)


def parts(values: np.ndarray, losses: np.ndarray, slopes: np.ndarray) -> list[dict[str, Any]]:
    """The smooth and the chaotic part, each with how many values it has and how well the hypergradient does there."""
    off = disagreement(values, losses, slopes)
    cut = onset(off)
    out = []
    for name, here in (("smooth", slice(0, cut)), ("chaotic", slice(cut, None))):
        h = slopes[1:-1][here]
        if not len(h):
            continue
        finite, slope = (np.abs(one[np.isfinite(one)]) for one in (h, differences(values, losses)[here]))
        inner = values[1:-1][here]
        out.append(
            {
                "part": name,
                "from": float(inner[0]),
                "to": float(inner[-1]),
                "values": len(h),
                "overflowed": int(len(h) - len(finite)),
                "median_difference": float(np.median(off[here])),
                "largest_hypergradient": float(finite.max()) if len(finite) else None,
                "largest_slope": float(slope.max()) if len(slope) else None,
            }
        )
    return out


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    found = read_metrics(folder)[-1]["parts"]
    curve = arrays.load(folder / "curve.npz")
    rows = [
        [one["part"], f"{one['from']:.3f} … {one['to']:.3f}", f"{one['values']}", f"{100 * one['median_difference']:.3g} %",
         number(one["largest_hypergradient"]), number(one["largest_slope"]), f"{one['overflowed']}"]
        for one in found
    ]  # fmt: skip
    columns = ("part", "ln α", "values", "median difference", "largest |h|", "largest slope", "overflowed")
    chaotic = [one for one in found if one["part"] == "chaotic"]
    words = "The curve is smooth everywhere." if not chaotic else f"Chaotic from ln α = {chaotic[0]['from']:.3f} on."
    words += (
        " Difference: between the hypergradient h and the slope of the curve through the two neighbouring values, over the larger"
        f" of the two; the chaotic part begins where it is above one half for most of the next {WINDOW} values."
        " Overflowed: values whose adjoint the precision cannot hold."
    )
    caption = "Training loss after the last step and its hypergradient, against ln α"
    with figures.style():
        pictures = {caption: figures.save(folder, "chaos", draw(curve, chaotic[0]["from"] if chaotic else None))}
    return [Section("Smooth and chaotic", words, columns, rows, pictures)]


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def draw(curve: dict[str, np.ndarray], cut: float | None) -> Figure:
    from matplotlib.figure import Figure

    values, losses, slopes = curve["values"], curve["losses"], curve["slopes"]
    d = differences(values, losses)
    figure = Figure(figsize=(9.5, 7.5), layout="constrained")
    loss, near, size = figure.subplots(3, 1, sharex=True)
    loss.plot(values, losses, color=figures.BLUE, linewidth=1)
    loss.set(title="Loss", yscale="log", ylabel="training loss (nats)")
    through = {
        "color": figures.ORANGE,
        "alpha": 0.45,
        "marker": "o",
        "markersize": 4,
        "linestyle": "none",
        "markeredgewidth": 0,
    }
    for axes, change in ((near, lambda one: one), (size, np.abs)):
        axes.plot(values[1:-1], change(d), label="slope of the curve above, through two neighbours", **through)
        axes.plot(values, change(slopes), color=figures.BLUE, linewidth=0.9, label="hypergradient, exact")
    near.set(title="Hypergradient", ylabel="d loss / d ln α")
    smooth = d[values[1:-1] < (np.inf if cut is None else cut)]
    seen = np.abs(smooth if np.isfinite(smooth).any() else d)
    if np.isfinite(seen).any():  # the smooth part is what can be read
        limit = 4 * float(np.nanquantile(seen, 0.9))
        near.set_ylim(-limit, limit)
    near.legend(loc="lower left")
    size.set(title="Its size", yscale="log", ylabel="|d loss / d ln α|", xlabel="ln α")
    for axes in (loss, near, size) if cut is not None else ():
        axes.axvline(cut, color=figures.GREY, linestyle="--", linewidth=1)
    if cut is not None:
        loss.annotate("chaotic from here", (cut, 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
                      textcoords="offset points", va="top", fontsize=8, color="#555555")  # fmt: skip
    loss.margins(x=0.01)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for the smooth part and one for the chaotic, which begins at its `from`."""
    about = ("part", "values")
    return [
        Row({"part": one["part"]}, {"median_difference": one["median_difference"], "from": one["from"], "to": one["to"]}
            | {key: value for key, value in one.items() if key not in about} | {"values": one["values"]})
        for one in read_metrics(folder)[-1]["parts"]
    ]  # fmt: skip
