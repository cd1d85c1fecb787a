"""Declared experiments, one per file; `drmad_digits.py` is called drmad-digits. Nothing is imported before it is asked for.

An experiment is a module with

    __doc__     what it shows, in its first line; command, minutes, hardware, expected and published numbers
    Config      a frozen dataclass of everything that can be set
    DRAWS       False where it draws nothing at random, so that its seed changes nothing (optional; without it, it draws)

and one of two forms. A meta loop (Config extends _common.Common), which hypertrail.tuning drives:

    problem(config) -> Problem        the bilevel problem; this is where data are loaded
    rule(config) -> outer.Rule        how the hyperparameters move
    steps(config, problem, k) -> int  T of meta-iteration k (optional: without it, the problem's)
    problem_for(config, problem, k) -> Problem
                                      the problem of meta-iteration k (optional: without it, `problem` each time). A pure
                                      function of config and k, with the same hyperparameters; other seeds, batches or
                                      examples compile nothing anew
    after(config, problem, engine, run, voice)
                                      what is computed with the last hyperparameters, through run.part (optional)
    show(folder) -> [Section]         its own part of the report (optional)

A study (Config extends _common.Study), which drives itself:

    study(config, run, voice)         computes, in parts: run.part(…); plain lines with run.append(…), arrays with
                                      arrays.save(run.path / "x.npz", …)
    show(folder) -> [Section]         from these files alone: figures drawn into figures/ (figures.save), tables, words; it is
                                      called as soon as metrics.jsonl has a line, so arrays come first and the line after
    problem(config) -> Problem        for `hypertrail verify` (optional); it is also built once before the run has a folder, so
                                      that missing data are missed at once
    ready(config)                     instead, for that alone: raises what is missing (optional)
    numbers(folder) -> [rows.Row]     what `hypertrail collect` holds beside the same rows of other seeds (optional; without it
                                      its runs are left out there. A meta loop has a row for each meta-iteration by itself)

A study that was stopped is called again from its beginning, with metrics.jsonl empty: whatever takes long goes through
`run.part(name, compute)`, which computes once and reads from then on. After each part is where a signal stops a study, so a line
before the first part is refused.

What `show` returns is both the closing table on the terminal and the report; `hypertrail report RUN` calls it again.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path
from types import ModuleType

from ..errors import UsageError

HERE = Path(__file__).parent


def names() -> list[str]:
    """Every experiment, by file name."""
    return sorted(p.stem.replace("_", "-") for p in HERE.glob("*.py") if not p.stem.startswith("_"))


def headline(name: str) -> str:
    """First line of an experiment's docstring, read without importing it."""
    tree = ast.parse((HERE / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def is_study(module: ModuleType) -> bool:
    """Whether the experiment drives itself, rather than being driven by the meta loop."""
    return hasattr(module, "study")


def draws(module: ModuleType) -> bool:
    """Whether the experiment draws random numbers: if it does not, runs of several seeds are one run, and have no interval."""
    return getattr(module, "DRAWS", True)


def load(name: str) -> ModuleType:
    """The experiment's module. UsageError, with the names there are and the nearest, for one that is not there."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown experiment {name!r}, expected one of {', '.join(known)}{hint}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
