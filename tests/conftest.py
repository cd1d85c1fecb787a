"""What all tests share: the project's root, and the smallest engine there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# What the command line compiles here, in this process and in others, stays out of the user's own cache.
os.environ.setdefault("HYPERTRAIL_CACHE", str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "hypertrail"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sketches", action="store_true", help="draw figures in two thirds of the time (tests/README.md)")


@pytest.fixture(scope="module", autouse=True)
def sketches(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --sketches: figures whose parts are not laid out, and whose fonts go into a PDF as Type 3.

    A module that looks at pictures is marked `pictures` and has them as users do.
    """
    if not request.config.getoption("--sketches") or request.node.get_closest_marker("pictures"):
        yield
        return
    from hypertrail import figures

    real = figures.save

    def sketch(folder: Path, name: str, figure: Any) -> Path:
        figure.set_layout_engine("none")
        return real(folder, name, figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", sketch)
        patch.setitem(figures.TEXT, "pdf.fonttype", 3)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return Path(__file__).resolve().parent.parent


class NumpyOps:
    """The operations of `hypertrail_nets.Ops` in plain NumPy, each in its most literal form. Values only."""

    xp = np

    def conv2d(self, x: np.ndarray, w: np.ndarray, stride: int, padding: str) -> np.ndarray:
        kh, kw = w.shape[:2]
        if padding == "same":
            x = np.pad(x, ((0, 0), *(same(n, k, stride) for n, k in zip(x.shape[1:3], (kh, kw), strict=True)), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("bhwcij,ijcd->bhwd", windows, w, optimize=True)

    def matmul(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x @ w

    def average_pool(self, x: np.ndarray, size: int) -> np.ndarray:
        b, h, w, c = x.shape
        return x.reshape(b, h // size, size, w // size, size, c).mean(axis=(2, 4))

    def global_average(self, x: np.ndarray) -> np.ndarray:
        return x.mean(axis=(1, 2))

    def moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        axes = tuple(range(x.ndim - 1))
        return x.mean(axis=axes), x.var(axis=axes)

    def normalize(self, x: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float) -> np.ndarray:
        return (x - mean) / np.sqrt(variance + epsilon)

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def tanh(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x)

    def concatenate(self, xs: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(xs, axis=-1)

    def flatten(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1)

    def cross_entropy(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(y)), y]

    def drawn(self, x: np.ndarray) -> np.ndarray:
        return x


def same(n: int, k: int, stride: int) -> tuple[int, int]:
    """Zeros before and after n so that ceil(n / stride) windows of k fit."""
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return total // 2, total - total // 2


@pytest.fixture
def ops() -> Any:
    return NumpyOps()
