"""Outer updates: how the hyperparameters move once their gradient h is known.

A rule is a frozen record of settings; what it remembers is an explicit `State`, so a run can be stopped and taken up
again. All act on nested dicts of NumPy arrays (kind → key → array), element by element; `update` moves, then projects every
array on what its declaration allows.

    state = rule.start(hyper)
    hyper, state = update(rule, problem.hyperparameters, hyper, gradient, state)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .checks import one_of
from .errors import NumericalFailure, UsageError
from .hyperparameters import Hyper, Hyperparameter

ADAM_EPSILON_PLACES = ("outside", "uncorrected")


@dataclass(frozen=True)
class State:
    """What a rule remembers: how many updates were done and its buffers (slot → kind → key → array like λ)."""

    count: int = 0
    slots: dict[str, Hyper] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """Common to all rules: one learning rate and the names of the buffers. Subclasses say in `step` how λ moves."""

    learning_rate: float
    slots: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate < np.inf:
            raise UsageError(f"outer learning rate {self.learning_rate}, expected a positive number")

    def start(self, hyper: Hyper) -> State:
        """The state before the first update: every buffer zero."""
        return State(0, {slot: tree(np.zeros_like, hyper) for slot in self.slots})

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        """One update without projecting: new arrays, nothing is changed in place. Cost: a few passes over λ."""
        raise NotImplementedError


@dataclass(frozen=True)
class GradientDescent(Rule):
    """λ ← λ − lr h"""

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        lr = self.learning_rate
        return tree(lambda λ, h: λ - lr * h, hyper, h), State(state.count + 1)


@dataclass(frozen=True)
class Sign(Rule):
    """λ ← λ − lr sign(h), sign(0) = 0 (DrMAD's experiment 1: lr .07)"""

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        lr = self.learning_rate
        return tree(lambda λ, h: λ - lr * np.sign(h), hyper, h), State(state.count + 1)


@dataclass(frozen=True)
class SignMomentum(Rule):
    """u ← m u − (1−m) sign(h),  λ ← λ + lr u,  u_0 = 0, sign(0) = 0 (the thesis: m = .7, lr = 1/3)

    The first step has length (1−m) lr; a coordinate whose sign never changes approaches lr per update.
    """

    learning_rate: float = 1 / 3
    mass: float = 0.7
    slots: ClassVar[tuple[str, ...]] = ("u",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.mass < 1.0:
            raise UsageError(f"outer mass {self.mass}, expected 0 ≤ mass < 1")

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        m, lr = self.mass, self.learning_rate
        u = tree(lambda u, h: m * u - (1 - m) * np.sign(h), state.slots["u"], h)
        return tree(lambda λ, u: λ + lr * u, hyper, u), State(state.count + 1, {"u": u})


@dataclass(frozen=True)
class Adam(Rule):
    """m ← b₁ m + (1−b₁) h,  s ← b₂ s + (1−b₂) h²,  k ← k+1,  λ ← λ − lr m̂ / (√ŝ + ε),  m̂ = m/(1−b₁ᵏ),  ŝ = s/(1−b₂ᵏ)

    Kingma and Ba 2015, algorithm 1, with ε outside the root: the formulas of optax.adam. epsilon_place: 'outside', as above, or
    'uncorrected': λ − lr m̂ / √((s + ε) / (1−b₂ᵏ)), as in the released code of Franceschi et al. 2017 (RFHO).
    """

    learning_rate: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    epsilon_place: str = "outside"
    slots: ClassVar[tuple[str, ...]] = ("m", "s")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 <= self.b1 < 1.0 and 0.0 <= self.b2 < 1.0):
            raise UsageError(f"outer Adam b1 {self.b1}, b2 {self.b2}: each must be at least 0 and below 1")
        if not self.epsilon > 0.0:
            raise UsageError(f"outer Adam epsilon {self.epsilon}, expected a positive number")
        one_of("outer Adam epsilon_place", self.epsilon_place, ADAM_EPSILON_PLACES)

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        b1, b2, ε, lr, k = self.b1, self.b2, self.epsilon, self.learning_rate, state.count + 1
        outside, under = (ε, 0.0) if self.epsilon_place == "outside" else (0.0, ε)
        m = tree(lambda m, h: b1 * m + (1 - b1) * h, state.slots["m"], h)
        s = tree(lambda s, h: b2 * s + (1 - b2) * h**2, state.slots["s"], h)
        moved = tree(
            lambda λ, m, s: λ - lr * (m / (1 - b1**k)) / (np.sqrt((s + under) / (1 - b2**k)) + outside), hyper, m, s
        )
        return moved, State(k, {"m": m, "s": s})


@dataclass(frozen=True)
class AdamHips(Rule):
    """ "adam_hips", the Adam of the hypergrad repository (Maclaurin et al. 2015): for their published curves, not for new work.

        i ← updates done before,   b ← 1 − (1−b₁) ℓⁱ
        m ← b h + (1−b) m,  s ← b₂ h² + (1−b₂) s
        λ ← λ − lr m̂ / (√ŝ + ε),   m̂ = m / (1 − (1−b₁)ⁱ⁺¹),   ŝ = s / (1 − (1−b₂)ⁱ⁺¹)

    b₁ and b₂ mean 1 − β here, and b grows to 1 with ℓ = 1e-4 at once: from the second update on m is h itself, there is NO
    momentum, but m̂ is still corrected as if there were. So the first steps are too long: a constant h moves λ by
    lr times 1, 5.26, 3.69, 2.91, 2.44, …, 1 / (1 − .9ⁱ⁺¹), down to 1. Source: hypergrad/optimizers.py, `adam`, whose
    defaults these are.
    """

    learning_rate: float = 0.1
    b1: float = 0.1
    b2: float = 0.01
    epsilon: float = 1e-4
    decay: float = 1e-4
    slots: ClassVar[tuple[str, ...]] = ("m", "s")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 < self.b1 <= 1.0 and 0.0 < self.b2 <= 1.0):
            raise UsageError(
                f"outer AdamHips b1 {self.b1}, b2 {self.b2}: each must be above 0 and at most 1 (they are 1 − β)"
            )
        if not self.epsilon > 0.0:
            raise UsageError(f"outer AdamHips epsilon {self.epsilon}, expected a positive number")
        if not 0.0 <= self.decay <= 1.0:
            raise UsageError(f"outer AdamHips decay {self.decay}, expected 0 ≤ decay ≤ 1")

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        b1, b2, ε, lr, i = self.b1, self.b2, self.epsilon, self.learning_rate, state.count
        b = 1 - (1 - b1) * self.decay**i
        m = tree(lambda m, h: b * h + (1 - b) * m, state.slots["m"], h)
        s = tree(lambda s, h: b2 * h**2 + (1 - b2) * s, state.slots["s"], h)
        m_hat, s_hat = 1 - (1 - b1) ** (i + 1), 1 - (1 - b2) ** (i + 1)
        moved = tree(lambda λ, m, s: λ - lr * (m / m_hat) / (np.sqrt(s / s_hat) + ε), hyper, m, s)
        return moved, State(i + 1, {"m": m, "s": s})


def as_rule(rule: Any) -> Rule:
    """The rule itself, or an optax transformation as one."""
    if isinstance(rule, Rule):
        return rule
    found: Rule = importlib.import_module("hypertrail_gpu.outer_optax").Optax(transformation=rule)  # optax needs JAX
    return found


def update(
    rule: Rule, declared: Sequence[Hyperparameter], hyper: Hyper, gradient: Hyper, state: State
) -> tuple[Hyper, State]:
    """Move λ by the rule, then project each kind on its declared bounds or set → (new λ, new state). float64 kept.

    Raises NumericalFailure, naming kind and tensor, when a hypergradient is NaN or infinite; nothing moves then.
    """
    refuse_nonfinite(gradient, state.count)
    moved, after = rule.step(hyper, gradient, state)
    project = {one.kind: one.project for one in declared}
    return {kind: {key: project[kind](u) for key, u in arrays.items()} for kind, arrays in moved.items()}, after


META = "the step here counts meta-iterations; train with a smaller learning rate or for fewer steps"


def refuse_nonfinite(gradient: Hyper, step: int, hint: str = META) -> None:
    """NumericalFailure for the first array that holds a NaN or an infinity. step: the meta-iteration, or what the hint says."""
    for kind, arrays in gradient.items():
        for key, h in arrays.items():
            bad = int(np.size(h) - np.isfinite(h).sum())
            if bad:
                share = f"{bad} of {np.size(h)} coordinates"
                raise NumericalFailure(f"hypergradient of {kind} for {key} ({share})", step, hint)


def tree(function: Callable[..., np.ndarray], first: Hyper, *rest: Mapping[str, Mapping[str, np.ndarray]]) -> Hyper:
    """`function` on every array of nested dicts of the same structure. KeyError where a later one lacks an array."""
    return {
        kind: {key: np.asarray(function(u, *(np.asarray(r[kind][key]) for r in rest))) for key, u in arrays.items()}
        for kind, arrays in first.items()
    }
