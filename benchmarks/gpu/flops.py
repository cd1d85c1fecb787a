"""The arithmetic of a traced program: two operations for each multiplication of its matrix products and convolutions.

XLA's own count (`cost_analysis`) is reported beside it. It counts everything elementwise too, takes the body of a loop once, and
on a GPU it may not see into calls of cuDNN and cuBLAS. So it is a second witness, and the share of the peak is not made of it.
"""

from __future__ import annotations

import math
from typing import Any


def operations(jaxpr: Any) -> float:
    """Of one call of the program. A loop whose number of turns is not known when it is traced counts as one turn."""
    total = 0.0
    for equation in jaxpr.eqns:
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += own(equation) + turns * sum(operations(inner) for inner in inner_jaxprs(equation))
    return total


def own(equation: Any) -> float:
    """Of the equation itself."""
    out = equation.outvars[0].aval.shape if equation.outvars else ()
    shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable.aval, "shape")]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * math.prod(out) * math.prod(shapes[0][axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        return convolution(equation.params, shapes[0], shapes[1], out)
    return 0.0


def convolution(params: dict[str, Any], image: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]) -> float:
    """Products with padding or with the zeros between dilated entries are not counted: no device needs to do them.

    Along each spatial axis, the pairs (output position, tap of the kernel) that meet a number of the image are counted.
    """
    numbers = params["dimension_numbers"]
    image_axes, kernel_axes, out_axes = numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:]
    batch, channels = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    pairs = 1
    for i, (a, k, o) in enumerate(zip(image_axes, kernel_axes, out_axes, strict=True)):
        low, stride = params["padding"][i][0], params["window_strides"][i]
        between, apart = params["lhs_dilation"][i], params["rhs_dilation"][i]
        places = [y * stride - low + tap * apart for y in range(out[o]) for tap in range(kernel[k])]
        pairs *= sum(place % between == 0 and 0 <= place // between < image[a] for place in places)
    # A group sees its share of the input channels only, which is the size that the kernel has there. Of grouped batches likewise.
    return 2.0 * batch / params["batch_group_count"] * channels * kernel[numbers.rhs_spec[1]] * pairs


def inner_jaxprs(equation: Any) -> list[Any]:
    """The programs inside an equation. Of the branches of a condition the one with the most arithmetic counts."""
    if equation.primitive.name == "cond":
        return [max((branch.jaxpr for branch in equation.params["branches"]), key=operations)]
    if equation.primitive.name in ("custom_vjp_call", "custom_jvp_call"):  # the derivatives beside it are not run here
        inner = equation.params.get("call_jaxpr") or equation.params.get("fun_jaxpr")
        return [] if inner is None else [getattr(inner, "jaxpr", inner)]
    found = []
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found
