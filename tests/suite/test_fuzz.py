"""Run folders in which bits have flipped or files were cut off: a run that is taken up there ends with the numbers that it has
without the accident.

Everything is real but the engine, which is the closed-form one where the family is "closed form", so that thousands of runs take
minutes. A flipped bit may be noticed, and what it touched is then computed again, or it may be of no concern; what it may not do is to be
believed, to end in a traceback, or to stop the run again and again.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from hypertrail import cli, runs, stopping
from hypertrail.report import writing
from hypertrail.runs import midway
from hypertrail_data import StoredTrajectory

CLOCKS = ("seconds", "memory", "training_seconds", "processor", "evaluation_seconds")
TINY = "--depth 3 --blocks 1 --growth 2 --train 64 --valid 20 --select 20 --test 20 --batch 16 --precision float64"
# family: its command, the meta-iteration or part after which it is stopped (None: it comes to its end), the share of all flips
FAMILIES = {
    "closed form, stopped": ("run drmad-digits --meta-iterations 3 --steps 6 --no-compare-exact", 1, 0.5),
    "closed form, finished": ("run drmad-digits --meta-iterations 2 --steps 6 --no-compare-exact", None, 0.3),
    "study, stopped": ("run rosenbrock --steps 6 --updates 2 --engine cpu", 1, 0.1),
    "study, finished": ("run rosenbrock --steps 6 --updates 1 --engine cpu", None, 0.06),
    "training, stopped": (
        f"run drmad-digits {TINY} --engine cpu --steps 6 --meta-iterations 1 --method exact --no-compare-exact --trajectory disk",
        "middle",
        0.04,
    ),
}


@pytest.fixture
def family(request, tmp_path, monkeypatch):
    """(words, a folder in which that run was stopped, or is finished, its numbers at the end) of a family."""
    monkeypatch.setattr(writing, "write_report", lambda folder, *_: folder)  # figures take seconds
    monkeypatch.setattr("hypertrail.sections.own_sections", lambda folder: [])
    if "closed form" in request.param:
        request.getfixturevalue("closed_form_engines")
    command, stop_after, _ = FAMILIES[request.param]
    words = command.split()
    whole = tmp_path / "whole"
    assert cli.main([*words, "--run-dir", str(whole)]) == 0
    if stop_after is None:
        return words, whole, numbers(whole)
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop(patch, stop_after)
        assert cli.main([*words, "--run-dir", str(stopped)]) == 75
    stopping.forget()
    return words, stopped, numbers(whole)


def stop(patch, after):
    """Let a run be asked to stop: in the middle of a training that is on the disk, or after its n-th line or part."""
    if after == "middle":
        patch.setattr(midway, "EVERY", 0.0)
        write = midway.Midway.write

        def writing_and_asking(self, one, ended=False):
            write(self, one, ended)
            stopping.ask("SIGTERM")

        patch.setattr(midway.Midway, "write", writing_and_asking)
        return
    name = "append"
    append, count = getattr(runs.Run, name), []

    def appending(run, line):
        append(run, line)
        count.append(line)
        if len(count) == after:
            stopping.ask("SIGTERM")

    patch.setattr(runs.Run, name, appending)


def numbers(folder):
    """Every number of a run but its clocks: its lines, and its arrays as they lie there."""
    lines = [without_clocks(line) for line in runs.read_metrics(folder)]
    return lines, {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npz"))}


def without_clocks(found):
    if isinstance(found, dict):
        return {key: without_clocks(one) for key, one in found.items() if key not in CLOCKS}
    return [without_clocks(one) for one in found] if isinstance(found, list) else found


def taken_up(words, folder, expected, capfd):
    """The run in a damaged folder ends with its numbers, at once or at the second start; returns the exit codes."""
    codes = []
    for _ in range(2):
        codes.append(cli.main([*words, "--run-dir", str(folder)]))
        said = capfd.readouterr()
        assert len(said.err.splitlines()) <= 1, said.err
        if codes[-1] == 0:
            break
    assert codes[-1] == 0, said.err
    assert numbers(folder) == expected
    assert runs.status(folder) == "done"
    return codes


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flipped(path, rng):
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bit


@pytest.mark.parametrize("n", [pytest.param(150, id="few"), pytest.param(5000, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_flipped_bit_is_never_believed(family, n, request, tmp_path, capfd):
    words, folder, expected = family
    share = FAMILIES[request.node.callspec.params["family"]][2]
    rng, files = random.Random(0), files_of(folder)
    counted = {}
    for i in range(round(n * share)):
        path = files[i % len(files)]
        damaged = tmp_path / "damaged"
        shutil.copytree(folder, damaged)
        bit = flipped(damaged / path.relative_to(folder), rng)
        try:
            codes = taken_up(words, damaged, expected, capfd)
        except BaseException:
            print(f"{path.relative_to(folder)}, bit {bit}")
            raise
        counted[tuple(codes)] = counted.get(tuple(codes), 0) + 1
        shutil.rmtree(damaged)
    with capfd.disabled():
        print(f"\n{request.node.callspec.params['family']}: {counted}")
