"""One run as figures, pages and tables see it: read from its folder, each part when it is first asked for."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..measures import SPLITS
from ..runs import ENV, WHERE, arrays, read_config, read_metrics, status
from ..runs.reading import files_of, sealed_object
from ..terminal import visible

Spread = list[np.ndarray]  # the unconstrained values of one tensor, flat, one array for each state of the run
UNIQUE = 3  # a run is named by the fields in which it differs from the others, where there are no more than these


@dataclass(frozen=True)
class View:
    """The folder of a run. letter: what it is called beside others; label: the same with what is different about it; place: which
    of them it is, and so its colour; alone: there are no others, so figures need not name it.

    Raises UsageError, when first looked into, for a folder that is no run.
    """

    folder: Path
    letter: str = "A"
    label: str = ""
    place: int = 0
    alone: bool = True
    said: str | None = None  # the state to tell, where the run's own last file is yet to come

    @cached_property
    def record(self) -> dict[str, Any]:
        return read_config(self.folder)

    @cached_property
    def env(self) -> dict[str, Any]:
        return sealed_object(self.folder / ENV)

    @property
    def data(self) -> dict[str, Any]:
        """How data were drawn → what `Splits.record` says of them; runs of release 0.1 did not write it down."""
        return self.env.get("data", {})

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of a meta loop; a study has none of this kind."""
        return [line for line in read_metrics(self.folder) if "meta_iteration" in line]

    @cached_property
    def compared(self) -> list[dict[str, Any]]:
        """Those in which the hypergradient stands beside the exact one."""
        return [line for line in self.lines if "agreement" in line]

    @cached_property
    def state(self) -> str:
        return self.said or status(self.folder)

    @property
    def name(self) -> str:
        return visible(self.folder.resolve().name)

    @property
    def k(self) -> list[int]:
        return [line["meta_iteration"] for line in self.lines]

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if self.lines and split in self.lines[0]["metrics"]]

    @cached_property
    def spreads(self) -> dict[str, dict[str, dict[str, Spread]]]:
        """kind → role of the tensor (W, scale, …) → tensor → its values at each state, tensors in the network's order."""
        groups: dict[str, dict[str, dict[str, Spread]]] = {}
        for path in self.states:
            hyper, _ = arrays.load_state(path, self.files.get(f"states/{path.name}"))
            for kind, tensors in hyper.items():
                for name, u in tensors.items():
                    role = name.rpartition("/")[2]
                    groups.setdefault(kind, {}).setdefault(role, {}).setdefault(name, []).append(np.ravel(u))
        return groups

    @cached_property
    def states(self) -> list[Path]:
        return sorted((self.folder / "states").glob("[0-9][0-9][0-9][0-9]*.npz"))

    @cached_property
    def losses(self) -> dict[int, np.ndarray]:
        """Meta-iteration → (T,) elementary loss of each step; runs of earlier versions kept none."""
        files = sorted((self.folder / "steps").glob("[0-9][0-9][0-9][0-9]*.npz"))
        found = {int(file.stem): self.arrays(f"steps/{file.name}") for file in files}
        return {k: one["loss"] for k, one in found.items() if one}

    @cached_property
    def files(self) -> dict[str, str]:
        """File → its sha256, as the lines say; the first state stands in none, and in those of release 0.1 no file does."""
        return files_of(self.lines)

    def arrays(self, name: str) -> dict[str, Any] | None:
        """The arrays of a file such as 'hypergradients/0000.npz'; None where there is none. DataError where it is not as it was
        written."""
        path = self.folder / name
        return arrays.load(path, self.files.get(name)) if path.is_file() else None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes on the disk, for every folder and file at the top of the run's folder."""
        found = {one.name: disk_bytes(one) for one in sorted(self.folder.iterdir()) if not one.name.startswith(".")}
        return {name: size for name, size in found.items() if size}


def views(folders: Sequence[Path]) -> list[View]:
    """One for each folder, named by a letter and by what is different about it. UsageError where one is no run."""
    records = [read_config(folder) for folder in folders]
    named = zip(letters(len(folders)), folders, differing(records), strict=True)
    return [
        View(folder, letter, f"{letter}: {words or visible(folder.resolve().name)}", i, len(folders) == 1)
        for i, (letter, folder, words) in enumerate(named)
    ]


def letters(n: int) -> list[str]:
    """A … Z, then AA, AB …"""
    upper = string.ascii_uppercase
    return [upper[i] if i < 26 else upper[i // 26 - 1] + upper[i % 26] for i in range(n)]


def fields_that_differ(records: Sequence[dict[str, Any]]) -> list[str]:
    """Experiment, if it does, and every field of the configs that is not the same in all; without where things lie."""
    flat = [{"experiment": one["experiment"], **one["config"]} for one in records]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [key for key in keys if key not in WHERE and any(one.get(key, ...) != flat[0].get(key, ...) for one in flat)]


def differing(records: Sequence[dict[str, Any]]) -> list[str]:
    """For each what it has of its own, 'method exact, seed 1'; '' where that says too much or not enough."""
    keys = fields_that_differ(records)
    flat = [{"experiment": one["experiment"], **one["config"]} for one in records]
    words = [", ".join(str(one[key]) if key == "experiment" else f"{key} {one.get(key, '–')}" for key in keys)
             for one in flat]  # fmt: skip
    return words if len(keys) <= UNIQUE and len(set(words)) == len(words) else [""] * len(words)


def disk_bytes(path: Path) -> int:
    """Of a file, or of everything in a folder; what goes away while we look counts nothing."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    total = 0
    for one in files:
        try:
            total += one.stat().st_size
        except FileNotFoundError:
            continue
    return total
