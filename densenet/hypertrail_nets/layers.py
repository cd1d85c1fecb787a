"""A small layer vocabulary in Lasagne's spirit.

Layers are plain objects linked to the layers they read from. A network is its output layer; what a network computes
is asked of `get_output`, what it owns of `get_all_params`. No layer knows which engine runs it: the arithmetic
comes from an `ops` object (see `Ops`), so one definition serves NumPy with autograd and JAX alike.

Shapes are those of one example, channels last: (H, W, C) or (F,). The batch axis is in front of every array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .initial import Constant, He, Initial
from .noise import dropout_mask, gaussian_noise

Array = Any
Shape = tuple[int, ...]

TRAINABLE, REGULARIZABLE, NOISE = "trainable", "regularizable", "noise"


class Ops(Protocol):
    """What an engine supplies. x is (B, H, W, C) or (B, F); dtype float32 or float64, kept.

    Each must be differentiable twice by the engine's own means; `xp` makes constants (masks), which need no derivative.
    """

    xp: Any

    def conv2d(self, x: Array, w: Array, stride: int, padding: str) -> Array:
        """Cross-correlation, (B, H, W, C) with (kh, kw, C, D) → (B, H', W', D). padding: 'same' or 'valid'."""

    def matmul(self, x: Array, w: Array) -> Array:
        """(B, F) with (F, D) → (B, D)."""

    def average_pool(self, x: Array, size: int) -> Array:
        """Mean over size × size tiles, (B, H, W, C) → (B, H/size, W/size, C)."""

    def global_average(self, x: Array) -> Array:
        """(B, H, W, C) → (B, C)."""

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and (biased) variance over every axis but the last: two arrays (C,)."""

    def normalize(self, x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
        """(x − mean) / √(variance + ε)."""

    def relu(self, x: Array) -> Array: ...

    def tanh(self, x: Array) -> Array: ...

    def concatenate(self, xs: list[Array]) -> Array:
        """Along the last axis."""

    def flatten(self, x: Array) -> Array:
        """(B, …) → (B, F)."""

    def cross_entropy(self, logits: Array, y: Array) -> Array:
        """−log softmax(logits)[y] in nats, (B, K) and (B,) int → (B,)."""

    def drawn(self, x: Array) -> Array:
        """A mask or noise (B, …) just made, as the engine wants it laid out: the same numbers."""


@dataclass(frozen=True)
class Parameter:
    """One elementary parameter tensor: its full name 'layer/W', shape, first value and tags."""

    name: str
    shape: Shape
    initial: Initial
    fan_in: int
    tags: frozenset[str]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Pass:
    """How one forward pass is to be done; made by `get_output`, read by the layers."""

    ops: Ops
    params: Mapping[str, Array]
    dropout: bool
    key: tuple[Any, Any] | None
    step: Any
    running: Mapping[str, Array] | None
    collect: dict[str, Array] | None


class Layer:
    """A node of the network. Subclasses set `shape` and `params` and say in `forward` what they compute."""

    def __init__(self, incoming: Layer | tuple[Layer, ...], shape: Shape, name: str) -> None:
        self.incoming = incoming if isinstance(incoming, tuple) else (incoming,)
        self.shape = shape
        self.name = name
        self.params: tuple[Parameter, ...] = ()

    def add_param(self, role: str, shape: Shape, initial: Initial, fan_in: int = 1, regularizable: bool = False) -> str:
        tags = frozenset({TRAINABLE, REGULARIZABLE} if regularizable else {TRAINABLE})
        param = Parameter(f"{self.name}/{role}", shape, initial, fan_in, tags)
        self.params += (param,)
        return param.name

    def forward(self, xs: list[Array], how: Pass) -> Array:
        raise NotImplementedError


class Input(Layer):
    """Where the examples enter; shape (H, W, C) or (F,)."""

    def __init__(self, shape: Shape, name: str = "input") -> None:
        super().__init__((), tuple(shape), name)


class Dense(Layer):
    """y = x W + b, on the flattened input. W (F, units) regularizable, b (units,)."""

    def __init__(self, incoming: Layer, units: int, name: str, initial: Initial | None = None, bias: bool = True,
                 bias_initial: Initial | None = None) -> None:  # fmt: skip
        if units < 1:
            raise ValueError(f"{name}: {units} units, expected at least 1")
        super().__init__(incoming, (units,), name)
        features = int(np.prod(incoming.shape))
        self.w = self.add_param("W", (features, units), initial or He(), features, regularizable=True)
        self.b = self.add_param("b", (units,), bias_initial or Constant(0.0), features) if bias else None

    def forward(self, xs: list[Array], how: Pass) -> Array:
        y = how.ops.matmul(how.ops.flatten(xs[0]), how.params[self.w])
        return y if self.b is None else y + how.params[self.b]


class Conv2D(Layer):
    """Cross-correlation with a (size, size, C, filters) kernel, regularizable. padding 'same' or 'valid'."""

    def __init__(self, incoming: Layer, filters: int, size: int, name: str, stride: int = 1, padding: str = "same",
                 initial: Initial | None = None, bias: bool = False) -> None:  # fmt: skip
        if len(incoming.shape) != 3:
            raise ValueError(f"{name}: input of shape {incoming.shape}, a 2-D convolution needs (H, W, C)")
        if padding not in ("same", "valid"):
            raise ValueError(f"{name}: padding {padding!r}, expected 'same' or 'valid'")
        if min(filters, size, stride) < 1:
            raise ValueError(f"{name}: filters {filters}, size {size}, stride {stride}: each must be at least 1")
        h, w, c = incoming.shape
        if padding == "valid" and size > min(h, w):
            raise ValueError(
                f"{name}: a {size}×{size} kernel does not fit into {h}×{w}; use padding='same' or a smaller kernel"
            )
        out = [(n if padding == "same" else n - size + 1) for n in (h, w)]
        super().__init__(incoming, (-(-out[0] // stride), -(-out[1] // stride), filters), name)
        self.stride, self.padding = stride, padding
        fan_in = size * size * c
        self.w = self.add_param("W", (size, size, c, filters), initial or He(), fan_in, regularizable=True)
        self.b = self.add_param("b", (filters,), Constant(0.0), fan_in) if bias else None

    def forward(self, xs: list[Array], how: Pass) -> Array:
        y = how.ops.conv2d(xs[0], how.params[self.w], self.stride, self.padding)
        return y if self.b is None else y + how.params[self.b]


class AveragePool(Layer):
    """Mean over size × size tiles; the input must be a whole number of tiles."""

    def __init__(self, incoming: Layer, size: int, name: str) -> None:
        if len(incoming.shape) != 3:
            raise ValueError(f"{name}: input of shape {incoming.shape}, pooling needs (H, W, C)")
        h, w, c = incoming.shape
        if size < 1 or h % size or w % size:
            raise ValueError(f"{name}: {h}×{w} is not a whole number of {size}×{size} tiles")
        super().__init__(incoming, (h // size, w // size, c), name)
        self.size = size

    def forward(self, xs: list[Array], how: Pass) -> Array:
        return how.ops.average_pool(xs[0], self.size)


class GlobalAverage(Layer):
    """Mean over all positions, (H, W, C) → (C,)."""

    def __init__(self, incoming: Layer, name: str) -> None:
        if len(incoming.shape) != 3:
            raise ValueError(f"{name}: input of shape {incoming.shape}, pooling needs (H, W, C)")
        super().__init__(incoming, incoming.shape[-1:], name)

    def forward(self, xs: list[Array], how: Pass) -> Array:
        return how.ops.global_average(xs[0])


class BatchNorm(Layer):
    """(x − mean) / √(variance + ε) per channel, without scale and bias (those are `ScaleBias`).

    Normalises with the statistics of the batch, or with running averages where the pass supplies them. With
    `collect`, the batch statistics are put there under 'name/mean' and 'name/variance'.
    Because it has no affine part, one normalised feature map can serve every later layer of a dense block.
    """

    def __init__(self, incoming: Layer, name: str, epsilon: float = 1e-4) -> None:
        super().__init__(incoming, incoming.shape, name)
        self.epsilon = epsilon
        self.mean, self.variance = f"{name}/mean", f"{name}/variance"

    def forward(self, xs: list[Array], how: Pass) -> Array:
        if how.running is not None:
            mean, variance = how.running[self.mean], how.running[self.variance]
        else:
            mean, variance = how.ops.moments(xs[0])
            if how.collect is not None:
                how.collect[self.mean], how.collect[self.variance] = mean, variance
        return how.ops.normalize(xs[0], mean, variance, self.epsilon)


class ScaleBias(Layer):
    """y = x · scale + bias per channel; scale starts at 1 and is regularizable, bias at 0."""

    def __init__(self, incoming: Layer, name: str) -> None:
        super().__init__(incoming, incoming.shape, name)
        channels = incoming.shape[-1:]
        self.scale = self.add_param("scale", channels, Constant(1.0), regularizable=True)
        self.bias = self.add_param("bias", channels, Constant(0.0))

    def forward(self, xs: list[Array], how: Pass) -> Array:
        return xs[0] * how.params[self.scale] + how.params[self.bias]


class Dropout(Layer):
    """Inverted dropout with probability p; the mask is a pure function of (seed, layer, step), see noise.py."""

    def __init__(self, incoming: Layer, p: float, name: str) -> None:
        if not 0.0 <= p < 1.0:
            raise ValueError(f"{name}: dropout probability {p}, expected 0 ≤ p < 1")
        super().__init__(incoming, incoming.shape, name)
        self.p = p
        self.stream = 0  # set by `number_streams` when the network is finished

    def forward(self, xs: list[Array], how: Pass) -> Array:
        if not how.dropout or self.p == 0.0:
            return xs[0]
        if how.key is None:
            raise ValueError(f"{self.name}: a stochastic pass needs key= and step= (or deterministic=True)")
        x = xs[0]
        # The mask is a constant: its dtype and shape are those of the value behind whatever box the engine uses.
        return x * how.ops.drawn(dropout_mask(how.ops.xp, how.key, self.stream, how.step, x.shape, self.p, x.dtype))


class GaussianNoise(Layer):
    """x + σ ε, ε standard normal, a pure function of (seed, layer, step), see noise.py.

    σ is no parameter of the network: it is a hyperparameter, which comes to the pass as 'name/std' beside the parameters. Where
    none comes, and in a deterministic pass, x goes through as it is.
    """

    def __init__(self, incoming: Layer, name: str) -> None:
        super().__init__(incoming, incoming.shape, name)
        self.stream = 0  # set by `number_streams` when the network is finished
        self.std = f"{name}/std"

    def forward(self, xs: list[Array], how: Pass) -> Array:
        x = xs[0]
        if not how.dropout or self.std not in how.params:
            return x
        if how.key is None:
            raise ValueError(f"{self.name}: a stochastic pass needs key= and step= (or deterministic=True)")
        z = gaussian_noise(how.ops.xp, how.key, self.stream, how.step, x.shape, x.dtype)
        return x + how.params[self.std] * how.ops.drawn(z)


class Nonlinearity(Layer):
    """Elementwise 'relu' or 'tanh'."""

    def __init__(self, incoming: Layer, kind: str, name: str) -> None:
        if kind not in ("relu", "tanh"):
            raise ValueError(f"{name}: nonlinearity {kind!r}, expected 'relu' or 'tanh'")
        super().__init__(incoming, incoming.shape, name)
        self.kind = kind

    def forward(self, xs: list[Array], how: Pass) -> Array:
        return how.ops.relu(xs[0]) if self.kind == "relu" else how.ops.tanh(xs[0])


class Concatenate(Layer):
    """Joins feature maps along the channels; the other sizes must be equal."""

    def __init__(self, incoming: tuple[Layer, ...], name: str) -> None:
        heads = {layer.shape[:-1] for layer in incoming}
        if len(heads) != 1:
            raise ValueError(
                f"{name}: cannot join {[layer.shape for layer in incoming]}: only the last size may differ"
            )
        super().__init__(incoming, (*incoming[0].shape[:-1], sum(layer.shape[-1] for layer in incoming)), name)

    def forward(self, xs: list[Array], how: Pass) -> Array:
        return how.ops.concatenate(xs)


def get_all_layers(output: Layer) -> list[Layer]:
    """Every layer that `output` depends on, each after all it reads from; `output` is last. Cost: one walk."""
    order: list[Layer] = []
    done: set[int] = set()
    stack: list[tuple[Layer, Iterator[Layer]]] = [(output, iter(output.incoming))]
    while stack:  # a walk with its own stack: a deep net must not meet Python's recursion limit
        layer, rest = stack[-1]
        below = next((one for one in rest if id(one) not in done), None)
        if below is not None:
            stack.append((below, iter(below.incoming)))
            continue
        stack.pop()
        if id(layer) not in done:
            done.add(id(layer))
            order.append(layer)
    names = [layer.name for layer in order]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"layer names used twice: {sorted(twice)}; every layer needs its own name")
    return order


def get_all_params(output: Layer, **tags: bool) -> list[Parameter]:
    """The parameters of the network, inputs first, kept where every tag has the value asked for.

    `get_all_params(net, trainable=True, regularizable=True)`; an unknown tag raises ValueError.
    """
    unknown = set(tags) - {TRAINABLE, REGULARIZABLE}
    if unknown:
        raise ValueError(f"unknown tags {sorted(unknown)}, expected {TRAINABLE!r} or {REGULARIZABLE!r}")
    params = [param for layer in get_all_layers(output) for param in layer.params]
    return [p for p in params if all((tag in p.tags) == wanted for tag, wanted in tags.items())]


def count_params(output: Layer, **tags: bool) -> int:
    """How many scalars `get_all_params` with the same tags holds."""
    return sum(p.size for p in get_all_params(output, **tags))


def number_streams(output: Layer) -> Layer:
    """Give each dropout and noise layer its own noise stream (its position among them); returns `output`."""
    stochastic = [layer for layer in get_all_layers(output) if isinstance(layer, Dropout | GaussianNoise)]
    for stream, layer in enumerate(stochastic):
        layer.stream = stream
    return output


def get_noise_params(output: Layer) -> list[Parameter]:
    """What stands for σ of each noise layer: its name 'layer/std' and the shape of what the noise is added to; tag 'noise'."""
    layers = [layer for layer in get_all_layers(output) if isinstance(layer, GaussianNoise)]
    return [Parameter(layer.std, layer.shape, Constant(0.0), 1, frozenset({NOISE})) for layer in layers]


def initial_params(output: Layer, rng: np.random.Generator, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """First values of all parameters, {name: array}, in `dtype`.

    Drawn in float64 in the order of `get_all_params` and then cast, so engines and precisions start alike.
    """
    return {p.name: p.initial(rng, p.shape, p.fan_in).astype(dtype) for p in get_all_params(output)}


def initial_running(output: Layer, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Running averages before the first step: mean 0 and variance 1 for each batch norm layer, arrays (C,)."""
    running = {}
    for layer in get_all_layers(output):
        if isinstance(layer, BatchNorm):
            running[layer.mean] = np.zeros(layer.shape[-1:], dtype)
            running[layer.variance] = np.ones(layer.shape[-1:], dtype)
    return running


def get_output(
    output: Layer,
    params: Mapping[str, Array],
    x: Array,
    ops: Ops,
    deterministic: bool = False,
    key: tuple[Any, Any] | None = None,
    step: Any = 0,
    running: Mapping[str, Array] | None = None,
    collect: dict[str, Array] | None = None,
) -> Array:
    """What the network computes for the batch x, (B, *input shape) → (B, *output.shape).

    deterministic: dropout off. key, step: which dropout masks (see noise.py), needed where a dropout layer is on.
    running: batch norm normalises with these averages; None: with the batch's own statistics.
    collect: a dict that receives the batch statistics of every batch norm layer (they are part of the computation,
    so a caller that traces must return them from the traced function).
    The three passes of this package: training = (key, step), hyper loss = deterministic=True,
    reported metrics = deterministic=True with running averages.
    Cost: one forward pass. Raises ValueError for an input of the wrong shape.
    """
    layers = get_all_layers(output)
    expected = layers[0].shape
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"input batch of shape {tuple(x.shape)}, the network expects (B, {', '.join(map(str, expected))})"
        )
    how = Pass(ops, params, not deterministic, key, step, running, collect)
    values: dict[int, Array] = {}
    for layer in layers:
        values[id(layer)] = (
            x if isinstance(layer, Input) else layer.forward([values[id(i)] for i in layer.incoming], how)
        )
    return values[id(output)]


Network = Callable[..., Layer]
