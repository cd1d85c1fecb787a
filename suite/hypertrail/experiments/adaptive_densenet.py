"""The thesis' adaptive method on DenseNet-40-12 and CIFAR-10, in its three published settings, against tuned schedules.

    hypertrail run adaptive-densenet --data-dir FOLDER --setting 131-4-14k                       (a GPU; days)
    hypertrail run adaptive-densenet --data-dir FOLDER --setting 131-4-14k --as-published        (the script's own choices)
    hypertrail run adaptive-densenet --data-dir FOLDER --block 3 --validation-batches 2 --budget 20 --every 1 --batch 8
        --rates 0.1 --baselines constant --modes restore --train 64 --valid 64 --select 64 --test 64    (a taste on a CPU)

Depth 40, growth 12, first output 16: 1,019,722 learning rates and 1,010,664 penalties, moved by the signs of K reversed steps
(s_r .1 in ln α, s_λ .01 in log10 λ), α .1 at the start, bounds α 1e-5 … 1 and λ 1e-7 … 1e-2, M = 10 validation batches of 64,
hypergradient of the output layer's W averaged over classes; batch 64 in a fixed order, γ .9, dropout .2, no augmentation. The
thesis has no third split of its training images: here 2,000 of them are `select`, on which the starts of schedules and method
are chosen, and what `valid` and `select` leave is trained on; one cosine is trained on valid too, images that all others do
without. How many epochs the thesis trained is not known here: the budget is ours, 60,000 gradients (100 epochs of 100-5).

Hardware: one GPU for the whole. The taste: five minutes of processor time on one CPU core, nearly all of it compilation (two of
them for the adaptive block). With --depth 7 --growth 2 --first-output 2 --engine cpu all of it runs in seconds.
Measured: not yet on a GPU.
The thesis, train / valid / test error in %: 100-5 with 10,000 validation images 6.9 / 9.4 / 15.0; 131-4 with 14,000
4.8 / 9.8 / 12.9; 131-4 with 22,000 2.6 / 12.3 / 14.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..checks import at_least
from ..problem import Dynamics, Problem
from ..race import report
from ..race.arms import Arm
from ..rows import Row
from ..runs import Run
from ..sections import Section
from . import _adaptive

if TYPE_CHECKING:
    from ..display import Voice

SETTINGS = {"100-5": (100, 5, 10_000), "131-4-14k": (131, 4, 14_000), "131-4-22k": (131, 4, 22_000)}  # n, K, valid
IMAGES = 50_000


@dataclass(frozen=True)
class Config(_adaptive.Race):
    """Settings of adaptive-densenet."""

    setting: Literal["100-5", "131-4-14k", "131-4-22k"] = "131-4-14k"
    """n-K and the validation images of a published run."""
    modes: tuple[Literal["restore", "look-ahead", "as-published"], ...] = ("restore", "look-ahead")
    """Where training goes on after the K steps back; the first one's start is chosen from the grid, too."""
    as_published: bool = False
    """As the thesis' script has it: modes as-published alone (the K batches are skipped), and steps undone in floating point in
    the place of kept states. Its second derivatives, which it takes for each tensor alone, are not offered."""
    baselines: tuple[Literal["constant", "step", "cosine"], ...] = ("constant", "step", "cosine")
    """The schedules of α; a cosine is also trained on train and valid together."""
    block: int | None = None
    """n, in place of the setting's; for a short look."""
    validation_batches: int = 10
    """M."""
    repeats: int = 1
    """How many seeds, from `seed` on."""
    budget: int = 60_000
    """Gradient evaluations of each arm; a Hessian-vector product counts as two."""
    every: int = 50
    """Blocks between two measurements of all splits."""
    penalties: tuple[float, ...] = (1e-4,)
    """Where every L2 penalty starts: the other side of the grid."""
    batch: int = 64
    """Examples per step, and of a validation batch."""
    depth: int = 40
    """Convolutions plus the dense layer: blocks · layers + blocks + 1."""
    growth: int = 12
    """Feature maps that each layer adds."""
    first_output: int = 16
    """Feature maps of the first convolution."""
    dropout: float = 0.2
    """Share of activations dropped after each convolution but the first."""
    train: int | None = None
    """Training images; default: what valid and select leave of 50,000."""
    valid: int | None = None
    """Images that the adaptive method looks at, in place of the setting's."""
    select: int = 2_000
    """Images on which starts are chosen."""
    test: int = 10_000
    """Images that are only reported (of the official test set)."""

    def __post_init__(self) -> None:
        if self.as_published:
            object.__setattr__(self, "modes", ("as-published",))
        super().__post_init__()
        at_least("baselines", len(self.baselines), 1)
        at_least("modes", len(self.modes), 1)
        if self.block is not None:
            at_least("block", self.block, 2)

    @property
    def sizes(self) -> tuple[int, int]:
        """Images of train and valid."""
        valid = self.valid or SETTINGS[self.setting][2]
        return self.train or IMAGES - valid - self.select, valid


def problem(config: Config) -> Problem:
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import densenet

    c = config
    train, valid = c.sizes
    return Problem(
        network=densenet((32, 32, 3), 10, c.depth, c.growth, 3, c.first_output, c.dropout),
        splits=make_splits(load("cifar10", c.data_dir), train, valid, c.select, c.test, c.seed),
        schedule=BatchSchedule(train, c.batch, c.seed, order="fixed"),
        steps=c.budget,
        hyperparameters=_adaptive.declared(),
        dynamics=Dynamics(momentum=c.momentum),
        valid_batch=c.batch,
        seed=c.seed,
        precision=c.precision,
    )


def families(config: Config) -> dict[str, list[Arm]]:
    steps, last, _ = SETTINGS[config.setting]
    n = config.block or steps
    K = min(last, n - 1)
    known = _adaptive.schedules(config, n)
    out = {_adaptive.BASELINES[name]: known[_adaptive.BASELINES[name]] for name in config.baselines}
    if "cosine" in config.baselines:
        out[_adaptive.TRAINED_ON_VALID] = _adaptive.trained_on_valid(config, n)
    for i, mode in enumerate(config.modes):
        states = "undone" if config.as_published else "kept"
        method = _adaptive.adaptive(n, K, mode=mode, states=states, validation_batches=config.validation_batches)
        name, label = f"adaptive-{mode}", f"adaptive {n}-{K}, {mode}"
        out[label] = [_adaptive.one(name, method)]
        if i == 0 and len(config.rates) * len(config.penalties) > 1:
            out[f"{label}, start chosen"] = _adaptive.grid(config, name, method)
    return out


def study(config: Config, run: Run, voice: Voice) -> None:
    _adaptive.compete(config, run, voice, problem, families(config))


def show(folder: Path) -> list[Section]:
    return report.show(folder)


def numbers(folder: Path) -> list[Row]:
    return report.numbers(folder)
