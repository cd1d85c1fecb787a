"""An optax transformation as the outer rule: any of its optimisers, chains, clippings and schedules moves the hyperparameters.

h.tune(task, outer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.outer import Rule, State

SLOT, KIND = "optax", "state"  # where its state lies among the buffers of an outer state


@dataclass(frozen=True)
class Optax(Rule):
    """updates, s ← transformation.update(h, s, λ);  λ ← λ + updates,  s_0 = transformation.init(λ), in float64.

    The state s is kept as a list of arrays, so a run that was stopped goes on with it. learning_rate is that of the
    transformation, and is not looked at here. UsageError where the transformation is none.
    """

    learning_rate: float = 1.0
    transformation: Any = None

    def __post_init__(self) -> None:
        if not (hasattr(self.transformation, "init") and hasattr(self.transformation, "update")):
            raise UsageError(
                f"outer rule {self.transformation!r}, expected a rule of hypertrail.outer or an optax transformation"
            )

    def start(self, hyper: Hyper) -> State:
        with jax.enable_x64(True):
            return State(0, slots_of(self.transformation.init(doubled(hyper))))

    def step(self, hyper: Hyper, h: Hyper, state: State) -> tuple[Hyper, State]:
        with jax.enable_x64(True):
            here = doubled(hyper)
            structure = jax.tree.structure(self.transformation.init(here))
            kept = state.slots.get(SLOT, {}).get(KIND, {})
            before = jax.tree.unflatten(structure, [jnp.asarray(kept[key]) for key in sorted(kept)])
            updates, after = self.transformation.update(doubled(h), before, here)
            moved = jax.tree.map(lambda u, d: np.asarray(u + d, np.float64), here, updates)
            return moved, State(state.count + 1, slots_of(after))


def doubled(hyper: Hyper) -> Any:
    return jax.tree.map(lambda u: jnp.asarray(u, jnp.float64), hyper)


def slots_of(state: Any) -> dict[str, Hyper]:
    leaves = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    return {SLOT: {KIND: leaves}} if leaves else {}
