"""Experiments that their users bring: a Python file anywhere, a module of an installed package, or an entry point.

    hypertrail run my_task.py                a file
    hypertrail run my_package.my_task        a module
    hypertrail run my-task                   an entry point of the group "hypertrail.experiments"

The simplest file has one function, `task() -> hypertrail.Task`; `task(config)` if it has settings. See docs/own-tasks.md. A file
may also have what a built-in experiment has (`Config` with `problem` and `rule`, or `study`; see experiments/__init__.py).

The file is executed, as `python my_task.py` would. Its sha256 is among the settings of the run, so a run is not gone on with by
another file; what it imports is not looked at. A copy lies in the folder of the run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from . import experiments
from .errors import UsageError
from .experiments._common import Common
from .outer import Adam, Rule, as_rule
from .users_code import told

GROUP = "hypertrail.experiments"


@dataclass(frozen=True)
class TaskConfig(Common):
    """What every task can be asked for. Extend it with the settings of your own; a frozen dataclass."""

    method: str = "exact"
    """How the hypergradient is taken. exact: back over every state; truncated-K: the last K steps; forward: for few
    hyperparameters; for updates.Momentum also drmad-C0 … C6 and float-reversed; implicit-cg, -neumann, -dense with a
    whole_loss."""
    outer_rate: float = 0.1
    """Step of the outer Adam that moves the hyperparameters, in the units of what is moved (0.1 of a Log is 10 %)."""
    check: bool = True
    """Before anything is tuned, compare the hypergradient of the first ten steps with differences of such trainings, and stop
    where they differ: some models lie to every automatic derivative."""


@dataclass(frozen=True)
class Source:
    """The file of an experiment, and what it held when it was loaded."""

    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def settings(self) -> dict[str, str]:
        """What the record of a run says of it."""
        return {"source": str(self.path), "source_sha256": self.sha256}


@dataclass(frozen=True)
class Found:
    """An experiment by the word that the user gave. title: what runs and folders call it. word: what another process gives.
    source: of an experiment that its user brings."""

    word: str
    title: str
    module: Any
    source: Source | None = None

    @property
    def settings(self) -> dict[str, str]:
        return self.source.settings if self.source else {}


def installed() -> dict[str, str]:
    """{name: what it is} of the experiments that installed packages bring as entry points. Nothing of them is imported."""
    return {one.name: f"(of an installed package: {one.value})" for one in importlib.metadata.entry_points(group=GROUP)}


def find(word: str) -> Found:
    """The experiment of a name, a file or a module. UsageError in one line where there is none, or where it cannot be loaded."""
    if word in experiments.names():
        return Found(word, word, experiments.load(word))
    entries = {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}
    if word in entries:
        with told(f"the entry point {word}"):
            module = entries[word].load()
        return own(word, word, module, Path(inspect.getfile(module)))
    if word.endswith(".py") or "/" in word:
        return of_file(Path(word))
    if all(part.isidentifier() for part in word.split(".")) and "." in word:
        return of_module(word)
    if is_file(Path(f"{word}.py")):
        raise UsageError(f"unknown experiment {word!r}; for the file in this folder say {word}.py")
    experiments.load(word)  # refuses the word, with the nearest name
    raise AssertionError(word)


def of_file(path: Path) -> Found:
    if not is_file(path):
        raise UsageError(f"{path} is not there, or is no file; expected a Python file with a function task()")
    path = path.resolve()
    source = Source(path, path.read_bytes())
    name = f"hypertrail_own_{path.stem}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as for a script: it may import what lies beside it
    sys.modules[name] = module  # a dataclass looks itself up there
    with told(str(path)):
        exec(compile(source.content, str(path), "exec"), module.__dict__)
    return own(str(path), title_of(path.stem), module, path, source)


def is_file(path: Path) -> bool:
    """False too for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def of_module(word: str) -> Found:
    with told(f"module {word}"):
        module = importlib.import_module(word)
    return own(word, title_of(word.rpartition(".")[2]), module, Path(inspect.getfile(module)))


def title_of(stem: str) -> str:
    title = stem.replace("_", "-")
    if title in experiments.names():
        raise UsageError(f"{title} is the name of a built-in experiment; call the file otherwise")
    if title in ("collected", "launches") or not title.isprintable():
        raise UsageError(f"{title!r} cannot be the name of a folder of runs; call the file otherwise")
    return title


def own(word: str, title: str, module: ModuleType, path: Path, source: Source | None = None) -> Found:
    source = source or Source(path, path.read_bytes())
    if hasattr(module, "task"):
        return Found(word, title, of_task(module, path), source)
    if hasattr(module, "Config") and (hasattr(module, "problem") or hasattr(module, "study")):
        return Found(word, title, module, source)
    raise UsageError(f"{path} has no function task(), and no Config with problem() or study(); see docs/own-tasks.md")


def of_task(module: ModuleType, path: Path) -> SimpleNamespace:
    """A file with `task` in the form of an experiment that the meta loop drives."""
    config = getattr(module, "Config", TaskConfig)
    if not (is_dataclass(config) and isinstance(config, type) and issubclass(config, TaskConfig)):
        raise UsageError(
            f"{path}: Config is {config!r}, expected a frozen dataclass that extends hypertrail.TaskConfig"
        )
    takes_settings = bool(inspect.signature(module.task).parameters)

    def task(config: TaskConfig) -> Any:
        with told(f"{path}: task()"):
            return module.task(config) if takes_settings else module.task()

    def rule(config: TaskConfig) -> Rule:
        with told(f"{path}: rule()"):
            return as_rule(module.rule(config)) if hasattr(module, "rule") else Adam(config.outer_rate)

    return SimpleNamespace(
        __doc__=module.__doc__,
        Config=config,
        DRAWS=getattr(module, "DRAWS", takes_settings),
        task=task,
        rule=rule,
        problem=problem_of(task),
    )


def problem_of(task: Callable[[TaskConfig], Any]) -> Callable[[TaskConfig], Any]:
    def problem(config: TaskConfig) -> Any:
        """The task of these settings as the meta loop sees it. UsageError for the reference engine, and for several devices."""
        from .engines import load

        if config.engine != "gpu":
            raise UsageError(
                f"engine {config.engine!r}: an own model runs in the gpu engine alone, for the reference engine has its "
                "derivatives by hand; hypertrail verify compares with differences and with the unrolled loop"
            )
        if config.devices != "1":
            raise UsageError(f"devices {config.devices}: an own model runs on one device; leave out --devices")
        engine: Any = load("gpu")
        return engine.tunable(lambda: task(config), config.precision, config.seed)

    return problem
