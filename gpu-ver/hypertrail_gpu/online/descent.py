"""Hypergradient descent: learning rates that follow ⟨this gradient, the last direction⟩."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hypertrail.adapting import State, unconstrained
from hypertrail.hyperparameters import Hyper

from ..dynamics import VELOCITIES
from ..functional import zeros
from ..stepping import by_rows, gradient, sweepable
from .rule import Rule, by_name, shared

Array = Any
Tree = Any


class DescentRule(Rule):
    """Each step:

        h = Σ g ⊙ D over what shares an α                D = ∂w/∂α of the step before, 0 at the first
        α ← clip(α − β h),   or   α ← clip(α (1 − β h / (‖g‖ ‖D‖)))
        (w, v) ← update with the new α

    D is ± the velocity, times the schedule's factor; for dynamics where it is not, the update's tangent in direction α, which
    is then carried along. Within a block α itself is carried, not its logarithm. Cost: one gradient a step.
    """

    def start(self, hyper: Hyper, w: Tree, v: Tree) -> State:
        return {"direction": {} if self.problem.dynamics.kind in VELOCITIES else zeros(w)}

    def inputs(self, start: int, block: int) -> Tree:
        stop = start + self.method.block
        factors = self.problem.dynamics.factors(self.problem.steps).astype(self.problem.dtype)
        return *self.programs.steps(start, stop), np.concatenate([factors[:1], factors])[start:stop]

    def block(self, state: State, inputs: Tree, data: Tree, valid: Tree) -> tuple[State, Hyper, dict[str, Array]]:
        p, hyper = self.programs, state["hyper"]
        one = self.problem.declared("learning_rate")
        fixed = p._values(hyper)
        sign = VELOCITIES.get(self.problem.dynamics.kind)

        # A large tensor is walked through by rows. A shared α needs its sums first: then w' is left to do after the walk.
        swept, own = sweepable(p), one.level == "parameter"

        def forward(carry: tuple, x: tuple) -> tuple:
            (w, v, running, alphas, D), (indices, t, factor_before) = carry, x
            seen, batch = p.batch(fixed, data, indices)
            (loss, statistics), g = gradient(p, w, seen, batch, t, swept)
            scale = sign * factor_before if sign else 1.0

            def own_alpha(g: Array, o: Tree) -> Array:
                return self.alpha_after(o["learning_rate"], scale, *self.products(g, o["v"]))

            products, walked = {}, {}
            for name in g:
                if name not in swept:
                    products[name] = self.products(g[name], (v if sign else D)[name])
                    continue
                if own:
                    first = {"learning_rate": (alphas[name], own_alpha)}
                    walked[name], penalty, _ = by_rows(p, name, w, v, g, seen, t, first=first)
                else:
                    walked[name], penalty, products[name] = by_rows(
                        p, name, w, v, g, seen, t, move=False, products=self.products
                    )
                loss = loss + penalty
            moved = {name: arrays["learning_rate"] for name, arrays in walked.items() if own}
            left = {key: alpha for key, alpha in alphas.items() if key not in moved}
            alphas = self.move(left, products, scale) | moved
            rate = by_name(one, alphas, w)
            # v (and D) may be overwritten once h has been taken: without this dependence the compiler copies them in every step.
            momentum = {name: γ + 0 * rate[name] for name, γ in p.complete(fixed)["momentum"].items()}
            rest = [{name: x for name, x in arrays.items() if name not in swept} for arrays in (w, v, g)]

            def update(rate: Tree) -> tuple[Tree, Tree]:
                return p.update(*rest, fixed | {"learning_rate": rate, "momentum": momentum}, t)

            if sign:
                w_next, v_next = update(rate)
                for name, arrays in walked.items():
                    w_next[name] = arrays["w"] if own else w[name] + sign * t[2] * rate[name] * arrays["v"]
                    v_next[name] = arrays["v"]
                w, v = w_next, v_next
            else:
                (w, v), (D, _) = jax.jvp(update, (rate,), (jax.tree.map(jnp.ones_like, rate),))
            return (w, v, self.problem.update_running(running, statistics), alphas, D), loss

        alphas = {key: one.value(u, jnp) for key, u in hyper["learning_rate"].items()}
        start = (state["w"], state["v"], state["running"], alphas, state["memory"]["direction"])
        (w, v, running, alphas, D), losses = lax.scan(forward, start, inputs)
        rate = {key: unconstrained("learning_rate", x, jnp) for key, x in alphas.items()}
        after = {
            "w": w,
            "v": v,
            "running": running,
            "hyper": hyper | {"learning_rate": rate},
            "memory": {"direction": D},
        }
        return after, {}, self.report(w, losses)

    def products(self, g: Array, D: Array) -> tuple[Array, ...]:
        """What the rule needs the sums of."""
        return (g * D, g**2, D**2) if self.method.rule == "multiplicative" else (g * D,)

    def move(self, alphas: dict[str, Array], products: dict[str, tuple], scale: Array | float) -> dict[str, Array]:
        """Every α by the products of the parameters that share it. The direction is scale · D."""
        one = self.problem.declared("learning_rate")
        totals = [
            shared(one, dict(zip(products, terms, strict=True))) for terms in zip(*products.values(), strict=True)
        ]
        return {key: self.alpha_after(alphas[key], scale, *(sums[key] for sums in totals)) for key in alphas}

    def alpha_after(self, alpha: Array, scale: Array | float, h: Array, *squares: Array) -> Array:
        """α after a step, from the sums of `products`."""
        if self.method.rule == "additive":
            alpha = alpha - self.method.beta * (scale * h)
        else:
            g2, D2 = squares
            size = jnp.sqrt(g2) * jnp.abs(scale) * jnp.sqrt(D2)
            alpha = alpha * (1 - self.method.beta * (scale * h) / jnp.where(size > 0, size, 1.0))
        return jnp.clip(alpha, *self.problem.declared("learning_rate").bounds)
