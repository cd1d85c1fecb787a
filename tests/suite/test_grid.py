"""Seeds, grids and limits of time: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from hypertrail import UsageError
from hypertrail.experiments import completions_mnist, drmad_digits
from hypertrail.launch import command, grid


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:4", [0, 1, 2, 3]), ("3", [3]), ("0:10:4", [0, 4, 8]), ("7,0:2, 5", [7, 0, 1, 5])],
)
def test_seeds(text, expected):
    assert grid.seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "-1", "0:", ":3", "0:3:0", "1.5", "3:3", "0:3,2"])
def test_seeds_that_are_refused(text):
    with pytest.raises(UsageError, match=r"^seeds '"):
        grid.seeds(text)


def test_a_grid_is_every_combination_the_last_field_fastest():
    axes = grid.axes(["method=exact,drmad-C4", "outer-rate=0.1,0.2"], drmad_digits.Config, "drmad-digits")
    assert axes == {"method": ["exact", "drmad-C4"], "outer_rate": ["0.1", "0.2"]}
    cells = grid.cells(axes)
    assert [grid.words_of(cell) for cell in cells] == [
        "method=exact outer-rate=0.1",
        "method=exact outer-rate=0.2",
        "method=drmad-C4 outer-rate=0.1",
        "method=drmad-C4 outer-rate=0.2",
    ]
    assert grid.as_words(cells[1], drmad_digits.Config) == ["--method", "exact", "--outer-rate", "0.2"]
    assert grid.cells({}) == [{}]


def test_yes_or_no_and_several_words():
    axes = grid.axes(["compare-exact=true,false"], drmad_digits.Config, "drmad-digits")
    assert [grid.as_words(cell, drmad_digits.Config) for cell in grid.cells(axes)] == [
        ["--compare-exact"],
        ["--no-compare-exact"],
    ]
    axes = grid.axes(["methods=drmad-C1 drmad-C4,drmad-C5"], completions_mnist.Config, "completions-mnist")
    assert [grid.as_words(cell, completions_mnist.Config) for cell in grid.cells(axes)] == [
        ["--methods", "drmad-C1", "drmad-C4"],
        ["--methods", "drmad-C5"],
    ]
    with pytest.raises(UsageError, match=r"^grid compare-exact=yes, expected true or false"):
        grid.as_words({"compare_exact": "yes"}, drmad_digits.Config)


def test_a_value_of_several_words_holds_no_option():
    """Negative numbers are values."""
    config = completions_mnist.Config
    assert grid.as_words({"methods": "exact drmad-C1"}, config) == ["--methods", "exact", "drmad-C1"]
    assert grid.as_words({"outer_rate": "-.5e3"}, config) == ["--outer-rate", "-.5e3"]
    for value in ("exact --run-dir x", "--data-dir=x", "exact -h"):
        with pytest.raises(UsageError, match="is an option; expected values of --methods alone"):
            grid.as_words({"methods": value}, config)
    with pytest.raises(UsageError, match="--outer-rate takes one value"):
        grid.as_words({"outer_rate": "1 2"}, config)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["stepz=1"],
            "drmad-digits has no setting 'stepz' for the grid, expected one of engine, .*; did you mean steps?",
        ),
        (["run-dir=a"], "drmad-digits has no setting 'run-dir' for the grid"),
        (["steps"], "grid 'steps', expected field=value,value"),
        (["steps="], "grid 'steps=': a value is empty or there twice"),
        (["steps=1,1"], "grid 'steps=1,1': a value is empty or there twice"),
        (["steps=1", "steps=2"], "grid: steps is there twice"),
        (["seed=1,2"], "seeds are no part of the grid; name them with --seeds"),
    ],
)
def test_grids_that_are_refused(words, complaint):
    with pytest.raises(UsageError, match=complaint):
        grid.axes(words, drmad_digits.Config, "drmad-digits")


@pytest.mark.parametrize(
    "words", [["--steps", "5"], ["--steps=5"], ["--no-steps"], ["--seed", "1"], ["--run-dir", "x"]]
)
def test_a_setting_cannot_stand_in_two_places(words):
    with pytest.raises(UsageError, match="cannot stand here"):
        grid.refuse_twice({"steps": ["1"]}, words)
    grid.refuse_twice({"depth": ["4"]}, ["--steps", "-5", "--step", "7"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("2:30:00", 150), ("2:30:01", 151), ("1-12", 2160), ("1-0:30", 1470), ("1-0:0:1", 1441)],
)
def test_times_are_slurms(text, expected):
    assert command.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "1h", "0", "0:0:0", "1:2:3:4", "-1", "1-"])
def test_times_that_are_refused(text):
    with pytest.raises(UsageError, match=r"^time '"):
        command.minutes(text)
