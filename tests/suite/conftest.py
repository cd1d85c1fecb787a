"""A small problem, an engine whose every number is known in closed form, and one run folder made with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hypertrail_data
from hypertrail import L2, LearningRate, Problem, cli, engines, outer, runs, tuning
from hypertrail.experiments import drmad_digits
from hypertrail.methods import parse_method
from hypertrail.records import Cost, Hypergradient, Metrics
from hypertrail.report import writing
from hypertrail.runs import arrays, reading
from hypertrail.runs.writing import dump_sealed
from hypertrail_nets import mlp

OFFSETS = {"train": 0.0, "valid": 0.1, "select": 0.2, "test": 0.3}


class Trajectory:
    closed = False

    def close(self) -> None:
        self.closed = True


@dataclass
class ClosedForm:
    """An engine without a network: f = ½ Σ (u + 3)², so the exact hypergradient is u + 3; drmad's is wrong by `error`.

    trainings: what `train` was asked for. fails: meta-iteration at which the hypergradient becomes NaN. growth: ‖w_T‖ / ‖w_0‖.
    zero: every hypergradient is 0.
    """

    name: str = "closed-form"
    error: float = 0.5
    fails: int | None = None
    growth: float = 1.0
    zero: bool = False
    trainings: list[SimpleNamespace] = field(default_factory=list)

    def train(self, problem: Problem, hyper: Any, keep: Any = "ends", progress: Any = None, midway: Any = None) -> Any:
        if progress is not None:
            progress(problem.steps, problem.steps)
        trajectory = None if keep == "ends" else Trajectory()
        if isinstance(keep, Path):
            keep.mkdir()
        cost = Cost(gradients=problem.steps, seconds=0.5, trajectory_bytes=0 if keep == "ends" else 1000)
        losses = np.linspace(2.0, self.hyper_loss(problem, SimpleNamespace(hyper=hyper)) / 1e4, problem.steps)
        ends = {"initial": {"w": np.ones(4)}, "final": {"w": np.full(4, self.growth)}}
        one = SimpleNamespace(
            problem=problem, hyper=hyper, keep=keep, trajectory=trajectory, cost=cost, losses=losses, **ends
        )
        self.trainings.append(one)
        return one

    def hyper_loss(self, problem: Problem, training: Any) -> float:
        return float(sum(((u + 3.0) ** 2).sum() / 2 for a in training.hyper.values() for u in a.values()))

    def evaluate(self, problem: Problem, training: Any, split: str) -> Metrics:
        loss = self.hyper_loss(problem, training)
        return Metrics(loss + OFFSETS[split], min(loss / 100, 1.0), len(getattr(problem.splits, split)))

    def hypergradient(self, problem: Problem, hyper: Any, training: Any, method: Any, progress: Any = None) -> Any:
        wrong = 0.0 if method.name == "exact" else self.error
        if len(self.trainings) - 1 == self.fails:
            wrong = np.nan
        # The order of the keys is turned around, as JAX sorts them.
        gradient = {kind: {key: u + 3.0 + wrong for key, u in reversed(a.items())} for kind, a in hyper.items()}
        if self.zero:
            gradient = {kind: {key: 0.0 * u for key, u in a.items()} for kind, a in gradient.items()}
        cost = Cost(hvps=7, seconds=0.25)
        f = self.hyper_loss(problem, training)
        return Hypergradient(gradient, {}, {}, f, np.ones(7), method.name, cost, {"N": 7, "zero": []})

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name}

    def device_memory(self) -> int | None:
        return None


@pytest.fixture
def engine() -> ClosedForm:
    return ClosedForm()


@pytest.fixture(scope="session")
def problem() -> Problem:
    return small_problem()


def small_problem(**changes: Any) -> Problem:
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), 40, 30, 0, 20, seed=0)
    settings: dict[str, Any] = {
        "network": mlp((8, 8, 1), (5,), 10),
        "splits": splits,
        "schedule": hypertrail_data.BatchSchedule(40, 10, seed=0),
        "steps": 6,
        "hyperparameters": (L2(level="parameter"), LearningRate(init=0.3)),
        "precision": "float64",
    }
    return Problem(**{**settings, **changes})


@pytest.fixture
def make_problem() -> Any:
    return small_problem


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make a finished run folder with the closed-form engine; keywords go to the Config of drmad-digits and to the engine."""

    def make(
        path: Path | None = None,
        error: float = 0.5,
        fails: int | None = None,
        growth: float = 1.0,
        zero: bool = False,
        **fields: Any,
    ) -> Path:
        config = drmad_digits.Config(**{"meta_iterations": 3, "steps": 6, "outer_rate": 0.2, **fields})
        record = runs.config_record("drmad-digits", config)
        path = path or tmp_path_factory.mktemp("run") / "folder"
        engine = ClosedForm(error=error, fails=fails, growth=growth, zero=zero)
        problem = cli.build(drmad_digits, config)
        with runs.Run(path, record) as run:
            run.describe(["run", "drmad-digits"], engine.describe())
            with cli.recorded(run):
                rule = drmad_digits.rule(config)
                method = parse_method(config.method)
                tuning.into_run(
                    run, problem, engine, method, rule, config.meta_iterations, config.compare_exact,
                    trajectory=config.trajectory,
                )  # fmt: skip
                run.done({"meta_iterations": config.meta_iterations})
        return path

    return make


@pytest.fixture(scope="session")
def end_again() -> Any:
    """Write DONE anew for the folder of a run whose files a test has changed by hand: as if the run had written them."""

    def end(folder: Path) -> None:
        files = {path.relative_to(folder).as_posix(): arrays.sha256_of(path) for path in reading.numbers_of(folder)}
        (folder / "DONE").write_text(dump_sealed({"time": "", "files": files}))

    return end


@pytest.fixture(scope="session")
def run_folder(make_run: Any) -> Path:
    return make_run()


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have what the experiment shows, and all words, but none of the figures that every run has: they take seconds."""
    monkeypatch.setattr(writing, "catalogue", lambda shown: [])


@pytest.fixture
def closed_form_engines(monkeypatch: pytest.MonkeyPatch) -> ClosedForm:
    """Whatever engine is asked for, the closed-form one answers."""
    one = ClosedForm()
    monkeypatch.setattr(engines, "load", lambda name: one)
    return one


@pytest.fixture
def digits_experiment() -> ModuleType:
    return drmad_digits


@pytest.fixture
def rule() -> outer.Rule:
    return outer.GradientDescent(0.1)
