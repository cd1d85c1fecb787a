"""Hyperparameters: kind, representation, sharing level, bounds and projections.

A hyperparameter is declared (`L2(level="parameter", init=1e-4)`), held as unconstrained arrays u, and used as values.
Representation: value = e.g. 10^u. Sharing: one value for the network, a tensor, an output unit, an input unit or each
parameter. `expand` takes the arrays to values that broadcast against each elementary parameter; `collapse` is its
exact adjoint, so gradients flow back to what the outer optimiser moves.

The arrays of one declaration: {"network": array ()} at level network, else {parameter name: array}; per_step adds
an axis (T,) in front. Kinds that live on the training examples and not on the network (`OfExamples`) have one array, with one
row per example: {"train": (n,)} or {"x": (n, H, W, C)}. Source of the representations: log10 L2: the thesis; ln α, logit γ:
Maclaurin et al. 2015, section 3.1. How each acts on a step, and its derivative: docs/dynamics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hypertrail_nets import Parameter
from hypertrail_nets.layers import NOISE, REGULARIZABLE

from .errors import UsageError
from .projections import Box, Projection

Array = Any
Arrays = dict[str, Array]  # what one declaration holds
Hyper = dict[str, Arrays]  # kind → arrays: everything the outer optimiser moves

LEVELS = ("network", "layer", "unit", "input", "parameter")
NETWORK = "network"
LN10 = float(np.log(10.0))


@dataclass(frozen=True)
class Hyperparameter:
    """One declared kind. init and bounds are VALUES (not logarithms); bounds are kept by `project`, after each move.

    level: network, layer (one per tensor), unit (per output unit), input (per input unit), parameter.
    per_step: one value for each of the T elementary steps (learning rate and momentum only).
    """

    level: str = "parameter"
    init: float = 0.0
    bounds: tuple[float, float] = (-np.inf, np.inf)
    per_step: bool = False

    kind: ClassVar[str]
    levels: ClassVar[tuple[str, ...]] = LEVELS
    steppable: ClassVar[bool] = False
    penalty: ClassVar[bool] = False  # acts through the elementary loss on regularizable parameters only

    def __post_init__(self) -> None:
        self.check_level()
        low, high = self.bounds
        if not low <= self.init <= high:
            raise UsageError(f"{self.kind}: init {self.init:g} lies outside its bounds [{low:g}, {high:g}]")
        with np.errstate(all="ignore"):
            free = self.free(self.init)
            ends = [self.free(np.float64(b)) for b in self.bounds]
        if not np.isfinite(free):
            raise UsageError(f"{self.kind}: init {self.init:g} has no finite representation; {self.expectation}")
        if np.isnan(ends).any():  # would turn every clipped value into NaN
            raise UsageError(f"{self.kind}: bounds [{low:g}, {high:g}] have no representation; {self.expectation}")

    def check_level(self) -> None:
        if self.level not in self.levels:
            raise UsageError(f"{self.kind}: level {self.level!r}, expected one of {', '.join(self.levels)}")
        if self.per_step and not self.steppable:
            raise UsageError(f"{self.kind}: per_step is for learning rate and momentum only")

    # The representation, its inverse and its slope d value / d u (as a function of the value). `xp`: numpy or jax.numpy.
    expectation: ClassVar[str] = "any number goes"

    def free(self, value: Any) -> Any:
        return value

    def value(self, u: Array, xp: Any = np) -> Array:
        return u

    def slope(self, value: Array) -> Array:
        return 1.0

    def reaches(self, param: Parameter) -> bool:
        """Whether this hyperparameter acts on that tensor."""
        if NOISE in param.tags or (self.penalty and REGULARIZABLE not in param.tags):
            return False
        return self.level != "input" or len(param.shape) >= 2

    def shape(self, param: Parameter) -> tuple[int, ...]:
        """Shape of the values for one tensor, without the step axis; broadcasts against the tensor."""
        return {
            "network": (),
            "layer": (),
            "unit": param.shape[-1:],
            "input": (*(1,) * (len(param.shape) - 2), param.shape[-2], 1) if len(param.shape) >= 2 else (),
            "parameter": param.shape,
        }[self.level]

    couples: ClassVar[bool] = False  # whether `project` looks at all numbers of an array together

    def project(self, u: np.ndarray) -> np.ndarray:
        """The nearest array that this declaration allows, in the shape and dtype of u: clipped to the bounds, or projected."""
        with np.errstate(all="ignore"):
            low, high = (self.free(np.asarray(b, dtype=np.float64)) for b in self.bounds)
        clipped: np.ndarray = np.clip(u, low, high).astype(np.asarray(u).dtype)
        return clipped


@dataclass(frozen=True)
class L2(Hyperparameter):
    """Penalty Σ λ w² (no ½) on regularizable parameters; u = log10 λ. Bounds keep λ positive and sane.

    It acts through the elementary loss: g += 2 λ w, and dλ += 2 w u in a reverse step (docs/dynamics.md has u). Shape of λ for
    a tensor of w: network and layer (), unit (units,), input the input axis with the others 1, parameter that of w.
    Source: Maclaurin et al. 2015, section 3.2 (one for each weight, λ = e^u); log10: the thesis.
    """

    init: float = 1e-4
    bounds: tuple[float, float] = (1e-9, 1.0)
    kind: ClassVar[str] = "l2"
    penalty: ClassVar[bool] = True
    expectation: ClassVar[str] = "expected a positive number (its logarithm is what moves)"

    def free(self, value: Any) -> Any:
        return np.log10(value)

    def value(self, u: Array, xp: Any = np) -> Array:
        return xp.exp(u * LN10)  # 10**u, in the form whose derivative both engines take without a special case

    def slope(self, value: Array) -> Array:
        return LN10 * value


@dataclass(frozen=True)
class L1(Hyperparameter):
    """Penalty Σ λ |w| on regularizable parameters; u = ln λ. The kink at w = 0 has derivative 0 here.

    It acts through the elementary loss: g += λ sign w, and dλ += sign(w) u in a reverse step; the second derivative is 0.
    Shapes as L2's. Source: Maclaurin et al. 2015, for a penalty of each weight.
    """

    init: float = 1e-5
    bounds: tuple[float, float] = (1e-12, 1.0)
    kind: ClassVar[str] = "l1"
    penalty: ClassVar[bool] = True
    expectation: ClassVar[str] = "expected a positive number (its logarithm is what moves)"

    def free(self, value: Any) -> Any:
        return np.log(value)

    def value(self, u: Array, xp: Any = np) -> Array:
        return xp.exp(u)

    def slope(self, value: Array) -> Array:
        return value


@dataclass(frozen=True)
class LearningRate(Hyperparameter):
    """α of the dynamics, w ← w + α v for the damped ones; u = ln α. The schedule of the dynamics multiplies it.

    In a reverse step dα_t = ⟨dw, v_{t+1}⟩, summed over what shares an α (Adam's and Nesterov's: docs/dynamics.md).
    Shape for a tensor of w: network and layer (), unit (units,), parameter that of w; per_step puts (T,) in front. No level
    input: every tensor needs a rate, also a bias. Source: Maclaurin et al. 2015, algorithm 2, line 5, and section 3.1.
    """

    level: str = "network"
    init: float = 0.1
    bounds: tuple[float, float] = (1e-7, 10.0)
    kind: ClassVar[str] = "learning_rate"
    levels: ClassVar[tuple[str, ...]] = ("network", "layer", "unit", "parameter")  # every tensor needs one: no "input"
    steppable: ClassVar[bool] = True
    expectation: ClassVar[str] = "expected a positive number (its logarithm is what moves)"

    free, value, slope = L1.free, L1.value, L1.slope


@dataclass(frozen=True)
class Momentum(Hyperparameter):
    """γ of the dynamics, v ← γ v − (1 − γ) g for the damped ones (μ of heavy ball and Nesterov, β₁ of Adam); u = logit γ.

    In a reverse step dγ_t = ⟨dv, v_t + g_t⟩ with dv as line 9 leaves it (others: docs/dynamics.md), summed over the tensors
    that share it. One scalar for the network or for each layer, shape (); per_step makes it (T,). logit γ = ln(γ / (1 − γ)).
    Source: Maclaurin et al. 2015, algorithm 2, line 10, and section 3.1.
    """

    level: str = "network"
    init: float = 0.9
    bounds: tuple[float, float] = (1e-4, 0.9999)
    kind: ClassVar[str] = "momentum"
    levels: ClassVar[tuple[str, ...]] = ("network", "layer")
    steppable: ClassVar[bool] = True
    expectation: ClassVar[str] = "expected a number between 0 and 1"

    def free(self, value: Any) -> Any:
        return np.log(value) - np.log1p(-np.asarray(value))

    def value(self, u: Array, xp: Any = np) -> Array:
        return 1.0 / (1.0 + xp.exp(-u))

    def slope(self, value: Array) -> Array:
        return value * (1.0 - value)


@dataclass(frozen=True)
class WeightTransform(Hyperparameter):
    """t of w = z · eᵗ: training moves z, the network computes with w (DrMAD's experiment 1). u = t, unbounded by default.

    With a fixed penalty c·z² it acts like an L2 penalty c·e^(−2t) on w, and scales the learning rate of w by e^(2t).
    """

    level: str = "input"
    init: float = 0.0
    kind: ClassVar[str] = "transform"
    penalty: ClassVar[bool] = True


@dataclass(frozen=True)
class InitialScale(Hyperparameter):
    """σ of w_0 = σ · (drawn w_0); u = ln σ. What training starts from is the scaled w_0; `Problem.initial_weights` is the drawn.

    Its hypergradient is what is left of the adjoint at the end of the reverse pass: df/d ln σ = ⟨dw_0, w_0⟩, summed over what
    shares a σ; so it is for methods that arrive at w_0. A tensor that is drawn as zeros (biases, mostly) has none: 0.
    Source: Maclaurin et al. 2015 (theirs is one for each weight type: level layer); docs/exact.md.
    """

    level: str = "layer"
    init: float = 1.0
    bounds: tuple[float, float] = (1e-3, 1e3)
    kind: ClassVar[str] = "initial_scale"
    levels: ClassVar[tuple[str, ...]] = ("network", "layer", "unit", "parameter")
    expectation: ClassVar[str] = "expected a positive number (its logarithm is what moves)"

    free, value, slope = L1.free, L1.value, L1.slope


@dataclass(frozen=True)
class InitialWeight(Hyperparameter):
    """u of w_0 = drawn w_0 + u, u = 0 at first: the initial weights themselves, tensors that are drawn as zeros included.

    Together with an InitialScale: w_0 = σ · (drawn w_0) + u. Its hypergradient is the adjoint at the end of the reverse pass,
    df/du = dw_0, summed over what shares a u; so it is for methods that arrive at w_0. Shape of u for a tensor of w: that of w
    (level parameter), one for each unit (units,), one for the tensor (). Source: Maclaurin et al. 2015, algorithm 2, which
    returns dw_0; docs/exact.md.
    """

    level: str = "parameter"
    init: float = 0.0
    kind: ClassVar[str] = "initial_weight"
    levels: ClassVar[tuple[str, ...]] = ("layer", "unit", "parameter")


class OfExamples(Hyperparameter):
    """A kind that lives on the training examples: one array, one row per example of the train split, under `key`.

    A batch sees the rows it holds (`Problem.seen`), and its derivatives are added back into these rows. It acts on no tensor.
    """

    key: ClassVar[str]
    axes: ClassVar[int | None] = None  # of the images that the array has; None: all

    def reaches(self, param: Parameter) -> bool:
        return False

    def start(self, x: np.ndarray) -> np.ndarray:
        """The unconstrained array at its init, float64. x (n, …): the images of the train split."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExampleWeight(OfExamples):
    """a_i of the elementary loss mean_i a_i · cross-entropy_i + penalties, one for each training example.

    representation: 'logit', u = logit a, which keeps a strictly between its bounds; or 'linear', u = a itself, which holds 0 and
    1 and is projected after each move: on Box() (0 ≤ a ≤ 1, the default), on BudgetSum(R) (also Σ a ≤ R, the sum over the whole
    train split) or on Simplex(total) (a ≥ 0, Σ a = total). What an outer update returns, and what is saved, is the projected
    array; so is the first one, which is the projection of `init` everywhere. bounds: of 'logit' alone.
    Hyper loss and metrics are unweighted. The mean is over the batch size and not over Σ a: at .5 everywhere the data count
    half against the penalties. Source: Franceschi, Donini, Frasconi, Pontil 2017, section 5.1 (data hyper-cleaning, linear and
    projected on 0 ≤ a ≤ 1, Σ a ≤ R); Ren, Zeng, Yang, Urtasun 2018.
    """

    level: str = "example"
    init: float = 0.5
    bounds: tuple[float, float] = (1e-4, 0.9999)
    representation: str = "logit"
    projection: Projection | None = None
    kind: ClassVar[str] = "example_weight"
    levels: ClassVar[tuple[str, ...]] = ("example",)
    key: ClassVar[str] = "train"
    axes: ClassVar[int | None] = 1
    expectation: ClassVar[str] = "expected a number between 0 and 1"

    def __post_init__(self) -> None:
        if self.representation not in ("logit", "linear"):
            raise UsageError(f"{self.kind}: representation {self.representation!r}, expected logit or linear")
        if self.representation == "logit":
            if self.projection is not None:
                raise UsageError(f"{self.kind}: a projection is for representation='linear', this one is a logit")
            super().__post_init__()
            return
        self.check_level()
        if self.bounds != ExampleWeight.bounds:
            raise UsageError(
                f"{self.kind}: bounds are for the logit; a linear weight has a projection, as Box() or BudgetSum(R)"
            )
        object.__setattr__(self, "projection", self.projection or Box())
        if not 0.0 <= self.init <= 1.0:
            raise UsageError(
                f"{self.kind}: init {self.init:g}, expected a number from 0 to 1 (the first array is its projection)"
            )

    @property
    def couples(self) -> bool:  # type: ignore[override]
        return self.projection is not None and self.projection.couples

    def free(self, value: Any) -> Any:
        return value if self.projection else Momentum.free(self, value)  # type: ignore[arg-type]

    def value(self, u: Array, xp: Any = np) -> Array:
        return u if self.projection else Momentum.value(self, u, xp)  # type: ignore[arg-type]

    def slope(self, value: Array) -> Array:
        return 1.0 if self.projection else Momentum.slope(self, value)  # type: ignore[arg-type]

    def project(self, u: np.ndarray) -> np.ndarray:
        if self.projection is None:
            return super().project(u)
        return self.projection.project(np.asarray(u, np.float64)).astype(np.asarray(u).dtype)

    def start(self, x: np.ndarray) -> np.ndarray:
        return self.project(np.full(len(x), float(self.free(self.init))))


@dataclass(frozen=True)
class TrainingInput(OfExamples):
    """The training images themselves, every pixel of them; u = the pixel as the network sees it (scaled and standardised).

    init: None, the images of the train split as they are; a number, that in every pixel (0.0: blank). The labels stay. Hyper loss
    and the metrics of the other splits see their own images, the metrics on train see the learned ones.
    Source: Maclaurin et al. 2015, section 3.3 (learned training data: ten images, one for each class).
    """

    level: str = "pixel"
    init: float | None = None  # type: ignore[assignment]
    kind: ClassVar[str] = "training_input"
    levels: ClassVar[tuple[str, ...]] = ("pixel",)
    key: ClassVar[str] = "x"

    def __post_init__(self) -> None:
        if self.init is not None:
            super().__post_init__()
            return
        self.check_level()
        if not self.bounds[0] < self.bounds[1]:
            raise UsageError(f"{self.kind}: bounds {self.bounds}, expected the lower one first")

    def start(self, x: np.ndarray) -> np.ndarray:
        if self.init is not None:
            return np.full(x.shape, float(self.init))
        low, high = self.bounds
        if not (low <= x.min() and x.max() <= high):
            raise UsageError(
                f"{self.kind}: the images reach from {x.min():g} to {x.max():g}, its bounds are [{low:g}, {high:g}]; "
                "widen them, or give a number as init"
            )
        return x.astype(np.float64)


@dataclass(frozen=True)
class Noise(Hyperparameter):
    """σ of the Gaussian noise that a network's noise layers add in training, on the input or on hidden units; u = ln σ.

    It acts through the elementary loss alone: hyper loss and metrics are without noise. Levels: one σ for the network, for each
    noise layer, for each of its units (channels), for each of its elements. Source: Luketina et al. 2016.
    """

    level: str = "layer"
    init: float = 0.1
    bounds: tuple[float, float] = (1e-6, 10.0)
    kind: ClassVar[str] = "noise"
    levels: ClassVar[tuple[str, ...]] = ("network", "layer", "unit", "parameter")
    expectation: ClassVar[str] = "expected a positive number (its logarithm is what moves)"

    free, value, slope = L1.free, L1.value, L1.slope

    def reaches(self, param: Parameter) -> bool:
        return NOISE in param.tags


KINDS: dict[str, type[Hyperparameter]] = {
    c.kind: c
    for c in (
        L2,
        L1,
        LearningRate,
        Momentum,
        WeightTransform,
        InitialScale,
        InitialWeight,
        ExampleWeight,
        TrainingInput,
        Noise,
    )
}
OF_THE_START = (InitialScale.kind, InitialWeight.kind)  # act on w_0 alone
OF_EXAMPLES = tuple(kind for kind, c in KINDS.items() if issubclass(c, OfExamples))


def hyper_shapes(
    declared: Sequence[Hyperparameter], params: Sequence[Parameter], steps: int, images: tuple[int, ...]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the arrays of `initial_hyper`; images: the shape of the training images (n, …)."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for one in declared:
        front = (steps,) if one.per_step else ()
        if isinstance(one, OfExamples):
            shapes[one.kind] = {one.key: images[: one.axes]}
        elif one.level == NETWORK:
            shapes[one.kind] = {NETWORK: front}
        else:
            shapes[one.kind] = {p.name: front + one.shape(p) for p in params if one.reaches(p)}
    return shapes


def initial_hyper(
    declared: Sequence[Hyperparameter], params: Sequence[Parameter], steps: int, x: np.ndarray | None = None
) -> Hyper:
    """The arrays of every declaration at its init, float64. steps: T, the length of the per-step axis; x: the training images
    (n, …), which kinds of `OF_EXAMPLES` need."""
    hyper: Hyper = {}
    for one in declared:
        if isinstance(one, OfExamples):
            assert x is not None
            hyper[one.kind] = {one.key: one.start(x)}
            continue
        front = (steps,) if one.per_step else ()
        u = float(one.free(one.init))
        if one.level == NETWORK:
            hyper[one.kind] = {NETWORK: np.full(front, u)}
        else:
            hyper[one.kind] = {p.name: np.full(front + one.shape(p), u) for p in params if one.reaches(p)}
    return hyper


def expand(one: Hyperparameter, arrays: Mapping[str, Array], params: Sequence[Parameter], xp: Any = np) -> Arrays:
    """{parameter name: values that broadcast against it}, (T, …) where per_step; of examples: {key: one row per example}.

    Cost: one exp per stored scalar.
    """
    values = {key: one.value(u, xp) for key, u in arrays.items()}
    if one.level == NETWORK:
        return {p.name: values[NETWORK] for p in params if one.reaches(p)}
    return values


def collapse(one: Hyperparameter, arrays: Mapping[str, Array], dvalues: Mapping[str, Array]) -> Arrays:
    """Adjoint of `expand`: {parameter name: d/d value} → {key: d/d u}, same shapes as `arrays`. NumPy, by hand.

    dvalues may have the full shape of the parameter: what a value was broadcast over is summed.
    """
    summed = sum_shared(one, arrays, dvalues)
    return {key: d * one.slope(one.value(np.asarray(arrays[key]))) for key, d in summed.items()}


def sum_shared(one: Hyperparameter, arrays: Mapping[str, Array], dvalues: Mapping[str, Array]) -> Arrays:
    """The sharing half of `collapse`: {parameter name: d/d value} → {key: d/d the value that is held}."""
    front = 1 if one.per_step else 0
    if one.level == NETWORK:
        total: Any = sum(d.reshape(*d.shape[:front], -1).sum(axis=-1) for d in map(np.asarray, dvalues.values()))
        return {NETWORK: total}
    return {key: unbroadcast(dvalues[key], np.shape(u), front) for key, u in arrays.items()}


def unbroadcast(d: np.ndarray, shape: tuple[int, ...], front: int = 0) -> np.ndarray:
    """Sum d down to `shape`, aligning axes from the last (after `front` leading axes that both share)."""
    d = np.asarray(d)
    surplus = d.ndim - len(shape)
    d = d.sum(axis=tuple(range(front, front + surplus)))
    stretched = tuple(i for i, (have, want) in enumerate(zip(d.shape, shape, strict=True)) if want == 1 and have != 1)
    total: np.ndarray = d.sum(axis=stretched, keepdims=True)
    return total


def count(hyper: Hyper) -> int:
    """How many scalars m the outer optimiser moves."""
    return sum(int(np.size(u)) for arrays in hyper.values() for u in arrays.values())
