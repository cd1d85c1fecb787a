"""The bilevel problem: network, data, schedule, dynamics, hyperparameters and the two losses.

    elementary:  w_T = training of w by T steps on  L(w, λ, batch) = mean cross-entropy (dropout on) + Σ λ₂ w² + Σ λ₁ |w|
                 from w_0 (scaled and shifted where initial scales or weights are declared); each example's cross-entropy
                 times its weight, and learned images in place of the split's, where these are declared
    hyper:       f(w_T) = mean cross-entropy on the valid split, no penalties, dropout off, batch norm normalising with
                 the statistics of the validation batch itself: a pure function of w

The losses are written once, on the operations an engine supplies; each engine differentiates them in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hypertrail_nets import (
    Layer,
    Ops,
    Parameter,
    get_all_layers,
    get_all_params,
    get_noise_params,
    get_output,
    initial_params,
    initial_running,
)
from hypertrail_nets.layers import REGULARIZABLE, Input

from .errors import UsageError
from .hyperparameters import OF_EXAMPLES, OF_THE_START, Hyper, Hyperparameter, expand, hyper_shapes, initial_hyper
from .measures import SPLITS
from .vanished import refuse_vanished

if TYPE_CHECKING:
    from hypertrail_data import BatchSchedule, Splits

Array = Any
# kind → parameter name → values that broadcast against the parameter; kinds of OF_EXAMPLES: kind → key → one row per example
Values = dict[str, dict[str, Array]]

PRECISIONS = ("float32", "float64")
DYNAMICS = ("damped", "heavy-ball", "nesterov", "adam", "damped-old")
L2_ON = ("regularizable", "all")
EPSILON_PLACES = ("corrected", "uncorrected")
AVERAGING = 0.1


@dataclass(frozen=True)
class Dynamics:
    """How a gradient moves the weights; learning rate and momentum may be overridden by declared hyperparameters.

    kind 'damped':      v ← γ v − (1−γ) g,  w ← w + α v     (Maclaurin et al. 2015; SGD with lr α(1−γ), momentum γ)
    kind 'heavy-ball':  v ← μ v + g,        w ← w − η v     (Polyak 1964; α is η and γ is μ here)
    kind 'nesterov':    v ← μ v + g,        w ← w − η (g + μ v)     (Nesterov 1983 in the form of Sutskever et al. 2013)
    kind 'adam':        m ← β₁ m + (1−β₁) g,  s ← β₂ s + (1−β₂) g²,  w ← w − α m̂ / √(ŝ + ε)     (Kingma, Ba 2015)
                        learning_rate is α, momentum β₁, second_momentum β₂; m̂ = m / (1−β₁^(t+1)), ŝ = s / (1−β₂^(t+1));
                        v is (m, s), two numbers a weight. ε stands INSIDE the root: outside, the derivative of √ŝ at
                        ŝ = 0 is infinite, and one weight that sees no gradient makes every hypergradient NaN.
                        A β₁ per step corrects with the β₁ of that step.
                        epsilon_place: the second moment that ε is added to. 'corrected': √(ŝ + ε). 'uncorrected':
                        √((s + ε) / (1−β₂^(t+1))), as in the released code of Franceschi et al. 2017 (RFHO).
    kind 'damped-old':  w ← w + α v,        v ← γ v − (1−γ) g       (algorithm 1 of Maclaurin et al. as PRINTED: the old
                        velocity moves the weights; their code and 'damped' use the new one. Each gradient arrives one
                        step later, the last one never. For comparison with the paper's text.)
    schedule: ((step, factor), …): from that step on the learning rate is multiplied by factor.
    """

    kind: str = "damped"
    learning_rate: float = 0.1
    momentum: float = 0.9
    schedule: tuple[tuple[int, float], ...] = ()
    second_momentum: float = 0.999
    epsilon: float = 1e-8
    epsilon_place: str = "corrected"

    def __post_init__(self) -> None:
        if self.kind not in DYNAMICS:
            raise UsageError(f"dynamics {self.kind!r}, expected one of {', '.join(DYNAMICS)}")
        if not 0 < self.learning_rate < np.inf:
            raise UsageError(f"learning rate {self.learning_rate}, expected a positive number")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum {self.momentum}, expected 0 ≤ momentum < 1")
        if not 0 <= self.second_momentum < 1:
            raise UsageError(f"second_momentum {self.second_momentum}, expected 0 ≤ second_momentum < 1")
        if not 0 < self.epsilon < np.inf:
            raise UsageError(f"epsilon {self.epsilon}, expected a positive number: at 0 the root has no derivative")
        if self.epsilon_place not in EPSILON_PLACES:
            raise UsageError(f"epsilon_place {self.epsilon_place!r}, expected one of {', '.join(EPSILON_PLACES)}")
        steps = [-1, *(step for step, _ in self.schedule)]
        if any(a >= b for a, b in pairwise(steps)):
            raise UsageError(f"schedule {self.schedule}: steps must rise, from 0 on")
        if not all(0 <= factor < np.inf for _, factor in self.schedule):
            raise UsageError(f"schedule {self.schedule}: factors of the learning rate, expected numbers ≥ 0")

    @property
    def moments(self) -> int:
        """How many numbers the velocity of one weight has: Adam's two moments, else one."""
        return 2 if self.kind == "adam" else 1

    def epsilon_beside_corrected(self, t: Any) -> Any:
        """What step t of Adam (from 0) adds to ŝ: ε, or ε / (1−β₂^(t+1)) where ε is added to the uncorrected moment."""
        if self.epsilon_place == "corrected":
            return self.epsilon
        return self.epsilon / (1 - self.second_momentum ** (t + 1))

    def factors(self, steps: int) -> np.ndarray:
        """(T,) float64: what the schedule multiplies the learning rate by at each step."""
        out = np.ones(steps)
        for step, factor in self.schedule:
            out[step:] = factor
        return out


# What a penalty adds to the elementary loss for one weight: (λ, w) → the term, elementwise.
PENALTIES: dict[str, Callable[[Array, Array], Array]] = {"l2": lambda λ, w: λ * w**2, "l1": lambda λ, w: λ * abs(w)}


@dataclass(frozen=True, eq=False)
class Problem:
    """A bilevel problem. eq=False: two problems are the same only if they are the same object (engines cache by it).

    steps: T. l2: a fixed penalty, l2 · Σ w², where no L2 hyperparameter is declared. l2_on: the parameters that the fixed
    penalty acts on. 'regularizable': those that the network tags so (no biases). 'all': every trainable parameter, as in
    the programs of DrMAD's authors.
    valid_batch: the hyper loss is the mean over validation batches of this size (each normalised by its own
    statistics); None: the whole split in one batch. precision: 'float64' to compare, 'float32' to work.
    """

    network: Layer
    splits: Splits
    schedule: BatchSchedule
    steps: int
    hyperparameters: tuple[Hyperparameter, ...]
    dynamics: Dynamics = Dynamics()
    l2: float = 0.0
    valid_batch: int | None = None
    seed: int = 0
    precision: str = "float32"
    l2_on: str = "regularizable"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"steps {self.steps}, expected at least 1")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if not 0 <= self.l2 < np.inf:
            raise UsageError(f"l2 {self.l2}, expected a number ≥ 0")
        kinds = [h.kind for h in self.hyperparameters]
        if self.l2_on not in L2_ON:
            raise UsageError(f"l2_on {self.l2_on!r}, expected one of {', '.join(L2_ON)}")
        if self.l2_on == "all" and "l2" in kinds:
            raise UsageError(
                "l2_on 'all' is for the fixed penalty, which a declared L2 takes the place of; leave l2_on at 'regularizable'"
            )
        if not kinds:
            raise UsageError("no hyperparameter is declared, there is nothing to tune")
        if len(set(kinds)) != len(kinds):
            raise UsageError(f"hyperparameters {kinds}: each kind can be declared once")
        if self.schedule.examples != len(self.splits.train):
            raise UsageError(
                f"the schedule draws from {self.schedule.examples} examples, train has {len(self.splits.train)}"
            )
        refuse_vanished(self.positive_constants(), self.hyperparameters, self.dtype)
        if self.valid_batch is not None and not 1 <= self.valid_batch <= len(self.splits.valid):
            raise UsageError(f"valid_batch {self.valid_batch}, expected 1 … {len(self.splits.valid)} (the valid split)")
        if "noise" in kinds and not get_noise_params(self.network):
            raise UsageError(
                "noise is declared, the network has no noise layer; build it with one, as mlp(…, noise=True)"
            )
        if self.network.shape != (self.splits.classes,):
            raise UsageError(
                f"the network gives {self.network.shape} outputs, the data has {self.splits.classes} classes"
            )
        for layer in get_all_layers(self.network):
            if isinstance(layer, Input) and layer.shape != self.splits.train.x.shape[1:]:
                raise UsageError(
                    f"the network takes images of shape {layer.shape}, the data has {self.splits.train.x.shape[1:]}"
                )

    def positive_constants(self) -> dict[str, float]:
        """The numbers of the training that must not be lost in its precision, by name: scheduled rates too."""
        d, rate = self.dynamics, self.declared("learning_rate")
        start = d.learning_rate if rate is None else rate.init
        constants = {"learning rate": d.learning_rate, "momentum": d.momentum, "epsilon": d.epsilon, "l2": self.l2}
        return constants | {f"learning rate from step {t} on": start * factor for t, factor in d.schedule}

    def with_(self, **changes: Any) -> Problem:
        """A new problem with some fields changed (compiles anew)."""
        return replace(self, **changes)

    def reseeded(self, seed: int) -> Problem:
        """The same problem with other initial weights, batches and masks: all that its seed draws, but the split. It compiles
        nothing anew."""
        return self.with_(seed=seed, schedule=replace(self.schedule, seed=seed))

    @cached_property
    def params(self) -> tuple[Parameter, ...]:
        return tuple(get_all_params(self.network, trainable=True))

    @cached_property
    def unregularized(self) -> frozenset[str]:
        """The names of the parameters that the network does not tag as regularizable."""
        return frozenset(p.name for p in self.params if REGULARIZABLE not in p.tags)

    @cached_property
    def targets(self) -> tuple[Parameter, ...]:
        """All that a hyperparameter can act on: the parameters, and what stands for σ of each noise layer."""
        return (*self.params, *get_noise_params(self.network))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.precision)

    @cached_property
    def noise_key(self) -> tuple[np.uint32, np.uint32]:
        from hypertrail_data import streams

        first, second = streams.words(self.seed, "noise")
        return np.uint32(first), np.uint32(second)

    def initial_weights(self) -> dict[str, np.ndarray]:
        """w_0 as it is drawn: a pure function of the seed; drawn in float64, cast to the precision."""
        from hypertrail_data import streams

        return initial_params(self.network, streams.generator(self.seed, "init"), self.dtype)

    def scaled(self, drawn: Mapping[str, Array], values: Values) -> dict[str, Array]:
        """w_0 that training starts from: σ · (drawn w_0) + u, with σ and u where an initial scale or weight is declared."""
        sigma, shift = (values.get(kind, {}) for kind in OF_THE_START)
        scaled = {name: sigma[name] * one if name in sigma else one for name, one in drawn.items()}
        return {name: one + shift[name] if name in shift else one for name, one in scaled.items()}

    def initial_velocity(self) -> dict[str, np.ndarray]:
        """v_0 = 0, {parameter name: array}: in the shape of the parameter, for Adam (2, *shape), first and second moment."""
        front = (2,) if self.dynamics.kind == "adam" else ()
        return {p.name: np.zeros((*front, *p.shape), self.dtype) for p in self.params}

    def initial_running(self) -> dict[str, np.ndarray]:
        return initial_running(self.network, self.dtype)

    def initial_hyper(self) -> Hyper:
        """The declared hyperparameters at their init, unconstrained arrays in float64."""
        return initial_hyper(self.hyperparameters, self.targets, self.steps, self.splits.train.x)

    def hyper_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of the arrays of `initial_hyper`, of which none is made."""
        return hyper_shapes(self.hyperparameters, self.targets, self.steps, self.splits.train.x.shape)

    def declared(self, kind: str) -> Hyperparameter | None:
        return next((h for h in self.hyperparameters if h.kind == kind), None)

    def needs_velocity(self) -> bool:
        """Whether the reverse pass needs v_t and g_t: for the gradients of learning rate and momentum, and for Adam always,
        whose step is not linear in them."""
        return self.dynamics.kind == "adam" or any(
            h.kind in ("learning_rate", "momentum") for h in self.hyperparameters
        )

    def values(self, hyper: Mapping[str, Mapping[str, Array]], xp: Any = np) -> Values:
        """All values by kind and parameter name: the declared ones and the constants. Differentiable in `hyper` when xp is."""
        return {**self.constants(xp), **self.declared_values(hyper, xp)}

    def declared_values(self, hyper: Mapping[str, Mapping[str, Array]], xp: Any = np) -> Values:
        """The values of the declared hyperparameters; l2, l1 and transform only for the tensors they act on."""
        out: Values = {}
        for one in self.hyperparameters:
            arrays = {key: xp.asarray(u, dtype=self.precision) for key, u in hyper[one.kind].items()}
            out[one.kind] = expand(one, arrays, self.targets, xp)
        return out

    def constants(self, xp: Any = np) -> Values:
        """What is not declared but needed: learning rate, momentum, a fixed L2 penalty. Scalars by parameter name.

        The penalty has a scalar for each parameter that it acts on (`l2_on`).
        """

        def fill(value: float, params: tuple[Parameter, ...]) -> dict[str, Array]:
            return {p.name: xp.asarray(value, dtype=self.precision) for p in params}

        out: Values = {}
        if self.declared("learning_rate") is None:
            out["learning_rate"] = fill(self.dynamics.learning_rate, self.params)
        if self.declared("momentum") is None:
            out["momentum"] = fill(self.dynamics.momentum, self.params)
        if self.l2 > 0.0 and self.declared("l2") is None:
            left_out = self.unregularized if self.l2_on == "regularizable" else ()
            out["l2"] = fill(self.l2, tuple(p for p in self.params if p.name not in left_out))
        return out

    def seen(self, values: Values, rows: Array) -> Values:
        """The values as a batch of these rows of the train split sees them: (B, …) of each kind of OF_EXAMPLES, the rest as is.

        rows (B,) int, repetitions allowed. The losses below take values like these. Cost: a gather of B rows.
        """
        return {
            kind: {key: one[rows] for key, one in arrays.items()} if kind in OF_EXAMPLES else arrays
            for kind, arrays in values.items()
        }

    # -- the losses, engine neutral ---------------------------------------------------------------------------------

    def effective(self, xp: Any, w: Mapping[str, Array], values: Values) -> dict[str, Array]:
        """What the network computes with: z·eᵗ where a weight transform is declared, w itself elsewhere."""
        t = values.get("transform", {})
        return {name: one * xp.exp(t[name]) if name in t else one for name, one in w.items()}

    def data_loss(
        self,
        ops: Ops,
        weights: Mapping[str, Array],
        x: Array,
        y: Array,
        step: Any,
        collect: dict[str, Any] | None = None,
        values: Values | None = None,
        key: tuple[Any, Any] | None = None,
    ) -> Array:
        """mean_i a_i cross-entropy_i of one training batch in nats, dropout masks of that step (None: dropout off) → scalar.

        x (B, …), y (B,). values: as `seen` by this batch; of them count example_weight, a (B,) (else 1), and training_input,
        (B, …) in the place of x, and noise, σ by noise layer; None: none of them. key: of the masks, two uint32 words; None:
        `noise_key`.
        """
        values = values or {}
        if "noise" in values:
            weights = {**weights, **values["noise"]}
        if "training_input" in values:
            x = values["training_input"]["x"]
        # A pass without dropout takes no statistics into the running averages: it is no training step.
        key = self.noise_key if key is None else key
        how = {"deterministic": True} if step is None else {"key": key, "step": step, "collect": collect}
        losses = ops.cross_entropy(get_output(self.network, weights, x, ops, **how), y)
        if "example_weight" in values:
            losses = values["example_weight"]["train"] * losses
        return losses.mean()

    def penalty(self, xp: Any, w: Mapping[str, Array], values: Values) -> Array:
        """Σ λ₂ w² + Σ λ₁ |w| over the parameters that have a λ → scalar."""
        total: Any = xp.zeros((), dtype=self.precision)
        for kind, term in PENALTIES.items():
            for name, value in values.get(kind, {}).items():
                total = total + term(value, w[name]).sum()
        return total

    def valid_loss(self, ops: Ops, weights: Mapping[str, Array], x: Array, y: Array) -> Array:
        """Mean cross-entropy of one validation batch: dropout off, batch statistics. The hyper loss is the mean of these."""
        return ops.cross_entropy(get_output(self.network, weights, x, ops, deterministic=True), y).mean()

    def metrics(
        self, ops: Ops, weights: Mapping[str, Array], running: Mapping[str, Array], x: Array, y: Array
    ) -> Array:
        """Per-example loss (nats) and error (0 or 1) with the deterministic forward and running averages, (2, B)."""
        logits = get_output(self.network, weights, x, ops, deterministic=True, running=running)
        wrong = (logits.argmax(axis=-1) != y).astype(self.precision)
        return ops.xp.stack([ops.cross_entropy(logits, y), wrong])

    def update_running(self, running: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        """Batch norm's running averages after one training batch: r ← (1 − a) r + a · batch, a = 0.1 (Lasagne's default)."""
        return {key: (1 - AVERAGING) * running[key] + AVERAGING * batch[key] for key in running}

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that have examples."""
        return tuple(split for split in SPLITS if len(getattr(self.splits, split)))

    @property
    def digest(self) -> str:
        """sha256 of the data."""
        return self.splits.digest

    @property
    def valid_batch_count(self) -> int:
        """How many batches `valid_batches` has, without making them."""
        return len(self.splits.valid) // (self.valid_batch or len(self.splits.valid) or 1)

    def valid_batches(self) -> tuple[np.ndarray, np.ndarray]:
        """The validation split cut into equal batches, x (n, B, …), y (n, B); a rest smaller than a batch is left out.

        n = 0 where it is empty: such a problem can be trained, but has no hyper loss (`refusals.refuse_without_valid`).
        """
        valid = self.splits.valid
        size = self.valid_batch or len(valid) or 1
        n = len(valid) // size
        return (
            valid.x[: n * size].reshape(n, size, *valid.x.shape[1:]).astype(self.dtype),
            valid.y[: n * size].reshape(n, size),
        )
