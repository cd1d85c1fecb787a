"""What a setting may be: each check passes or raises UsageError, one line with the name, the value and what was expected."""

from __future__ import annotations

import math

from .errors import UsageError


def one_of(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UsageError(f"{what} {word!r}, expected one of {', '.join(known)}")


def at_least(what: str, number: float, least: float) -> None:
    if not number >= least:
        raise UsageError(f"{what} {number}, expected at least {least}")


def at_most(what: str, number: float, most: float, why: str) -> None:
    """why: the reason of the bound, as in 'steps 10000000000, expected at most 100000000: the loss of every step is kept'."""
    if not number <= most:
        raise UsageError(f"{what} {shortened(number)}, expected at most {most}: {why}")


def finite(what: str, number: float) -> None:
    if not math.isfinite(number):
        raise UsageError(f"{what} {number:g}, expected a finite number")


def shortened(number: float) -> str:
    """A number for a message; Python does not print whole numbers of thousands of digits."""
    if isinstance(number, float):
        return f"{number:g}"
    return str(number) if abs(number) < 10**20 else "of more than 20 digits"


def positive(what: str, number: float) -> None:
    """Zero, infinity and NaN are refused."""
    if not 0.0 < number < float("inf"):
        raise UsageError(f"{what} {number:g}, expected a positive number")


def fraction(what: str, number: float) -> None:
    if not 0.0 <= number < 1.0:
        raise UsageError(f"{what} {number:g}, expected at least 0 and below 1")


def multiple(what: str, number: int, of: int, why: str) -> None:
    """A positive multiple. why: what `of` is, as in 'steps 30, expected a multiple of 20 (the steps of a block)'."""
    at_least(what, number, 1)
    if number % of:
        raise UsageError(f"{what} {number}, expected a multiple of {of} ({why})")


def divisor(what: str, number: int, of: int, why: str) -> None:
    at_least(what, number, 1)
    if of % number:
        raise UsageError(f"{what} {number}, expected a divisor of {of} ({why})")
