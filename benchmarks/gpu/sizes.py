"""The sizes of everything that is measured: in full, for a GPU, and tiny, to see on a processor that every part runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseNetSize:
    """A DenseNet on square images of `image` × `image` pixels with three channels; `steps` is T."""

    depth: int
    growth: int
    image: int
    batch: int
    steps: int
    blocks: int = 3

    @property
    def words(self) -> str:
        return f"DenseNet-{self.depth}-{self.growth}, {self.image}×{self.image}×3, batch {self.batch}"


@dataclass(frozen=True)
class Sizes:
    """large: the DenseNet whose speed is measured. small: the one whose bits are compared. adaptive: n, K, M.

    perceptron_steps: T of the digits perceptrons whose bits are compared. hidden, seeds_steps, seeds: of the perceptrons side by
    side. repeats: how often what must repeat is done. rounds: timed runs, at most; round_seconds: when a first run took longer
    than that, fewer. matrix: rows of the square matrices whose product gives the device's speed.
    """

    large: DenseNetSize
    small: DenseNetSize
    adaptive: tuple[int, int, int]
    perceptron_steps: int
    hidden: int
    seeds_steps: int
    seeds: tuple[int, ...]
    repeats: int
    rounds: int
    round_seconds: float
    matrix: int


# T = 128 of the large net: a number that chunks of 32 divide, so that no shorter last chunk is compiled by itself.
FULL = Sizes(
    large=DenseNetSize(40, 12, 32, 64, 128),
    small=DenseNetSize(7, 12, 32, 64, 100),
    adaptive=(131, 4, 10),
    perceptron_steps=1000,
    hidden=256,
    seeds_steps=200,
    seeds=(1, 8, 64, 512),
    repeats=3,
    rounds=5,
    round_seconds=4.0,
    matrix=8192,
)
TINY = Sizes(
    large=DenseNetSize(3, 3, 8, 8, 8, blocks=1),
    small=DenseNetSize(3, 3, 8, 8, 100, blocks=1),
    adaptive=(9, 2, 2),
    perceptron_steps=300,
    hidden=8,
    seeds_steps=5,
    seeds=(1, 2, 8),  # the programs of more are slow to compile
    repeats=3,
    rounds=2,
    round_seconds=4.0,
    matrix=512,
)
