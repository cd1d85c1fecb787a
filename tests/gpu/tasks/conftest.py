"""Every task of the matrix with its oracle, compiled once for the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import pytest

from hypertrail.task import Task

from . import problems


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@cache
def made(name: str, *args: Any) -> Task:
    return getattr(problems, name)(*args)


@cache
def differentiated(name: str, *args: Any, cut: int = 0) -> tuple[Any, Any]:
    return problems.oracle(made(name, *args), cut)


@pytest.fixture(scope="session")
def task_of() -> Callable[..., Task]:
    """task_of('mlp', 'damped') → the same Task for the same words."""
    return made


@pytest.fixture(scope="session")
def oracle_of() -> Callable[..., tuple[Any, Any]]:
    """oracle_of('mlp', 'damped', cut=3) → (f, df/dλ) by jax.grad through the loop in plain JAX."""
    return differentiated
