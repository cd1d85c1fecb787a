"""Masks and noise that are pure functions of (seed, stream, step).

A dropout mask is never drawn from a generator that remembers something: it is computed from
a key (two 32-bit words made from the seed), the number of the layer and the number of the
step. The reverse pass can therefore ask for the mask of step 17 and gets the one that the
forward pass saw, and both engines get the same bits.

The function is Threefry-2x32 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section
3.1) with 13 rounds, the fewest that its authors found to pass BigCrush with a margin, and 16 bits for each element of a mask:
a DenseNet draws 28 million elements a step. It is written on an array namespace `xp`, so the same lines run under NumPy and
under JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(xp: Any, key: tuple[Any, Any], counter: tuple[Any, Any], rounds: int = 13) -> tuple[Any, Any]:
    """Threefry-2x32: two words of key and two words of counter to two random words.

    Shapes: the four words broadcast against each other. dtype: uint32 in and out.
    Cost: about 6 integer operations a round. Source: Salmon et al. 2011, section 3.1.
    """
    k0, k1 = (xp.asarray(k, dtype=xp.uint32) for k in key)
    keys = (k0, k1, k0 ^ k1 ^ xp.asarray(_PARITY, dtype=xp.uint32))
    x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(rounds):
        r = _ROTATIONS[i // 4 % 2][i % 4]
        x0 = x0 + x1
        x1 = (x1 << xp.asarray(r, dtype=xp.uint32)) | (x1 >> xp.asarray(32 - r, dtype=xp.uint32))
        x1 = x1 ^ x0
        if i % 4 == 3:
            block = i // 4 + 1
            x0 = x0 + keys[block % 3]
            x1 = x1 + keys[(block + 1) % 3] + xp.asarray(block, dtype=xp.uint32)
    return x0, x1


def random_bits(xp: Any, key: tuple[Any, Any], stream: int, step: Any, shape: tuple[int, ...]) -> Any:
    """uint32 array of `shape` with values below 2^16: element e is a pure function of (key, stream, step, e).

    key: two uint32 words; stream: the number of the layer; step: the number of the elementary step
    (may be traced). One Threefry call gives four elements, a quarter of the whole apart.
    """
    size = int(np.prod(shape))
    quarter = (size + 3) // 4
    element = xp.arange(quarter, dtype=xp.uint32)
    step = xp.asarray(step).astype(xp.uint32)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^32 is what is wanted
        layer_key = (key[0], xp.asarray(key[1], dtype=xp.uint32) ^ xp.asarray(stream, dtype=xp.uint32))
        words = threefry(xp, layer_key, (element, xp.broadcast_to(step, (quarter,))))
    low, half = xp.asarray(0xFFFF, dtype=xp.uint32), xp.asarray(16, dtype=xp.uint32)
    return xp.concatenate([part for word in words for part in (word & low, word >> half)])[:size].reshape(shape)


def gaussian_noise(xp: Any, key: tuple[Any, Any], stream: int, step: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Standard normal numbers of `shape` and `dtype`: element e is a pure function of (key, stream, step, e).

        u₁ in (0, 1], u₂ in [0, 1): 24 bits of each Threefry word;  r = √(−2 ln u₁);  z = r cos 2πu₂, r sin 2πu₂

    Same bits before the logarithm everywhere; after it NumPy, JAX and the two precisions agree up to rounding. |z| < 5.8.
    One Threefry call gives two elements, half of the whole apart. Source: Box, Muller 1958.
    """
    size = int(np.prod(shape))
    half = (size + 1) // 2
    element, step = xp.arange(half, dtype=xp.uint32), xp.asarray(step).astype(xp.uint32)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^32 is what is wanted
        layer_key = (key[0], xp.asarray(key[1], dtype=xp.uint32) ^ xp.asarray(stream, dtype=xp.uint32))
        words = threefry(xp, layer_key, (element, xp.broadcast_to(step, (half,))))
    first, second = ((word >> xp.asarray(8, dtype=xp.uint32)).astype(dtype) for word in words)
    unit = xp.asarray(2.0**-24, dtype=dtype)
    r = xp.sqrt(-2 * xp.log((first + 1) * unit))
    angle = xp.asarray(2 * np.pi, dtype=dtype) * (second * unit)
    return xp.concatenate([r * xp.cos(angle), r * xp.sin(angle)])[:size].reshape(shape)


def dropout_mask(
    xp: Any, key: tuple[Any, Any], stream: int, step: Any, shape: tuple[int, ...], p: float, dtype: Any
) -> Any:
    """Inverted dropout: 0 with probability p (to within 2^-17), else 1 / (1 - p). Shape `shape`, dtype `dtype`."""
    dropped = random_bits(xp, key, stream, step, shape) < xp.asarray(round(p * 2**16), dtype=xp.uint32)
    return xp.where(dropped, xp.asarray(0, dtype=dtype), xp.asarray(1 / (1 - p), dtype=dtype))
