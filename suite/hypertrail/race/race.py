"""A race: several arms within one budget, over several seeds; each family's setting chosen on select, judged on test.

A family is a method or schedule with a small grid of settings, one arm each. Of every family the arm with the lowest mean error
on the SELECT split runs for it (ties: the lower loss); an arm that failed with one seed is out. The best of the baseline
families, on select again, is the tuned schedule that all others are compared with, on TEST, seed by seed: a seed gives all arms
the same splits, first weights and batches.

What weakens a verdict stands beside it (`remarks`): a choice at the edge of its grid, a training that has blown up, a budget
that was not spent. Fewer than three seeds give no verdict.

Everything is read back from parts/*.json and from one line of metrics.jsonl, which names the families.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..edges import edge
from ..engines import Engine
from ..errors import UsageError
from ..problem import Problem
from ..runs import Run, read_metrics, read_part
from .arm_records import Record
from .arms import Arm, in_run, refuse_arm

if TYPE_CHECKING:
    from ..display import Voice

Families = Mapping[str, Sequence[str]]  # label → names of its arms


def run(
    run: Run,
    voice: Voice,
    engine: Engine,
    problem: Callable[[int], Problem],
    arms: Sequence[Arm],
    families: Families,
    baselines: Sequence[str],
    seeds: Sequence[int],
    budget: int,
    every: int,
    with_valid: Sequence[str] = (),
) -> None:
    """Every arm with every seed, each a part of the run; then one line that says who ran against whom.

    problem(seed): built once for each seed, whose programs all its arms share. with_valid: arms that train on train and valid
    together, as a schedule may where a method looks at valid. Cost: len(arms) · len(seeds) · budget gradients,
    and every split forward after each `every` blocks. UsageError for families that name other arms than there are, and for arms
    that cannot run (`refuse_arm`), before any is trained.
    """
    known = [arm.name for arm in arms]
    named = {name for names in families.values() for name in names}
    if len(set(known)) < len(known) or named != set(known) or not set(baselines) <= set(families):
        raise UsageError(f"families {dict(families)} and baselines {list(baselines)} do not fit the arms {known}")
    for seed in seeds:
        of_seed = problem(seed)
        on_both = joined(of_seed) if with_valid else of_seed
        for arm in arms:
            refuse_arm(on_both if arm.name in with_valid else of_seed, arm, budget)
        for i, arm in enumerate(arms):
            words = f"seed {seed}, {arm.name} ({i + 1} of {len(arms)})"

            def seen(done: int, total: int, words: str = words) -> None:
                voice.progress(words, done, total)

            record = in_run(run, engine, on_both if arm.name in with_valid else of_seed, arm, budget, every, seen)
            voice.say(f"{words}: {in_words(record)}")
    on_processor = engine.describe().get("backend", "cpu") == "cpu"
    run.append(
        {
            "families": {label: list(names) for label, names in families.items()},
            "baselines": list(baselines),
            "seeds": list(seeds),
            "budget": budget,
            "clock": "processor" if on_processor else "seconds",
        }
    )


def joined(problem: Problem) -> Problem:
    """The problem whose train split is train and valid together; valid stays what it is, and so do the pixels' mean and scale."""
    train, valid = problem.splits.train, problem.splits.valid
    both = replace(
        train, **{key: np.concatenate([getattr(one, key) for one in (train, valid)]) for key in ("x", "y", "rows")}
    )
    splits, schedule = replace(problem.splits, train=both), replace(problem.schedule, examples=len(both))
    return problem.with_(splits=splits, schedule=schedule)


def in_words(record: Record) -> str:
    if record["failed"]:
        return record["failed"]
    end = record["points"][-1]["metrics"]
    errors = ", ".join(f"{split} {100 * one['error']:.2f} %" for split, one in end.items())
    lost = f" | blown up: {record['blown_up']}" if record.get("blown_up") else ""
    return f"{record['steps']} steps, {record['gradients']} gradients | {errors}{lost}"


@dataclass(frozen=True)
class Runner:
    """What runs for a family: its chosen arm, one record for each seed.

    edge: in words, where the arm lies on the edge of the family's grid; '' where it does not.
    """

    family: str
    arm: str
    records: list[Record]
    clock: str
    edge: str = ""

    def at_end(self, split: str, key: str = "error") -> np.ndarray:
        """(seeds,) of the last measurement."""
        return np.array([record["points"][-1]["metrics"][split][key] for record in self.records])

    def examples(self, split: str) -> int:
        """How many examples the split has."""
        return int(self.first["points"][-1]["metrics"][split]["examples"])

    @property
    def seconds(self) -> float:
        """Median seconds of a block, without the first, which compiles (but where there is no other)."""
        return float(np.median([s for record in self.records for s in later(record, self.clock)]))

    @property
    def first(self) -> Record:
        return self.records[0]


@dataclass(frozen=True)
class Result:
    """What a run folder tells: the runner of every family that has one, in order; the tuned schedule among them.

    clock: 'processor' (seconds that the process worked: what else the machine does is not in it) or, with a device that is no
    processor, 'seconds' on the wall. plain_seconds: of a step of plain training, the median over all arms at a constant rate.
    """

    runners: list[Runner]
    tuned: Runner | None
    failed: list[str]
    blown_up: list[str]
    plain_seconds: float
    clock: str
    budget: int
    seeds: list[int]


def read(folder: Path) -> Result:
    """The result of a run folder, from its files alone."""
    (line,) = [one for one in read_metrics(folder) if "families" in one][-1:]
    records: dict[str, list[Record]] = {}
    for name in dict.fromkeys(name for names in line["families"].values() for name in names):
        records[name] = [read_part(folder, f"s{seed}-{name}") for seed in line["seeds"]]
    clock = line["clock"]
    found = {family: choose(family, names, records, clock) for family, names in line["families"].items()}
    runners = [one for one in found.values() if one]
    candidates = [one for family in line["baselines"] if (one := found[family])]
    plain = [
        seconds / steps
        for one in records.values()
        for record in one
        if record["method"]["name"] == "plain" and record["schedule"] == "constant"
        for seconds, steps in zip(later(record, clock), later(record, "steps"), strict=True)
    ]
    return Result(
        runners=runners,
        tuned=min(candidates, key=merit, default=None),
        failed=[name for name, ones in records.items() if any(one["failed"] for one in ones)],
        blown_up=[name for name, ones in records.items() if any(one.get("blown_up") for one in ones)],
        plain_seconds=float(np.median(plain)) if plain else math.nan,
        clock=clock,
        budget=line["budget"],
        seeds=line["seeds"],
    )


def later(record: Record, key: str) -> list[float]:
    """What was noted of each block, but the first where there are more."""
    return record["block"][key][1:] or record["block"][key]


def choose(family: str, names: Sequence[str], records: Mapping[str, list[Record]], clock: str) -> Runner | None:
    """The family's arm with the lowest error on select; None where every one failed."""
    whole = [
        Runner(family, name, records[name], clock, edge_of(name, names, records))
        for name in names
        if not any(one["failed"] or not one["points"] for one in records[name])
    ]
    return min(whole, key=merit, default=None)


def edge_of(name: str, names: Sequence[str], records: Mapping[str, list[Record]]) -> str:
    """Where this arm lies on the edge of the grid that it was chosen from: the arms that differ from it in numbers alone."""
    point, words = setting(records[name][0])
    same = [setting(records[other][0]) for other in names]
    return edge([numbers for numbers, theirs in same if theirs == words], point)


def setting(record: Record) -> tuple[dict[str, float], dict[str, Any]]:
    """What was set for an arm: its numbers (start and method, by name), and all else."""
    method = record["method"]
    numbers = {key: x for key, x in method.items() if isinstance(x, int | float) and not isinstance(x, bool)}
    words = {key: x for key, x in method.items() if key not in numbers} | {"schedule": record["schedule"]}
    return numbers | record["start"], words


def merit(runner: Runner) -> tuple[float, float]:
    """Mean error on select, then mean loss there: what choices are made by."""
    return float(runner.at_end("select").mean()), float(runner.at_end("select", "loss").mean())


def remarks(runner: Runner) -> list[str]:
    """What weakens a verdict about this runner, in words, to stand beside it; [] where nothing does."""
    out = [runner.edge] if runner.edge else []
    lost = [str(one["seed"]) for one in runner.records if one.get("blown_up")]
    if lost:
        out.append(f"blown up with seed {', '.join(lost)}")
    short = [one for one in runner.records if one["budget"] - one["gradients"] > price_of_a_step(one)]
    if short:
        out.append(f"only {min(one['gradients'] for one in short):,} of {short[0]['budget']:,} gradients")
    return out


def price_of_a_step(record: Record) -> int:
    """Gradients of one elementary step, rounded up: how far a spent budget may be from the whole."""
    return -(-record["price"] // record["block"]["steps"][0])
