"""optax transformations as the update of an elementary problem (functional.py).

    init, update = from_optax(lambda hyper: optax.adam(jnp.exp(hyper["rate"]), eps=0, eps_root=1e-8))
    inner = Inner(loss, update)
    run = train(inner, w0, init(w0, hyper), hyper, batches)
    hypergradient(inner, hyper_loss, run, hyper, batches).hyper["rate"]

The transformation is built anew from `hyper` inside every step, which costs nothing once it is compiled, so whatever it is
given (learning rate, momentum, weight decay, clipping norm) has a hypergradient. Its state is v: the floating point leaves are
differentiated, the others (step counts, random keys) are kept with the trajectory and read back. A schedule over the steps is
`updates.Optax`, whose make has the step as a second argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from hypertrail.errors import UsageError

from .updates import Optax

Tree = Any


def from_optax(
    make: Callable[[Tree], optax.GradientTransformation],
) -> tuple[Callable[[Tree, Tree], Tree], Callable[..., tuple[Tree, Tree]]]:
    """(init, update) of the transformation make(hyper): init(w0, hyper) → v_0, update for `functional.Inner`.

        updates, v ← make(λ).update(g, v, w)
        w ← w + updates

    Keep `update` (and the Inner): programs are compiled once for each. Cost of a step: that of the transformation.
    update.init is init: a state that is filled from λ (optax.inject_hyperparams) carries what λ does to it into the
    hypergradient, and `train` refuses a v_0 that was made from another λ.
    POOR where the transformation has an infinite slope: optax.adam's ε stands outside the root (eps=0, eps_root=ε puts it
    inside), the norms of optax.lars and of a zero gradient have no derivative. init raises UsageError for what is no
    transformation of gradients alone (line searches ask for the loss) and for a state whose shapes or dtypes do not stay.
    """
    update = Transformation(lambda hyper, t: make(hyper))
    return update.init, update


@dataclass(frozen=True)
class Transformation(Optax):
    """`updates.Optax` whose state is looked at before anything is trained."""

    def init(self, w: Tree, hyper: Tree) -> Tree:
        v = super().init(w, hyper)
        try:
            _, after = jax.eval_shape(lambda w, v, hyper: self(w, v, w, hyper, 0), w, v, hyper)
        except Exception as error:
            raise UsageError(
                f"the transformation cannot be traced as a function of gradient, state and weights ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}); it must not branch on hyper, nor ask for the loss"
            ) from error
        before = jax.eval_shape(lambda v: v, v)
        if jax.tree.structure(before) != jax.tree.structure(after) or shapes(before) != shapes(after):
            raise UsageError(
                f"the state of the transformation changes from {shapes(before)} to {shapes(after)} in a step; it must keep "
                "structure, shapes and dtypes (give weights and hyperparameters one dtype)"
            )
        return v


def shapes(tree: Tree) -> list[str]:
    return [f"{one.dtype}{list(one.shape)}" for one in jax.tree.leaves(tree)]
