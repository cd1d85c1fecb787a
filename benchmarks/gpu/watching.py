"""Compiled programs, watched: what the first call took, what XLA planned to hold, what the device held, the arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from flops import operations


@dataclass
class Compiling:
    """Seconds of tracing and compiling while a block ran, and how many programs were read from the cache in place of it."""

    seconds: float = 0.0
    from_cache: int = 0


@contextmanager
def compiling() -> Iterator[Compiling]:
    told, on = Compiling(), [True]

    def took(event: str, seconds: float, **_: Any) -> None:
        if on and event.startswith("/jax/core/compile/"):
            told.seconds += seconds

    def happened(event: str, **_: Any) -> None:
        if on and event == "/jax/compilation_cache/cache_hits":
            told.from_cache += 1

    jax.monitoring.register_event_duration_secs_listener(took)
    jax.monitoring.register_event_listener(happened)
    try:
        yield told
    finally:
        on.clear()


def device_peak() -> int | None:
    """Most bytes that the first device has held so far; None where it does not tell, as a processor."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


@dataclass
class Watched:
    """A compiled program that counts its calls and looks at the first of them."""

    name: str
    program: Any
    calls: int = 0
    turns: Callable[[tuple], float] | None = None  # of a loop that the caller's arguments set the length of
    turned: float = 0.0
    seen: dict[str, Any] = field(default_factory=dict)
    arguments: tuple = ()

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        self.turned += self.turns(arguments) if self.turns else 1.0
        if self.seen:
            return self.program(*arguments)
        self.arguments = jax.tree.map(shape_of, arguments)
        before, begun = device_peak(), time.perf_counter()
        with compiling() as told:
            out = jax.block_until_ready(self.program(*arguments))
        self.seen = {
            "seconds": time.perf_counter() - begun,
            "compile": told.seconds,
            "from cache": told.from_cache > 0,
            "peak before": before,
            "peak after": device_peak(),
        }
        return out

    def again(self) -> None:
        """Count from here on."""
        self.calls, self.turned = 0, 0.0

    @cached_property
    def traced(self) -> Any:
        return self.program.trace(*self.arguments)

    @cached_property
    def operations(self) -> float:
        """Of a call; of one turn of the loop where `turns` is set."""
        return operations(self.traced.jaxpr.jaxpr)

    @cached_property
    def analysis(self) -> dict[str, float]:
        """'operations', 'xla', which is XLA's own count of them, and the bytes of XLA's plan. The program comes from a cache."""
        compiled = self.traced.lower().compile()
        plan = compiled.memory_analysis()
        return {
            "operations": self.operations,
            "xla": (compiled.cost_analysis() or {}).get("flops", float("nan")),
            "arguments": plan.argument_size_in_bytes,
            "results": plan.output_size_in_bytes,
            "temporary": plan.temp_size_in_bytes,
            "shared": plan.alias_size_in_bytes,
        }


def shape_of(leaf: Any) -> Any:
    """An array's shape in place of the array, so that it need not be kept; other leaves as they are."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf
