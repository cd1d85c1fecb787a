"""The programs of examples/ and the page on own tasks: they run, they say what they measured, and whole they improve a split
that nothing was tuned on."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hypertrail import cli, own

SMALL: dict[str, list[str]] = {
    "convolutions": ["--steps", "20", "--channels", "2", "--batch", "8", "--valid", "40", "--test", "40"],
    "layers": ["--steps", "20", "--maps", "2", "--hidden", "4", "--batch", "8", "--valid", "40", "--test", "40"],
    "least_squares": [],
    "logistic_regression": ["--steps", "20", "--train", "100", "--valid", "100", "--test", "100"],
    "transformer": ["--steps", "20", "--batch", "2", "--length", "8", "--width", "8", "--heads", "2", "--blocks", "1"],
}


def file_of(root: Path, name: str) -> Path:
    return root / "examples" / f"{name}.py"


def docstring(root: Path, name: str) -> str:
    return ast.get_docstring(ast.parse(file_of(root, name).read_text(encoding="utf-8"))) or ""


def measured(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What a run found on the test split at first and at the end."""
    first, *_, last = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return first["metrics"]["test"], last["metrics"]["test"]


# -- what the files say -------------------------------------------------------------------------------------------------------


def test_every_example_is_tested(root: Path) -> None:
    assert sorted(SMALL) == sorted(path.stem for path in (root / "examples").glob("*.py"))


@pytest.mark.parametrize("name", SMALL)
def test_docstrings_have_commands_and_numbers(root: Path, name: str) -> None:
    said = docstring(root, name)
    assert said.partition("\n")[0].endswith(".")
    for word in (f"hypertrail run examples/{name}.py", f"python examples/{name}.py", "Hardware:", "Measured:", "±"):
        assert word in said


def test_the_table_repeats_what_the_docstrings_say(root: Path) -> None:
    """A number has one home, which is the docstring."""
    text = (root / "examples" / "README.md").read_text(encoding="utf-8")
    rows = {name: row for name in SMALL for row in re.findall(rf"^\| \[`{name}\.py`\].*$", text, flags=re.M)}
    assert sorted(rows) == sorted(SMALL)
    for name, row in rows.items():
        numbers = set(re.findall(r"\d*\.\d+", row))
        assert len(numbers) > 2
        assert numbers <= set(re.findall(r"\d*\.\d+", docstring(root, name))), name


def test_the_first_example_has_25_lines_of_code(root: Path) -> None:
    text = file_of(root, "least_squares").read_text(encoding="utf-8").replace(docstring(root, "least_squares"), "")
    assert sum(bool(line.strip(' \n"')) for line in text.splitlines()) <= 25


# -- small --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs_through_the_command_line(
    root: Path, name: str, tmp_path: Path, without_figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = file_of(root, name), tmp_path / "run"
    check = [] if name == "layers" else ["--no-check"]
    assert cli.main(["run", str(path), *SMALL[name], *check, "--meta-iterations", "1", "--run-dir", str(folder)]) == 0
    assert (folder / "DONE").is_file()
    assert (folder / "source.py").read_bytes() == path.read_bytes()
    first, last = measured(folder)
    assert first["loss"] != last["loss"], "the hyperparameters should have moved"


@pytest.mark.parametrize("name", SMALL)
def test_every_setting_is_explained(root: Path, name: str) -> None:
    """tyro shows the docstring of a field; an undocumented one would show nothing."""
    tree = ast.parse(file_of(root, name).read_text(encoding="utf-8"))
    for one in (one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "Config"):
        body = [line for line in one.body[1:] if not isinstance(line, ast.FunctionDef)]
        assert [type(line) for line in body] == [ast.AnnAssign, ast.Expr] * (len(body) // 2)


def test_a_task_is_a_pure_function_of_its_settings(root: Path) -> None:
    """Of the ones that draw text, read a file, and draw weights by a library."""
    for name in ("transformer", "convolutions"):
        module = own.find(str(file_of(root, name))).module
        one, two, other = (module.problem(module.Config(seed=seed)) for seed in (0, 0, 1))
        assert one.digest == two.digest
        assert one.digest != other.digest


def test_an_example_is_a_program(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(file_of(root, "least_squares")), run_name="__main__")
    improved(capsys.readouterr().out)


def improved(said: str) -> None:
    (line,) = re.findall(r"^test: loss (\S+) → ([\d.]+)", said, flags=re.M)
    assert float(line[1]) < float(line[0]), said


# -- the page -----------------------------------------------------------------------------------------------------------------


def test_every_program_of_the_page_on_own_tasks_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one go, as a reader would type them."""
    text = (root / "docs" / "own-tasks.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "own_tasks_page"}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M):
        exec(compile(block, "docs/own-tasks.md", "exec", dont_inherit=True), names)
    assert names["tuned"].hyper_losses[-1] < names["tuned"].hyper_losses[0]
    assert names["weights"].shape == (40,)


# -- whole --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_example_improves_what_it_was_not_tuned_on(root: Path, name: str, tmp_path: Path) -> None:
    """With its own settings, the check at the beginning included."""
    folder = tmp_path / "run"
    assert cli.main(["run", str(file_of(root, name)), "--run-dir", str(folder)]) == 0
    first, last = measured(folder)
    assert last["loss"] < first["loss"]
    if "error" in first:
        assert last["error"] < first["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SMALL) - {"least_squares"}))
def test_an_example_is_a_program_too(root: Path, name: str) -> None:
    answer = subprocess.run([sys.executable, file_of(root, name)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    improved(answer.stdout)
