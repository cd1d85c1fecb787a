"""DenseNet (Huang, Liu, Weinberger, van der Maaten 2017), in the form the thesis used it on CIFAR-10.

The textbook block applies batch norm, with its own scale and bias, to the concatenation of all maps so far, again in
every layer. But the statistics of a channel are the same whoever reads it. So each new feature map is normalised
once, the normalised maps are concatenated, and every layer keeps only its own scale and bias: the same function and
the same gradients with O(L) instead of O(L²) statistics.
"""

from __future__ import annotations

from .initial import He
from .layers import (
    AveragePool,
    BatchNorm,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    GlobalAverage,
    Input,
    Layer,
    Nonlinearity,
    ScaleBias,
    number_streams,
)


def densenet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    depth: int = 40,
    growth: int = 12,
    blocks: int = 3,
    first_output: int = 16,
    dropout: float = 0.2,
) -> Layer:
    """The output layer (logits, shape (classes,)) of a DenseNet without bottlenecks and compression.

    depth: convolutions plus the dense layer; each block has n = (depth − blocks − 1) / blocks layers, which must
    be a whole number ≥ 1. growth: maps that each layer adds. first_output: maps of the first convolution.
    dropout: after each convolution but the first. He initialisation, no convolution bias.
    Depth 40, growth 12, 3 blocks, first output 16: 1,019,722 trainable parameters, 1,010,664 of them regularizable.
    Raises ValueError for sizes that cannot be.
    """
    if blocks < 1 or growth < 1 or first_output < 1:
        raise ValueError(f"blocks {blocks}, growth {growth}, first_output {first_output}: each must be at least 1")
    n, rest = divmod(depth - blocks - 1, blocks)
    if rest or n < 1:
        fits = [blocks * k + blocks + 1 for k in (max(n, 1), max(n, 1) + 1)]
        raise ValueError(
            f"depth {depth} with {blocks} blocks: (depth − blocks − 1) / blocks must be a whole number ≥ 1; "
            f"the nearest depths are {fits[0]} and {fits[1]}"
        )
    last: Layer = Conv2D(Input(input_shape), first_output, 3, "first.conv", initial=He())
    for block in range(1, blocks + 1):
        maps: Layer = BatchNorm(last, f"block{block}.norm0")
        for i in range(1, n + 1):
            new = composite(maps, growth, 3, f"block{block}.layer{i}", dropout)
            maps = Concatenate((maps, BatchNorm(new, f"block{block}.norm{i}")), f"block{block}.maps{i}")
        if block < blocks:
            h = composite(maps, maps.shape[-1], 1, f"transition{block}", dropout)
            last = AveragePool(h, 2, f"transition{block}.pool")
    h = Nonlinearity(ScaleBias(maps, "last.affine"), "relu", "last.relu")
    return number_streams(Dense(GlobalAverage(h, "last.pool"), classes, "logits", initial=He()))


def composite(maps: Layer, filters: int, size: int, name: str, dropout: float) -> Layer:
    """Scale and bias, rectifier, convolution, dropout: what reads the normalised maps of a block."""
    h: Layer = Nonlinearity(ScaleBias(maps, f"{name}.affine"), "relu", f"{name}.relu")
    h = Conv2D(h, filters, size, f"{name}.conv", initial=He())
    return Dropout(h, dropout, f"{name}.dropout") if dropout > 0.0 else h
