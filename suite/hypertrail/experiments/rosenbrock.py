"""Two weights, a hundred hyperparameters: step sizes and momenta learn to walk down a bent valley.

    hypertrail run rosenbrock

Figure 1 of Maclaurin, Duvenaud, Adams (2015), with the settings of their code: loss 800 σ(r / 500) on two weights,
r = 100 (x − y²)² + (1 − y)² + 200 y, from y = 1.4, x = 3.9; 50 steps of damped momentum with ln α = −4.5 and γ = .99 at
every step; then ln α_t and logit γ_t of every step move by damped momentum (mass .9, step .01) along the exact hypergradient
of the loss at the end. The paper draws the first three trainings; one more shows what the third update did.

The gpu engine takes the hypergradient with hypertrail_gpu.functional, as somebody with a model of their own would; the cpu
engine with the adjoint of docs/dynamics.md, equation by equation, gradient and Hessian of the loss by hand.

Their fixed point multiplies the velocity by a fraction n / 2^16, so γ = .99 becomes 64881/65536 there, while 1 − γ stays .01.
That is why their loss before the first update is 395.3049 and ours 395.3552; --as-published does the same. (With plain floats
in the place of their fixed point, their own program gives 395.3552.)

Hardware: two CPU cores: 4 seconds (--engine cpu: 2), figures included.
Measured: loss at the end 395.36 → 356.60 → 356.30 → 376.06 after 0, 1, 2, 3 updates (both engines, all digits shown);
--as-published 395.3049 → 356.5662 → 356.3413 → 376.0364.
The first two updates carry the walker further down the valley; from the second on it runs past the lowest point before its
last step, and the third makes that worse: 3 updates are where the paper's picture ends, not a minimum.
The paper's number: none, a picture of three trajectories.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import figures, outer
from ..errors import NumericalFailure, UsageError
from ..rows import Row
from ..runs import Run, arrays, read_metrics
from ..runs.names import PARTS
from ..sections import Section
from ._common import Precision, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..display import Voice

DRAWS = False  # the same start, loss and steps whatever the seed
START = np.array([1.4, 3.9])  # w = (y, x)
Hyper = dict[str, np.ndarray]  # "log_rate" and "momentum", (T,) each
Training = tuple[np.ndarray, np.ndarray, Hyper]  # w_0 … w_T (T+1, 2), their losses, dloss(w_T)/dλ


@dataclass(frozen=True)
class Config(Study):
    """Settings of rosenbrock."""

    precision: Precision = "float64"
    """float64: as in the paper. float32: half the digits; the cpu engine knows float64 only."""
    updates: int = 3
    """How many times the step sizes and momenta move."""
    steps: int = 50
    """T, elementary steps of one training run."""
    log_rate: float = -4.5
    """ln α of every step at the start."""
    momentum: float = 0.99
    """γ of every step at the start."""
    outer_rate: float = 0.01
    """Step of the outer damped momentum."""
    outer_mass: float = 0.9
    """Mass of the outer damped momentum."""
    as_published: bool = False
    """Multiply the velocity by ⌊γ 2^16 + 1⌋ / 2^16, as the authors' fixed point does; their reverse pass has the γ asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum == 0:
            raise UsageError("momentum 0, expected more than 0: its logit is what moves")


@np.errstate(all="ignore")  # what overflows is caught by name
def study(config: Config, run: Run, voice: Voice) -> None:
    """u ← m u − (1−m) h,  λ ← λ + s u, on λ = (ln α_t, logit γ_t); a training before each update, and one after the last."""
    m, s = config.outer_mass, config.outer_rate
    γ = config.momentum
    hyper = {"log_rate": np.full(config.steps, config.log_rate), "momentum": np.full(config.steps, np.log(γ / (1 - γ)))}
    u = {name: np.zeros(config.steps) for name in hyper}
    train = {"gpu": compiled, "cpu": by_hand}[config.engine](config)
    for k in range(config.updates + 1):
        file = file_of(run.path, k)
        line = run.part(f"training-{k}", lambda k=k, hyper=hyper, file=file: computed(train, hyper, k, file), [file])
        run.append(line)
        voice.say(
            f"{after(k)}: loss {line['start']:.4f} → {line['end']:.4f} | norm of the hypergradient {line['norm']:.4g}"
        )
        h = arrays.load(file)["gradient"]
        u = {name: m * u[name] - (1 - m) * h[name] for name in u}
        hyper = {name: hyper[name] + s * u[name] for name in u}


def computed(train: Callable[[Hyper], Training], hyper: Hyper, k: int, file: Path) -> dict[str, Any]:
    """Training k and its hypergradient into `file`; the line that speaks of it."""
    path, losses, h = train(hyper)
    if not np.isfinite(losses).all():
        raise NumericalFailure(f"loss in training {k}", int(np.argmin(np.isfinite(losses))), "lower log-rate")
    outer.refuse_nonfinite({"schedule": h}, k)
    arrays.save(file, {"path": path, "losses": losses, "hyper": hyper, "gradient": h})
    norm = float(np.sqrt(sum((one**2).sum() for one in h.values())))
    return {"update": k, "start": float(losses[0]), "end": float(losses[-1]), "norm": norm}


def file_of(folder: Path, k: int) -> Path:
    return folder / PARTS / f"training-{k}.npz"


# -- one training and its hypergradient, in two ways --------------------------------------------------------------------


def compiled(config: Config) -> Callable[[Hyper], Training]:
    """By hypertrail_gpu.functional: the loss and the update in plain JAX, everything else is there already."""
    functional = importlib.import_module("hypertrail_gpu.functional")  # engines are found by name
    jax, jnp = functional.jax, functional.jnp

    def loss(w: Any, hyper: Any, batch: Any, t: Any) -> Any:
        y, x = w
        return 800 * jax.nn.sigmoid((100 * (x - y**2) ** 2 + (1 - y) ** 2 + 200 * y) / 500)

    def update(w: Any, v: Any, g: Any, hyper: Any, t: Any) -> Any:
        α, γ = jnp.exp(hyper["log_rate"][t]), jax.nn.sigmoid(hyper["momentum"][t])
        v_more = jax.lax.stop_gradient((fraction(γ, jnp) - γ) * v) if config.as_published else 0.0
        v = γ * v - (1 - γ) * g + v_more
        return w + α * v, v

    inner = functional.Inner(loss, update)
    final = jax.jit(lambda w, hyper: loss(w, hyper, None, None))

    @jax.jit
    def walk(w0: Any, here: Any) -> Any:
        """(T, 2) the weights before each step, for the picture."""
        states = (w0, jnp.zeros_like(w0)), jnp.arange(config.steps)
        return jax.lax.scan(lambda s, t: (functional.step(inner, *s, here, None, t)[:2], s[0]), *states)[1]

    def train(hyper: Hyper) -> Training:
        with jax.enable_x64(config.precision == "float64"):
            here = {name: jnp.asarray(one, config.precision) for name, one in hyper.items()}
            w0, nothing = jnp.asarray(START, config.precision), jnp.zeros(config.steps)  # every step sees the same loss
            run = functional.train(inner, w0, jnp.zeros_like(w0), here, nothing)
            result = functional.hypergradient(inner, final, run, here, nothing)
            path, losses = np.vstack([walk(w0, here), run.w[None]]), np.append(run.losses, result.value)
            return path, losses.astype(np.float64), {name: np.asarray(one) for name, one in result.hyper.items()}

    return train


def by_hand(config: Config) -> Callable[[Hyper], Training]:
    """The same in NumPy, float64: forward and adjoint as they stand in Maclaurin et al. 2015, algorithm 2.

    v ← γ v − (1−γ) g,  w ← w + α v                     t = 0 … T−1     (as_published: γ v with the fraction of γ)
    dα = ⟨dw, v_{t+1}⟩,  dv += α dw,  dγ = ⟨dv, v_t + g⟩,  dw −= (1−γ) H dv,  dv ← γ dv      t = T−1 … 0
    """

    def train(hyper: Hyper) -> Training:
        α, γ = np.exp(hyper["log_rate"]), 1 / (1 + np.exp(-hyper["momentum"]))
        kept = fraction(γ, np) if config.as_published else γ
        ws, vs = [START], [np.zeros(2)]
        for t in range(config.steps):
            vs.append(kept[t] * vs[-1] - (1 - γ[t]) * derivatives(ws[-1])[1])
            ws.append(ws[-1] + α[t] * vs[-1])
        dα, dγ = np.zeros(config.steps), np.zeros(config.steps)
        dw, dv = derivatives(ws[-1])[1], np.zeros(2)
        for t in reversed(range(config.steps)):
            _, g, hessian = derivatives(ws[t])
            dα[t] = dw @ vs[t + 1]
            dv = dv + α[t] * dw
            dγ[t] = dv @ (vs[t] + g)
            dw = dw - (1 - γ[t]) * hessian @ dv
            dv = γ[t] * dv
        losses = np.array([derivatives(w)[0] for w in ws])
        return np.array(ws), losses, {"log_rate": dα * α, "momentum": dγ * γ * (1 - γ)}

    return train


def fraction(γ: Any, xp: Any) -> Any:
    """n / 2^16, n = ⌊γ 2^16 + 1⌋: what the authors' fixed point multiplies a velocity by in the place of γ."""
    return xp.floor(γ * 2**16 + 1) / 2**16


def derivatives(w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, gradient (2,) and Hessian (2, 2) at w = (y, x)."""
    y, x = w
    σ = 1 / (1 + np.exp(-r(y, x) / 500))
    slope = np.array([-400 * y * (x - y**2) - 2 * (1 - y) + 200, 200 * (x - y**2)])
    curve = np.array([[-400 * (x - 3 * y**2) + 2, -400 * y], [-400 * y, 200]])
    first, second = 800 * σ * (1 - σ) / 500, 800 * σ * (1 - σ) * (1 - 2 * σ) / 500**2
    return 800 * σ, first * slope, first * curve + second * np.outer(slope, slope)


def r(y: Any, x: Any) -> Any:
    return 100 * (x - y**2) ** 2 + (1 - y) ** 2 + 200 * y


# -- what it shows ------------------------------------------------------------------------------------------------------


def show(folder: Path) -> list[Section]:
    lines = read_metrics(folder)
    trainings = [arrays.load(file_of(folder, line["update"])) for line in lines]
    rows = [
        [str(line["update"]), f"{line['start']:.2f}", f"{line['end']:.2f}", f"{line['norm']:.4g}"] for line in lines
    ]
    with figures.style():
        pictures = {
            "The loss from above, and the trajectory of each training": figures.save(
                folder, "valley", valley(trainings)
            ),
            "The loss along each training, and what the schedules became": figures.save(
                folder, "schedules", schedules(trainings)
            ),
        }
    columns = ("updates before the training", "loss, start", "loss, end", "norm of the hypergradient")
    words = (
        "Every training starts from the same point; only ln α and logit γ of its steps differ. Exact hypergradients."
    )
    return [Section("Trainings", words, columns, rows, pictures)]


def after(k: int) -> str:
    return f"after {k} update{'' if k == 1 else 's'}"


def shades(n: int) -> list[Any]:
    """From light to dark: later trainings are darker."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.85, 0.1, n)]


def valley(trainings: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    paths = [one["path"] for one in trainings]
    everything = np.concatenate(paths)
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.12 * (high - low) + 0.1
    y, x = (np.linspace(a, b, 200) for a, b in zip(low - margin, high + margin, strict=True))
    height = 800 / (1 + np.exp(-r(y[:, None], x[None, :]) / 500))
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots()
    filled = axes.contourf(x, y, height, levels=24, cmap="Greys", alpha=0.55)
    axes.contour(x, y, height, levels=24, colors="white", linewidths=0.4)
    figure.colorbar(filled, ax=axes, label="loss")
    for k, (path, colour) in enumerate(zip(paths, shades(len(paths)), strict=True)):
        axes.plot(path[:, 1], path[:, 0], color=colour, marker=".", label=after(k))
        axes.plot(*path[-1, ::-1], color=colour, marker="o", markersize=9, markeredgecolor="white", linestyle="none")
    axes.plot(*START[::-1], color=figures.ORANGE, marker="*", markersize=15, linestyle="none", label="start")
    axes.set(title="Trajectories", xlabel="weight x", ylabel="weight y")
    axes.grid(False)
    axes.legend(loc="best", frameon=True)
    return figure


def schedules(trainings: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for k, (one, colour) in enumerate(zip(trainings, shades(len(trainings)), strict=True)):
        panels[0].plot(one["losses"], color=colour, label=after(k))
        panels[1].plot(one["hyper"]["log_rate"], color=colour)
        panels[2].plot(one["hyper"]["momentum"], color=colour)
    panels[0].set(title="Loss", ylabel="loss")
    panels[1].set(title="Step sizes", ylabel="ln α")
    panels[2].set(title="Momenta", ylabel="logit γ")
    for axes in panels:
        axes.set_xlabel("elementary step")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


def numbers(folder: Path) -> list[Row]:
    """A row for each training, by the updates before it."""
    return [
        Row({"update": line["update"]}, {name: line[name] for name in ("end", "start", "norm")})
        for line in read_metrics(folder)
    ]
