"""Every online method on every kind of task is the same rule written in plain JAX, or is refused with the reason.

Three blocks, so that the moved hyperparameters feed back into the training that moves them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr

from hypertrail import outer
from hypertrail.adapting import refuse_settings_of_tasks
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.hyper import Bins, Linear, Log, Logit, Shared
from hypertrail.online import MARTHE, OSGM, RTHO, T1T2, Adaptive, Almeida, Clarke, HypergradientDescent, Plain
from hypertrail.projections import Box, BudgetSum, Simplex
from hypertrail.task import Rows, Stream, Task
from hypertrail_data.streams import generator
from hypertrail_gpu.blocks import adapt
from hypertrail_gpu.declared import initial
from hypertrail_gpu.updates import Momentum

from . import problems
from .plain_rules import (
    BLOCKS,
    LR,
    N,
    Plainly,
    floats,
    is_float,
    plainly_adaptive,
    plainly_almeida,
    plainly_clarke,
    plainly_descent,
    plainly_osgm,
    plainly_t1t2,
    plainly_tangents,
    vdot,
)
from .problems import STEPS, has_gradient
from .test_declared import by_hand, declared_task
from .test_ways import distance

Tree = Any
TASKS = {
    "least-squares": ("least_squares",),
    "mlp": ("mlp", "damped"),
    "mlp-adamw": ("mlp",),
    "transformer": ("transformer",),
    "convolutions": ("convolutions",),
}
NAMES = ("least_squares", "mlp", "transformer", "convolutions")
K = 2
CLOSE = 1e-10


# -- the comparison ------------------------------------------------------------------------------------------------------------


def values_of_rated(weights: Tree, by: str) -> Callable[[Tree], Tree]:
    def values(u: Tree) -> Tree:
        def of_weight(path: Any, _: Any) -> Any:
            if not has_gradient(keystr(path)):
                return jnp.zeros(())
            return jnp.exp(u["alpha"]["network" if by == "network" else keystr(path)])

        return u | {"alpha": jax.tree_util.tree_map_with_path(of_weight, weights)}

    return values


@cache
def plain_form(task: Task, by: str = "") -> Plainly:
    return Plainly(task, values_of_rated(task.weights, by)) if by else Plainly(task)


def first_arrays(task: Task, by: str) -> Tree:
    """u of a rated task, written out."""
    named = {keystr(path): np.shape(a) for path, a in jax.tree_util.tree_flatten_with_path(task.weights)[0]}
    named = {name: shape for name, shape in named.items() if has_gradient(name)}
    shapes = {"network": {"network": ()}, "layer": dict.fromkeys(named, ()), "parameter": named}[by]
    return task.hyper | {"alpha": {name: np.full(shape, np.log(0.05)) for name, shape in shapes.items()}}


def blocks_of(task: Task, method: Any, **settings: Any) -> list[Any]:
    found = list(adapt(task, method, blocks=BLOCKS, **settings))
    assert [block.index for block in found] == list(range(BLOCKS))
    if not isinstance(method, Plain):
        assert distance(floats(found[-1].hyper), floats(found[0].hyper)) > 1e-9, "the hyperparameters should move"
    return found


def refuse_far(block: Any, s: tuple, u: Tree, h: Tree = None) -> None:
    """The last block ends where the plain loop does."""
    assert distance(floats(block.hyper), floats(u)) < CLOSE
    assert distance(floats(tuple(block.end)), floats(s)) < CLOSE
    if h is not None:
        assert distance(block.gradient, h) < CLOSE


MOVES = {
    "least-squares": ("penalty", "rate", "momentum"),
    "mlp": ("rates", "decay", "scale", "momentum", "examples"),
    "mlp-adamw": ("rates", "decay", "scale", "momentum", "examples"),
    "transformer": ("rate", "decay", "positions"),
    "convolutions": ("rate", "momentum", "decay"),
}
IN_THE_LOSS = {
    "least-squares": ("penalty",),
    "mlp": ("decay", "examples"),
    "mlp-adamw": ("decay", "examples"),
    "transformer": ("positions",),
    "convolutions": ("decay",),
}


def moves_of(name: str) -> tuple[tuple[str, float], ...]:
    return tuple((entry, 0.02 * (i + 1)) for i, entry in enumerate(MOVES[name]))


@pytest.mark.parametrize("name", TASKS)
def test_adaptive(name: str, task_of: Callable) -> None:
    task = task_of(*TASKS[name])
    method = Adaptive(N, 0, K, moves=moves_of(name))
    refuse_far(blocks_of(task, method)[-1], *plainly_adaptive(plain_form(task), task.hyper, method))


@pytest.mark.parametrize("name", TASKS)
def test_t1t2(name: str, task_of: Callable) -> None:
    task = task_of(*TASKS[name])
    method = T1T2(every=N, block=N, validation_batches=0, outer=outer.GradientDescent(LR), clip_norm=0.01)
    refuse_far(blocks_of(task, method)[-1], *plainly_t1t2(plain_form(task), task.hyper, IN_THE_LOSS[name]))


SAME = (lambda u: u, lambda a: a)
LOGARITHM = (jnp.exp, jnp.log)


@pytest.mark.parametrize(
    ("name", "by"),
    [("transformer", ""), ("convolutions", ""), ("least_squares", ""), ("mlp", "network"), ("mlp", "layer")],
)
@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_hypergradient_descent(rule: str, name: str, by: str, task_of: Callable) -> None:
    """Without `by` the rate of the task itself, one number in ln α, for AdamW and for a rate that falls with t."""
    if rule == "multiplicative" and not by:
        with pytest.raises(UsageError, match="multiplies the rate itself, and hyper 'rate' may be its logarithm"):
            adapt(task_of(name), HypergradientDescent(rule, block=N, rate="rate"))
        return
    task = task_of("rated", name, by, 0.6) if by else task_of(name)
    one, u = plain_form(task, by), first_arrays(task, by) if by else task.hyper
    beta = 0.02 if by else 0.01

    def additive(alpha: Tree, h: Tree, g: Tree, last: Callable) -> Tree:
        return jax.tree.map(lambda a, h: a - beta * h, alpha, h)

    def multiplicative(alpha: Tree, h: Tree, g: Tree, last: Callable) -> Tree:
        D = jax.jvp(last, (alpha,), (jax.tree.map(jnp.ones_like, alpha),))[1]
        squares = [{keystr(p): jnp.sum(a**2) for p, a in jax.tree_util.tree_flatten_with_path(x)[0]} for x in (g, D)]
        if by == "network":
            squares = [{"network": sum(one.values())} for one in squares]
        return {key: a * (1 - beta * h[key] / jnp.sqrt(squares[0][key] * squares[1][key])) for key, a in alpha.items()}

    method = HypergradientDescent(rule, beta, block=N, rate="alpha" if by else "rate")
    rate, bounds = (LOGARITHM, (0.01, 0.06)) if by else (SAME, (-np.inf, np.inf))
    written_out = additive if rule == "additive" else multiplicative
    block = blocks_of(task, method)[-1]
    refuse_far(block, *plainly_descent(one, u, method.rate, rate, bounds, written_out))
    assert block.gradient is None


@pytest.mark.parametrize("name", NAMES)
def test_almeida(name: str, task_of: Callable) -> None:
    task = task_of("rated", name, "parameter")
    block = blocks_of(task, Almeida(k=0.1, block=N, rate="alpha"))[-1]
    refuse_far(block, *plainly_almeida(plain_form(task, "parameter"), first_arrays(task, "parameter")))
    rates = np.exp(np.concatenate([a.ravel() for a in block.hyper["alpha"].values()]))
    assert rates.max() == pytest.approx(0.06, rel=1e-12), "the bounds should be met"


@pytest.mark.parametrize(
    "method",
    [RTHO(every=3, block=3, validation_batches=0, outer=outer.GradientDescent(LR)),
     MARTHE(mu=0.7, every=3, block=3, validation_batches=0, outer=outer.GradientDescent(LR))],
    ids=lambda method: method.name,
)  # fmt: skip
@pytest.mark.parametrize("name", TASKS)
def test_rtho_and_marthe(name: str, method: MARTHE, task_of: Callable) -> None:
    task = task_of(*TASKS[name])
    true = plainly_tangents(plain_form(task), task.hyper, MOVES[name], method.mu, 3, False)
    refuse_far(blocks_of(task, method)[-1], *true)


@pytest.mark.parametrize("restart", [False, True])
def test_several_moves_in_a_block(restart: bool, task_of: Callable) -> None:
    """Of two entries alone, every step."""
    task, moves = task_of("least_squares"), ("rate", "penalty")
    method = MARTHE(1, 3, 0.5, outer.GradientDescent(LR), 0, restart, moves=moves)
    true = plainly_tangents(plain_form(task), task.hyper, moves, 0.5, 1, restart)
    block = blocks_of(task, method)[-1]
    refuse_far(block, *true)
    assert len(block.hyper_losses) == 3
    assert block.gradient["momentum"] is None


@pytest.mark.parametrize("name", ["least_squares", "mlp", "transformer", "convolutions"])
def test_osgm(name: str, task_of: Callable) -> None:
    by = "layer" if name == "mlp" else ""
    task = task_of("rated", name, by) if by else task_of(name)
    u, entry = (first_arrays(task, by), "alpha") if by else (task.hyper, "rate")
    rate, bounds = (LOGARITHM, (0.01, 0.06)) if by else (SAME, (-np.inf, np.inf))
    s, u, _ = plainly_osgm(plain_form(task, by), u, entry, rate, bounds)
    refuse_far(blocks_of(task, OSGM(0.002, block=N, rate=entry))[-1], s, u)


def test_osgm_refuses_steps(task_of: Callable) -> None:
    task = replace(task_of("least_squares"), hyper=task_of("least_squares").hyper | {"rate": np.log(0.9)})
    s, u, refused = plainly_osgm(Plainly(task), task.hyper, "rate", SAME, (-np.inf, np.inf))
    assert 0 < refused < BLOCKS * N
    refuse_far(blocks_of(task, OSGM(0.002, block=N, rate="rate"))[-1], s, u)


@pytest.mark.parametrize("name", TASKS)
def test_clarke(name: str, task_of: Callable) -> None:
    task = task_of(*TASKS[name])
    method = Clarke(every=N, block=N, terms=2, validation_batches=0, outer=outer.GradientDescent(LR))
    refuse_far(blocks_of(task, method)[-1], *plainly_clarke(plain_form(task), task.hyper, MOVES[name], 2))


@pytest.mark.parametrize("name", TASKS)
def test_plain(name: str, task_of: Callable) -> None:
    task = task_of(*TASKS[name])
    one = plain_form(task)
    refuse_far(blocks_of(task, Plain(N))[-1], one.go(one.begin(task.hyper), task.hyper, 0, BLOCKS * N), task.hyper)


# -- settings ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"mode": "look-ahead"}, {"mode": "as-published"}, {"states": "undone"}, {"states": "undone", "mode": "look-ahead"},
     {"mass": 0.6}],
    ids=str,
)  # fmt: skip
def test_ways_of_the_adaptive_method(changes: dict[str, Any], task_of: Callable) -> None:
    task = task_of("least_squares")
    method = Adaptive(N, 0, K, moves=(*moves_of("least-squares")[:2], ("momentum", 0.0)), **changes)
    blocks = blocks_of(task, method)
    refuse_far(blocks[-1], *plainly_adaptive(plain_form(task), task.hyper, method))
    assert [block.start for block in blocks] == [0, method.advance, 2 * method.advance]
    assert blocks[-1].hyper["momentum"] == task.hyper["momentum"]
    assert blocks[0].cost.price == N + 3 + 2 * K


DECAY = Log(1e-2, bounds=(0.0096, 0.0104), over=Shared("unit", where=lambda name, shape: len(shape) > 1))


@cache
def declared() -> tuple[Task, Plainly, Tree]:
    task = declared_task(hyper=declared_task().hyper | {"decay": DECAY})
    marks = {name: name == "examples" for name in task.hyper}
    return task, Plainly(task, by_hand, marks), initial(task, STEPS)


def test_declared_hyperparameters_by_signs() -> None:
    """Bounds are met, and of one array all numbers move by the sign of their mean."""
    task, one, u = declared()
    still = tuple((name, 0.0) for name in ("rate", "momentum", "speed"))
    moves = (("decay", 0.03), ("examples", 0.1), ("shift", 0.02), ("temperature", 0.05), *still)
    method = Adaptive(N, 0, K, moves=moves, averaged=("['a']['W']",))

    def clip(u: Tree) -> Tree:
        return u | {"decay": {name: jnp.clip(a, np.log(0.0096), np.log(0.0104)) for name, a in u["decay"].items()}}

    block = blocks_of(task, method)[-1]
    refuse_far(block, *plainly_adaptive(one, u, method, clip))
    hidden = np.exp(block.hyper["decay"]["['a']['W']"])
    assert len(set(hidden)) == 1
    assert np.unique(np.sign(block.gradient["decay"]["['a']['W']"])).size == 2, "or the mean decides nothing here"
    every = np.exp(np.concatenate([*block.hyper["decay"].values()]))
    assert np.isclose(every, 0.0096).any() or np.isclose(every, 0.0104).any()


@pytest.mark.parametrize("representation", ["value", "free"])
def test_t1t2_moves_values_or_unconstrained_arrays(representation: str) -> None:
    task, one, u = declared()

    def of(u: Tree) -> Tree:
        return u | {"decay": jax.tree.map(jnp.exp, u["decay"]), "examples": jax.nn.sigmoid(u["examples"])}

    def to(x: Tree) -> Tree:
        odds = jnp.log(x["examples"] / (1 - x["examples"]))
        return x | {"decay": jax.tree.map(jnp.log, x["decay"]), "examples": odds}

    def clip(x: Tree) -> Tree:
        return x | {"decay": jax.tree.map(lambda a: jnp.clip(a, 0.0096, 0.0104), x["decay"])}

    method = T1T2(N, N, outer.GradientDescent(LR), representation, 0, clip_norm=0.01)
    if representation == "value":
        true = plainly_t1t2(one, u, ("decay", "examples", "shift"), of, to, clip)
    else:
        true = plainly_t1t2(one, u, ("decay", "examples", "shift"), clip=lambda u: of_logarithms(u, clip))
    refuse_far(blocks_of(task, method)[-1], *true)


def of_logarithms(u: Tree, clip: Callable) -> Tree:
    """clip, of the values, on unconstrained arrays."""
    clipped = clip({"decay": jax.tree.map(jnp.exp, u["decay"])})
    return u | {"decay": jax.tree.map(jnp.log, clipped["decay"])}


def test_t1t2_in_the_place_of_a_step() -> None:
    """at='same': of every three batches the last one serves the move alone."""
    task, one, u = declared()
    method = T1T2(N, 2 * N, outer.GradientDescent(LR), "free", 0, clip_norm=1e9, at="same", moves=("shift",))
    block = next(adapt(task, method))
    assert block.losses.shape == (4,)
    s = one.go(one.begin(u), u, 0, 2)

    def product(shift: Any, s: tuple = s, t: int = 2) -> Any:
        g = jax.grad(one.loss, has_aux=True)(s[0], None, one.values(u | {"shift": shift}), one.batch(t), t)[0]
        return vdot(g, jax.tree.map(jnp.negative, jax.grad(lambda w: one.f((w, *s[1:]), one.values(u)))(s[0])))

    u = u | {"shift": u["shift"] - LR * jax.grad(product)(u["shift"])}
    s = one.go(s, u, 3, 2)
    h = jax.grad(product)(u["shift"], s, 5)
    assert distance(tuple(block.end), s) < CLOSE
    assert distance(block.gradient["shift"], h) < CLOSE


@jax.custom_vjp
def bent(x: Any) -> Any:
    return x


bent.defvjp(lambda x: (x, x), lambda x, g: (g * (1 + 0.3 * jnp.cos(jnp.arange(6) * x.sum())),))


def test_a_loss_whose_second_derivatives_are_not_symmetric(task_of: Callable) -> None:
    """T1–T2 and the adaptive method differentiate what the step does, and not what the loss would say."""
    straight = task_of("least_squares")
    task = replace(straight, loss=lambda w, hyper, batch, t: straight.loss(bent(w), hyper, batch, t))
    one = Plainly(task)
    method = T1T2(every=N, block=N, validation_batches=0, outer=outer.GradientDescent(LR), clip_norm=0.01)
    refuse_far(blocks_of(task, method)[-1], *plainly_t1t2(one, task.hyper, ("penalty",)))
    adaptive = Adaptive(N, 0, K, moves=moves_of("least-squares"))
    refuse_far(blocks_of(task, adaptive)[-1], *plainly_adaptive(one, task.hyper, adaptive))


def test_any_optax_transformation_is_an_outer_rule() -> None:
    import optax

    task, _, _ = declared()
    moves = ("decay", "examples", "shift", "temperature")
    ends = [
        blocks_of(task, Clarke(1, N, 1, rule, 0, moves=moves))[-1]
        for rule in (outer.Adam(0.01), optax.adam(0.01), optax.chain(optax.scale_by_adam(), optax.scale(-0.01)))
    ]
    for end in ends[1:]:
        assert distance(end.hyper, ends[0].hyper) < CLOSE
    assert ends[1].state["memory[0].count"] == BLOCKS * N


def test_validation_batches_are_drawn_by_seed_and_move(task_of: Callable) -> None:
    """Two of three for each move, without repetition; from memory and from a stream the same."""
    task = replace(task_of("least_squares"), seed=7)
    method = MARTHE(1, 2, validation_batches=2, outer=outer.GradientDescent(1e-9))
    blocks = list(adapt(task, method, blocks=BLOCKS))
    found = np.concatenate([block.hyper_losses for block in blocks])
    one, u = plain_form(task), task.hyper
    s = one.begin(u)
    for move, loss in enumerate(found):
        s = one.go(s, u, move, 1)
        numbers = generator(7, "hyper", move).choice(3, 2, replace=False)
        assert loss == pytest.approx(float(one.f(s, u, numbers)), rel=1e-6)
    streamed = replace(task, valid=Stream(lambda k: tuple(a[k] for a in task.valid), 3))
    for block, other in zip(blocks, adapt(streamed, method, blocks=BLOCKS), strict=True):
        np.testing.assert_array_equal(block.hyper_losses, other.hyper_losses)
    unread = replace(task, valid=None, hyper_loss=lambda w, hyper, batch: jnp.sum(w**2))
    assert len(next(adapt(unread, method)).hyper_losses) == 2


# -- going on, compiling, failing ----------------------------------------------------------------------------------------------

GOING_ON: list[tuple[tuple, Any]] = [
    (("convolutions",), Adaptive(2, 1, 1, moves=moves_of("convolutions"), mass=0.5)),
    (("convolutions",), Adaptive(3, 0, 1, moves=moves_of("convolutions"), mode="look-ahead")),
    (("mlp",), T1T2(2, 2)),
    (("transformer",), HypergradientDescent(block=2, rate="rate")),
    (("rated", "mlp", "parameter"), Almeida(block=2, rate="alpha")),
    (("mlp",), RTHO(2, 2)),
    (("convolutions",), OSGM(block=2, rate="rate")),
    (("transformer",), Clarke(1, 2, 1, validation_batches=1)),
    (("mlp",), Plain(2)),
]
SHORT = [f"{method.name}-{words[0]}" for words, method in GOING_ON]


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """A list that grows by one entry for every program XLA compiles."""
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize(("words", "method"), GOING_ON, ids=SHORT)
def test_going_on(words: tuple, method: Any, compilations: list[str]) -> None:
    """The second block compiles nothing, nor does a second call with other hyperparameters that are weakly typed. From a state
    that was saved to a file a run goes on to the same bits."""
    task = getattr(problems, words[0])(*words[1:])
    told: list[tuple[int, int]] = []
    run = adapt(task, method, blocks=4, progress=lambda *one: told.append(one))
    whole = [next(run)]
    parts = [key for key in task.programs if callable(key[0]) and key[0].__name__ in ("block", "forward", "backward")]
    assert len(parts) == (2 if method.name == "adaptive" else 1)
    assert compilations, "the first block compiles, or this test sees nothing"
    compilations.clear()
    whole += run
    assert compilations == []
    assert told == [(int(block.state["step"]), STEPS) for block in whole]

    def weak(a: Any) -> Any:
        return jnp.asarray(float(a) - 0.01) if is_float(a) and not np.shape(a) else a

    hyper = jax.tree.map(weak, initial(task, STEPS))
    assert any(getattr(a, "weak_type", False) for a in jax.tree.leaves(hyper))
    compilations.clear()
    other = list(adapt(task, method, hyper=hyper, blocks=2))
    assert compilations == []
    assert not np.array_equal(other[1].losses, whole[1].losses)

    file = io.BytesIO()
    np.savez(file, **whole[1].state)
    file.seek(0)
    rest = list(adapt(task, method, state=np.load(file), blocks=2))
    assert [block.index for block in rest] == [2, 3]
    for block, same in zip(whole[2:], rest, strict=True):
        assert block.state.keys() == same.state.keys()
        for name, array in block.state.items():
            np.testing.assert_array_equal(np.asarray(array), np.asarray(same.state[name]), err_msg=name)
        np.testing.assert_array_equal(block.losses, same.losses)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loss_that_is_not_a_number_is_named_with_its_step(stream: bool, task_of: Callable) -> None:
    whole = task_of("least_squares")
    X, y = whole.batches.data
    rows = np.arange(STEPS * 3).reshape(STEPS, 3)
    X = X.copy()
    X[13] = np.nan  # in the batch of step 4
    batches: Any = Stream(lambda t: (X[rows[t]], y[rows[t]]), STEPS) if stream else Rows((X, y), rows)
    run = adapt(replace(whole, batches=batches), Plain(3))
    assert np.isfinite(next(run).losses).all()
    with pytest.raises(NumericalFailure, match="elementary loss is not finite at step 4") as failure:
        next(run)
    assert (failure.value.quantity, failure.value.step) == ("elementary loss", 4)


def test_what_else_is_not_a_number(task_of: Callable) -> None:
    task = task_of("least_squares")
    steep = replace(task, hyper_loss=lambda w, hyper, batch: jnp.sqrt(jnp.sum((w - jax.lax.stop_gradient(w)) ** 2)))
    method = MARTHE(2, 4, validation_batches=1)
    with pytest.raises(NumericalFailure, match="hypergradient is not finite at step 2"):
        next(adapt(steep, method))
    nothing = replace(task, hyper_loss=lambda w, hyper, batch: jnp.log(-1 - jnp.sum(w**2)))
    with pytest.raises(NumericalFailure, match="hyper loss is not finite at step 2"):
        next(adapt(nothing, method))
    with pytest.raises(NumericalFailure, match="hypergradient is not finite at step 2"):
        next(adapt(steep, T1T2(2, 4, nonfinite="stop")))
    block = next(adapt(steep, T1T2(2, 4)))
    assert block.skipped == 2
    np.testing.assert_array_equal(block.hyper["penalty"], task.hyper["penalty"])
    fast = task.hyper | {"rate": np.float64(720.0)}
    with pytest.raises(NumericalFailure, match=r"elementary (loss|weights) is not finite at step \d"):
        list(adapt(task, Plain(1), hyper=fast))


# -- refusals ------------------------------------------------------------------------------------------------------------------

MOVED = moves_of("least-squares")
REFUSED: list[tuple[tuple, dict[str, Any], Any, str]] = [
    (("least_squares",), {}, "adaptive", "adapt takes an online method .*, not 'adaptive'"),
    (("least_squares",), {}, Adaptive(3, 0, 2, moves=[("rate", 0.1)]), "settings must be hashable; give tuples"),
    (("least_squares",), {}, Plain(), "a block of plain takes 100 steps, the task has 11"),
    (("least_squares",), {"blocks": 9}, Plain(3), "9 blocks of plain, expected 0 to 3"),
    (("least_squares",), {"hyper": {"rate": 1.0}}, Plain(3), "hyper.'momentum'. is missing, expected of shape"),
    (("least_squares",), {"state": {"step": np.array(0)}}, Plain(3), "lacks .*'block', .*go on with the task, method"),
    (("least_squares",), {}, Adaptive(3, 0, 2), "no step for"),
    (("least_squares",), {}, Adaptive(3, 0, 2, moves=tuple((n, 0.0) for n, _ in MOVED)), "moves nothing"),
    (("seeded",), {}, Adaptive(3, 2, 2, moves=MOVED), "Task.seed draws the validation .* seed is -1; expected an integer"),
    (("least_squares",), {}, Adaptive(3, 4, 2, moves=MOVED), "4 validation batches for each move, the task has 3"),
    (("least_squares",), {}, Adaptive(3, 0, 2, moves=MOVED, averaged=("x",)), "averaged 'x', found"),
    (("transformer",), {}, Adaptive(3, 0, 2, moves=moves_of("transformer"), states="undone"), "Optax does not offer"),
    (("convolutions",), {}, Adaptive(3, 0, 2, moves=moves_of("convolutions"), states="undone"), "cannot be undone"),
    (("rated", "least_squares", "network"), {}, Adaptive(3, 0, 2, moves=(*MOVED, ("alpha", 0.1)), states="undone"),
     "whose 53 bits are lost after 0 at this momentum"),
    (("least_squares",), {}, T1T2(3, 3, moves=("rate",)), "the hyperparameters that the loss reads are penalty"),
    (("least_squares",), {}, Clarke(3, 3, moves=("rte",)), "that this task can move are momentum, penalty, rate"),
    (("least_squares",), {}, T1T2(3, 3, outer=outer.AdamHips()), "the compiled online methods have GradientDescent"),
    (("least_squares",), {}, Clarke(3, 3, outer="adam"), "expected a rule of hypertrail.outer or an optax"),
    (("mlp",), {}, RTHO(3, 3, most=38), "39 are more than most=38"),
    (("least_squares",), {}, HypergradientDescent(block=3), "hyper 'learning_rate', and the update .* reads momentum, rate"),
    (("mlp",), {}, HypergradientDescent(block=3, rate="rates"), "holds 11 numbers in one array"),
    (("mlp",), {}, OSGM(block=3, rate="rates"), "holds 11 numbers in one array"),
    (("mlp",), {}, Almeida(block=3, rate="rates"), "holds 11 numbers in one array"),
    (("least_squares",), {}, Almeida(block=3, rate="rate"), "one learning rate for each weight; declare"),
    (("transformer",), {}, Almeida(block=3, rate="rate"), "one learning rate for each weight; declare"),
    (("convolutions",), {}, Almeida(block=3, rate="rate"), "one learning rate for each weight; declare"),
    (("rated", "mlp", "layer"), {}, Almeida(block=3, rate="alpha"), "one learning rate for each weight; declare"),
    (("rated", "mlp", "parameter", 0.5), {}, Almeida(block=3, rate="alpha"), "is gradient descent, w ← w − p g"),
    (("rated", "mlp", "parameter", 0.5, "heavy-ball"), {}, Almeida(block=3, rate="alpha"), "is gradient descent"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "call", "method", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_refused_with_the_reason(words: tuple, call: dict, method: Any, reason: str, task_of: Callable) -> None:
    task = replace(task_of("least_squares"), seed=-1) if words == ("seeded",) else task_of(*words)
    with pytest.raises(UsageError, match=reason) as refused:
        adapt(task, method, **call)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


class Tenth(Log):
    """Somebody's own declaration."""

    def value(self, u: Any, xp: Any = np) -> Any:
        return xp.exp(u) / 10


@pytest.mark.parametrize(
    ("hyper", "method", "reason"),
    [
        (
            {"rate": Log(0.1, steps=Bins(3))},
            RTHO(3, 3),
            r"while the network trains, and it is a schedule, Bins\(bins=3\)",
        ),
        ({"rate": Log(0.1, steps=Bins(3))}, HypergradientDescent(block=3, rate="rate"), "it is a schedule"),
        (
            {"mix": Linear(np.full(3, 1 / 3), projection=Simplex())},
            Clarke(3, 3),
            r"'mix' has Simplex\(total=1.0\), which",
        ),
        ({"mix": Linear(np.full(3, 0.3), projection=BudgetSum(1.0))}, RTHO(3, 3), r"has BudgetSum\(limit=1.0\)"),
        ({"rate": {"a": 0.1, "b": 0.2}}, HypergradientDescent(block=3, rate="rate"), "is a tree of several rates"),
        (
            {"rate": Logit(np.full(40, 0.1), per_example=True)},
            OSGM(block=3, rate="rate"),
            "a row for each training example",
        ),
        ({"penalty": np.zeros(6)}, T1T2(3, 3), "this task's loss reads no hyperparameter"),
        ({"mix": Linear(np.full(3, 0.3), projection=Box())}, Clarke(3, 3), None),
        ({"rate": Log(0.1, steps=Bins(3))}, Clarke(3, 3, moves=("penalty",)), None),
        ({"mix": Linear(np.full(3, 1 / 3), projection=Simplex())}, HypergradientDescent(block=3, rate="rate"), None),
        (
            {"rate": Tenth(0.1)},
            OSGM(block=3, rate="rate"),
            "by its value, and Tenth is none of Log, Logit, Linear and Free",
        ),
        ({"penalty": Tenth(0.1)}, T1T2(3, 3, moves=("penalty",)), "by its value, and Tenth is none of"),
        ({"penalty": Tenth(0.1)}, T1T2(3, 3, moves=("penalty",), representation="free"), None),
    ],
)
def test_declarations_that_cannot_move(hyper: Tree, method: Any, reason: str | None, task_of: Callable) -> None:
    whole = task_of("least_squares")

    def rate(hyper: Tree, t: Any) -> Any:
        return 0.1 * jnp.mean(sum(jax.tree.leaves(hyper["rate"])))

    task = replace(
        whole,
        hyper={"penalty": np.zeros(6), "rate": 0.1, "mix": 0.5} | hyper,
        update=Momentum(rate, lambda hyper, t: 0.5),
        rows=lambda batch: np.arange(8),
        loss=lambda w, hyper, batch, t: whole.loss(w, hyper, batch, t) + jnp.mean(hyper["mix"]),
    )
    if reason == "this task's loss reads no hyperparameter":
        task = replace(task, loss=lambda w, hyper, batch, t: jnp.mean((batch[0] @ w - batch[1]) ** 2))
    if reason is None:
        next(adapt(task, method))
        return
    with pytest.raises(UsageError, match=reason):
        adapt(task, method)


@pytest.mark.parametrize(
    "method", [T1T2(moves=("l2",)), MARTHE(moves=("l2",)), OSGM(rate="alpha"), Adaptive(averaged=("out",))], ids=repr
)
def test_settings_of_tasks_are_refused_for_problems(method: Any) -> None:
    with pytest.raises(UsageError, match="is for a Task; leave it out for a Problem"):
        refuse_settings_of_tasks(method)
    refuse_settings_of_tasks(type(method)())
