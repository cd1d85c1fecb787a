"""What a training run keeps of its trajectory, as the caller names it. What was kept decides how Exact finds its states.

| keep | kept | the exact reverse pass then | memory |
|---|---|---|---|
| "ends" | w_0 and w_T | cannot go | 2 states |
| "memory" | every state, on the device | reads them | T states |
| "host" | every state, in the host's RAM | reads them | T states |
| a Path | every state, in HDF5 segments there | reads them, one chunk at a time | T states on disk |
| "auto" | every state, in the first of device, host and disk that has room | reads them | T states |
| Checkpoints(n) | n states, about √T by default | recomputes each stretch between two of them | n states and one stretch |
| Last(K) | the last K states | only truncated methods go | K states |
| Reversible() | integers and what γ took from them | undoes them, to the bit | 1 state, log2(1/γ) bits a number and step |

A Path is the folder of the states, which training makes; the folder above it must be there. Training returns while the last
segments are still being written, and the reverse pass begins with those; all is on the disk when the reverse pass,
`trajectory.flush()` or `trajectory.close()` has returned. They raise what went wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError


@dataclass(frozen=True)
class Checkpoints:
    """n states, the first of them w_0, at distances that differ by one step at most; at n = T it is every state.

    None: about √T, at equal distances: ⌈T/⌈√T⌉⌉ steps, or up to half as many again if that divides T (25 states, 40 steps
    apart, of T = 1000). The reverse pass costs one more forward run. A compiled engine compiles its programs once for each
    length of a stretch: twice where n does not divide T. UsageError (from `at`) for n > T.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UsageError(f"checkpoints {self.count}, expected at least 1")

    def at(self, steps: int) -> list[int]:
        """The steps whose states are kept, rising from 0; the stretches of ⌈T/n⌉ steps come before those of ⌊T/n⌋."""
        if self.count is None:
            least = -(-steps // (math.isqrt(steps - 1) + 1))
            length = next((L for L in range(least, least * 3 // 2 + 1) if steps % L == 0), least)
            return list(range(0, steps, length))
        if self.count > steps:
            raise UsageError(f"{self.count} checkpoints for {steps} steps, expected at most one for each step")
        length, longer = divmod(steps, self.count)
        return [k * length + min(k, longer) for k in range(self.count)]


@dataclass(frozen=True)
class Last:
    """The states of the last `steps` steps."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"last {self.steps} states, expected at least 1")


@dataclass(frozen=True)
class Reversible:
    """Train in int64 fixed point so that every step can be undone to the bit (Maclaurin et al. 2015, section 2.3, algorithm 3).

    For the damped dynamics with 2⁻¹⁶ ≤ γ ≤ 1 − 2⁻¹⁶ alone; γ is rounded up to a fraction n/2¹⁶, by at most 1.5e-5, and this
    effective momentum is what is trained with and differentiated (`Undoable.momentum`). UsageError for other dynamics and
    momenta, and on a device whose gradients do not repeat to the bit: a GPU needs XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    NumericalFailure where a weight or velocity leaves fixed point (gpu: |x| < 1024, cpu: |x| < 2048), VerificationFailure where
    the way back does not arrive at w_0, v_0 = 0 and empty buffers. Memory: one state and log2(1/γ) bits a number and step, in
    steps of 64. docs/exact.md has the arithmetic.
    unbounded: keep the lost digits in one integer of any length per number, as in the paper ("50 times slower"; the reference
    engine only), instead of int64 buffers that are put aside whenever they are full. The effective γ is the same, and so is
    every number until the first buffer is put aside (after 274 / 549 / 1350 steps at γ = .9 / .95 / .98). From then on other
    digits fill the low end of v, by less than 2⁻³⁶ a step: two runs that are both undone to the bit, and differ by rounding.
    """

    unbounded: bool = False


Keep = str | Path | Checkpoints | Last | Reversible
WORDS = ("ends", "memory", "host", "auto")


def from_middle(keep: Keep) -> bool:
    """Whether a training that was stopped can go on from its middle (midway.py): what it keeps is on the disk, or nothing."""
    return keep == "ends" or isinstance(keep, Path)


def check(keep: Keep) -> None:
    """Raise UsageError for a word that is none of WORDS."""
    if isinstance(keep, str) and keep not in WORDS:
        raise UsageError(
            f"keep {keep!r}, expected {', '.join(map(repr, WORDS))}, a Path, Checkpoints, Last or Reversible"
        )


def parse_keep(word: str, folder: Path) -> Keep:
    """What `--trajectory` says: 'memory', 'host', 'auto', 'disk' (in `folder`), 'checkpoints', 'checkpoints-30', 'reversible'."""
    found: dict[str, Keep] = {"disk": folder, "checkpoints": Checkpoints(), "reversible": Reversible()}
    number = word.removeprefix("checkpoints-")
    if number != word and number.isdecimal():
        return Checkpoints(int(number))
    if word not in (*found, *WORDS[1:]):
        raise UsageError(
            f"trajectory {word!r}, expected memory, host, disk, auto, checkpoints, checkpoints-N or reversible"
        )
    return found.get(word, word)
