"""How a parameter gets its first value. Each rule is a frozen object: `rule(rng, shape, fan_in)` -> float64 array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Constant:
    """Every entry is `value`."""

    value: float = 0.0

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal:
    """N(0, std²)."""

    std: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return rng.normal(0.0, self.std, shape)


@dataclass(frozen=True)
class He:
    """N(0, 2 / fan_in), for layers followed by rectifiers (He, Zhang, Ren, Sun 2015, equation 10)."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape)


@dataclass(frozen=True)
class Uniform:
    """U(−1/√fan_in, 1/√fan_in): PyTorch's default for weights and biases of dense layers."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return rng.uniform(-1.0 / np.sqrt(fan_in), 1.0 / np.sqrt(fan_in), shape)


Initial = Constant | Normal | He | Uniform
