"""The reverse pass: one kernel, fed by any provider; the mirror image of `training.forward`. float64.

Forward,  t = 0 … T−1:   batch, rates → g = ∇L(w, batch) → (w, v) = dynamics(w, v, g, α, γ)
Reverse,  i = N−1 … 0:   batch, rates → g if it is needed → (dw, dv, u, dα, dγ) = adjoint(v, g, α, γ, dw, dv)
                         → dw += H u, dλ += (∂²L/∂λ∂w)ᵀ u
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hypertrail.engines import Progress, refuse
from hypertrail.errors import NumericalFailure, VerificationFailure
from hypertrail.hyperparameters import Hyper, collapse, unbroadcast
from hypertrail.methods import Exact, Method
from hypertrail.problem import Problem, Values
from hypertrail.records import Cost, Hypergradient, Params, Training

from .drmad import float64, line
from .dynamics import DYNAMICS
from .losses import elementary_gradient, hyper_gradient, in_float64, second_order
from .providers import Line, Provider, Stored
from .training import BLOCK, batch, norm, rates


@dataclass(frozen=True)
class Adjoint:
    """Where the reverse pass arrives: dw_0, dv_0, dλ = {kind: {name: d/d value}}, f, ‖dw‖ before each step, the last w it was
    handed (w_0 if the provider tells the truth), and what it cost."""

    dw: Params
    dv: Params
    dvalues: dict[str, Params]
    hyper_loss: float
    norms: np.ndarray
    w: Params
    cost: Cost


def reverse(
    problem: Problem,
    hyper: Hyper,
    provider: Provider,
    N: int,
    literal: bool = False,
    *,
    final: Params,
    progress: Progress | None = None,
) -> Adjoint:
    """Pull df back through N elementary steps, from w_T = final to w_0.

        dw = ∇f(w_T), dv = 0, dλ = ∂f/∂λ
        for i = N−1 … 0, with (w, v), batch and rates from the provider:
            dw, dv, u, dα, dγ = adjoint(v, g, α, γ, dw, dv)          dynamics.py; g, dα, dγ only where they are declared
            dλ += (∂²L/∂λ∂w)ᵀ u,  dw += H u

    literal: algorithm 2 of DrMAD as printed (completion C0): no dv, no α; u = −(1−γ) dw with the dw BEFORE its update, for
    dλ as for dw. dv stays 0.
    Exact where the provider's states are the true ones (Maclaurin et al. 2015, algorithm 2; reference section 2).
    Cost: N gradients with Hessian-vector product; N more gradients where learning rate or momentum is declared; one gradient
    per validation batch. Raises NumericalFailure where f, ‖dw‖ or a hypergradient is not finite.
    """
    clock = time.perf_counter()
    values = problem.values(hyper)
    _, adjoint = DYNAMICS[problem.dynamics.kind]
    factors = problem.dynamics.factors(problem.steps)
    f, dw, direct = hyper_gradient(problem, final, values)
    if not np.isfinite(f):
        raise NumericalFailure("hyper loss", problem.steps)
    dv = {p: np.zeros_like(one) for p, one in dw.items()}
    dvalues = zeros(problem, values)
    add(dvalues, direct)
    velocity = problem.needs_velocity()
    norms: list[float] = []
    i, w = N, final
    for i, batch_step, rate_step, w, v in provider.backwards():
        norms.append(check(dw, i))
        x, y = batch(problem, batch_step)
        alpha, gamma = rates(problem, values, rate_step)
        u: Params = {}
        if literal:
            u = {p: -(1 - gamma[p]) * dw[p] for p in dw}
        elif velocity:
            _, g, _ = elementary_gradient(problem, w, values, x, y, batch_step)
            dalpha, dgamma = {}, {}
            for p in dw:
                dw[p], dv[p], u[p], dalpha[p], dgamma[p] = adjoint(v[p], g[p], alpha[p], gamma[p], dw[p], dv[p])
            # The value is multiplied by the schedule's factor on its way to α.
            add_rate(
                problem, dvalues, "learning_rate", rate_step, {p: factors[rate_step] * d for p, d in dalpha.items()}
            )
            add_rate(problem, dvalues, "momentum", rate_step, dgamma)
        else:
            for p in dw:  # v and g enter dα and dγ alone, which nobody asks for
                dw[p], dv[p], u[p], _, _ = adjoint(0.0, 0.0, alpha[p], gamma[p], dw[p], dv[p])
        Hu, mixed = second_order(problem, w, values, x, y, batch_step, u)
        add(dvalues, mixed)
        dw = {p: dw[p] + Hu[p] for p in dw}
        if progress and (len(norms) % BLOCK == 0 or i == 0):
            progress(len(norms), N)
    if len(norms) != N or i != 0:
        raise VerificationFailure(
            f"the reverse pass took {len(norms)} steps down to step {i}, expected {N} down to step 0"
        )
    check(dw, 0)
    for kind, arrays in dvalues.items():
        if not all(np.isfinite(one).all() for one in arrays.values()):
            raise NumericalFailure(f"hypergradient of {kind}", 0)
    gradients = len(problem.valid_batches()[0]) + (N if velocity and not literal else 0)
    return Adjoint(dw, dv, dvalues, f, np.array(norms), w, Cost(gradients, N, time.perf_counter() - clock))


def zeros(problem: Problem, values: Values) -> dict[str, Params]:
    """A zero for each value of each declared kind, in the shapes of the values."""
    return {
        h.kind: {name: np.zeros(np.shape(value)) for name, value in values[h.kind].items()}
        for h in problem.hyperparameters
    }


def add(dvalues: dict[str, Params], terms: dict[str, Params]) -> None:
    """dvalues += terms, the terms summed over what shares a value."""
    for kind, arrays in terms.items():
        for name, d in arrays.items():
            dvalues[kind][name] += unbroadcast(d, dvalues[kind][name].shape)


def add_rate(problem: Problem, dvalues: dict[str, Params], kind: str, step: int, terms: Params) -> None:
    """The same for α or γ, into the row of the step where they are declared per step; nothing where they are constants."""
    declared = problem.declared(kind)
    if declared is None:
        return
    for name, d in terms.items():
        row: Any = (step,) if declared.per_step else ()
        whole = dvalues[kind][name]
        whole[row] += unbroadcast(d, whole[row].shape)


def check(dw: Params, step: int) -> float:
    """‖dw‖. NumericalFailure where it is not finite."""
    size = norm(dw)
    if not np.isfinite(size):
        raise NumericalFailure(
            "adjoint of the weights (‖dw‖)", step, "the run is chaotic or diverged; lower the learning rate"
        )
    return size


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what overflows is caught by name, not by a warning
def hypergradient(
    problem: Problem, hyper: Hyper, training: Training, method: Method, progress: Progress | None = None
) -> Hypergradient:
    """Gradient of f(w_T) with respect to every unconstrained hyperparameter array, float64, shapes as in `hyper`.

    Exact walks the trajectory, DrMAD a line (drmad.py). Cost and failures: see `reverse`; the rule of the count is that `hvps`
    has one entry per reverse step, `gradients` one per elementary gradient computed apart from it and one per validation
    batch. Raises UsageError before anything is computed for a combination that cannot work, VerificationFailure where a
    trajectory does not begin at the w_0 of this training. diagnostics: N, and 'zero', the kinds whose hypergradient is exactly
    zero everywhere, which is suspicious.
    """
    refuse(problem, training, method)
    problem = in_float64(problem)
    provider: Stored | Line
    if isinstance(method, Exact):
        provider = Stored(training.trajectory, problem.needs_velocity())
        N, literal = training.steps, False
    else:
        provider = line(problem, hyper, training, method)
        N, literal = len(provider), method.completion == "C0"
    result = reverse(problem, hyper, provider, N, literal, final=float64(training.final), progress=progress)
    if isinstance(method, Exact):
        begin = float64(training.initial)
        if not all(np.array_equal(result.w[name], begin[name]) for name in begin):
            raise VerificationFailure(
                "the trajectory does not begin at the w_0 of this training; pass the two of one run"
            )
    gradient: Hyper = {}
    for one in problem.hyperparameters:
        arrays = {key: np.asarray(u, dtype=np.float64) for key, u in hyper[one.kind].items()}
        collapsed = collapse(one, arrays, result.dvalues[one.kind])
        gradient[one.kind] = {key: np.asarray(d) for key, d in collapsed.items()}
    zero = [kind for kind, arrays in gradient.items() if not any(np.any(d) for d in arrays.values())]
    return Hypergradient(
        gradient=gradient,
        initial_weights=result.dw,
        initial_velocity=result.dv,
        hyper_loss=result.hyper_loss,
        adjoint_norms=result.norms,
        method=method.name,
        cost=result.cost,
        diagnostics={"N": N, "zero": zero},
    )
