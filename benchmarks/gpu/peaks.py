"""The most arithmetic that a device can do: by its data sheet, and measured with a product of two square matrices."""

from __future__ import annotations

import statistics
import time
from typing import Any

# Operations a second, dense, by NVIDIA's data sheets (which print twice the number for TF32 and bfloat16: with sparsity). A
# float32 product in full precision does not use the tensor cores.
HOPPER = {"float64": 67e12, "float32": 67e12, "TF32": 494.7e12, "bfloat16": 989.4e12}
AMPERE = {"float64": 19.5e12, "float32": 19.5e12, "TF32": 156e12, "bfloat16": 312e12}
SHEETS = {"H200": HOPPER, "H100 80GB HBM3": HOPPER, "A100": AMPERE}
EXACT = 1e-5  # relative: float32 products are off by some 1e-6, TF32 ones by some 1e-3


def sheet(kind: str) -> dict[str, float] | None:
    """By the name that JAX gives the device; None for a device that is not in the table."""
    return next((peaks for name, peaks in SHEETS.items() if name in kind), None)


def peak(machine: dict[str, Any]) -> tuple[float, str]:
    """The operations a second that a float32 program of this device can reach at most, and where the number comes from."""
    kind, products = machine["kind"], machine["products"]
    peaks = sheet(kind)
    if peaks:
        return peaks[products], f"{peaks[products] / 1e12:g} TFLOP/s, {products}, data sheet"
    measured = machine["measured"]
    return measured, f"{measured / 1e12:.3g} TFLOP/s, a {products} product, measured"


def products() -> tuple[str, float]:
    """("TF32" or "float32", error): how JAX multiplies float32 matrices here, by the error of a product against float64."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(256, 256)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b
    off = np.asarray(jax.jit(lambda a, b: a @ b)(a, b), np.float64) - exact
    error = float(np.linalg.norm(off) / np.linalg.norm(exact))
    return ("float32" if error < EXACT else "TF32"), error


def measured(rows: int, dtype: str, precision: str, repeats: int = 5) -> float:
    """Operations a second of a product of two (rows, rows) matrices; the median of some calls after the first."""
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(dtype == "float64"):
        a = jax.random.normal(jax.random.key(0), (rows, rows), dtype)
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
        multiply(a, a).block_until_ready()
        seconds = []
        for _ in range(repeats):
            begun = time.perf_counter()
            multiply(a, a).block_until_ready()
            seconds.append(time.perf_counter() - begun)
    return 2 * rows**3 / statistics.median(seconds)
