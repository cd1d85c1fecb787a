"""How far a hypergradient is from a reference one: direction, signs and size; per tensor and in total, kind by kind.

Kinds are never pooled: a gradient per log10 of a penalty and one per ln of a learning rate have no common unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .hyperparameters import Hyper


@dataclass(frozen=True)
class Agreement:
    """Agreement of a with the reference b, arrays of `size` coordinates each.

    cosine: <a, b> / (‖a‖ ‖b‖), in −1 … 1; None where one of them is zero, or both: what is zero has no direction.
    signs: share of coordinates with sign a = sign b; a zero agrees with a zero and with nothing else.
    norm, reference_norm: ‖a‖, ‖b‖.  norm_ratio: ‖a‖ / ‖b‖; both zero: 1, only b zero: None (it has no value).
    difference: ‖a − b‖ / max(‖a‖, ‖b‖), in 0 … 2; both zero: 0.
    """

    cosine: float | None
    signs: float
    norm_ratio: float | None
    difference: float
    norm: float
    reference_norm: float
    size: int


@dataclass(frozen=True)
class KindAgreement:
    """Agreement over all coordinates of one kind, and tensor by tensor ('layer')."""

    total: Agreement
    layers: dict[str, Agreement]


def agreement(gradient: Hyper, reference: Hyper) -> dict[str, KindAgreement]:
    """Per kind: how `gradient` agrees with `reference` (same structure and shapes). Computed in float64.

    Cost: a few passes over both. ValueError where structure or shapes differ.
    """
    if {k: set(a) for k, a in gradient.items()} != {k: set(a) for k, a in reference.items()}:
        raise ValueError("the two hypergradients are not of the same hyperparameters (kinds or tensors differ)")
    out = {}
    for kind, arrays in gradient.items():
        pairs = {key: (flat(a), flat(reference[kind][key])) for key, a in arrays.items()}
        layers = {key: agree([pair]) for key, pair in pairs.items()}
        out[kind] = KindAgreement(agree(list(pairs.values())), layers)
    return out


def agree(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    """Agreement of two vectors given in pieces (a_1, b_1), (a_2, b_2), …

    Both are scaled by their largest entry first: hypergradients reach 1e-180, whose squares would be zero.
    """
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"arrays of {a.size} and {b.size} coordinates cannot be compared")
    top_a, top_b = (max((np.abs(pair[i]).max(initial=0.0) for pair in pairs), default=0.0) for i in (0, 1))
    if not (np.isfinite(top_a) and np.isfinite(top_b)):
        raise ValueError("a hypergradient with NaN or infinite coordinates cannot be compared")
    a = [p[0] / (top_a or 1.0) for p in pairs]
    b = [p[1] / (top_b or 1.0) for p in pairs]
    norm_a, norm_b = top_a * root_of_squares(a), top_b * root_of_squares(b)
    top = max(top_a, top_b) or 1.0
    gap = top * root_of_squares([(p[0] - p[1]) / top for p in pairs])
    size = sum(p[0].size for p in pairs)
    equal = sum(int((np.sign(p[0]) == np.sign(p[1])).sum()) for p in pairs)
    if top_a and top_b:
        inner = float(sum(x @ y for x, y in zip(a, b, strict=True)))
        cosine = float(np.clip(inner / (root_of_squares(a) * root_of_squares(b)), -1.0, 1.0))
    else:
        cosine = None
    return Agreement(
        cosine=cosine,
        signs=equal / size if size else 1.0,
        norm_ratio=norm_a / norm_b if top_b else (None if top_a else 1.0),
        difference=gap / max(norm_a, norm_b) if top_a or top_b else 0.0,
        norm=norm_a,
        reference_norm=norm_b,
        size=size,
    )


def in_words(cosine: float | None, digits: int = 3) -> str:
    """A cosine for a table: '–' where it has no value."""
    return "–" if cosine is None else f"{cosine:.{digits}f}"


def flat(a: Any) -> np.ndarray:
    return np.asarray(a, dtype=np.float64).reshape(-1)


def root_of_squares(pieces: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(float(x @ x) for x in pieces)))


def as_json(kinds: dict[str, KindAgreement]) -> dict[str, Any]:
    """{kind: {"total": {…}, "layers": {name: {…}}}}, numbers and None only."""
    return {kind: asdict(one) for kind, one in kinds.items()}
