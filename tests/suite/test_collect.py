"""Many runs in one table: the numbers against a calculation by hand, what counts, the tables and the figure."""

from __future__ import annotations

import csv
import json
import math
import re

import pytest

from hypertrail import UsageError, cli, experiments, rows, runs
from hypertrail.launch import collect
from hypertrail.rows import Row, means

SMALL = {"depth": 4, "growth": 2, "blocks": 1, "train": 64, "valid": 32, "batch": 16}


def table(path):
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_runs_of_a_meta_loop_by_hand(make_run, end_again, tmp_path, capsys):
    """Two cells with three and one seeds; one run is not finished, one is there twice."""
    here = tmp_path / "drmad-digits"
    made = [make_run(here / f"{seed}-{rate}", seed=seed, outer_rate=rate) for seed, rate in
            ((0, 0.1), (1, 0.1), (2, 0.1), (0, 0.2))]  # fmt: skip
    # The closed-form engine knows no seeds: give each run an end of its own.
    ends = (0.5, 0.25, 1.5, 0.75)
    for folder, end in zip(made, ends, strict=True):
        lines = runs.read_metrics(folder)
        lines[-1]["hyper_loss"] = end
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        end_again(folder)
    make_run(here / "again", seed=0, outer_rate=0.2)
    lines = runs.read_metrics(made[3])
    (here / "again" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    end_again(here / "again")
    unfinished = make_run(here / "unfinished", seed=3, outer_rate=0.1)
    (unfinished / "DONE").unlink()

    assert cli.main(["collect", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4 runs counted, 2 not (unfinished, or the same as another)" in said
    rows = table(tmp_path / "out" / "runs.csv")
    (row,) = [one for one in rows if one["folder"].endswith("unfinished")]
    assert (row["seed"], row["outer_rate"], row["state"], row["counts"]) == ("3", "0.1", "unfinished", "False")
    assert sum(row["counts"] == "True" for row in rows) == 4
    assert len(table(tmp_path / "out" / "lines.csv")) == 4 * 4

    cells = {
        (row["outer_rate"], row["meta_iteration"], row["number"]): row for row in table(tmp_path / "out" / "cells.csv")
    }
    end = cells["0.1", "3", "hyper_loss"]
    assert end["n"] == "3"
    mean, sd = 2.25 / 3, math.sqrt((0.25**2 + 0.5**2 + 0.75**2) / 2)
    half = 4.302653 * sd / math.sqrt(3)
    assert float(end["mean"]) == pytest.approx(mean)
    assert float(end["sd"]) == pytest.approx(sd)
    assert (float(end["low"]), float(end["high"])) == pytest.approx((mean - half, mean + half), rel=1e-6)
    alone = cells["0.2", "3", "hyper_loss"]
    assert (alone["n"], alone["mean"], alone["sd"], alone["low"], alone["high"]) == ("1", "0.75", "", "", "")
    assert {row["number"] for row in cells.values()} == {
        *("hyper_loss", "l2_cosine", "l2_signs", "l2_norm_ratio", "seconds"),
        *(
            f"{split}_{what}"
            for split in ("train", "valid", "select", "test")
            for what in ("loss", "error", "examples")
        ),
    }
    cosine = [runs.read_metrics(one)[0]["agreement"]["l2"]["total"]["cosine"] for one in made[:3]]
    assert float(cells["0.1", "0", "l2_cosine"]["mean"]) == pytest.approx(sum(cosine) / 3)
    assert ("0.1", "3", "l2_cosine") not in cells  # the closing training has no hypergradient
    assert re.search(r"outer-rate=0\.1 +3 +0\.75 ± 1\.64 ", said)
    assert (tmp_path / "out" / "drmad-digits.png").read_bytes().startswith(b"\x89PNG")


def collected(seed, *lines):
    return collect.Collected(None, "study", seed, "done", (), [rows.Row(*line) for line in lines])


def test_lines_of_a_study_are_grouped_by_what_they_are_about():
    found = collect.groups(
        [
            collected(0, ({"method": "a", "update": 0}, {"end": 1.0}), ({"method": "b", "update": 0}, {"end": 5.0})),
            collected(1, ({"method": "b", "update": 0}, {"end": 7.0}), ({"method": "a", "update": 0}, {"end": 3.0})),
        ]
    )
    assert {dict(one.about)["method"]: one.numbers for one in found} == {
        "a": {"end": [1.0, 3.0]},
        "b": {"end": [5.0, 7.0]},
    }
    assert list(collect.curves(found)) == ["method=a", "method=b"]
    same = collect.groups([collected(0, ({}, {"end": 1.0}), ({}, {"end": 2.0}))])
    assert [one.numbers for one in same] == [{"end": [1.0]}, {"end": [2.0]}]  # two lines of one run are not two seeds


def test_what_was_measured_is_no_axis_and_lines_without_one_are_drawn():
    """The axis is the last number of the labels that moves; a line that is not about it stands at the end alone."""
    found = collect.groups(
        [
            collected(
                seed,
                *(
                    ({"steps": T, "method": "a", "update": k}, {"height": T / 10 + k + seed})
                    for T in (5, 9)
                    for k in (1, 0)
                ),
                ({"steps": 5, "method": "grid"}, {"height": 0.5}),
            )
            for seed in (0, 1)
        ]
    )
    assert collect.axis_of(found) == "update"
    curves = collect.curves(found)
    assert list(curves) == ["steps=5 method=a", "steps=9 method=a", "steps=5 method=grid"]
    assert [dict(one.about)["update"] for one in curves["steps=9 method=a"]] == [0, 1]
    _, ends = collect.ends(found)
    assert ends[1] == ["steps=9 method=a", "2", "2.4 ± 6.4"]
    figure = collect.figure("study", found)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2]
    assert len(figure.axes[1].get_yticks()) == 3


def errors_of(*errors, examples=50, name="test_error"):
    found = [
        collected(
            seed, ({"update": 0}, {name: x, "test_examples": examples}), ({"update": 1}, {name: x, "seconds": 1.5})
        )
        for seed, x in enumerate(errors)
    ]
    return collect.groups(found)


def test_an_error_is_no_finer_than_one_example_and_stays_within_a_hundred():
    """Twice 20 % on 50 images is 20 ± 2, not ± 0; 60 and 100 % are not 80 ± 254."""
    (row, *_) = collect.ends(errors_of(0.2, 0.2)[:1])[1]
    assert row[1:] == ["2", "20.00 ± 2.00 %"]
    wide = errors_of(0.6, 1.0)
    assert collect.ends(wide[:1])[1][0][1:] == ["2", "80.00 (0.00 to 100.00) %"]
    cell = next(row for row in collect.table_of_cells(wide) if row["number"] == "test_error")
    assert (cell["mean"], cell["low"], cell["high"]) == (pytest.approx(0.8), 0.0, 1.0)
    assert collect.ends(errors_of(0.0, 0.004, name="minus_tuned_test_error")[:1])[1][0][2] == "+0.20 ± 2.54 %"


def test_bands_and_bars_stay_within_a_hundred(monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    band, bar = Axes.fill_between, Axes.errorbar

    def fill_between(self, x, low, high, **look):
        drawn.append((low, high))
        return band(self, x, low, high, **look)

    def errorbar(self, x, y, xerr=None, **look):
        drawn.append(([x - xerr[0][0]], [x + xerr[1][0]]))
        return bar(self, x, y, xerr=xerr, **look)

    monkeypatch.setattr(Axes, "fill_between", fill_between)
    monkeypatch.setattr(Axes, "errorbar", errorbar)
    collect.figure("study", errors_of(0.6, 1.0))
    assert len(drawn) == 2
    for low, high in drawn:
        assert min(low) == pytest.approx(0)
        assert max(high) == pytest.approx(100)


def test_equal_runs_under_different_seeds_count_once(tmp_path, capsys):
    """Rosenbrock draws nothing at random: two of its seeds were "526.4 ± 0, n 2, 95 % interval over seeds"."""
    for seed in (0, 1):
        lines = [{"update": 0, "start": 700.5, "end": 526.4, "norm": 3.25}]
        write_study(tmp_path / "rosenbrock" / f"{seed}", "rosenbrock", seed, lines)
    assert cli.main(["collect", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "has the same numbers as the run of seed 0" in said.err
    assert "drew nothing at random" in said.err
    assert "1 runs counted, 1 not" in said.out
    assert "±" not in re.sub("mean ± 95 %.*", "", said.out)
    assert {row["n"] for row in table(tmp_path / "collected" / "cells.csv")} == {"1"}
    assert sorted(row["counts"] for row in table(tmp_path / "collected" / "runs.csv")) == ["False", "True"]


def test_runs_that_only_took_other_times_are_equal_and_whole_numbers_are_no_evidence():
    def run(seed, **values):
        return collected(seed, ({"update": 0}, values))

    def same(*found):
        return [one.same for one in collect.equal_runs(found)]

    assert same(run(0, end=0.5, seconds=1.0), run(1, end=0.5, seconds=2.0)) == [None, 0]
    assert same(run(0, end=0.5), run(1, end=0.25), run(2, end=0.25)) == [None, None, 1]
    assert same(run(0, diverged=1.0), run(1, diverged=1.0)) == [None, None]


def test_many_curves_get_a_figure_for_each_value_of_a_label():
    lines = [({"T": T, "method": f"m{i}"}, {"cosine": i / T}) for T in (5, 9) for i in range(1, 9)]
    found = collect.groups(
        [collected(0, *(({**labels, "update": k}, values) for labels, values in lines for k in (0, 1)))]
    )
    assert len(collect.curves(found)) == 16
    pages = collect.pages("study", found)
    assert [(title, len(collect.curves(one))) for title, one in pages] == [("study, T 5", 8), ("study, T 9", 8)]
    assert list(collect.curves(pages[0][1])) == [f"method=m{i}" for i in range(1, 9)]


def write_study(folder, name, seed, lines, **fields):
    """A finished run folder of a study, with these lines."""
    record = runs.config_record(name, experiments.load(name).Config(seed=seed, **fields))
    with runs.Run(folder, record) as run:
        run.describe(["run", name], {})
        for line in lines:
            run.append(line)
        run.done({})
    return folder


def asked(method, update, cosine, n):
    one = {"cosine": cosine, "signs": 1.0, "norm_ratio": None}
    agreement = {"l2": one, "learning_rate": one | {"cosine": -cosine}}
    return {
        "steps": 200,
        "update": update,
        "method": method,
        "agreement": agreement,
        "N": n,
        "seconds": 0.5,
        "bytes": 800,
    }


def test_what_a_study_measured_is_averaged_over_seeds(tmp_path, capsys):
    """N depends on the seed and is a whole number all the same; the agreement lies in a dict."""
    for seed, n, cosine in ((0, 83, 0.25), (1, 74, 0.5), (2, 66, 0.75)):
        exact = {"steps": 200, "update": 0, "method": "exact", "hyper_loss": 1.0, "test_error": 0.1, "N": 200}
        lines = [exact, asked("drmad-C4", 0, cosine, n), asked("drmad-C4", 1, 2 * cosine, n),
                 {"steps": 200, "update": 0, "method": "drmad-C0", "failed": "not finite"},
                 {"steps": 2000, "stopped": "not finite"}]  # fmt: skip
        write_study(tmp_path / f"{seed}", "completions-mnist", seed, lines)
    assert cli.main(["collect", *(str(tmp_path / f"{seed}") for seed in range(3)), "--out", str(tmp_path / "out")]) == 0
    cells = {
        (row["method"], row["update"], row["number"]): (row["n"], row["mean"])
        for row in table(tmp_path / "out" / "cells.csv")
    }
    assert cells["drmad-C4", "0", "l2_cosine"] == ("3", "0.5")
    assert cells["drmad-C4", "1", "learning_rate_cosine"] == ("3", "-1.0")
    assert cells["drmad-C4", "0", "N"] == ("3", str((83 + 74 + 66) / 3))
    assert cells["drmad-C0", "0", "failed"] == ("3", "1.0")
    assert cells["exact", "0", "hyper_loss"] == ("3", "1.0")
    assert not any(number == "l2_norm_ratio" for _, _, number in cells)
    said = capsys.readouterr().out
    assert re.search(r"settings +n +l2_cosine +learning_rate_cosine +N ", said)
    assert (tmp_path / "out" / "completions-mnist.png").is_file()


def test_chaos_is_collected(tmp_path, capsys):
    """Its one line has no number at the top."""
    part = {"to": 2.0, "values": 3, "overflowed": 0, "median_difference": 0.25, "largest_slope": 2.0}
    for seed in (0, 1):
        lines = [{"parts": [{"part": "chaotic", "from": 1.0 + seed, "largest_hypergradient": None, **part}]}]
        write_study(tmp_path / "chaos" / f"{seed}", "chaos", seed, lines)
    assert cli.main(["collect", str(tmp_path)]) == 0
    assert re.search(r"part=chaotic +2 +1.5 ± 6.4", capsys.readouterr().out)
    assert (tmp_path / "collected" / "chaos.png").is_file()
    assert {row["number"] for row in table(tmp_path / "collected" / "cells.csv")} == {
        "from",
        "values",
        "overflowed",
        *part,
    }


def test_every_study_says_its_numbers():
    named = [experiments.load(name) for name in experiments.names()]
    assert [one.__name__ for one in named if experiments.is_study(one) and not hasattr(one, "numbers")] == []


def test_a_study_without_numbers_is_named_and_left_out(make_run, tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        write_study(tmp_path / f"{seed}", "chaos", seed, [{"parts": []}])
    make_run(tmp_path / "whole", **SMALL)
    monkeypatch.delattr("hypertrail.experiments.chaos.numbers")
    assert cli.main(["collect", *(str(tmp_path / one) for one in ("0", "1", "whole"))]) == 0
    said = capsys.readouterr()
    assert said.err.count("chaos") == 1
    assert "warning: left out: the runs of chaos, as it does not say its numbers" in said.err
    assert "1 runs counted, 2 not (unfinished, or the same as another, or left out)" in said.out


def test_a_damaged_run_is_named_and_left_out(make_run, tmp_path, capsys):
    here = tmp_path / "drmad-digits"
    for name in ("whole", "config", "seed", "lines", "line"):
        make_run(here / name, seed=len(name), **SMALL)
    (here / "config" / "config.json").write_text("")
    (here / "seed" / "config.json").write_text('{"experiment": "drmad-digits", "hash": "0", "config": {}}')
    (here / "lines" / "metrics.jsonl").write_text("torn\n" * 3)
    lines = runs.read_metrics(here / "line")
    del lines[-1]["metrics"]
    (here / "line" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["collect", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "1 runs counted, 4 not" in said.out
    errors = said.err.splitlines()
    assert len(errors) == 4
    for name, why in (
        ("config", "damaged"),
        ("seed", "hash does not fit"),
        ("lines", "damaged in line 1"),
        ("line", "damaged in line 4"),
    ):
        (one,) = [error for error in errors if f"left out: {here / name}," in error]
        assert why in one
    states = {row["folder"]: row["state"] for row in table(tmp_path / "collected" / "runs.csv")}
    assert states[str(here / "config")] == "damaged"
    for name in ("whole", "lines", "line"):
        (here / name / "config.json").unlink()
    assert cli.main(["collect", str(tmp_path)]) == 2
    assert "none of the 5 runs is finished with numbers" in capsys.readouterr().err


def test_columns_of_the_same_name_stay_apart():
    one = collect.Collected(None, "study", 0, "done", (("steps", 5),), [rows.Row({"steps": 100}, {"seed": 0.5})])
    assert collect.table_of_lines([one]) == [
        {"experiment": "study", "seed": 0, "steps": 5, "line_steps": 100, "line_seed": 0.5}
    ]


def test_nothing_finished_is_told(make_run, tmp_path, capsys):
    (make_run(tmp_path / "drmad-digits" / "a") / "DONE").unlink()
    assert cli.main(["collect", str(tmp_path)]) == 2
    assert "none of the 1 runs is finished" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds no run"):
        collect.collect([tmp_path / "drmad-digits" / "a" / "figures"])


def test_a_run_of_several_seeds_gives_their_means():
    found = [
        Row({"rule": "a", "step": 1}, {"error": 0.1, "diverged": False}),
        Row({"rule": "b", "step": 1}, {"error": 0.5}),
        Row({"rule": "a", "step": 1}, {"error": 0.3, "diverged": True, "rate": None}),
    ]
    assert means(found) == [
        Row({"rule": "a", "step": 1}, {"error": pytest.approx(0.2), "diverged": 0.5}),
        Row({"rule": "b", "step": 1}, {"error": 0.5}),
    ]
