"""The reverse pass: one kernel, fed by any provider; the mirror image of `training.forward`. float64.

Forward,  t = 0 … T−1:   batch, rates → g = ∇L(w, batch) → (w, v) = dynamics(w, v, g, α, γ)
Reverse,  i = N−1 … 0:   batch, rates → g if it is needed → (dw, dv, u, dα, dγ) = adjoint(v, g, α, γ, dw, dv)
                         → dw += H u, dλ += (∂²L/∂λ∂w)ᵀ u
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, VerificationFailure
from hypertrail.hyperparameters import OF_EXAMPLES, Hyper, unbroadcast
from hypertrail.methods import EXACT_STEP, LineStep
from hypertrail.problem import Problem, Values
from hypertrail.records import Params

from .dynamics import rule
from .losses import elementary_gradient, hyper_gradient, second_order
from .providers import Provider
from .training import BLOCK, batch, norm, rates, seen


@dataclass(frozen=True)
class Adjoint:
    """Where the reverse pass arrives: dw_0, dv_0, dλ = {kind: {name: d/d value}}, f, ‖dw‖ before each step, the last w it was
    handed (w_0 if the provider tells the truth)."""

    dw: Params
    dv: Params
    dvalues: dict[str, Params]
    hyper_loss: float
    norms: np.ndarray
    w: Params


def reverse(
    problem: Problem,
    hyper: Hyper,
    provider: Provider,
    N: int,
    how: LineStep = EXACT_STEP,
    *,
    final: Params,
    to: int = 0,
    begun: Adjoint | None = None,
    progress: Progress | None = None,
) -> Adjoint:
    """Pull df back through N elementary steps, from w_T = final to w_0 (or to the provider's step `to`).

        dw = ∇f(w_T), dv = 0, dλ = ∂f/∂λ
        for N steps i = … to, with (w, v), batch and rates from the provider:
            dw, dv, u, dα, dγ = adjoint(v, g, α, γ, dw, dv)          dynamics.py; v, g, dα, dγ only where they are needed
            dλ += (∂²L/∂λ∂w)ᵀ u,  dw += H u

    begun: go on from where another pass stopped, in place of the first line; norms then has both.
    how: what a step on a line of DrMAD does otherwise. literal: algorithm 2 as printed (completion C0): no dv, no α;
    u = −(1−γ) dw with the dw BEFORE its update, for dλ as for dw; dv stays 0. line_dalpha: dα = ± dw v in place of the
    adjoint's. regularized_only: dw = 0 for the parameters that are not regularizable, so nothing of them reaches dλ.
    Exact where the provider's states are the true ones (Maclaurin et al. 2015, algorithm 2; docs/exact.md).
    Cost: N products and one gradient per validation batch. Where learning rate or momentum is declared, and for Adam, a plain
    gradient is taken apart at each step (dα and dγ need g before u is known), if the provider has none; `Cost` leaves it out.
    Raises NumericalFailure where f or ‖dw‖ is not finite (dλ is the caller's to look at), VerificationFailure where the provider
    hands over more or fewer than N places or does not arrive at `to`.
    """
    values = problem.values(hyper)
    factors = problem.dynamics.factors(problem.steps)
    adj = start(problem, values, final) if begun is None else begun
    left_out = problem.unregularized if how.regularized_only else ()
    dw = {p: np.zeros_like(one) if p in left_out else one for p, one in adj.dw.items()}
    dv = dict(adj.dv)
    dvalues = {kind: {p: one.copy() for p, one in arrays.items()} for kind, arrays in adj.dvalues.items()}
    velocity = problem.needs_velocity()
    sign = -1.0 if problem.dynamics.kind == "heavy-ball" else 1.0  # of α v in w ← w ± α v
    norms = list(adj.norms)
    total = len(norms) + N
    i, w = to + N, final
    for i, batch_step, rate_step, w, v, g in provider.backwards():
        norms.append(check(dw, i))
        x, y = batch(problem, batch_step)
        of_batch = seen(problem, values, batch_step)
        alpha, gamma = rates(problem, values, rate_step)
        adjoint = rule(problem.dynamics, rate_step).adjoint
        u: Params = {}
        if how.literal:
            u = {p: -(1 - gamma[p]) * dw[p] for p in dw}
        elif velocity:
            if g is None:
                _, g, _ = elementary_gradient(problem, w, of_batch, x, y, batch_step)
            dalpha, dgamma = {}, {}
            for p in dw:
                dw[p], dv[p], u[p], dalpha[p], dgamma[p] = adjoint(v[p], g[p], alpha[p], gamma[p], dw[p], dv[p])
                if how.line_dalpha:
                    dalpha[p] = sign * dw[p] * v[p]
            # The value is multiplied by the schedule's factor on its way to α.
            add_rate(
                problem, dvalues, "learning_rate", rate_step, {p: factors[rate_step] * d for p, d in dalpha.items()}
            )
            add_rate(problem, dvalues, "momentum", rate_step, dgamma)
        else:
            for p in dw:  # but for Adam, v and g enter dα and dγ alone, which nobody asks for
                dw[p], dv[p], u[p], _, _ = adjoint(0.0, 0.0, alpha[p], gamma[p], dw[p], dv[p])
        Hu, mixed = second_order(problem, w, of_batch, x, y, batch_step, u)
        add(dvalues, mixed, problem.schedule.indices(batch_step, batch_step + 1)[0])
        dw = {p: dw[p] if p in left_out else dw[p] + Hu[p] for p in dw}
        if progress and (len(norms) % BLOCK == 0 or len(norms) == total):
            progress(len(norms), total)
        if len(norms) == total and i == to > 0:
            break  # truncated; a walk to the beginning is let run out, so that the provider can check where it arrived
    if len(norms) != total or i != to:
        raise VerificationFailure(
            f"the reverse pass took {len(norms) - total + N} steps down to step {i}, expected {N} down to step {to}"
        )
    check(dw, to)
    return Adjoint(dw, dv, dvalues, adj.hyper_loss, np.array(norms), w)


def start(problem: Problem, values: Values, final: Params) -> Adjoint:
    """Before the first reverse step: dw = ∇f(w_T), dv = 0, dλ = ∂f/∂λ. Cost: one gradient per validation batch.

    Raises NumericalFailure where f is not finite.
    """
    f, dw, direct = hyper_gradient(problem, final, values)
    if not np.isfinite(f):
        raise NumericalFailure("hyper loss", problem.steps)
    dvalues = zeros(problem, values)
    add(dvalues, direct)
    return Adjoint(dw, problem.initial_velocity(), dvalues, f, np.empty(0), final)


def zeros(problem: Problem, values: Values) -> dict[str, Params]:
    """A zero for each value of each declared kind, in the shapes of the values."""
    return {
        h.kind: {name: np.zeros(np.shape(value)) for name, value in values[h.kind].items()}
        for h in problem.hyperparameters
    }


def add(dvalues: dict[str, Params], terms: dict[str, Params], rows: np.ndarray | None = None) -> None:
    """dvalues += terms, the terms summed over what shares a value.

    rows: which examples the terms of kinds that live on examples belong to (one may be there twice); None: all, in order.
    """
    for kind, arrays in terms.items():
        for name, d in arrays.items():
            if kind in OF_EXAMPLES and rows is not None:
                np.add.at(dvalues[kind][name], rows, d)
            else:
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
