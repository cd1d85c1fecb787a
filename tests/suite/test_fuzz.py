"""Run folders in which bits have flipped or files were cut off: a run that is taken up there ends with the numbers that it has
without the accident.

Everything is real but the engine, which is the closed-form one where the family says so: thousands of runs then take minutes.
A bit that flips may be noticed, and what it touched is then computed again, or it may be of no concern. What must not be: that
it is believed, that a traceback comes of it, or that the run is refused at every start.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter, deque
from contextlib import contextmanager

import pytest

from hypertrail import cli, runs, stopping
from hypertrail.report import writing
from hypertrail.runs import midway

SMALL = 2000  # bytes
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
        engine = request.getfixturevalue("closed_form_engines")
        monkeypatch.setattr(engine, "trainings", deque(maxlen=10))  # not those of thousands of runs
    command, stop_after, _ = FAMILIES[request.param]
    words = command.split()
    whole = tmp_path / "whole"
    assert cli.main([*words, "--run-dir", str(whole)]) == 0
    if stop_after is None:
        return words, whole, numbers(whole)
    return words, stopped_after(words, stop_after, tmp_path / "stopped", monkeypatch), numbers(whole)


def stopped_after(words, moment, folder, monkeypatch):
    """The folder of a run that was stopped: `stop` says when."""
    with monkeypatch.context() as patch:
        stop(patch, moment)
        assert cli.main([*words, "--run-dir", str(folder)]) == 75
    stopping.forget()
    return folder


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


@contextmanager
def damaged(folder, tmp_path):
    """A copy that is gone afterwards."""
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    yield copy
    shutil.rmtree(copy)


def taken_up(words, folder, expected, capfd, accident):
    """The run in a damaged folder ends with its numbers, at once or at the second start; returns the exit codes."""
    codes: list[int] = []
    while len(codes) < 2 and 0 not in codes:
        try:
            codes.append(cli.main([*words, "--run-dir", str(folder)]))
        except BaseException as problem:
            raise AssertionError(f"{accident}: a traceback") from problem
        said = capfd.readouterr()
        assert len(said.err.splitlines()) <= 1, f"{accident}: {said.err}"
    assert codes[-1] == 0, f"{accident}: {said.err}"
    assert numbers(folder) == expected, f"{accident}: other numbers"
    assert runs.status(folder) == "done", accident
    return tuple(codes)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path, rng):
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bit


@pytest.mark.parametrize("n", [pytest.param(60, id="few"), pytest.param(5000, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_flipped_bit_is_never_believed(family, n, request, tmp_path, capfd):
    """n flips over all families, each in another file of the folder."""
    words, folder, expected = family
    name = request.node.callspec.params["family"]
    rng, files, codes = random.Random(0), files_of(folder), Counter()
    for i in range(round(n * FAMILIES[name][2])):
        path = files[i % len(files)].relative_to(folder)
        with damaged(folder, tmp_path) as copy:
            bit = flip(copy / path, rng)
            codes[taken_up(words, copy, expected, capfd, f"{path}, bit {bit}")] += 1
    with capfd.disabled():
        print(f"\n{name}: {sum(codes.values())} bits flipped in {len(files)} files; exit codes {dict(codes)}")


@pytest.mark.parametrize("every", [pytest.param(499, id="few"), pytest.param(1, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["closed form, stopped", "closed form, finished", "study, finished"], indirect=True)
def test_a_file_that_is_cut_off_is_never_believed(family, every, tmp_path, capfd):
    """At every length, 0 included, of every file up to SMALL bytes; larger ones at lengths that are drawn."""
    words, folder, expected = family
    rng = random.Random(0)
    for file in files_of(folder):
        size, path = file.stat().st_size, file.relative_to(folder)
        lengths = (
            range(0, size, every) if size <= SMALL else [rng.randrange(size) for _ in range(SMALL // (10 * every) + 1)]
        )
        for length in lengths:
            with damaged(folder, tmp_path) as copy:
                os.truncate(copy / path, length)
                taken_up(words, copy, expected, capfd, f"{path}, cut off at {length}")


@pytest.mark.parametrize("family", ["closed form, stopped", "closed form, finished", "study, finished"], indirect=True)
def test_files_that_change_places_are_never_believed(family, tmp_path, capfd):
    """Each file in the place of each other one of its kind, and in the place of the same file of another run."""
    words, folder, expected = family
    other = tmp_path / "other run"
    assert cli.main([*words, "--outer-rate", "0.02", "--run-dir", str(other)]) == 0
    capfd.readouterr()
    mine = files_of(folder)
    theirs = [other / file.relative_to(folder) for file in mine]
    for file in mine:
        for source in (*mine, *theirs):
            whole = source != file and source.suffix == file.suffix and source.is_file()
            if whole and source.name != "config.json":  # that is another run, and refused as such
                with damaged(folder, tmp_path) as copy:
                    shutil.copyfile(source, copy / file.relative_to(folder))
                    taken_up(words, copy, expected, capfd, f"{source} at {file.relative_to(folder)}")


@pytest.mark.parametrize("family", ["closed form, stopped", "study, stopped"], indirect=True)
def test_all_files_of_another_run_are_never_believed(family, tmp_path, capfd, monkeypatch):
    """Whole and in order among themselves, they are of another setting: only config.json is ours."""
    words, folder, expected = family
    other = stopped_after([*words, "--outer-rate", "0.02"], 2, tmp_path / "other", monkeypatch)
    shutil.copyfile(folder / "config.json", other / "config.json")
    capfd.readouterr()
    taken_up(words, other, expected, capfd, "all but config.json of another run")


@pytest.mark.parametrize("family", ["closed form, finished", "study, finished"], indirect=True)
def test_numbers_of_another_run_are_not_shown(family, tmp_path, capfd):
    """Looked at and not taken up: lines, parts and arrays of another run are refused, with their names."""
    words, folder, _ = family
    other = tmp_path / "other"
    assert cli.main([*words, "--outer-rate", "0.02", "--run-dir", str(other)]) == 0
    numbers_there = [path for path in files_of(folder) if path.suffix in (".npz", ".jsonl") and path.name != "0000.npz"]
    assert len(numbers_there) > 2
    for file in numbers_there:
        with damaged(folder, tmp_path) as copy:
            path = file.relative_to(folder)
            shutil.copyfile(other / path, copy / path)
            if (other / path).read_bytes() == file.read_bytes():
                continue
            capfd.readouterr()
            out = tmp_path / f"report of {path.parent.name} {path.name}"
            assert cli.main(["report", str(copy), "--out", str(out)]) == 4, path
            assert file.name in capfd.readouterr().err


@pytest.mark.parametrize("family", ["training, stopped"], indirect=True)
def test_the_middle_of_another_training_is_never_believed(family, tmp_path, capfd, monkeypatch):
    words, folder, expected = family
    other = stopped_after([*words, "--seed", "1"], "middle", tmp_path / "other", monkeypatch)
    for name in ("training.npz", "trajectory"):
        with damaged(folder, tmp_path) as copy:
            (copy / name).unlink() if name == "training.npz" else shutil.rmtree(copy / name)
            copy_of = shutil.copyfile if name == "training.npz" else shutil.copytree
            copy_of(other / name, copy / name)
            capfd.readouterr()
            assert taken_up(words, copy, expected, capfd, f"{name} of another training") == (0,)
            assert "the training goes on at step" not in (copy / "log.txt").read_text()


@pytest.mark.parametrize("family", ["training, stopped"], indirect=True)
def test_a_damaged_segment_is_found_when_the_run_is_taken_up(family, tmp_path, capfd):
    """And not in the reverse pass, after hours of training."""
    words, folder, expected = family
    (segment, *_) = sorted((folder / "trajectory").glob("*.h5"))
    with damaged(folder, tmp_path) as copy:
        path = copy / segment.relative_to(folder)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert taken_up(words, copy, expected, capfd, segment.name) == (0,)
    with damaged(folder, tmp_path) as copy:
        assert taken_up(words, copy, expected, capfd, "nothing") == (0,)
        assert "the training goes on at step" in (copy / "log.txt").read_text()


@pytest.mark.parametrize("family", ["closed form, stopped"], indirect=True)
def test_a_line_without_its_check_sum_is_never_believed(family, tmp_path, capfd):
    """Release 0.1 wrote such lines; a bit that flips in the word "check" makes one."""
    words, folder, expected = family
    with damaged(folder, tmp_path) as copy:
        (line,) = map(json.loads, (copy / "metrics.jsonl").read_text().splitlines())
        for changed in (line | {"hyper_loss": 0.5}, line | {"hyper_loss": 0.5, "chdck": line["check"]}):
            changed.pop("check")
            (copy / "metrics.jsonl").write_text(json.dumps(changed, separators=(",", ":")) + "\n")
            taken_up(words, copy, expected, capfd, "a line without check sum")


@pytest.mark.parametrize("family", ["study, stopped"], indirect=True)
def test_a_part_with_another_number_is_never_believed(family, tmp_path, capfd):
    words, folder, expected = family
    part = folder / "parts" / "training-0.json"
    for change in (lambda text: text.replace('"end": 5', '"end": 4'), lambda text: text.replace('"check"', '"chdck"')):
        with damaged(folder, tmp_path) as copy:
            path = copy / part.relative_to(folder)
            text = path.read_text()
            path.write_text(change(text))
            assert path.read_text() != text
            taken_up(words, copy, expected, capfd, part.name)
            assert "computed again" in (copy / "log.txt").read_text()
