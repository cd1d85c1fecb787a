"""Section 0: the device, how it multiplies float32 matrices, and how fast."""

from __future__ import annotations

import time
from typing import Any

import processes
from peaks import measured, products, sheet
from plan import Part
from sizes import Sizes

KINDS = (  # label, dtype, precision, row of the data sheet; the first is what programs get when nobody asks for a precision
    ("float32, as JAX does it by default", "float32", "default", None),
    ("float32, precision 'highest'", "float32", "highest", "float32"),
    ("bfloat16", "bfloat16", "default", "bfloat16"),
    ("float64", "float64", "highest", "float64"),
)


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    begun = time.perf_counter()
    import jax

    device = jax.devices()[0]
    start = time.perf_counter() - begun
    how, error = products()
    asked = jax.config.jax_default_matmul_precision
    limit = (device.memory_stats() or {}).get("bytes_limit")
    facts = {
        "kind": device.device_kind,
        "backend": jax.default_backend(),
        "products": how,
        "words": f"{device.device_kind} ({jax.default_backend()})"
        + (f", {limit / 1e9:.1f} GB for JAX" if limit else ""),
        "precision_asked": asked,
        "product_error": error,
        "start_seconds": start,
    }
    processes.tell({"machine": facts})
    for label, dtype, precision, row in KINDS:
        speed = measured(sizes.matrix, dtype, precision)
        if row is None:
            processes.tell({"machine": {"measured": speed}})
        by_sheet = (sheet(device.device_kind) or {}).get(row or how)
        say(
            {
                f"product of two {sizes.matrix}×{sizes.matrix} matrices": label,
                "measured, TFLOP/s": speed / 1e12,
                "data sheet, dense, TFLOP/s": by_sheet and by_sheet / 1e12,
            }
        )
