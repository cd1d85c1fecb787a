"""The ways to a hypergradient, as the caller names them. The engines do the work; these say which and with what settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from .errors import UsageError

TOO_SHORT = 5  # steps of a run or stretch: the speed of a line is that of its steps 5 to 20
MEASURED_STEPS = 20  # the first steps of a run (and of each stretch between checkpoints) whose speed is measured


@dataclass(frozen=True)
class Exact:
    """Exact reverse pass over the stored trajectory (Maclaurin et al. 2015, algorithm 2, with the states kept).

    Cost: T products (2 gradients each) on top of the T gradients of training; memory: T states.
    """

    name = "exact"


@dataclass(frozen=True)
class DrMAD:
    """Reverse pass along the straight line from w_0 to w_T (Fu et al. 2016). POOR on long runs: measure it against Exact.

    completion: what fills the gaps of the printed algorithm:
      C0  algorithm 2 to the letter: T steps, no velocity, no learning rate
      C1  the authors' code: N = T/10, β = linspace(.001, .999, N), α of step i, full recursion
      C2  the thesis: N = T, full recursion. Explodes: about 1e10 times the exact one at long T
      C3  the thesis: N = min(T, 200), full recursion
      C4  the thesis: N from the speed of the first steps, ρ = linspace(0, 1, N+1)[:N], learning rate at the end
      C5  DrMAD2: the last `tail` steps undone in floating point with the full dynamics, then C4 on w_0 → w_{T−tail}
      C6  piecewise: C4 on each stretch between kept states (keep=Checkpoints(n)), each with its own speed and learning rate
    first_batches: C1 only; reverse step i uses minibatch i, as in the authors' code, so only the first tenth of the batches;
    False: the N minibatches are spread evenly over the run, as in C4. Published numbers need it.
    tail: C5 only; None: `tail_steps` of the momentum (its GPU code: 20); K = T is exact, K = 0 is C4.
    multiplier, max_steps: C4, C5 and C6: N = min(ceil(multiplier / b), max_steps, T). The thesis' CPU code has multiplier .1
    and no bound, its GPU code 1 and 600.
    Cost: N products (2 gradients each); memory: two states, of C6 the n that were kept and w_T.
    """

    completion: str = "C4"
    multiplier: float = 1.0
    max_steps: int = 600
    tail: int | None = None
    first_batches: bool = False

    def __post_init__(self) -> None:
        if self.completion not in COMPLETIONS:
            raise UsageError(f"completion {self.completion!r}, expected one of {', '.join(COMPLETIONS)}")
        if self.first_batches and self.completion != "C1":
            raise UsageError(f"first_batches is for completion C1, not for {self.completion}")
        if not (self.multiplier > 0 and math.isfinite(self.multiplier)):
            raise UsageError(f"multiplier {self.multiplier}, expected a positive number")
        if self.max_steps < 1:
            raise UsageError(f"max_steps {self.max_steps}, expected at least 1")
        if self.tail is not None and self.tail < 0:
            raise UsageError(f"tail {self.tail}, expected 0 or more")
        if self.tail is not None and self.completion != "C5":
            raise UsageError(f"tail is for completion C5, not for {self.completion}")
        if (self.multiplier, self.max_steps) != (1.0, 600) and self.completion not in ("C4", "C5", "C6"):
            raise UsageError(f"multiplier and max_steps are for completions C4, C5 and C6, not for {self.completion}")

    @property
    def name(self) -> str:
        return f"drmad-{self.completion}{FIRST if self.first_batches else ''}"


@dataclass(frozen=True)
class Truncated:
    """Exact reverse pass, stopped after the last `steps` steps (Shaban et al. 2019). A biased estimate, often good enough.

    steps = T is exact; steps = 1 is T1–T2 up to the factor of the learning rate. Cost: K products (2 gradients each); needs
    the last K states (keep=Last(K), or every state).
    """

    steps: int = 20

    name = "truncated"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"truncated steps {self.steps}, expected at least 1")


@dataclass(frozen=True)
class FloatReversed:
    """Undo the steps in floating point from (w_T, v_T): v ← (v + (1−γ) g) / γ. POOR: a negative control, not a method.

    Each step back multiplies the error by 1/γ, so it is lost after mantissa / log2(1/γ) steps (float32: 158 / 302 / 706 at
    γ = .9 / .95 / .98). Cost as Exact; memory: one state.
    """

    name = "float-reversed"


@dataclass(frozen=True)
class Forward:
    """Forward mode (Franceschi et al. 2017, algorithm 2): Z ← A Z + B beside the training, one column per hyperparameter.

    Exact, equal to Exact to rounding. Trains the run again by itself: nothing of the trajectory is kept.
    Cost: T gradients and T · m products (tangents, 2 gradients each); memory: m states. Right for a few dozen
    hyperparameters, refused above `most`.
    """

    most: int = 64

    name = "forward"


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at w_T (Bengio 2000; Lorraine et al. 2020): dλ = ∂_λ f − (∂²L/∂λ∂w)ᵀ H⁻¹ ∇f(w_T).

    Right only where w_T is a minimum of L over the WHOLE training split (dropout off): otherwise POOR. Knows nothing of
    learning rate and momentum: asking for these is an error.
    solver: 'cg' (conjugate gradients; H must be positive definite, negative curvature raises), 'neumann'
    (p = η Σ_{j≤K} (I − ηH)^j ∇f, η = step) or 'dense' (Cholesky of the full Hessian, for P up to `most`).
    Cost: one product over the whole split for each iteration (dense: P), one for the residual and one for the mixed term.
    damping: added to H. A solve that does not reach `tolerance` (relative residual; None: 1e-8 in float64, 1e-5 in float32)
    within `iterations` raises.
    """

    solver: str = "cg"
    iterations: int = 1000
    tolerance: float | None = None
    step: float = 0.1
    damping: float = 0.0
    most: int = 5000

    @property
    def name(self) -> str:
        return f"implicit-{self.solver}"

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UsageError(f"solver {self.solver!r}, expected one of {', '.join(SOLVERS)}")
        good = (
            (self.tolerance is None or 0 < self.tolerance < 1)
            and 0 < self.step < math.inf
            and 0 <= self.damping < math.inf
        )
        if self.iterations < 1 or not good:
            raise UsageError(
                f"implicit: iterations {self.iterations}, tolerance {self.tolerance}, step {self.step:g}, "
                f"damping {self.damping:g}: expected positive numbers, tolerance below 1 (damping may be 0)"
            )

    def at(self, precision: str) -> Implicit:
        """The same with a tolerance that numbers of this precision can reach, where none was given."""
        return self if self.tolerance is not None else replace(self, tolerance=RESIDUAL[precision])


RESIDUAL = {"float64": 1e-8, "float32": 1e-5}
SOLVERS = ("cg", "neumann", "dense")
FIRST = "-first"
COMPLETIONS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6")
Method = Exact | DrMAD | Truncated | FloatReversed | Forward | Implicit
WITHOUT_SETTINGS: tuple[Method, ...] = (Exact(), Truncated(), FloatReversed(), Forward(), *map(Implicit, SOLVERS))
SIMPLE = {method.name: method for method in WITHOUT_SETTINGS}

NAMES = ("exact", *(f"drmad-{one}" for one in COMPLETIONS), f"drmad-C1{FIRST}", "truncated-K", *list(SIMPLE)[1:])


def parse_method(word: str) -> Method:
    """'exact', 'drmad-C0' … 'drmad-C6', 'truncated', 'truncated-20', 'forward', 'implicit-cg' … → the method.

    'drmad-C1-first' is DrMAD("C1", first_batches=True). Settings follow after colons: 'drmad-C5:tail=20',
    'implicit-cg:damping=0.01:tolerance=1e-4'. Raises UsageError for what it does not know.
    """
    name, *settings = word.split(":")
    method = named(name)
    said = ("steps",) if name.startswith("truncated-") else IN_THE_NAME
    known = {field.name: field.type for field in fields(method) if field.name not in said}
    given: dict[str, float] = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        if field not in known:
            expected = ", ".join(known) or "none"
            raise UsageError(f"method {word!r}: {name} has no setting {field!r}, expected {expected}")
        given[field] = number(word, field, value, whole=known[field].startswith("int"))
    return replace(method, **given)  # type: ignore[arg-type]  # the names and numbers are checked above


IN_THE_NAME = ("completion", "first_batches", "solver")


def named(word: str) -> Method:
    if word in SIMPLE:
        return SIMPLE[word]
    if word.startswith("drmad-"):
        completion = word.removeprefix("drmad-")
        return DrMAD(completion.removesuffix(FIRST), first_batches=completion.endswith(FIRST))
    if word.startswith("truncated-") and word.removeprefix("truncated-").isdecimal():
        return Truncated(int(word.removeprefix("truncated-")))
    raise UsageError(f"method {word!r}, expected one of {', '.join(NAMES)}")


def number(word: str, field: str, value: str, whole: bool) -> float:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"method {word!r}: {field} is {value!r}, expected {kind}, as in {field}=20") from None


def ends_at(method: Method, steps: int) -> int:
    """The step at which the pass of a method over T steps ends: where a hypergradient that is not finite is said to be."""
    if isinstance(method, Truncated):
        return max(steps - method.steps, 0)
    return steps if isinstance(method, Forward | Implicit) else 0


def tail_steps(gamma: float) -> int:
    """K of completion C5 in the thesis' CPU code: K = int(20 / (3 (−log2 γ))), 90 at γ = .95 (its GPU code: 20).

    So many steps can be undone in float32 before the error has grown a hundredfold. 0 at γ = 0.
    """
    return int(20 / (3 * -math.log2(gamma))) if gamma > 0 else 0


def tail_of(method: DrMAD, momenta: Iterable[np.ndarray], steps: int) -> int:
    """K of completion C5: method.tail, or `tail_steps` of the SMALLEST momentum, whose steps lose the most; at most T."""
    K = tail_steps(min(float(np.min(one)) for one in momenta)) if method.tail is None else method.tail
    return min(K, steps)


def speed_matched_steps(distances: Sequence[float], total: float, steps: int, method: DrMAD) -> int:
    """N of completion C4: as many steps as the line has at the speed of the first steps.

        s_k = ‖w_{k+1} − w_0‖ / (k+1),  k = 4 … min(20, T) − 1
        q_i = 2^−(i+1) for i ≥ 1,  q_0 = 1 − Σ q_i
        b = Σ q_i s_{4+i} / ‖w_T − w_0‖,   N = min(ceil(multiplier / b), max_steps, T)

    distances: ‖w_{t+1} − w_0‖ for t = 0 … min(20, T)−1, further ones are not looked at; total: ‖w_T − w_0‖; steps: T.
    Raises UsageError for T < 5 or a run that did not move.
    """
    T = steps
    refuse_short(T)
    if not total > 0.0:
        raise UsageError("completion C4: w_T equals w_0, there is no line to follow; check the learning rate")
    s = [distances[k] / (k + 1) for k in range(4, min(MEASURED_STEPS, T))]
    q = [2.0 ** -(i + 1) for i in range(len(s))]
    q[0] = 1.0 - sum(q[1:])
    b = sum(qi * si for qi, si in zip(q, s, strict=True)) / total
    if not b > 0.0:
        raise UsageError("completion C4: the first steps did not move the weights; check the learning rate")
    # A hair is taken off before rounding up, so that a constant speed gives ceil(multiplier · T) and not one more.
    return max(1, min(math.ceil(method.multiplier / b * (1 - 1e-12)), method.max_steps, T))


def refuse_short(steps: int) -> None:
    """Raise UsageError for a run of fewer steps than completion C4 measures."""
    if steps < TOO_SHORT:
        raise UsageError(
            f"completion C4 measures the speed of steps 5 to 20, this run has {steps}; train longer or use C0"
        )


def stretch_steps(distances: Sequence[float], total: Callable[[], float], steps: int, method: DrMAD) -> int:
    """N of completions C5 and C6 on a stretch of `steps` steps: C4's rule, and min(max_steps, steps) where they are under 5.

    distances: from where the stretch begins, as for C4; total: its length, asked for only where the rule needs it.
    """
    if steps < TOO_SHORT:
        return min(steps, method.max_steps)
    return speed_matched_steps(distances, total(), steps, method)
