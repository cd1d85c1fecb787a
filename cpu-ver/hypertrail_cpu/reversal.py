"""Exact reversal: a training run in int64 fixed point, every step of which can be undone to the bit. No gradients in here.

Maclaurin, Duvenaud, Adams 2015, section 2.3 and algorithm 3, with the numbers of their code (`exact_rep.py`):

    value = i / 2^52, |value| < 2048: leaving that range raises. Floats become integers by truncation toward zero, so that what
    was added can be taken away again. γ becomes a fraction n/d, d = 2^16. Multiplying by it loses the digits i mod d; they go
    into a buffer B, and digits that B already holds fill the room that appears at the low end:

        v *= γ     B = B d + (i mod d);  i = i // d;  i = i n;  i = i + B mod n;  B = B // n
        v /= γ     the same with n and d changing places

B grows by log2(1/γ) bits per step. In the paper it is a Python integer per number ("50 times slower"); here it is an int64 per
number that is put aside and begun anew every `capacity` steps, on a schedule that looks at no number, or the paper's.
Up to the first time it is put aside the two give the same integers; after it the fill-in digits differ, at most n 2^−52 of v.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hypertrail.errors import OutOfRange, UsageError, VerificationFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.problem import Problem
from hypertrail.records import Params, Undoable
from hypertrail.refusals import refuse_momenta, refuse_reversible

Array = Any
POINT = 52  # binary digits after the point
LIMIT = 2.0 ** (63 - POINT)  # 2048
DENOMINATOR = 16  # log2 d
ROOM = 62  # bits of an int64 buffer that may be used, the digits on their way in included


# -- fixed point ------------------------------------------------------------------------------------------------------


def to_fixed(x: Array, quantity: str, step: int) -> np.ndarray:
    """⌊|x| 2^52⌋ with the sign of x, int64. OutOfRange(quantity, step) unless |x| < 2048, NaN included."""
    if not np.all(np.abs(x) < LIMIT):
        raise OutOfRange(quantity, step, OUT_OF_RANGE)
    return np.trunc(np.ldexp(x, POINT)).astype(np.int64)


def to_float(i: np.ndarray) -> np.ndarray:
    """i / 2^52 in float64, rounded to nearest where |i| > 2^53."""
    return np.ldexp(i.astype(np.float64), -POINT)


def add(a: np.ndarray, b: np.ndarray, quantity: str, step: int) -> np.ndarray:
    """a + b in int64. OutOfRange where the sum does not fit: two numbers of one sign whose sum has the other."""
    total = a + b
    if np.any(((a ^ total) & (b ^ total)) < 0):
        raise OutOfRange(quantity, step, OUT_OF_RANGE)
    return total


OUT_OF_RANGE = "int64 fixed point holds |x| < 2048 only; a smaller learning rate or initial scale, or keep the states"


# -- γ as a fraction --------------------------------------------------------------------------------------------------


def fraction(gamma: float) -> tuple[int, int]:
    """(n, d) = (⌈γ 2^16⌉, 2^16): n/d ≥ γ by at most 1/d ≤ 1.53e-5, and γ itself where it is such a fraction (.5, .75).

    The authors' code has d = 2^16 // fix(γ + 1), n = fix(γ d + 1), which rounds those up too. Four roundings are taken off
    before: logit γ and back must not make a .75 the next fraction.
    Raises UsageError for a γ outside 2^-16 … 1 − 2^-16 (`refusals.refuse_momenta`).
    """
    refuse_momenta([np.asarray(gamma)])
    d = 2**DENOMINATOR
    return min(math.ceil(gamma * d * (1 - 4 * np.finfo(float).eps)), d - 1), d


def fractions(problem: Problem, hyper: Hyper) -> dict[str, np.ndarray]:
    """n of the momentum n/2^16 of each tensor, int64: () or, where it is declared per step, (T,)."""
    gammas = problem.values(hyper)["momentum"]
    return {name: np.vectorize(lambda g: fraction(float(g))[0], otypes=[np.int64])(one) for name, one in gammas.items()}


def rounded(problem: Problem, hyper: Hyper) -> tuple[Problem, Hyper]:
    """The same problem with the momentum that fixed point can have, the effective γ = n/d, wherever γ appears: in (1−γ) too.

    So what is differentiated is the damped dynamics with the effective γ, not one with two momenta.
    UsageError for dynamics other than 'damped' and for momenta outside 2^-16 … 1 − 2^-16, declared bounds included.
    """
    refuse_reversible(problem)
    declared = problem.declared("momentum")
    if declared is None:
        n, d = fraction(problem.dynamics.momentum)
        return problem.with_(dynamics=replace(problem.dynamics, momentum=n / d)), hyper

    def effective(u: Array) -> np.ndarray:
        gamma = np.vectorize(lambda g: np.divide(*fraction(float(g))), otypes=[np.float64])(declared.value(u))
        return np.asarray(declared.free(gamma))

    arrays = {key: effective(np.asarray(u, dtype=np.float64)) for key, u in hyper["momentum"].items()}
    return problem, hyper | {"momentum": arrays}


def capacity(gammas: Any) -> int:
    """For how many steps an int64 buffer lasts: K = ⌊(62 − 16 − log2(1/(1−γ)) − 1) / log2(1/γ)⌋.

    After k steps B < γ^−k / (1−γ), and B d must stay below 2^62; the 1 is to spare. 274 / 549 / 1350 at γ = .9 / .95 / .98.
    gammas: one, or those of all steps: then the smallest fills the buffer and the greatest starts it.
    """
    low, high = float(np.min(gammas)), float(np.max(gammas))
    return math.floor((ROOM - DENOMINATOR + math.log2(1 - high) - 1) / -math.log2(low))


# -- buffers ----------------------------------------------------------------------------------------------------------


@dataclass
class Digits:
    """The digits that multiplications by n/d have taken from one tensor.

    B: (shape of the tensor) int64, or Python integers (dtype object) where capacity is None; aside: the full ones.
    """

    B: np.ndarray
    capacity: int | None
    aside: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def empty(cls, shape: tuple[int, ...], capacity: int | None) -> Digits:
        return cls(np.zeros(shape, dtype=object if capacity is None else np.int64), capacity)

    def copy(self) -> Digits:
        """One that can be emptied while this one stays (no array is ever written into)."""
        return Digits(self.B, self.capacity, list(self.aside))

    def multiply(self, i: np.ndarray, n: int, d: int, step: int) -> np.ndarray:
        """i n/d, reversibly, at a step; a full buffer is put aside first."""
        if self.full_before(step):
            self.aside.append(self.B)
            self.B = np.zeros_like(self.B)
        return self.exchange(i, n, d)

    def divide(self, i: np.ndarray, n: int, d: int, step: int) -> np.ndarray:
        """Undo `multiply` at that step. VerificationFailure where a buffer should be empty again and is not."""
        i = self.exchange(i, d, n)
        if self.full_before(step):
            self.check_empty(step)
            self.B = self.aside.pop()
        return i

    def exchange(self, i: np.ndarray, n: int, d: int) -> np.ndarray:
        """i ← i n/d: what the division loses goes into B, what the multiplication leaves open comes from B.

        B = B d + (i mod d);  i = i // d;  i = i n;  i = i + B mod n;  B = B // n     (floor, remainder ≥ 0)
        """
        B = self.B * d + (i % d).astype(self.B.dtype)
        i = i // d * n + (B % n).astype(np.int64)
        self.B = B // n
        return i

    def full_before(self, step: int) -> bool:
        return self.capacity is not None and step > 0 and step % self.capacity == 0

    def check_empty(self, step: int) -> None:
        if np.any(self.B != 0):
            raise VerificationFailure(f"exact reversal: at step {step} the buffer is not empty; {NOT_REPRODUCED}")

    @property
    def nbytes(self) -> int:
        """Bytes kept: 8 per number and buffer; for Python integers what they say of themselves and the pointers to them."""
        own = sum(map(sys.getsizeof, self.B.flat)) if self.capacity is None else 0
        return self.B.nbytes + own + sum(one.nbytes for one in self.aside)

    def bits(self) -> float:
        """Bits in use, over all numbers: Σ log2(1 + B) for Python integers, 64 for each int64 that was begun."""
        if self.capacity is None:
            return sum(math.log2(1 + b) for b in self.B.flat)
        return 64.0 * self.B.size * (1 + len(self.aside))


NOT_REPRODUCED = (
    "the gradients of the run were not reproduced; pass the problem, hyperparameters and training of one run, "
    "on one machine with one number of threads"
)


class Lost(NamedTuple):
    """This engine's form of `Undoable.lost`."""

    n: dict[str, np.ndarray]
    digits: dict[str, Digits]


# -- a state that can go both ways ------------------------------------------------------------------------------------


@dataclass
class Integers:
    """(w, v) of a run in fixed point, with the digits lost so far. Forward and back are mirror images:

        forward, step t       v *= γ;   v −= (1−γ) g;   w += α v
        back,    step t                 w −= α v;   v += (1−γ) g;   v /= γ

    w, v: {name: int64}; n: {name: () or (T,)} the numerators of γ. g, α and 1−γ are floats; each product becomes integers by
    truncation, the same way in both directions. No function here writes into an array that it was given.
    """

    w: Params
    v: Params
    n: dict[str, np.ndarray]
    digits: dict[str, Digits]

    @classmethod
    def start(cls, w0: Params, n: dict[str, np.ndarray], unbounded: bool) -> Integers:
        """At (w_0 truncated, 0). Raises OutOfRange for |w_0| ≥ 2048."""
        w = {p: to_fixed(one, named("w", p), 0) for p, one in w0.items()}
        v = {p: np.zeros_like(one) for p, one in w.items()}
        lasts = {p: None if unbounded else capacity(n[p] / 2.0**DENOMINATOR) for p in w}
        return cls(w, v, n, {p: Digits.empty(one.shape, lasts[p]) for p, one in w.items()})

    @classmethod
    def resume(cls, kept: Undoable) -> Integers:
        """Where a run ended; `kept` is not changed by going back from it. UsageError for what another engine kept."""
        if not isinstance(kept.lost, Lost):
            raise UsageError(
                "this reversible run is another engine's, whose digits only it can read; go back with that one"
            )
        n, digits = kept.lost
        return cls(dict(kept.w), dict(kept.v), n, {p: one.copy() for p, one in digits.items()})

    def weights(self) -> Params:
        return {p: to_float(one) for p, one in self.w.items()}

    def velocity(self) -> Params:
        return {p: to_float(one) for p, one in self.v.items()}

    def momentum(self, p: str, t: int) -> tuple[int, int]:
        """(n, d) of γ in lowest terms: `exchange` is exact to n units in the last place, so ¾ must not be 49152/65536."""
        n, d = int(self.n[p][t] if self.n[p].ndim else self.n[p]), 2**DENOMINATOR
        common = math.gcd(n, d)
        return n // common, d // common

    def forward(self, t: int, g: Params, alpha: Params) -> None:
        """Step t. Raises OutOfRange (w or v of which tensor, t) on overflow."""
        for p in self.w:
            n, d = self.momentum(p, t)
            v = self.digits[p].multiply(self.v[p], n, d, t)
            self.v[p] = add(v, -to_fixed((1 - n / d) * g[p], named("v", p), t), named("v", p), t)
            self.w[p] = add(self.w[p], self.move(p, t, alpha), named("w", p), t)

    def back_weights(self, t: int, alpha: Params) -> None:
        """The first half of undoing step t, after which w is w_t and g can be computed."""
        for p in self.w:
            self.w[p] = self.w[p] - self.move(p, t, alpha)

    def back_velocity(self, t: int, g: Params) -> None:
        """The second half: v is v_t. VerificationFailure where a buffer does not come out empty."""
        for p in self.w:
            n, d = self.momentum(p, t)
            v = self.v[p] + to_fixed((1 - n / d) * g[p], named("v", p), t)
            self.v[p] = self.digits[p].divide(v, n, d, t)

    def move(self, p: str, t: int, alpha: Params) -> np.ndarray:
        return to_fixed(alpha[p] * to_float(self.v[p]), named("w", p), t)

    def check_start(self, w0: Params) -> None:
        """VerificationFailure unless this is (w_0, 0) to the last bit and every buffer is empty."""
        for p in self.w:
            self.digits[p].check_empty(0)
            if np.any(self.w[p] != to_fixed(w0[p], named("w", p), 0)) or np.any(self.v[p] != 0):
                raise VerificationFailure(
                    f"exact reversal did not come back to w_0 and v_0 = 0 in {p}; {NOT_REPRODUCED}"
                )

    def undoable(self, steps: int) -> Undoable:
        """The record of a run of so many steps. momentum: the effective γ of each tensor, (T,) where it is declared per step."""
        sizes = sum(one.size for one in self.w.values())
        arrays = (*self.w.values(), *self.v.values(), *self.digits.values())
        return Undoable(
            w=self.w,
            v=self.v,
            lost=Lost(self.n, self.digits),
            bits=sum(one.bits() for one in self.digits.values()) / (sizes * steps),
            momentum={p: n / 2.0**DENOMINATOR if n.ndim else float(n) / 2.0**DENOMINATOR for p, n in self.n.items()},
            nbytes=sum(one.nbytes for one in arrays),
        )


def named(what: str, p: str) -> str:
    return f"{'elementary weights' if what == 'w' else 'velocity'} ({p})"
