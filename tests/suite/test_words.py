"""Any words on the command line: one line on stderr and a known exit code, never a traceback, nothing outside the folder.

Hypothesis builds the words from the real vocabulary (commands, experiments, every setting of each), from values of the right and
of the wrong kind, and from plain text. Parsing, building the problem and refusing are real. What is accepted would take long, so
the engine is the closed form of conftest.py, a study does nothing, and no job is started.

    HYPERTRAIL_TEST_SEED=7 pytest -m slow tests/suite/test_words.py --hypothesis-show-statistics      other words than CI sees
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import types
import typing
import warnings
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  (makes its own folder in the home when it is first imported: not in a test's)
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

import hypertrail_data
from hypertrail import cli, everything, experiments, tuning, verify
from hypertrail.errors import UsageError
from hypertrail.launch import command, submitting
from hypertrail_data import DataError, cifar10, mnist

CODES = (0, 2, 3, 4)
SEED = int(os.environ.get("HYPERTRAIL_TEST_SEED", "0"))
LONGEST = 1600  # characters of a line on stderr
SHORT = 1000  # steps that the closed form really takes
SENTINEL = b"nobody writes here\n"

# -- words --------------------------------------------------------------------------------------------------------------

LONG = "9" * 5000
NUMBERS = [
    "0", "1", "2", "3", "5", "10", "20", "100", "-1", "0.5", "0.9", "1e-3", "-0.0", "1.0", "1_000", "0x10", " 7 ", "+3",
    "nan", "inf", "-inf", "1e308", "-1e308", "1e400", "1e-320", "100000000", "100000001", str(2**31), str(2**63), str(2**64),
    str(-(2**63)), LONG, "-" + LONG, "0." + LONG, "1e" + LONG, "٣", "１２", "²", "½", "Ⅷ",
]  # fmt: skip
ODD = [
    "", " ", "-", "--", "---", "=", "--=", "--x=y", "-x", "-h", "--help", "None", "True", "none", "{}", "{0}", "{x!r}", "%",
    "%s", "%(x)s", "'", '"', "`", "$(ls)", "$HOME", "\\", "\\x1b", "@file.txt", "@nothing", "*", "?", "[a-z]", "[red]x[/]",
    "[/]", "[bold", "é", "ÿ", "日本", "🙂", "👩‍👩‍👧", "\u0301", "a b", "a,b", ",", ":", "0:", "a" * 300, "ä" * 5000,
    "{" * 1000, "[" * 5000, "(" * 3000, "\udce9", "--seed", "--seed=1", "--no-seed", "--steps", "--tyro-print-completion",
    "--tyro-write-completion", "-vvv",
]  # fmt: skip
PATHS = [
    "run", "damaged", "empty", "file.txt", "nothing", ".", "runs", "nothing/below", "run/config.json", "file.txt/below",
    "out", "é.png", "run/states/0000.npz", "/dev/null", "/dev/null/below", "/dev/full", "/proc/self", "/proc/self/below",
    "n" * 300, "n/" * 3000, "out.png", "out.pdf", "out.svg", "out.txt", "\udce9", "[red].png", "{}.png", "%d.png",
]  # fmt: skip
METHODS = [
    "exact", "forward", "float-reversed", "implicit-cg", "implicit-dense", "implicit-neumann", "truncated", "truncated-2",
    "exact:", "truncated-" + LONG, "truncated-²", "drmad-C0", "drmad-C4", "drmad-C5:tail=" + LONG, "drmad-C6", "drmad-C9",
    "drmad-", "exact:a=b", "implicit-cg:damping=nan", "implicit-cg:iterations=1e9", "implicit-cg:tolerance=" + LONG,
    "drmad-C4:multiplier=inf", "drmad-C4:max_steps=0", "drmad-C4-first:sum_of_norms", "drmad-C4:multiplier",
    "truncated-" + "9" * 900,
]  # fmt: skip
TRAJECTORIES = [
    "memory", "host", "disk", "auto", "reversible", "checkpoints", "checkpoints-2", "checkpoints-0", "checkpoints-²",
    "checkpoints-٣", "checkpoints-" + LONG, "checkpoints-" + "9" * 900,
]  # fmt: skip
WORDS_OF = {
    "method": METHODS,
    "methods": METHODS,
    "trajectory": TRAJECTORIES,
    "devices": ["1", "2", "all", "0", "-1", LONG, "²"],
    "seeds": ["0", "0:3", "0:10:3", "0:1000000000", "5,5", "0:0", "a", "٣", LONG, "0:" + LONG],
    "time": ["90", "2:30:00", "1-12", "0", "-1", "1:2:3:4", "999999-0", LONG, "٣"],
    "memory": ["1", "0", "nan", "inf", "1e-9", "1e308", "-1"],
    "grid": ["steps=5,6", "steps=" + ",".join(map(str, range(300))), "seed=1", "x=1", "=", "steps",
    "steps=,", "steps=1e400",
             "method=exact,drmad-C4", "outer-rate=nan", "engine=cpu,gpu", "data-dir=é", "steps=--help", "steps=" + LONG],
    "sbatch": ["account=me", "exclusive", "x y", "=", "a=" + LONG, "é=1", "wrap=ls", "array=0-5"],
    "setup": ["module load x", "", "é", "a\tb", "[red]x[/]"],
    "cluster": ["slurm", "local"],
    "partition": ["gpu", "é", "", "[red]"],
}  # fmt: skip
SIZES = {"steps": "20", "batch": "10", "train": "60", "valid": "20", "select": "20", "test": "20", "meta_iterations": "1",
         "hidden": "3", "depth": "4", "blocks": "1", "growth": "2", "first_output": "2", "held_out": "1", "valid_batch": "10",
         "repeats": "1", "images": "10", "block": "2", "validation_batches": "1"}  # fmt: skip

# No slash, tilde or dots that lead out: what is named outside comes from PATHS alone, where nobody can write.
plain = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/~"), max_size=30).filter(
    lambda word: ".." not in word
)
whole = st.integers(-3, 300).map(str) | st.integers().map(str) | st.sampled_from(NUMBERS)
number = st.sampled_from(NUMBERS) | st.integers().map(str) | st.floats().map(str) | st.integers(-3, 30).map(str)
odd = st.sampled_from(ODD) | plain | number | st.sampled_from(PATHS)


@functools.cache
def settings_of(name: str) -> dict[str, typing.Any]:
    """Every setting of an experiment with its type; of `verify everything`, and of a launch, their own."""
    config = {"everything": everything.Options, "launch": command.Options}.get(name) or experiments.load(name).Config
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def of_kind(field: str, kind: typing.Any) -> st.SearchStrategy[str]:
    """A word that a setting of this kind may stand for, or nearly."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(list(map(str, typing.get_args(kind))))
    if Path in kinds:
        return st.sampled_from(PATHS)
    if field in WORDS_OF:
        return st.sampled_from(WORDS_OF[field])
    return whole if int in kinds else number


@st.composite
def values(draw, field: str, kind: typing.Any) -> list[str]:
    """What stands behind a flag: mostly of its kind."""
    if draw(st.integers(0, 7)) == 0:
        return [draw(odd)]
    if typing.get_origin(kind) is tuple:
        return draw(st.lists(of_kind(field, typing.get_args(kind)[0]), max_size=3))
    return [draw(of_kind(field, kind))]


@st.composite
def setting(draw, name: str) -> list[str]:
    """One setting, in one of the ways in which it can be written, rightly or wrongly; seldom something else in its place."""
    field, kind = draw(st.sampled_from(sorted(settings_of(name).items(), key=lambda item: item[0])))
    flag = "--" + field.replace("_", "-")
    way = draw(st.integers(0, 19))
    if way == 0:
        return [draw(odd)]
    if way == 1:
        return draw(
            st.sampled_from([[flag], [flag[1:], "1"], [flag[:-1], "1"], [f"--no{flag[1:]}"], [f"--{field}", "1"]])
        )
    if kind is bool:
        return draw(st.sampled_from([[flag], [flag.replace("--", "--no-")], [flag, "True"], [f"{flag}=x"]]))
    words = draw(values(field, kind))
    return [f"{flag}={' '.join(words)}"] if way < 5 else [flag, *words]


@st.composite
def of_experiments(draw, command: str, names: list[str]) -> list[str]:
    """A command on an experiment, made small more often than not; seldom on something that is none."""
    if draw(st.integers(0, 19)) == 0:
        return [command, draw(st.sampled_from([names[0].upper(), names[0][:-1], "_common", "os", "../x"]) | odd)]
    name = draw(st.sampled_from(names))
    known = settings_of(name) if draw(st.integers(0, 3)) else ()
    small = [word for field, size in SIZES.items() if field in known for word in ("--" + field.replace("_", "-"), size)]
    return [command, name, *small, *itertools.chain(*draw(st.lists(setting(name), min_size=1, max_size=4)))]


NAMES = experiments.names()
ENDS = [["--dry-run"], ["--dry-run"], ["--cluster", "slurm"]]
OF_FOLDERS = [
    ("status", 0, 1),
    ("collect", 0, 2),
    ("report", 1, 2),
    ("compare", 2, 2),
    ("plot", 1, 1),
    ("export-tensorboard", 1, 2),
]
FIGURES = ["metrics", "norms", "cost", "training", "agreement", "hyper-l2-value"]
launches = st.builds(
    lambda words, more, end: [*words, *itertools.chain(*more), *end],
    of_experiments("launch", NAMES),
    st.lists(setting("launch"), max_size=3),
    st.sampled_from(ENDS),
)


@st.composite
def of_folders(draw) -> list[str]:
    """A command on folders, with as many of them as it takes, or not."""
    command, least, most = draw(st.sampled_from(OF_FOLDERS))
    folder = st.sampled_from(["run", "damaged", ".", "empty"]) | st.sampled_from(PATHS) | odd
    exact = st.lists(st.sampled_from(["run", "run", "run", "damaged", "."]), min_size=least, max_size=most)
    words = draw(exact | st.lists(folder, max_size=3))
    if command == "plot" and words:
        words[1:] = draw(st.lists(st.sampled_from(FIGURES) | odd, max_size=1))
    ends = (
        [["--watch", "0.01"], ["--watch=inf"]]
        if command == "status"
        else [["--out"], ["--out=out"], ["--out", "out.png"]]
    )
    named = st.sampled_from(PATHS).map(lambda path: ["--out", path])
    return [command, *words, *draw(st.sampled_from([[], [], ["--help"], ["--x"], *ends]) | named)]


anything = st.lists(st.sampled_from([*cli.COMMANDS, *NAMES, "--help", "--version"]) | odd, max_size=5)
WORDS = st.one_of(
    of_experiments("run", NAMES), of_experiments("verify", [*NAMES, "everything"]), launches, of_folders(), anything
)

# -- the world they are tried in ------------------------------------------------------------------------------------------


def noise(name: str, shape: tuple[int, ...]) -> hypertrail_data.Dataset:
    """Noise in the shape of a data set."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (400, *shape), dtype=np.uint8)
    return hypertrail_data.Dataset(name, x, rng.integers(0, 10, 400).astype(np.int32), 10, 100, 255)


NOISE = {"mnist": noise("mnist", (28, 28, 1)), "cifar10": noise("cifar10", (32, 32, 3))}


@pytest.fixture
def quick(monkeypatch, closed_form_engines, without_figures, tmp_path):
    """Everything that would take long after the words were accepted takes no time."""

    def load(name, data_dir=None, real=hypertrail_data.load):
        return NOISE[name] if name in NOISE and data_dir is None else real(name, data_dir)

    def offline(remote, folder, progress=True):
        raise DataError(f"{remote} cannot be had in a test")

    def into_run(run, problem, engine, method, rule, meta_iterations, *more, real=tuning.into_run):
        small = problem.steps * (meta_iterations + 1) <= SHORT
        return real(run, problem, engine, method, rule, meta_iterations, *more) if small else []

    def checked(problem, engine, other, method, directions, real=verify.verify):
        return real(problem, engine, other, method, directions) if problem.steps * directions <= SHORT else ()

    def built(dynamics, family, engines, seed):
        everything.problem(dynamics, family, seed)
        return ()

    def start_nothing(*asked):
        raise UsageError("a test starts no jobs")

    monkeypatch.setattr(hypertrail_data, "load", load)
    for module in (mnist, cifar10):
        monkeypatch.setattr(module, "fetch", offline)
    monkeypatch.setattr(tuning, "into_run", into_run)
    for module in (verify, everything):
        monkeypatch.setattr(module, "load", lambda name: closed_form_engines)
    monkeypatch.setattr(verify, "verify", checked)
    monkeypatch.setattr(everything, "walk", built)
    for name in ("to_slurm", "to_processes"):
        monkeypatch.setattr(submitting, name, start_nothing)
    for name in NAMES:
        module = experiments.load(name)
        if experiments.is_study(module):
            monkeypatch.setattr(module, "study", lambda config, run, voice: None)
        elif hasattr(module, "after"):
            monkeypatch.setattr(module, "after", lambda *asked: None)
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for variable in ("HYPERTRAIL_DATA", "HYPERTRAIL_TRACEBACK"):
        monkeypatch.delenv(variable, raising=False)
    return closed_form_engines


class World:
    """A folder that commands run in, and a neighbour that stays as it is."""

    def __init__(self, tmp: Path, run: Path) -> None:
        self.tmp, self.here, self.run = tmp, tmp / "here", run
        (tmp / "neighbour").mkdir()
        (tmp / "neighbour" / "file").write_bytes(SENTINEL)
        self.before = self.outside()

    def outside(self) -> dict[str, typing.Any]:
        """Names and contents around the folder (the home and the folder for temporary files among them), and the devices."""
        around = {
            str(p): p.read_bytes() if p.is_file() else b"" for p in self.tmp.rglob("*") if self.here not in p.parents
        }
        around = {name: held for name, held in around.items() if name != str(self.here)}
        devices = {name: stat.S_ISCHR(os.stat(name).st_mode) for name in (os.devnull, "/dev/full")}
        return {**around, **devices}

    def fresh(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        (self.here / "empty").mkdir(parents=True)
        (self.here / "file.txt").write_bytes(SENTINEL)
        for name in ("run", "damaged"):
            shutil.copytree(self.run, self.here / name)
        (self.here / "damaged" / "metrics.jsonl").write_bytes(b"\xff\n{")

    def call(self, words: list[str]) -> tuple[int, str]:
        """Exit code and stderr of a command in a fresh folder."""
        self.fresh()
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.here),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("always")
            return cli.main(words), err.getvalue()


@pytest.fixture
def world(quick, tmp_path, run_folder, monkeypatch):
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return World(tmp_path, run_folder)


def check(world: World, engine: typing.Any, words: list[str]) -> None:
    """The promise. A warning is a line of its own before the complaint; what NumPy or Python warn of is a fault."""
    engine.trainings.clear()
    code, said = world.call(words)
    event(f"{words[0] if words and words[0] in cli.COMMANDS else 'other'}: {code}")
    *lines, end = said.split("\n")
    assert code in CODES, said
    assert not end, said
    assert all(line.startswith("hypertrail: ") and line.isprintable() and len(line) <= LONGEST for line in lines), said
    complaints = [line for line in lines if not line.startswith("hypertrail: warning: ")]
    assert len(complaints) == (1 if code and words else 0), said
    assert "encountered" not in said, said
    assert "Deprecat" not in said, said
    assert world.outside() == world.before


def promise(examples: int) -> typing.Any:
    return settings(
        max_examples=examples, deadline=None, database=None, print_blob=False,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


@seed(SEED)
@promise(150)
@given(words=WORDS)
def test_any_words(world, quick, words):
    check(world, quick, words)


@pytest.mark.slow
@seed(SEED + 1)
@promise(2000)
@given(words=WORDS)
def test_many_more_words(world, quick, words):
    check(world, quick, words)


# -- what one word does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "rosenbrock", "--steps", LONG], "holds a number of 5,000 digits, expected at most 1,000"),
        (["run", "drmad-digits", "--method", f"truncated-{LONG}"], "holds a number of 5,000 digits"),
        (["launch", "rosenbrock", "--grid", f"steps={LONG}", "--dry-run"], "holds a number of 5,000 digits"),
        (
            ["run", "rosenbrock", "--tyro-write-completion", "bash", "file"],
            "Unrecognized options: --tyro-write-completion;",
        ),
        (
            ["run", "drmad-digits", "--learning-rate", "1e38"],
            "learning-rate 1e+38, expected at most 1e+30: float32 ends at 3e38",
        ),
        (["run", "rosenbrock", "--outer-rate", "1e308"], "expected at most 1e+300: float64 ends at 1e308"),
        (["run", "almeida-quadratic", "--examples", "0"], "examples 0, expected at least 1"),
        (["run", "almeida-quadratic", "--weights", "5000"], "weights 5000, expected at most 4000"),
        (["run", "almeida-quadratic", "--examples", "90000000"], "examples times weights 1800000000, expected at most"),
        (["verify", "drmad-digits", "--directions", "1001"], "directions 1001, expected at most 1000"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_no_run_can_hold_is_refused(world, words, said):
    code, line = world.call(words)
    assert (code, line.count("\n")) == (2, 1)
    assert said in line
    assert len(line) < 700


def test_the_middle_of_an_endless_word_is_left_out(world):
    _, line = world.call(["run", "ä" * 5000])
    assert line.startswith(
        f"hypertrail: unknown experiment '{'ä' * 119}… (5,003 characters) …{'ä' * 58}', expected one of "
    )


@pytest.mark.parametrize("columns", ["0", "1", "-5", "abc", "99999999999"])
def test_help_fits_any_width(world, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert world.call(["run", "rosenbrock", "--help"]) == (0, "")
    code, line = world.call(["run", "rosenbrock", "--steps", "x"])
    assert (code, line.count("\n")) == (2, 1)
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize("name", ["almeida-quadratic", "drmad-vs-exact", "rtho-mnist", "t1t2-mnist"])
def test_verify_takes_as_few_steps_as_an_experiment_accepts(name):
    module = experiments.load(name)
    _, default = verify.options(module)
    assert default.precision == "float64"
    assert default.steps in (20, 200)


# -- real processes -------------------------------------------------------------------------------------------------------

TINY = ["run", "rosenbrock", "--engine", "cpu", "--steps", "4", "--updates", "1"]


def process(*words, cwd=None, **environment):
    program = Path(sys.executable).with_name("hypertrail")
    return subprocess.run(
        [program, *words], cwd=cwd, capture_output=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_screen_that_lacks_letters(tmp_path, encoding):
    for words in (["list"], ["--help"], ["run", "rosenbrock", "--help"], [*TINY, "--run-dir", tmp_path / "run"]):
        answer = process(*words, PYTHONIOENCODING=encoding)
        assert (answer.returncode, answer.stderr) == (0, b"")
    assert (tmp_path / "run" / "DONE").is_file()


@pytest.mark.parametrize("variable", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=nonsense", "JAX_ENABLE_X64=perhaps"])
def test_devices_that_are_not_there(tmp_path, variable):
    name, _, value = variable.partition("=")
    answer = process("run", "drmad-digits", cwd=tmp_path, CUDA_VISIBLE_DEVICES="", **{name: value})
    assert (answer.returncode, answer.stderr.count(b"\n")) == (2, 1)
    assert answer.stderr.startswith(b"hypertrail: the gpu engine cannot start")
    assert variable.encode() in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["nonsense", "module://nothing"])
def test_a_backend_of_matplotlib_that_is_not_there(tmp_path, backend):
    answer = process(*TINY, "--run-dir", tmp_path / "run", MPLBACKEND=backend)
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert {file.name for file in (tmp_path / "run" / "figures").iterdir()} == {"valley.png", "schedules.png"}


def test_a_data_folder_of_nobody(tmp_path):
    answer = process("run", "ard-mnist", cwd=tmp_path, HYPERTRAIL_DATA="~nosuchuser")
    assert (answer.returncode, answer.stderr.count(b"\n")) == (4, 1)


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    run = os.fsencode(tmp_path) + b"/\xff\xe9"
    assert process(*TINY, "--run-dir", run).returncode == 0
    for words in (["status", run], ["plot", run, "valley"], ["report", run]):
        answer = process(*words)
        assert (answer.returncode, answer.stderr) == (0, b""), words
    answer = process("export-tensorboard", run)
    assert (answer.returncode, answer.stderr.count(b"\n")) == (2, 1)
    assert b"is not UTF-8, and TensorBoard writes to no such path; name an --out" in answer.stderr
