"""verify everything: nothing is left out, what is wrong is found, what cannot work is turned down with a reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hypertrail import everything, methods
from hypertrail.engines import load
from hypertrail.hyperparameters import KINDS
from hypertrail.outer import tree
from hypertrail.problem import DYNAMICS


def test_every_kind_and_every_method_is_walked_through(tmp_path):
    assert {one.kind for family in everything.FAMILIES.values() for one in family} == set(KINDS)
    names = {way.method.name for way in everything.ways(tmp_path)}
    assert names == {*methods.SIMPLE, *(f"drmad-{c}" for c in methods.COMPLETIONS), "drmad-C1-first"}


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("family", everything.FAMILIES)
def test_every_problem_can_be_built(dynamics, family):
    one = everything.problem(dynamics, family)
    assert one.precision == "float64"
    assert one.initial_hyper().keys() == {h.kind for h in everything.FAMILIES[family]}


def test_the_reference_engine_agrees_with_itself_and_a_wrong_one_is_found():
    cpu = load("cpu")

    def hypergradient(problem, hyper, training, method):
        result = cpu.hypergradient(problem, hyper, training, method)
        if method.name == "forward":
            result.gradient = tree(lambda h: h * (1 + 1e-6), result.gradient)
        return result

    wrong = SimpleNamespace(name="wrong", train=cpu.train, hyper_loss=cpu.hyper_loss, hypergradient=hypergradient)
    found = list(everything.walk("heavy-ball", "rates", (cpu, wrong), 0))
    refused = [str(one) for one in found if isinstance(one, everything.Refused)]
    failed = [one.what for one in found if not isinstance(one, everything.Refused) and not one.passed]
    assert len(found) - len(refused) > 20
    assert failed == [
        "heavy-ball, rates, forward (ends), wrong against states in memory",
        "heavy-ball, rates, forward (ends), cpu against wrong",
    ]
    assert any("drmad-C0 (ends): completion C0 has neither" in one for one in refused)
    assert sum("implicit" in one and "sees only the minimum" in one for one in refused) == 3


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_everything(dynamics, capsys):
    everything.main(everything.Options(dynamics=dynamics))  # raises where a check fails
    said = capsys.readouterr().out
    assert " 0 failed" in said
