"""The declared experiments: found by name, crash on bad arguments, and are what the papers describe."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re

import numpy as np
import pytest

import hypertrail_data
from hypertrail import DrMAD, UsageError, cli, experiments, outer, runs
from hypertrail.experiments import (
    _adaptive,
    _common,
    adaptive_densenet,
    adaptive_digits,
    adaptive_mnist,
    almeida_quadratic,
    ard_mnist,
    chaos,
    completions_mnist,
    drmad_densenet,
    drmad_digits,
    drmad_mnist,
    drmad_vs_exact,
    hd_mnist,
    interpolation,
    learned_data_mnist,
    rosenbrock,
    rtho_mnist,
    schedules_mnist,
    t1t2_mnist,
)
from hypertrail.hyperparameters import count
from hypertrail.methods import AsPublished, parse_method
from hypertrail_nets import count_params

LOOPS = (ard_mnist, drmad_densenet, drmad_digits, drmad_mnist, learned_data_mnist, schedules_mnist)
ADAPTIVE = (adaptive_densenet, adaptive_digits, adaptive_mnist)
STUDIES = (
    *ADAPTIVE,
    almeida_quadratic,
    chaos,
    completions_mnist,
    drmad_vs_exact,
    hd_mnist,
    interpolation,
    rosenbrock,
    rtho_mnist,
    t1t2_mnist,
)
MODULES = sorted((*LOOPS, *STUDIES), key=lambda module: module.__name__)


def blank(name, n, official_test, shape, scale=255):
    rng = np.random.default_rng(0)
    x = rng.integers(0, scale + 1, (n, *shape), dtype=np.uint8)
    return hypertrail_data.Dataset(name, x, rng.integers(0, 10, n).astype(np.int32), 10, official_test, scale)


@pytest.fixture
def blank_data(monkeypatch):
    """Noise in the shape of the data sets."""
    sets = {"mnist": (70, 20, (28, 28, 1)), "cifar10": (60, 20, (32, 32, 3))}
    asked = []

    def load(name, data_dir=None):
        asked.append((name, data_dir))
        return blank(name, *sets[name])

    monkeypatch.setattr(hypertrail_data, "load", load)
    return asked


def test_names_are_file_names():
    assert [experiments.load(name) for name in experiments.names()] == MODULES
    assert [module for module in MODULES if experiments.is_study(module)] == list(STUDIES)
    assert experiments.headline("drmad-digits") == drmad_digits.__doc__.partition("\n")[0]


@pytest.mark.parametrize(("word", "hint"), [("drmad_digits", "did you mean drmad-digits"), ("zzz", "drmad-mnist")])
def test_an_unknown_name_hears_the_known_ones(word, hint):
    with pytest.raises(UsageError, match=f"unknown experiment '{word}', expected one of adaptive-densenet, .*{hint}"):
        experiments.load(word)


@pytest.mark.parametrize("module", [*MODULES, _common, _adaptive], ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_field_has_a_docstring(module):
    """tyro shows it; an undocumented one would show nothing. A field that only has another default shows that of its base."""
    tree = ast.parse(inspect.getsource(module))
    for one in (one for one in tree.body if isinstance(one, ast.ClassDef)):
        inherited = {
            name for base in getattr(module, one.name).__mro__[1:] for name in vars(base).get("__annotations__", ())
        }
        for field, after in zip(one.body, [*one.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and (field.target.id not in inherited or isinstance(after, ast.Expr)):
                assert isinstance(after, ast.Expr), field.target.id
                assert isinstance(after.value.value, str)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_docstrings_have_command_and_numbers(module):
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    for word in (f"hypertrail run {name}", "Hardware:", "Measured"):
        assert word in module.__doc__
    assert re.search(r"^The (paper|thesis)", module.__doc__, flags=re.MULTILINE)


@pytest.mark.parametrize("module", LOOPS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_configs_are_frozen_and_crash_on_bad_arguments(module):
    config = module.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    numbers = [f.name for f in dataclasses.fields(config) if isinstance(getattr(config, f.name), (int, float))]
    refused = []
    for name in numbers:
        if isinstance(getattr(config, name), bool) or name == "transform":
            continue
        with pytest.raises(UsageError, match=f"^{name.replace('_', '-')} -1"):
            module.Config(**{name: -1})
        refused.append(name)
    assert {"seed", "meta_iterations", "momentum", "outer_rate", "test"} <= set(refused)


def test_digits_is_small_and_sees_no_example_twice():
    config = drmad_digits.Config()
    problem = drmad_digits.problem(config)
    assert [len(getattr(problem.splits, s)) for s in ("train", "valid", "select", "test")] == [600, 300, 300, 597]
    assert count(problem.initial_hyper()) == count_params(problem.network, regularizable=True) == 11_478
    assert problem.precision == "float32"
    np.testing.assert_array_equal(problem.dynamics.factors(problem.steps), np.repeat([1.0, 0.1], [75, 25]))
    rule = drmad_digits.rule(config)
    assert (rule.learning_rate, rule.mass) == (0.6, 0.7)
    assert drmad_digits.problem(drmad_digits.Config(seed=1)).splits.train.rows[0] != problem.splits.train.rows[0]


def test_mnist_is_experiment_1_of_the_paper(blank_data, tmp_path):
    paper = drmad_mnist.Config()
    sizes = (paper.train, paper.valid, paper.select, paper.test, paper.batch, paper.steps, paper.meta_iterations)
    assert sizes == (15_000, 5_000, 0, 5_000, 50, 2_000, 20)
    problem = drmad_mnist.problem(drmad_mnist.Config(train=30, valid=10, test=10, batch=5, data_dir=tmp_path))
    assert blank_data == [("mnist", tmp_path)]
    shapes = {p.name: p.shape for p in problem.params if p.name.endswith("W")}
    assert list(shapes.values()) == [(784, 50), (50, 50), (50, 50), (50, 10)]
    t = problem.initial_hyper()["transform"]
    assert [u.shape for u in t.values()] == [(784, 1), (50, 1), (50, 1), (50, 1)]
    assert all((u == 0.2).all() for u in t.values())
    assert problem.l2 == pytest.approx(math.exp(-4))
    assert (problem.dynamics.kind, problem.dynamics.learning_rate, problem.dynamics.momentum) == ("damped", 0.05, 0.95)
    w = problem.initial_weights()
    assert np.std(w["dense1/W"]) == pytest.approx(math.exp(-3), rel=0.02)
    assert np.std(w["dense1/b"]) == pytest.approx(math.exp(-3), rel=0.5)
    assert drmad_mnist.rule(paper) == outer.Sign(0.07)
    assert 0 <= problem.splits.train.x.min() <= problem.splits.train.x.max() <= 1


def test_mnist_as_published(monkeypatch):
    """Six choices of the authors' program: see the docstring of drmad-mnist."""
    rng = np.random.default_rng(0)
    data = hypertrail_data.Dataset(
        "mnist",
        rng.integers(0, 256, (120, 28, 28, 1), np.uint8),
        rng.integers(0, 10, 120).astype(np.int32),
        10,
        20,
        255,
    )
    monkeypatch.setattr(hypertrail_data, "load", lambda name, data_dir=None: data)
    config = drmad_mnist.Config(train=40, valid=20, test=30, batch=5, steps=8, as_published=True, seed=3)
    first = drmad_mnist.problem(config)
    assert set(first.constants()["l2"]) == {p.name for p in first.params}  # biases too
    assert config.method == "drmad-C1-first"
    problems = [drmad_mnist.problem_for(config, first, k) for k in (0, 1, 2)]
    mean = data.x[:100].astype(np.float64).mean(axis=0) / 255
    for problem in problems:
        train, valid, test = problem.splits.train, problem.splits.valid, problem.splits.test
        rows = np.concatenate([train.rows, valid.rows, test.rows])
        assert len(set(rows)) == 90
        assert rows.max() < 100  # all of the training images
        np.testing.assert_allclose(train.x, data.x[train.rows] / 255 - mean, atol=1e-6)
        np.testing.assert_array_equal(train.y, data.y[train.rows])
        assert problem.schedule.order == "replacement"
        np.testing.assert_array_equal(problem.schedule.indices(0, 8), first.schedule.indices(0, 8))
        np.testing.assert_array_equal(test.rows, first.splits.test.rows)
        assert set(rows) == set(np.concatenate([getattr(first.splits, s).rows for s in ("train", "valid", "test")]))
    assert len({tuple(problem.splits.train.rows) for problem in problems}) == 3
    assert len({problem.initial_weights()["dense1/b"].tobytes() for problem in problems}) == 3
    again = drmad_mnist.problem_for(config, first, 2)
    np.testing.assert_array_equal(again.splits.train.rows, problems[2].splits.train.rows)
    plain = drmad_mnist.Config(train=40, valid=20, test=20, batch=5)
    problem = drmad_mnist.problem(plain)
    assert drmad_mnist.problem_for(plain, problem, 1) is problem
    assert (problem.l2_on, problem.schedule.order) == ("regularizable", "fixed")
    with pytest.raises(UsageError, match="100 official training images"):
        drmad_mnist.problem(drmad_mnist.Config(train=80, valid=20, test=30, batch=5, as_published=True))


def test_densenet_as_published():
    assert drmad_densenet.Config().method == "drmad-C4"
    published = parse_method(drmad_densenet.Config(as_published=True).method)
    assert published == DrMAD("C4", first_batches=True, choices=AsPublished(sum_of_norms=True, regularized_only=True))
    assert drmad_densenet.Config(as_published=True, method="exact").method == "exact"


def test_densenet_is_the_thesis(blank_data):
    small = {"train": 30, "valid": 10, "test": 10, "batch": 5}
    config = drmad_densenet.Config(**small)
    problem = drmad_densenet.problem(config)
    assert count_params(problem.network) == 1_019_722
    assert count(problem.initial_hyper()) == 1_010_664
    # damped with α = .1 / (1 − .9) and γ = .9 is SGD with learning rate .1 and momentum .9
    assert problem.dynamics.learning_rate * (1 - problem.dynamics.momentum) == pytest.approx(0.1)
    assert problem.schedule.order == "fixed"
    factors = problem.dynamics.factors(1000)
    assert (factors[30 * 6 - 1], factors[30 * 6]) == (1.0, 0.1)
    assert drmad_densenet.rule(config) == outer.SignMomentum(1 / 3, 0.7)
    epochs = [drmad_densenet.steps(config, problem, k) / 6 for k in range(9)]
    np.testing.assert_allclose(epochs[:3], [30, 42, 58.8], atol=0.1)
    assert epochs[7:] == [300, 300]
    assert problem.steps == drmad_densenet.steps(config, problem, 0)


def test_densenet_can_be_tasted_on_a_processor(blank_data):
    config = drmad_densenet.Config(steps=5, train=30, valid=10, test=10, batch=5)
    problem = drmad_densenet.problem(config)
    assert problem.steps == 5
    assert [drmad_densenet.steps(config, problem, k) for k in (0, 1, 8)] == [5, 5, 5]


def test_schedules_are_those_of_reversible_learning(blank_data):
    config = schedules_mnist.Config(train=40, select=10, test=10, batch=20)
    problem = schedules_mnist.problem(config)
    hyper = problem.initial_hyper()
    assert count(hyper) == 2 * 8 * 100 + 8
    assert all(u == 0 for u in hyper["initial_scale"].values())
    for kind, start in (("learning_rate", -1.0), ("momentum", math.log(9))):
        assert all(u.shape == (100,) for u in hyper[kind].values())
        np.testing.assert_allclose(np.concatenate(list(hyper[kind].values())), start, atol=1e-12)
    assert problem.splits.valid is problem.splits.train
    assert len(problem.splits.select) == 10
    assert not set(problem.splits.select.rows) & set(problem.splits.train.rows)
    assert np.std(problem.initial_weights()["dense1/W"]) == pytest.approx(math.exp(-3), rel=0.02)
    assert schedules_mnist.rule(config) == outer.AdamHips(0.04)
    assert schedules_mnist.rule(schedules_mnist.Config(outer="adam")) == outer.Adam(0.04)
    without = schedules_mnist.problem(dataclasses.replace(config, learn_scales=False)).initial_hyper()
    assert list(without) == ["learning_rate", "momentum"]


def test_ard_takes_the_papers_steps_in_its_own_logarithm(blank_data):
    config = ard_mnist.Config(train=30, valid=10, select=5, test=10, batch=10)
    problem = ard_mnist.problem(config)
    hyper = problem.initial_hyper()
    assert count(hyper) == 7_840
    declared = problem.declared("l2")
    ln_l2 = np.log(declared.value(hyper["l2"]["logits/W"]))
    np.testing.assert_allclose(ln_l2, math.log(0.01) + 1)
    h_ln = (
        np.random.default_rng(0).normal(size=(784, 10)) * 1e-6
    )  # df / d ln L2; one unit of log10 is ln 10 units of ln
    h = {"l2": {"logits/W": h_ln * math.log(10)}}
    rule = ard_mnist.rule(config)
    moved, _ = outer.update(rule, problem.hyperparameters, hyper, h, rule.start(hyper))
    np.testing.assert_allclose(np.log(declared.value(moved["l2"]["logits/W"])), ln_l2 - 1000 * h_ln, rtol=1e-12)


def test_schedules_take_a_new_seed_for_every_update_where_asked(blank_data):
    config = schedules_mnist.Config(train=40, select=10, test=10, batch=20)
    problem = schedules_mnist.problem(config)
    assert schedules_mnist.problem_for(config, problem, 3) is problem
    new = dataclasses.replace(config, new_seed_each_update=True)
    seeds = [schedules_mnist.problem_for(new, problem, k).seed for k in range(50)]
    assert len(set(seeds)) == 50
    assert seeds == [schedules_mnist.problem_for(new, problem, k).seed for k in range(50)]
    other = schedules_mnist.problem_for(dataclasses.replace(new, seed=1), problem, 0)
    assert other.seed not in seeds
    a, b = (schedules_mnist.problem_for(new, problem, k) for k in (0, 1))
    assert np.any(a.initial_weights()["dense1/W"] != b.initial_weights()["dense1/W"])
    assert np.any(a.schedule.indices(0, 2) != b.schedule.indices(0, 2))
    assert a.splits is problem.splits


@pytest.mark.usefixtures("without_figures")
def test_schedules_are_tried_on_held_out_seeds_and_go_on_in_between(blank_data, tmp_path, capsys, monkeypatch):
    """Killed after two of four: the other two are trained, the first two are not; the table says mean and interval."""
    folder = tmp_path / "run"
    words = "--steps 4 --batch 5 --train 20 --select 5 --test 5 --hidden 6 --held-out 4 --new-seed-each-update"
    command = [
        "run",
        "schedules-mnist",
        *words.split(),
        "--meta-iterations",
        "1",
        "--engine",
        "cpu",
        "--run-dir",
        str(folder),
    ]
    trained = []
    real = runs.Run.part

    def part(run, name, compute):
        if len(trained) == 2 and not ended:
            raise KeyboardInterrupt
        return real(run, name, lambda: trained.append(name) or compute())

    ended: list[str] = []
    monkeypatch.setattr(runs.Run, "part", part)
    assert cli.main(command) == 130
    ended.append("yes")
    assert cli.main(command) == 0
    assert trained == [f"held-out-0001-{i:02d}" for i in range(4)]
    parts = [runs.read_part(folder, name) for name in trained]
    assert len({part["seed"] for part in parts}) == 4
    section = schedules_mnist.show(folder)[1]
    losses = [part["train_loss"] for part in parts]
    assert section.rows[0][0] == "4 held-out seeds"
    assert section.rows[0][1].startswith(f"{np.mean(losses):.4f} ± ")
    assert "Cost: 16 gradients" in section.text


TINY = {
    "ard-mnist": ("--steps 4 --batch 5 --train 20 --valid 10 --select 5 --test 5 --outer-rate 10", "penalties"),
    "schedules-mnist": ("--steps 4 --batch 5 --train 20 --select 5 --test 5 --hidden 6", "norm schedules"),
}


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("name", TINY)
def test_a_meta_loop_shows_its_own_figures(name, blank_data, tmp_path, capsys):
    words, own = TINY[name]
    folder = tmp_path / "run"
    command = ["run", name, *words.split(), "--meta-iterations", "2", "--engine", "cpu", "--run-dir", str(folder)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    pictures = {p.stem for p in (folder / "figures").iterdir()}
    assert pictures == set(own.split())
    page = (folder / "report.html").read_text()
    assert page.count("<img") == len(pictures)
    for row in (row for section in experiments.load(name).show(folder) for row in section.rows):
        assert row[0] in said
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
    for one in own.split():
        (folder / "figures" / f"{one}.png").unlink()
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    assert {p.stem for p in (folder / "figures").iterdir()} == pictures
