"""The ways to a hypergradient, as the caller names them. The engines do the work; these say which and with what settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

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
class AsPublished:
    """What the original DrMAD programs do and the completions do not: each choice is off by default, for comparison only.

    Sources: the CPU code of DrMAD's authors (C1), the CPU and the GPU code of the thesis (C2 to C5); docs/drmad.md numbers them.

    end_velocity: v_0 = (ρ_0 − ρ_{N−1}) (w_T − w_0) / α_0: their index −1 is the END of the array. The true v_0 is 0.
    line_dalpha: dα_i = ⟨dw, v_i⟩ with the velocity v_i of the line. The adjoint of the step has v' = γ v_i − (1−γ) g_i there.
    inner_rho: ρ = linspace(.001, .999, N), as C1 has it, in C2 to C5.
    without_last: C5's line has N − 1 points: the one next to w_{T−K} is left out (of N = 1 points it is kept).
    sum_of_norms: N from Σ ‖·‖ over the tensors, for the first steps as for the whole way. It takes the first 20 steps again.
    regularized_only: no adjoint for the parameters that are not regularizable, biases for instance: dw = 0 there throughout.
    """

    end_velocity: bool = False
    line_dalpha: bool = False
    inner_rho: bool = False
    without_last: bool = False
    sum_of_norms: bool = False
    regularized_only: bool = False

    def __str__(self) -> str:
        """':end_velocity:line_dalpha', the choices that are on, as they follow a method's name."""
        return "".join(f":{name}" for name in self.on)

    @property
    def on(self) -> tuple[str, ...]:
        return tuple(one.name for one in fields(self) if getattr(self, one.name))


class LineStep(NamedTuple):
    """How one reverse step on a line differs from the adjoint of a step; all False: it does not.

    literal: algorithm 2 as printed (C0). line_dalpha, regularized_only: see AsPublished.
    """

    literal: bool = False
    line_dalpha: bool = False
    regularized_only: bool = False


EXACT_STEP = LineStep()


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
    first_batches: C1, C3, C4 and C5; reverse step i uses minibatch i, as in all the original programs, so only the first N
    minibatches of the run. Published numbers need it.
    spread: without first_batches, how the N minibatches of C1 and C3 to C6 are spread over the run. 'drawn': reverse step i
    uses that of a step drawn from the i-th of N equal stretches, by the problem's seed. 'even': that of the stretch's
    first step, as this package did before; POOR: where T/N divides an epoch of fixed order, the same few minibatches return.
    tail: C5 only; None: `tail_steps` of the momentum (its GPU code: 20). K = 0 is C4. K = T is exact to the digits that are
    left, each step losing log2(1/γ) bits; a tail that loses more bits than the mantissa has is refused (`mantissa`).
    multiplier, max_steps: C4, C5 and C6: N = min(ceil(multiplier / b), max_steps, T). The thesis' CPU code has multiplier .1
    and no bound, its GPU code 1 and 600.
    choices: further choices of the original programs, all off.
    Cost: N products (2 gradients each); memory: two states, of C6 the n that were kept and w_T.
    """

    completion: str = "C4"
    multiplier: float = 1.0
    max_steps: int = 600
    tail: int | None = None
    first_batches: bool = False
    spread: str = "drawn"
    choices: AsPublished = field(default_factory=AsPublished)

    def __post_init__(self) -> None:
        if self.completion not in COMPLETIONS:
            raise UsageError(f"completion {self.completion!r}, expected one of {', '.join(COMPLETIONS)}")
        if self.first_batches and self.completion not in FIRST_OF:
            raise UsageError(f"first_batches is for completions {', '.join(FIRST_OF)}, not for {self.completion}")
        if self.spread not in SPREADS:
            raise UsageError(f"spread {self.spread!r}, expected one of {', '.join(SPREADS)}")
        if self.spread != "drawn" and (self.first_batches or self.completion not in SPREAD_OF):
            what = "first_batches" if self.first_batches else f"completion {self.completion}"
            raise UsageError(f"spread {self.spread!r}: {what} spreads no minibatches over the run; leave it out")
        for choice in self.choices.on:
            if self.completion not in CHOICE_OF[choice]:
                raise UsageError(f"{choice} is for {', '.join(CHOICE_OF[choice])}, not for {self.completion}")
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
        batches = FIRST if self.first_batches else EVEN if self.spread == "even" else ""
        return f"drmad-{self.completion}{batches}{self.choices}"

    @property
    def step(self) -> LineStep:
        """How a reverse step on the line is taken."""
        return LineStep(self.completion == "C0", self.choices.line_dalpha, self.choices.regularized_only)


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

    Each step back multiplies the error by 1/γ, so all is lost after mantissa / log2(1/γ) steps (float32: 158 / 324 / 823 at
    γ = .9 / .95 / .98; `mantissa.horizon`). Longer runs are refused with a UsageError, and a pass that does not arrive at the
    known w_0 and v_0 = 0 raises VerificationFailure. beyond: neither of them, to watch how it dies; what comes back is noise
    then. Cost as Exact; memory: one state.
    """

    beyond: bool = False

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
FIRST, EVEN = "-first", "-even"
COMPLETIONS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6")
SPREADS = ("drawn", "even")
FIRST_OF = (
    "C1",
    "C3",
    "C4",
    "C5",
)  # C0 and C2 give each of T steps its own minibatch; C6 is not of the original programs
SPREAD_OF = (*FIRST_OF, "C6")
# A choice has a meaning in these. C0 is the printed algorithm, C6 is ours; C1 has the inner ρ as it is.
CHOICE_OF = {
    "end_velocity": ("C1", "C2", "C3", "C4", "C5"),
    "line_dalpha": ("C1", "C2", "C3", "C4", "C5"),
    "inner_rho": ("C2", "C3", "C4", "C5"),
    "without_last": ("C5",),
    "sum_of_norms": ("C4", "C5"),
    "regularized_only": ("C1", "C2", "C3", "C4"),
}
Method = Exact | DrMAD | Truncated | FloatReversed | Forward | Implicit
WITHOUT_SETTINGS: tuple[Method, ...] = (Exact(), Truncated(), FloatReversed(), Forward(), *map(Implicit, SOLVERS))
SIMPLE = {method.name: method for method in WITHOUT_SETTINGS}

NAMES = (
    "exact",
    *(f"drmad-{one}" for one in COMPLETIONS),
    *(f"drmad-{one}{FIRST}" for one in FIRST_OF),
    *(f"drmad-{one}{EVEN}" for one in SPREAD_OF),
    "truncated-K",
    *list(SIMPLE)[1:],
)


def parse_method(word: str) -> Method:
    """'exact', 'drmad-C0' … 'drmad-C6', 'truncated', 'truncated-20', 'forward', 'implicit-cg' … → the method.

    'drmad-C1-first' is DrMAD("C1", first_batches=True), 'drmad-C4-even' DrMAD("C4", spread="even"). Settings follow after
    colons: 'drmad-C5:tail=20', 'implicit-cg:damping=0.01:tolerance=1e-4'; so do, by name alone, the choices of the original
    programs: 'drmad-C4-first:sum_of_norms:regularized_only'. Raises UsageError for what it does not know.
    """
    name, *settings = word.split(":")
    method = named(name)
    said = ("steps",) if name.startswith("truncated-") else IN_THE_NAME
    known = {one.name: str(one.type) for one in fields(method) if one.name not in said}
    choices = [one.name for one in fields(AsPublished)] if isinstance(method, DrMAD) else []
    given: dict[str, Any] = {}
    chosen = [setting for setting in settings if setting in choices]
    for setting in settings:
        if setting in choices:
            continue
        key, _, value = setting.partition("=")
        if key not in known:
            expected = ", ".join([*known, *choices]) or "none"
            raise UsageError(f"method {word!r}: {name} has no setting {key!r}, expected {expected}")
        given[key] = setting_of(word, key, value, known[key])
    if chosen:
        given["choices"] = AsPublished(**dict.fromkeys(chosen, True))
    return replace(method, **given)


IN_THE_NAME = ("completion", "first_batches", "spread", "choices", "solver")


def named(word: str) -> Method:
    if word in SIMPLE:
        return SIMPLE[word]
    if word.startswith("drmad-"):
        completion = word.removeprefix("drmad-")
        if completion.endswith(EVEN):
            return DrMAD(completion.removesuffix(EVEN), spread="even")
        return DrMAD(completion.removesuffix(FIRST), first_batches=completion.endswith(FIRST))
    if word.startswith("truncated-") and word.removeprefix("truncated-").isdecimal():
        return Truncated(int(word.removeprefix("truncated-")))
    raise UsageError(f"method {word!r}, expected one of {', '.join(NAMES)}")


def setting_of(word: str, field: str, value: str, type_name: str) -> float:
    """The value of a setting, by the type of its field: true or false, a whole number, or a number."""
    if type_name == "bool":
        if value not in ("true", "false"):
            raise UsageError(f"method {word!r}: {field} is {value!r}, expected true or false, as in {field}=true")
        return value == "true"
    whole = type_name.startswith("int")
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


def points(method: DrMAD, seed: int, start: int, stop: int, N: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line over the steps start … stop − 1: ρ_i, (n,) float64, and the step whose minibatch reverse step i uses,
    (n,) int64. n = N, or N − 1 by the choice without_last. Raises nothing.
    """
    rho = np.linspace(0.0, 1.0, N + 1)[:N]
    if method.completion == "C1" or method.choices.inner_rho:
        rho = np.linspace(0.001, 0.999, N)
    elif method.completion in ("C0", "C2"):
        rho = np.arange(N) / N
    last = max(N - 1, 1) if method.choices.without_last else N
    return rho[:last], batch_steps(method, seed, start, stop, N)[:last]


def batch_steps(method: DrMAD, seed: int, start: int, stop: int, N: int) -> np.ndarray:
    """(N,) int64, rising: the step of start … stop − 1 whose minibatch reverse step i of a line uses. N ≤ stop − start.

    With e_i = start + ⌊i (stop − start) / N⌋, the i-th of N equal stretches is e_i … e_{i+1} − 1. Spread 'even' takes e_i;
    'drawn' takes a step of the stretch, each with the same probability, from the stream "line" of the seed: a pure function
    of (seed, start, stop, N). Where N = stop − start, both give each reverse step its own.
    """
    i = np.arange(N + 1)
    if method.first_batches:
        return start + i[:N]
    ends = start + i * (stop - start) // N
    if method.spread == "even":
        return ends[:N]
    from hypertrail_data import streams

    return streams.generator(seed, "line", start).integers(ends[:-1], ends[1:])


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
