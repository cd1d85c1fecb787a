"""The house as a stranger meets it: what is installed, who imports whom, what the two commands do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import hypertrail

PACKAGES = {
    "hypertrail": "suite",
    "hypertrail_cpu": "cpu-ver",
    "hypertrail_gpu": "gpu-ver",
    "hypertrail_nets": "densenet",
    "hypertrail_data": "data",
}

# The design's table "may import", beside the standard library and the package itself.
MAY_IMPORT = {
    "hypertrail_nets": {"numpy"},
    "hypertrail_data": {"numpy", "h5py", "pooch", "requests", "urllib3"},
    "hypertrail": {
        "numpy",
        "scipy",
        "h5py",
        "tyro",
        "rich",
        "matplotlib",
        "submitit",
        "plotly",
        "tensorboard",
        "hypertrail_nets",
        "hypertrail_data",
    },
    "hypertrail_cpu": {"numpy", "autograd", "hypertrail_nets", "hypertrail_data", "hypertrail"},
    "hypertrail_gpu": {"numpy", "jax", "jaxlib", "optax", "hypertrail_nets", "hypertrail_data", "hypertrail"},
}
# May be imported inside a function only: what most users of the package never need, or what takes long to import.
LAZY = {
    "hypertrail": {"matplotlib", "scipy", "submitit", "plotly", "tensorboard"},
    "hypertrail_data": {"pooch", "requests", "urllib3"},
}
# Imported, and installed because of another that is declared.
COMES_WITH = {"jaxlib": "jax", "requests": "pooch", "urllib3": "pooch"}


@pytest.fixture(scope="session")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


def python(code: str, **env: str) -> str:
    """Run code in a fresh interpreter, warnings as errors; its output. Fails with its error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- who imports whom --------------------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level module, whether it is imported when the file is) for each import that runs; relative ones left out."""

    def walk(node: ast.AST, eager: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], eager) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0], eager
        inner = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text()), True)


def test_the_walk_sees_lazy_and_skips_typing_only_imports(tmp_path: Path):
    lines = ["import a.b", "from .c import d", "if TYPE_CHECKING:", "    import e"]
    lines += ["def f():", "    from g.h import i", "try:", "    import j", "finally: ..."]
    (tmp_path / "one.py").write_text("\n".join(lines))
    assert list(imports(tmp_path / "one.py")) == [("a", True), ("g", False), ("j", True)]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_imports_only_what_the_design_allows(root: Path, package: str):
    files = sorted((root / PACKAGES[package] / package).rglob("*.py"))
    assert files
    allowed = MAY_IMPORT[package] | {package} | set(sys.stdlib_module_names)
    found = {(path.relative_to(root).as_posix(), name, eager) for path in files for name, eager in imports(path)}
    wrong = {(path, name) for path, name, _ in found if name not in allowed}
    assert not wrong, "not in the design's table"
    early = {(path, name) for path, name, eager in found if eager and name in LAZY.get(package, set())}
    assert not early, "to be imported inside the function that needs it"


def test_what_is_imported_is_declared(project: dict):
    extras = [one for name in ("slurm", "report", "track") for one in project["project"]["optional-dependencies"][name]]
    declared = {Requirement(one).name for one in (*project["project"]["dependencies"], *extras)}
    used = set().union(*MAY_IMPORT.values()) - set(PACKAGES)
    assert {COMES_WITH.get(name, name) for name in used} <= declared


def test_import_hypertrail_is_light():
    heavy = ["jax", "matplotlib", "autograd", "pooch", "requests", "tyro", "hypertrail_cpu", "hypertrail_gpu"]
    assert python(f"import sys, hypertrail; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


@pytest.mark.parametrize(("word", "answer"), [("--help", "usage: hypertrail"), ("list", "drmad-digits")])
def test_the_command_line_answers_without_jax_and_matplotlib(word: str, answer: str):
    blocked = "sys.modules.update(jax=None, autograd=None, matplotlib=None)"
    run = "from hypertrail.cli import main; sys.exit(main())"
    assert answer in python(f"import sys; {blocked}; sys.argv = ['hypertrail', '{word}']; {run}")


@pytest.mark.parametrize(
    ("engine", "blocked"),
    [
        ("hypertrail_gpu", ["autograd", "tyro", "pooch", "matplotlib", "hypertrail_cpu"]),
        ("hypertrail_cpu", ["jax", "tyro", "pooch", "matplotlib", "hypertrail_gpu"]),
    ],
)
def test_an_engine_needs_nothing_of_the_others(engine: str, blocked: list[str]):
    name = {"hypertrail_gpu": "gpu", "hypertrail_cpu": "cpu"}[engine]
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked}))"
    assert python(f"{block}; import {engine}, hypertrail; print(hypertrail.load('{name}').name)").strip() == name


# -- what is built -----------------------------------------------------------------------------------------------------


def build(folder: Path, target: str, out: Path) -> Path:
    """Build 'wheel' or 'sdist' of the project in `folder`; the file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(root, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_five_packages_and_nothing_else(root: Path, wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"hypertrail-{hypertrail.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    assert {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt", f"{info}/METADATA"} <= names
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    assert "hypertrail_data/digits.npz" in names
    sources = {
        path.relative_to(root / folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (root / folder / package).rglob("*.py")
    }
    assert sources == {name for name in names if name.endswith(".py")}


def test_the_wheel_works_where_the_source_is_not(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    where = "print([m.__file__.startswith(sys.argv[0]) for m in (hypertrail, hypertrail_nets, hypertrail_data)])"
    load = "print(hypertrail_nets.count_params(hypertrail_nets.densenet()), hypertrail_data.load('digits').x.shape)"
    code = f"import sys, hypertrail, hypertrail_nets, hypertrail_data; sys.argv[0] = {str(tmp_path)!r}; {where}; {load}"
    first, second = python(code, PYTHONPATH=str(tmp_path)).splitlines()
    assert first == "[True, True, True]"
    assert second == "1019722 (1797, 8, 8, 1)"


def test_the_sdist_is_complete_and_builds_the_same_wheel(root: Path, wheel: Path, tmp_path: Path):
    archive = tarfile.open(build(root, "sdist", tmp_path / "sdist"))  # noqa: SIM115 (closed with the test)
    names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [
        "LICENSE",
        "README.md",
        "CITATION.cff",
        "Makefile",
        "requirements.lock",
        ".ci/run",
        "tests/test_packaging.py",
    ]
    assert set(wanted) <= names
    assert not {name for name in names if name.startswith((".venv", "runs/", ".git/"))}
    tarfile.TarFile.extraction_filter = staticmethod(lambda member, path: member)  # ours; 3.11.2 has no filter argument
    archive.extractall(tmp_path)
    archive.close()
    (folder,) = tmp_path.glob("hypertrail-*")
    again = build(folder, "wheel", tmp_path / "again")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


# -- what is pinned ----------------------------------------------------------------------------------------------------


def test_the_lock_pins_and_hashes_all_that_is_asked_for(root: Path, project: dict):
    text = (root / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip().replace("\\\n", ""))
    locked: dict[str, list[Version]] = {}
    for entry in entries:
        requirement, *hashes = entry.split("--hash=")
        name, _, version = requirement.partition(";")[0].strip().partition("==")
        assert version, f"{entry[:60]!r} is not pinned"
        assert hashes, f"{entry[:60]!r} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", one) for one in hashes)
        locked.setdefault(name, []).append(Version(version))
    extras = project["project"]["optional-dependencies"]
    asked = [
        *project["project"]["dependencies"],
        *extras["test"],
        *project["dependency-groups"]["build"],
        *project["build-system"]["requires"],
    ]
    own = [one for one in map(Requirement, asked) if one.name == "hypertrail"]  # test = ["hypertrail[report]", …]
    asked += [one for own_extras in own for extra in own_extras.extras for one in extras[extra]]
    for one in map(Requirement, asked):
        if one in own:
            continue
        assert one.name in locked, f"{one.name} is not in requirements.lock: make lock"
        assert all(version in one.specifier for version in locked[one.name]), f"{one}: make lock"
    # Files for other platforms and Pythons are there: a lock made from one machine's wheels would have one hash each.
    compiled = {entry.partition("==")[0]: entry.count("--hash=") for entry in entries}
    assert min(compiled[name] for name in ("numpy", "jaxlib", "h5py", "matplotlib")) > 10


def test_the_bench_extra_pins_torch_exactly(project: dict):
    assert "torch==2.13.0" in project["project"]["optional-dependencies"]["bench"]


def tracked(root: Path) -> list[Path]:
    """The project's files: those git knows or would take; without git, all outside hidden and build folders."""
    if (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
        return [root / name for name in names if name and (root / name).is_file()]
    skip = {".venv", ".git", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
    return [path for path in root.rglob("*") if path.is_file() and not skip & set(path.relative_to(root).parts)]


def test_no_path_of_one_machine_and_no_registry_in_the_files(root: Path):
    folders = r"(?<![\w.~}])/(home|root|Users|work|opt|mnt)/\w"
    hosts = r"[p]ypi\.org|[p]ythonhosted|[d]ownload\.pytorch|[a]naconda\.org|[f]ile://|[-]-(extra-)?index-url|[-]-find-links"
    here = "|".join(re.escape(str(one)) + r"\b" for one in (root, Path.home()) if len(one.parts) > 1)
    pattern = re.compile(f"{folders}|{hosts}|{here}")
    found = []
    files = tracked(root)
    assert root / "pyproject.toml" in files
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # digits.npz
        found += [
            f"{path.relative_to(root)}:{text.count(chr(10), 0, m.start()) + 1}: {m[0]}" for m in pattern.finditer(text)
        ]
    assert not found


# -- what it says about itself -----------------------------------------------------------------------------------------


def test_one_version_everywhere(root: Path, project: dict):
    citation = (root / "CITATION.cff").read_text()
    cited = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    assert cited
    assert project["project"]["version"] == cited[1] == hypertrail.__version__
    assert re.search(r"^license: (\S+)$", citation, re.MULTILINE)[1] == project["project"]["license"] == "MIT"


def test_the_papers_are_cited(root: Path):
    citation = (root / "CITATION.cff").read_text()
    families = [
        "Fu",
        "Maclaurin",
        "Franceschi",
        "Luketina",
        "Baydin",
        "Almeida",
        "Bengio",
        "Pedregosa",
        "Shaban",
        "Lorraine",
        "Donini",
        "Clarke",
        "Chu",
        "Huang",
    ]
    first_authors = re.findall(r"authors:\n      - \{ family-names: (\w+)", citation)
    assert first_authors == families


def targets(root: Path) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))


def test_the_makefile_has_the_targets_that_help_and_readme_name(root: Path):
    assert {"help", "demo", "test", "test-slow", "bench", "lock"} <= targets(root)
    helped = subprocess.run(
        ["make", "--no-print-directory"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    told = set(re.findall(r"^make ([a-z-]+)", helped, re.MULTILINE))
    assert told == targets(root) - {"help"}
    assert set(re.findall(r"`?\bmake ([a-z]+(?:-[a-z]+)*)`", (root / "README.md").read_text())) <= targets(root)


def test_ci_runs_the_readmes_test_command_in_the_root(root: Path, tmp_path: Path):
    """With a stand-in for make that says where and with what it was called."""
    (tmp_path / "make").write_text('#!/bin/sh\necho "$PWD"\necho "make $*"\n')
    (tmp_path / "make").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", str(root / ".ci" / "run")]
    said = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [str(root), "make test"]
    assert re.search(r"^make test\b", (root / "README.md").read_text(), re.MULTILINE), "README's test command"
