"""Many runs in one table: the numbers against a calculation by hand, what counts, the tables and the figure."""

from __future__ import annotations

import csv
import math
import re

import pytest

from hypertrail import UsageError, cli, interval, runs
from hypertrail.launch import collect

# Two-sided 95 %, from printed tables.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize(("ν", "t"), PRINTED.items())
def test_quantiles_are_the_printed_ones(ν, t):
    assert interval.quantile(ν) == pytest.approx(t, abs=5e-4)


def test_quantiles_close_form():
    """ν = 1 is Cauchy's distribution, ν = 2 has an inverse as well: t = p √(2 / (1 − p²))."""
    assert interval.quantile(1) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-10)
    assert interval.quantile(2, 0.5) == pytest.approx(0.5 * math.sqrt(2 / 0.75), rel=1e-10)


def test_an_interval_by_hand():
    e = interval.estimate([1.0, 2.0, 6.0])
    assert (e.n, e.mean) == (3, 3.0)
    assert e.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert e.half == pytest.approx(4.302653 * math.sqrt(7.0) / math.sqrt(3), rel=1e-6)
    one = interval.estimate([2.5])
    assert (one.n, one.mean, one.sd, one.half) == (1, 2.5, None, None)


def table(path):
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_runs_of_a_meta_loop_by_hand(make_run, tmp_path, capsys):
    """Two cells with three and one seeds; one run is not finished, one is there twice."""
    here = tmp_path / "drmad-digits"
    made = [make_run(here / f"{seed}-{rate}", seed=seed, outer_rate=rate) for seed, rate in
            ((0, 0.1), (1, 0.1), (2, 0.1), (0, 0.2))]  # fmt: skip
    # The closed-form engine knows no seeds: give each run an end of its own.
    ends = (0.5, 0.25, 1.5, 0.75)
    for folder, end in zip(made, ends, strict=True):
        lines = runs.read_metrics(folder)
        lines[-1]["hyper_loss"] = end
        (folder / "metrics.jsonl").write_text("".join(runs.json.dumps(line) + "\n" for line in lines))
    make_run(here / "again", seed=0, outer_rate=0.2)
    lines = runs.read_metrics(made[3])
    (here / "again" / "metrics.jsonl").write_text("".join(runs.json.dumps(line) + "\n" for line in lines))
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
        "hyper_loss",
        *(f"{split}_{what}" for split in ("train", "valid", "select", "test") for what in ("loss", "error")),
    }
    assert re.search(r"outer-rate=0\.1 +3 +0\.75 ± 1\.6 ", said)
    assert (tmp_path / "out" / "drmad-digits.png").read_bytes().startswith(b"\x89PNG")


def test_lines_of_a_study_are_grouped_by_what_they_are_about():
    def run(seed, lines):
        return collect.Collected(None, "study", seed, "done", (("steps", 5),), [collect.line_of(one) for one in lines])

    found = collect.groups(
        [
            run(
                0, [{"method": "a", "update": 0, "end": 1.0}, {"method": "b", "update": 0, "end": 5.0, "odd": math.inf}]
            ),
            run(1, [{"method": "b", "update": 0, "end": 7.0}, {"method": "a", "update": 0, "end": 3.0}]),
        ]
    )
    assert {dict(one.about)["method"]: one.numbers for one in found} == {
        "a": {"end": [1.0, 3.0]},
        "b": {"end": [5.0, 7.0]},
    }
    assert [one.series for one in found] == ["steps=5 method=a", "steps=5 method=b"]
    same = collect.groups([run(0, [{"end": 1.0}, {"end": 2.0}])])  # two lines of one run are not two seeds
    assert [one.numbers for one in same] == [{"end": [1.0]}, {"end": [2.0]}]


def test_columns_of_the_same_name_stay_apart():
    one = collect.Collected(None, "study", 0, "done", (("steps", 5),), [({"steps": 100}, {"seed": 0.5})])
    assert collect.table_of_lines([one]) == [
        {"experiment": "study", "seed": 0, "steps": 5, "line_steps": 100, "line_seed": 0.5}
    ]


def test_nothing_finished_is_told(make_run, tmp_path, capsys):
    (make_run(tmp_path / "drmad-digits" / "a") / "DONE").unlink()
    assert cli.main(["collect", str(tmp_path)]) == 2
    assert "none of the 1 runs is finished" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds no run"):
        collect.collect([tmp_path / "drmad-digits" / "a" / "figures"])
