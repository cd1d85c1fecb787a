"""Seeds and grids: which runs a launch is made of, as words for the experiment's own parser.

--seeds 0:10                     seeds 0 … 9
--grid method=exact,drmad-C4 steps=50,100      every method with every number of steps: four cells
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
import typing
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from ..runs import WHERE

MOST_RUNS = 10_000
Axes = dict[str, list[str]]  # field → its values, as they were written
Cell = dict[str, str]


def seeds(text: str) -> list[int]:
    """'0:10' → 0 … 9, '0:10:5' → 0, 5, '3' → 3, and any of these joined by commas. UsageError for anything else, or for none."""
    ranges: list[range] = []
    for one in text.split(","):
        if not re.fullmatch(r"\s*\d{1,18}(:\d{1,18}(:[1-9]\d{0,17})?)?\s*", one, flags=re.ASCII):
            raise UsageError(f"seeds {text!r}, expected numbers and ranges such as 0:10 (0 to 9), 0:10:2 or 1,5,8:12")
        first, *rest = (int(word) for word in one.split(":"))
        ranges.append(range(first, *rest) if rest else range(first, first + 1))
    refuse_many(sum(map(len, ranges)))
    out = [seed for one in ranges for seed in one]
    if not out:
        raise UsageError(f"seeds {text!r} are none at all: the end of a range is not part of it; expected such as 0:10")
    twice = next((seed for seed, n in Counter(out).items() if n > 1), None)
    if twice is not None:
        raise UsageError(f"seeds {text!r} name {twice} twice; expected every seed once")
    return out


def refuse_many(runs: int) -> None:
    """UsageError for more runs than one launch can hold."""
    if runs > MOST_RUNS:
        raise UsageError(
            f"{runs:,} runs, expected at most {MOST_RUNS:,} in one launch: each is a job, a folder and a line"
        )


def axes(words: Sequence[str], config: type, experiment: str) -> Axes:
    """'field=a,b' → {field: [a, b]}. UsageError, with the known fields, for a field that `config` does not have.

    A value of a field that takes several words is written with spaces: "methods=drmad-C1 drmad-C4,exact" are two values.
    """
    known = [field.name for field in dataclasses.fields(config) if field.name not in ("seed", *WHERE)]
    out: Axes = {}
    for word in words:
        name, equals, values = word.partition("=")
        field = name.strip().lstrip("-").replace("-", "_")
        if not equals or not field:
            raise UsageError(f"grid {word!r}, expected field=value,value such as {known[0].replace('_', '-')}=a,b")
        if field == "seed":
            raise UsageError(f"grid {word!r}: seeds are no part of the grid; name them with --seeds 0:10")
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            there = ", ".join(name.replace("_", "-") for name in known)
            raise UsageError(f"{experiment} has no setting {name!r} for the grid, expected one of {there}{hint}")
        if field in out:
            raise UsageError(f"grid: {name} is there twice; name all its values at once, {name}=a,b,c")
        out[field] = [value.strip() for value in values.split(",")]
        if "" in out[field] or len(set(out[field])) < len(out[field]):
            raise UsageError(f"grid {word!r}: a value is empty or there twice; expected such as {name}=a,b")
    return out


def cells(found: Axes) -> list[Cell]:
    """Every combination, the last field moving fastest; one empty cell where there is no grid. UsageError for too many."""
    refuse_many(math.prod(len(values) for values in found.values()))
    return [dict(zip(found, values, strict=True)) for values in itertools.product(*found.values())]


def as_words(cell: Cell, config: type) -> list[str]:
    """The cell as the command line has it: --field value, --field or --no-field for a yes or no."""
    hints = typing.get_type_hints(config)
    out: list[str] = []
    for field, value in cell.items():
        flag = field.replace("_", "-")
        if hints[field] is not bool:
            refuse_options(flag, value, several=typing.get_origin(hints[field]) is tuple)
            out += [f"--{flag}", *value.split()]
        elif value.lower() not in ("true", "false"):
            raise UsageError(f"grid {flag}={value}, expected true or false")
        else:
            out.append(f"--{flag}" if value.lower() == "true" else f"--no-{flag}")
    return out


def refuse_options(flag: str, value: str, several: bool) -> None:
    """UsageError where a value of the grid would be read as several, or as another option. several: the field takes words."""
    words = value.split()
    if len(words) > 1 and not several:
        raise UsageError(
            f"grid {flag}={value}: --{flag} takes one value, expected such as {flag}={words[0]},{words[1]}"
        )
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-(\d|\.\d)\S*|-inf", word):
            raise UsageError(f"grid {flag}={value}: {word!r} is an option; expected values of --{flag} alone")


def refuse_twice(found: Axes, words: Sequence[str]) -> None:
    """UsageError for a field that stands in the grid and among the settings of all runs as well."""
    named = {re.sub(r"^no_", "", word[2:].partition("=")[0].replace("-", "_")) for word in words if word[:2] == "--"}
    for field in (*found, "seed", "run_dir"):
        if field in named:
            flag = field.replace("_", "-")
            hint = {"seed": "name seeds with --seeds", "run_dir": "every run has a folder of its own below --runs-dir"}
            raise UsageError(f"--{flag} cannot stand here: {hint.get(field, f'{flag} is in the grid')}")


def words_of(cell: dict[str, Any]) -> str:
    """A cell in words."""
    return " ".join(f"{field.replace('_', '-')}={value}" for field, value in cell.items())
