"""The online methods, as the caller names them: hyperparameters that move while the network trains.

A declaration is a frozen record of settings. The engines turn it into a small object with a memory and a `block`; the loop
that runs blocks (`engine.adapt`) does not know which method it runs. Learning rates stay within the bounds of their
declaration, and so positive; so does every other hyperparameter.

| method | moves | looks at | gradients for a step | state beside w and v |
|---|---|---|---|---|
| Adaptive | all declared | validation, K steps back | 1 + (M + 2 K)/n | K states for a moment |
| T1T2 | L2, L1, noise | validation, 1 step back | 1 + M/every; noise: 1 + (M + 2)/every | Adam's |
| HypergradientDescent | learning rate | the next training batch | 1 | one direction |
| Almeida | learning rate of each parameter | the next training batch | 1 | two vectors |
| RTHO | all declared, few | validation, all steps back | 1 + 2 m + M/every | m states |
| MARTHE | all declared, few | validation, fading | 1 + 2 m + M/every | m states |
| OSGM | learning rate | the same training batch again | 2 | one vector |
| Clarke | all declared | validation, a Neumann series | 1 + (M + 2 + 2 terms)/every | Adam's |
| Plain | nothing | nothing | 1 | none |

A product with second derivatives counts as two gradients (`records.Cost`). `cost` gives both counts of a block, for both engines.

None of them looks ahead of what it has seen: the validation split is used up by them, so report a third, untouched split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .checks import at_least, fraction, one_of, positive
from .errors import UsageError
from .hyperparameters import count
from .outer import Adam, Rule
from .records import Cost

if TYPE_CHECKING:
    from .problem import Problem

INSIDE_THE_LOSS = ("l2", "l1", "noise")
LEARNING_RATE = "learning_rate"
Outer = Rule | Any  # on a Task also an optax.GradientTransformation; keep the object, another one compiles anew


@dataclass(frozen=True)
class Online:
    """What every method has: a name, the kinds it can move (empty: every declared one), and the steps of one block."""

    name: ClassVar[str]
    movable: ClassVar[tuple[str, ...]] = ()

    @property
    def block_steps(self) -> int:
        """How many elementary steps one block takes, and how many batches of the schedule it needs."""
        raise NotImplementedError

    @property
    def advance(self) -> int:
        """By how many steps of the schedule a block goes on; less than it takes where steps are done again."""
        return self.block_steps

    def cost(self, problem: Problem) -> Cost:
        """Of one block, by the rule of `records.Cost`, in whichever engine. Here: one gradient a step."""
        return Cost(self.block_steps)


@dataclass(frozen=True)
class Plain(Online):
    """Plain training in the same loop, block by block: what the others are measured against. It moves nothing.

        v ← γ v − (1−γ) g,  w ← w + α v          (or what the dynamics of the problem are)

    Whatever is declared stays at what the state says, so a schedule is made from outside: other numbers in state["hyper"] between
    two blocks, which compiles nothing anew (`hypertrail.race.arms`). block: steps of one block; it changes no number.
    Cost: one gradient a step.
    """

    block: int = 100

    name = "plain"

    def __post_init__(self) -> None:
        at_least("plain block", self.block, 1)

    @property
    def block_steps(self) -> int:
        return self.block


@dataclass(frozen=True)
class Adaptive(Online):
    """The adaptive method of the thesis: per-parameter learning rates and L2, moved by the signs of K reversed steps.

        n steps:  v ← γ v − (1−γ) g,  w ← w + eʳ v
        h_0 = mean gradient of the validation loss over M distinct random batches;  dw = h_0,  dv = 0
        K steps back, exactly:  dr, dλ += their shares            (Maclaurin et al. 2015, algorithm 2, truncated)
        of the output layer's W:  dr, dλ ← their means over the classes
        r ← clip(r − s_r sign(dr)),  λ ← clip(λ − s_λ sign(dλ)),  sign(0) = 0
        with mass m:  u ← m u − (1−m) sign(h),  r ← clip(r + s_r u)

    steps: n. validation_batches: M (0: the whole split, in its fixed batches). last: K.
    moves: the step of each declared kind in the units of its representation: s_r in ln α, s_λ in log10 λ. Tuned pairs
    (s_λ, s_r): n-K = 5-5: .0005, .001; 120-5: .01, .1; n about 500: .04, .2. The thesis' bounds are
    LearningRate(bounds=(1e-5, 1)), L2(bounds=(1e-7, 1e-2)); init .1. A kind whose step is 0 stays where it is.
    mode: 'restore' (go on from the end of the block), 'look-ahead' (go on from w_{T−K}, with the batches of the K steps done
    again; a block then advances n − K steps), 'as-published' (from w_{T−K} too, but the K batches are skipped).
    states: 'kept' (the last K states, exact, K small) or 'undone' (in floating point, as the thesis did: damped dynamics
    with γ > 0 only, every step multiplies the rounding error by 1/γ). Measured on adaptive-mnist's network in float32 at γ .9:
    undoing changes dr by 1e-7 of its norm at K = 4 and 2e-6 at K = 20, dλ by less, not one of 84,510 signs, and no time.
    average_output: the thesis' averaging of the output layer: the hypergradient of its W (every kind) is replaced by the mean
    over the classes before its sign is taken, so that all classes of one input move together, by a whole step; its b is left
    alone. False: every class moves by a sign of its own. `Block.gradient` is in both cases the hypergradient before averaging.
    On a Task, `moves` names the first-level entries of Task.hyper, and the step is in units of the unconstrained array (ln α for
    Log). `averaged` stands in the place of average_output: the arrays that are averaged over their last axis, by their path in
    hyper ("['rate']['W']"), or by the name of a group of Shared, which is that of the weights ("['out']['W']").
    Cost of a block: n + M gradients and K products (2 gradients each). Memory: K states.
    POOR: K steps see only what a hyperparameter does at once: the penalty of a weight acts over 1/(α λ) steps. Signs throw away
    how sure a gradient is; and a million hyperparameters overfit the validation split: published errors are 2 to 6 points
    lower there than on the test split. Source: the thesis; docs/online.md.
    """

    steps: int = 131
    validation_batches: int = 10
    last: int = 4
    moves: tuple[tuple[str, float], ...] = (("learning_rate", 0.1), ("l2", 0.01))
    mass: float = 0.0
    mode: str = "restore"
    states: str = "kept"
    average_output: bool = True
    averaged: tuple[str, ...] = ()

    name = "adaptive"

    def __post_init__(self) -> None:
        at_least("adaptive steps", self.steps, 1)
        at_least("adaptive validation_batches", self.validation_batches, 0)
        one_of("adaptive mode", self.mode, MODES)
        one_of("adaptive states", self.states, STATES)
        fraction("adaptive mass", self.mass)
        if not 1 <= self.last <= self.steps:
            raise UsageError(f"adaptive last {self.last}, expected 1 … {self.steps} (the steps of a block)")
        if self.mode != "restore" and self.last == self.steps:
            raise UsageError(
                f"adaptive mode {self.mode!r} with last = steps = {self.steps} stays where it is; lower last"
            )
        for kind, size in self.moves:
            if not 0.0 <= size < float("inf"):
                raise UsageError(f"adaptive move of {kind} {size}, expected a number ≥ 0 (0: it stays)")

    @property
    def block_steps(self) -> int:
        return self.steps

    @property
    def advance(self) -> int:
        return self.steps - self.last if self.mode == "look-ahead" else self.steps

    def cost(self, problem: Problem) -> Cost:
        return Cost(self.steps + (self.validation_batches or problem.valid_batch_count), self.last)

    def move(self, kind: str) -> float:
        """s of one kind; 0: it stays. UsageError where none is given."""
        for known, size in self.moves:
            if known == kind:
                return size
        raise UsageError(f"adaptive moves {dict(self.moves)}: no step for {kind}; add ({kind!r}, its step)")


@dataclass(frozen=True)
class Periodic(Online):
    """Methods that move every few steps. block: steps in one compiled block, a multiple of `every`: how often there is something
    to report and to save. It changes no number."""

    every: int = 10
    block: int = 100

    def __post_init__(self) -> None:
        at_least(f"{self.name} every", self.every, 1)
        if self.block < 1 or self.block % self.every:
            raise UsageError(f"{self.name} block {self.block}, expected a multiple of every = {self.every}")

    @property
    def block_steps(self) -> int:
        return self.block

    @property
    def move_count(self) -> int:
        """How many a block has."""
        return self.block // self.every

    def counted(self, problem: Problem, batches: int, products: int) -> Cost:
        """A gradient a step, one for each validation batch (0: the whole split) of each move, and so many products."""
        return Cost(self.block + self.move_count * (batches or problem.valid_batch_count), products)


@dataclass(frozen=True)
class T1T2(Periodic):
    """T1–T2: penalties and noise moved by what one elementary step does to the validation loss.

        θ' = θ − η₁ ∇C̃₁(θ, λ)                          (whatever the dynamics of the problem make of it)
        h  = −∇C₂(θ') (∂_λ∇_θ C̃₁)(θ, λ)                C₂: validation, no noise, no penalty; C̃₁: the batch of this step
        h  ← h · min(1, clip_norm / ‖h‖)
        λ  ← max(lower bound, λ − outer(h))            every `every` steps

    Without momentum h is the hypergradient truncated to K = 1, divided by η₁. Learning rates and momentum are out of its sight.
    outer: how λ moves (published: Adam, step .001, with Adam at .002 for the weights). representation: 'value' (as
    published: λ itself moves, down to its bound) or 'free' (log10 λ, ln λ move).
    validation_batches: random ones for each move; 0: the whole split.
    clip: 'all' (clip_norm limits ‖h‖ over all hyperparameters together) or 'each-tensor' (it limits the norm of each tensor of
    ∇C₂, and then that of each array of h; a norm that overflows leaves zeros).
    nonfinite: what happens where a number of h is not finite: 'skip' (no move; counted in `Block.skipped`), 'stop'
    (NumericalFailure) or 'zero' (this number, and each such number of ∇C₂, is taken as 0). A validation loss that is not finite
    stops every run.
    at: 'after' (∇C₂ at θ', after the step) or 'same' (∇C₂ at the same θ as ∂_λ∇_θ C̃₁; a move then stands in the place of a
    step: of each `every` batches the last one serves the move alone, and `every` must be at least 2).
    moves: on a Task, the first-level entries of Task.hyper that move; (): all that the elementary loss reads.
    Cost: M gradients every `every` steps ('same': one less); noise needs one product (2 gradients) more for each move, L2 and L1
    do not.
    POOR: sees one step ahead, so it finds what helps at once; steps of fixed size in λ itself are coarse where λ is
    small. Source: Luketina, Berglund, Greff, Raiko 2016, "Proposed method"; published overhead about 30 %. Their released code
    moves every 10th step, with batches of 128 on both sides and λ ← max(0, λ − …). It replaces NaN and infinity by 0 and cuts the
    norm of each tensor at 3, in ∇C̃₁, in ∇C₂ and in h (and values at 10, which no norm of 3 leaves room for); it takes ∇C₂ at
    the same θ, a move standing in the place of a step. That is at='same', clip='each-tensor', nonfinite='zero' here, without the
    cut of ∇C̃₁, which is left out. Older versions of it have none of the cuts, and take the step and the move together.
    """

    outer: Outer = field(default_factory=lambda: Adam(0.001))
    representation: str = "value"
    validation_batches: int = 1
    clip_norm: float = 3.0
    clip: str = "all"
    nonfinite: str = "skip"
    at: str = "after"
    moves: tuple[str, ...] = ()

    name = "t1t2"
    movable = INSIDE_THE_LOSS

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("t1t2 validation_batches", self.validation_batches, 0)
        one_of("t1t2 representation", self.representation, REPRESENTATIONS)
        positive("t1t2 clip_norm", self.clip_norm)
        one_of("t1t2 clip", self.clip, CLIPS)
        one_of("t1t2 nonfinite", self.nonfinite, NONFINITE)
        one_of("t1t2 at", self.at, WHERE_VALIDATED)
        if self.at == "same" and self.every == 1:
            raise UsageError(
                "t1t2 at 'same' with every = 1 has moves in the place of all steps; every must be at least 2"
            )

    @property
    def steps_before_move(self) -> int:
        """How many of the `every` batches of a move are trained on."""
        return self.every if self.at == "after" else self.every - 1

    def cost(self, problem: Problem) -> Cost:
        cost = self.counted(problem, self.validation_batches, self.move_count if problem.declared("noise") else 0)
        cost.gradients -= self.move_count * (self.every - self.steps_before_move)
        return cost


@dataclass(frozen=True)
class HypergradientDescent(Online):
    """Learning rates that follow the product of this gradient with the last direction, at (nearly) no cost.

        h_t = ⟨g_t, ∂w_t/∂α⟩      ∂w_t/∂α: damped v, heavy ball −v', Nesterov −(g + μ v), Adam −m̂/√(v̂ + ε)
        additive:        α ← α − β h_t
        multiplicative:  α ← α (1 − β h_t / (‖g_t‖ ‖∂w_t/∂α‖))      nothing moves where a norm is 0
        w ← one elementary step with the NEW α

    Sums and norms run over all that shares one α (the whole network at level 'network') and come BEFORE the move; the released
    AdamHD of the authors sums within one tensor and moves the common α after each. The first step moves nothing. α stays within
    the declaration's bounds; the released code has none.
    beta: published 1e-3 for SGD and Nesterov, 1e-7 for Adam (additive; α₀ = 1e-3, batch 128). Additive β has the units of
    α² over loss: multiply the loss by c and β must be divided by c³ (α₀ by c). The multiplicative rule does not care.
    rate: on a Task, the first-level entry of Task.hyper that is the learning rate. Any update has a ∂w/∂α there, by its tangent.
    Other declared hyperparameters stay where they are. Cost: no gradient; one direction in memory, two passes over it.
    POOR with noisy batches: E[g_t g_{t−1}] is small against its noise; α follows short-term gains and ends too low
    (Wu, Ren, Liao, Grosse 2018: short-horizon bias). Source: Baydin, Cornish, Rubio, Schmidt, Wood 2018: SGD-HD, SGDN-HD, Adam-HD
    and the multiplicative rule; their released code for the settings and for what is published (experiment hd-mnist).
    """

    rule: str = "additive"
    beta: float = 1e-3
    block: int = 100
    rate: str = LEARNING_RATE

    name = "hypergradient-descent"
    movable = ("learning_rate",)

    def __post_init__(self) -> None:
        one_of("hypergradient descent rule", self.rule, RULES)
        positive("hypergradient descent beta", self.beta)
        at_least("hypergradient descent block", self.block, 1)

    @property
    def block_steps(self) -> int:
        return self.block


@dataclass(frozen=True)
class Almeida(Online):
    """One learning rate p for each parameter, moved by the agreement of two gradients in a row. SGD only (momentum 0).

        v_i ← γ v_i + (1−γ) g_i(t)²
        p_i ← p_i · max(½, 1 + k g_i(t) g_i(t−1) / v_i)      unmoved where v_i = 0, and at the first step
        x_i ← x_i − p_i g_i(t)

    k: how fast p moves (relative, per step). average: γ. v begins at 0, which makes the first moves large (up to
    k/(1−γ)). Needs LearningRate(level="parameter"). rate: on a Task, the first-level entry of Task.hyper that is declared as
    Log(…, over=Shared("parameter")). Cost: no gradient; two vectors in memory.
    POOR: as hypergradient descent, parameter by parameter, so with even less signal in the noise.
    Source: Almeida, Langlois, Amaral, Plakhov 1998, "Parameter adaptation in stochastic optimization" (equation 4.6, as HLearn
    cites it: the same p and v, without the floor ½, with k .01 and γ .9, which are the defaults here); the floor:
    docs/online.md.
    """

    k: float = 0.01
    average: float = 0.9
    block: int = 100
    rate: str = LEARNING_RATE

    name = "almeida"
    movable = ("learning_rate",)

    def __post_init__(self) -> None:
        positive("almeida k", self.k)
        fraction("almeida average", self.average)
        at_least("almeida block", self.block, 1)

    @property
    def block_steps(self) -> int:
        return self.block


@dataclass(frozen=True)
class MARTHE(Periodic):
    """Forward-mode hypergradients with a fading memory; μ = 0 looks one step back, μ = 1 (RTHO) to the beginning.

        Z ← μ A Z + B,   Z_0 = 0          A = ∂(step)/∂(w, v),  B = ∂(step)/∂λ, at the λ in force
        h = ∇f(w) Z_w + ∂f/∂λ             every `every` steps
        λ ← clip(λ − outer(h))

    mu: μ. outer: how the unconstrained λ moves. validation_batches: random ones for each move; 0: the whole split.
    restart: Z ← 0 after each move ("warm restart" of Z; w and v go on). most: more hyperparameters are refused.
    moves: on a Task, the first-level entries of Task.hyper that move; (): all of them.
    h is the exact derivative only while λ has been constant, and μ = 1: later Z mixes what former λ did.
    Cost: one gradient and m products (tangents, 2 gradients each) a step, M gradients a move; memory: m states. POOR beyond a few
    dozen hyperparameters. Source: Donini, Franceschi, Majumder, Pontil, Frasconi 2020 (MARTHE). Their released code (AdaTune)
    has the same two ends, and rules for μ and for the outer step of their own, which are left out here.
    """

    mu: float = 0.9
    outer: Outer = field(default_factory=lambda: Adam(0.01))
    validation_batches: int = 1
    restart: bool = False
    most: int = 64
    every: int = 1
    moves: tuple[str, ...] = ()

    name = "marthe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.mu <= 1.0:
            raise UsageError(f"{self.name} mu {self.mu}, expected 0 ≤ mu ≤ 1")
        at_least(f"{self.name} validation_batches", self.validation_batches, 0)
        at_least(f"{self.name} most", self.most, 1)

    def cost(self, problem: Problem) -> Cost:
        return self.counted(problem, self.validation_batches, self.block * count(problem.initial_hyper()))


@dataclass(frozen=True)
class RTHO(MARTHE):
    """Real-time hyperparameter optimisation: MARTHE with μ = 1, a move every Δ = `every` steps, projected on the bounds.

        Z ← A Z + B;   every Δ steps:  λ ← clip(λ − outer(∇f(w) Z_w + ∂f/∂λ));   Z and s are never reset

    Exact only while λ has been constant: afterwards Z holds derivatives of a trajectory that no single λ would have made.
    restart=True sets Z (not s) to 0 after each move, which makes h the exact derivative over the last Δ steps.
    Cost and memory as MARTHE. Source: Franceschi, Donini, Frasconi, Pontil 2017, on real-time updates by the forward mode; in
    their released code (RFHO): the forward mode, initialised once, a move after every hyper batch, values kept positive.
    """

    mu: float = 1.0
    every: int = 20
    validation_batches: int = 0

    name = "rtho"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu != 1.0:
            raise UsageError(f"rtho mu {self.mu}: it is 1 by definition; use MARTHE(mu={self.mu})")


@dataclass(frozen=True)
class OSGM(Online):
    """Online scaled gradient methods, hypergradient-descent feedback (HDM), with a diagonal step size P and a null step.

        x⁺ = x − P g,   g = ∇f(x),   g⁺ = ∇f(x⁺)                (f: the loss on this batch, for both)
        h  = −g⁺ ⊙ g / ‖g‖²
        G ← G + h²,   P ← clip(P − η h / (√G + ε))              AdaGrad
        x ← x⁺ only if f(x⁺) < f(x)                             null step

    learning_rate: η, in units of α. SGD only (momentum 0); LearningRate of any level, sums over what shares an α.
    rate: on a Task, the first-level entry of Task.hyper that is the learning rate; h is there the slope of f(x⁺) by P, over ‖g‖²,
    for any update.
    Cost: 2 gradients a step (deterministic f would give g for the next step for nothing; minibatches do not).
    POOR with small batches: the null step then compares noise with itself, it accepts what overfits the batch.
    Source: Chu, Gao, Ye, Udell 2025 ("Provable and practical online learning rate adaptation with hypergradient descent": HDM,
    null step, AdaGrad) and Gao, Chu, Ye, Udell 2025 ("Gradient methods with online scaling": OSGM). ε and the place of it are
    those of their released code, which starts from P = 0 and adds momentum and a curvature estimate that are left out. η is ours.
    """

    learning_rate: float = 0.01
    epsilon: float = 1e-12
    block: int = 100
    rate: str = LEARNING_RATE

    name = "osgm"
    movable = ("learning_rate",)

    def __post_init__(self) -> None:
        positive("osgm learning_rate", self.learning_rate)
        positive("osgm epsilon", self.epsilon)
        at_least("osgm block", self.block, 1)

    @property
    def block_steps(self) -> int:
        return self.block

    def cost(self, problem: Problem) -> Cost:
        return Cost(2 * self.block)


@dataclass(frozen=True)
class Clarke(Periodic):
    """Implicit differentiation of the update map, by a truncated Neumann series, while training goes on.

        Φ(w, λ) = w after one step with v held;   A = ∂Φ/∂w,  B = ∂Φ/∂λ,  both at the present w, with the latest batch
        h = Σ_{j ≤ terms} ∇f(w) Aʲ B + ∂f/∂λ        (→ ∇f (1 − A)⁻¹ B: the fixed point of Φ)
        λ ← clip(λ − outer(h))                      every `every` steps

    terms: look-back distance (0: one step, as T1–T2 but for every kind); their released code counts from 1 and takes A and B
    before the last step, ∇f after it. Learning rates have a gradient here, other than in implicit differentiation of L: Φ
    contains them. moves: on a Task, the first-level entries of Task.hyper that move; (): all of them.
    Cost: M gradients and 1 + terms products (2 gradients each) every `every` steps; published 2 to 3 times plain training.
    POOR far from a fixed point, where ∇f Aʲ B is not what the steps to come will do; directions of curvature below 1/(α terms)
    are cut short. Source: Clarke, Oldewage, Hernández-Lobato 2022, equation 6.
    """

    terms: int = 5
    outer: Outer = field(default_factory=lambda: Adam(0.05))
    validation_batches: int = 1
    moves: tuple[str, ...] = ()

    name = "clarke"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("clarke terms", self.terms, 0)
        at_least("clarke validation_batches", self.validation_batches, 0)

    def cost(self, problem: Problem) -> Cost:
        return self.counted(problem, self.validation_batches, self.move_count * (self.terms + 1))


MODES = ("restore", "look-ahead", "as-published")
STATES = ("kept", "undone")
RULES = ("additive", "multiplicative")
REPRESENTATIONS = ("value", "free")
CLIPS = ("all", "each-tensor")
NONFINITE = ("skip", "stop", "zero")
WHERE_VALIDATED = ("after", "same")
