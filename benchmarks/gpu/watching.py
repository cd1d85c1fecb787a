"""Compiled programs, watched: what the first call took, what XLA planned to hold, what the device held, the arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from flops import operations

from hypertrail.memory import peak as process_peak


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

    def lowered(self) -> tuple[Any, Any]:
        """(jaxpr, compiled): from the caches, of the shapes of the first call."""
        traced = self.program.trace(*self.arguments)
        return traced.jaxpr.jaxpr, traced.lower().compile()

    def analysis(self) -> dict[str, float]:
        """'operations' of a call (of a turn where `turns` is set), 'xla' its own count of them, bytes of the plan."""
        jaxpr, compiled = self.lowered()
        plan = compiled.memory_analysis()
        return {
            "operations": operations(jaxpr),
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


def row_of_memory(program: Watched, analysis: dict[str, float], process: str) -> dict[str, Any]:
    """A row of section 7."""
    megabyte = 1e6
    planned = analysis["arguments"] + analysis["results"] + analysis["temporary"] - analysis["shared"]
    before, after = program.seen["peak before"], program.seen["peak after"]
    return {
        "program": program.name,
        "process": process,
        "XLA's plan: arguments, MB": analysis["arguments"] / megabyte,
        "results, MB": analysis["results"] / megabyte,
        "temporary, MB": analysis["temporary"] / megabyte,
        "all, MB": planned / megabyte,
        "peak of the device before its first call, MB": None if before is None else before / megabyte,
        "and after it, MB": None if after is None else after / megabyte,
        "peak of the process in RAM, MB": None if after is not None else process_peak() / megabyte,
        "counted, GFLOP a call": analysis["operations"] / 1e9,
        "XLA's count, GFLOP": analysis["xla"] / 1e9,
    }
