"""What the documentation says can be done: its programs run, its functions exist, its links lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

PAGES = (
    "README.md",
    "docs/*.md",
    "cpu-ver/*.md",
    "gpu-ver/*.md",
    "densenet/*.md",
    "data/*.md",
    "benchmarks/results/*.md",
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FUNCTION = re.compile(r"\[`([\w.]+)`\]\(\.\./([\w./-]+)\.py\)")


def pages(root: Path) -> list[Path]:
    return sorted(path for pattern in PAGES for path in root.glob(pattern))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


# -- programs -----------------------------------------------------------------------------------------------------------


def test_own_model_page_runs(root: Path):
    """functional.md, in one go."""
    names: dict[str, Any] = {}
    for block in blocks(root / "docs" / "functional.md"):
        exec(block, names)
    assert set(names["result"].hyper) == {"rate", "decay"}
    assert all(abs(float(one)) > 0 for one in names["result"].hyper.values())


@pytest.mark.parametrize(
    ("program", "check"),
    [
        ("equinox", False),
        pytest.param("equinox", True, marks=pytest.mark.slow),  # compiles everything again, for float64
        pytest.param("flax", True, marks=pytest.mark.slow),
    ],
)
def test_tutorial(root: Path, program: str, check: bool):
    """The very program of the page: 40 lines; it lowers the losses as far as the page says; its hypergradient is right."""
    page = root / "docs" / "tutorial.md"
    code = next(block for block in blocks(page) if program in block)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(code, names)
    (first, test_first, wrong_first), *_, (last, test_last, wrong_last) = [map(float, one) for one in names["record"]]
    assert last < first / 2, "validation loss"
    assert test_last < test_first, "loss on the split that nobody optimised"
    section = re.search(rf"^## {program.title()}\n(.*?)^## ", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    said = [tuple(map(float, pair)) for pair in re.findall(r"(\d*\.\d+) → (\d*\.\d+)", section[1].replace("\n", " "))]
    assert said == [
        (pytest.approx(first, abs=0.002), pytest.approx(last, abs=0.002)),
        (pytest.approx(test_first, abs=0.002), pytest.approx(test_last, abs=0.002)),
        (pytest.approx(100 * wrong_first, abs=0.3), pytest.approx(100 * wrong_last, abs=0.3)),
    ]
    if check:
        (ask,) = [block for block in blocks(page) if block.startswith("slopes(")]
        found = eval(ask, names)
        assert found.hypergradient == pytest.approx(found.differences, rel=1e-6)


# -- functions ------------------------------------------------------------------------------------------------------------


def resolve(root: Path, name: str, file: str) -> Any:
    """The function, class or method `name` of ../file.py: imported from that very file."""
    path = root / f"{file}.py"
    assert path.is_file(), path
    module = importlib.import_module(".".join(Path(file).parts[1:]))
    assert Path(module.__file__).samefile(path)
    for part in name.split("."):
        module = getattr(module, part)
    return module


def test_the_test_of_functions_sees_what_is_missing(root: Path):
    with pytest.raises(AttributeError):
        resolve(root, "damped_adjoints", "cpu-ver/hypertrail_cpu/dynamics")
    with pytest.raises(AssertionError):
        resolve(root, "damped_adjoint", "cpu-ver/hypertrail_cpu/dynamic")


def test_from_the_paper_to_the_code(root: Path):
    """Every function that the page names exists in the file that it names; every paper that must be there is."""
    text = (root / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
    named = set(FUNCTION.findall(text))
    assert len(named) > 100
    assert all(callable(resolve(root, name, file)) for name, file in named)
    headings = " ".join(re.findall(r"^## (.*)$", text, flags=re.M))
    papers = "Maclaurin Fu adaptive Franceschi Shaban Lorraine Pedregosa Luketina Baydin Almeida Donini Clarke OSGM"
    assert [one for one in papers.split() if one not in headings] == []
    for row in re.findall(r"^\| (.*) \|$", text, flags=re.M):
        cells = row.split(" | ")
        if cells[0] == "there" or set(row) <= {"-", "|"}:
            continue
        assert FUNCTION.search(row), f"no function in: {row}"
        assert all(FUNCTION.search(cell) or cell in ("–", "the same") for cell in cells[2:]), row


# -- numbers --------------------------------------------------------------------------------------------------------------


def numbers(text: str) -> set[str]:
    """What was measured, as written: numbers with a point or with three digits and more."""
    return set(re.findall(r"\d*\.\d+(?:e\d+)?|\d[\d,]{2,}", text))


def measured(page: Path, known: set[str]) -> list[tuple[set[str], str]]:
    """(experiments, row) for each row of a table that names experiments itself, or under a heading that does."""
    rows, named = [], set()
    for line in prose(page).splitlines():
        if line.startswith("#"):
            named = known & set(re.findall(r"`([\w-]+)", line))
        if line.startswith("| ") and (about := known & set(re.findall(r"`([\w-]+)", line)) or named):
            rows.append((about, line))
    return rows


def test_what_an_experiment_measured_is_what_its_docstring_says(root: Path):
    """A number has one home: where a page repeats an experiment's, it must still stand in the experiment."""
    from hypertrail.experiments import load, names

    pages = [
        page for page in sorted((root / "docs").glob("*.md")) if page.name != "paper-to-code.md"
    ]  # numbers of sections
    rows = [(page.name, *row) for page in pages for row in measured(page, set(names()))]
    assert len(rows) > 15
    stale = {}
    for page, about, row in rows:
        said = numbers(" ".join(str(load(one).__doc__) for one in about))
        if wrong := numbers(re.sub(r"\]\([^)]*\)", "]", row)) - said:
            stale[f"{page}: {row[:40]}"] = wrong
    assert stale == {}


def stands(number: str, said: set[str]) -> bool:
    """Whether one of these numbers, rounded to as many decimals, is this one."""
    if "e" in number:
        return number in said
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    return any("e" not in one and abs(float(number) - float(one.replace(",", ""))) <= half * (1 + 1e-6) for one in said)


def test_what_the_readme_repeats_is_measured_by_an_experiment_that_it_names(root: Path):
    """It rounds, and has the minutes in a column of their own. Its headline kept the numbers of an older rule for a week, as the
    paragraph named no experiment: what has an error rate must name one."""
    from hypertrail.experiments import load, names

    known, stale, checked = set(names()), {}, 0
    for paragraph in prose(root / "README.md").split("\n\n"):
        rows = paragraph.splitlines() if paragraph.startswith("|") else [paragraph.replace("\n", " ")]
        for row in rows:
            about = known & set(re.findall(r"`([\w-]+)", row))
            text = re.sub(r"\]\([^)]*\)", "]", row)
            if row.startswith("|"):
                text = "|".join(cell for i, cell in enumerate(text.split("|")) if i != 2)
            if not about and not re.search(r"\d %(?! interval)", text):
                continue
            said = numbers(" ".join(str(load(one).__doc__) for one in about))
            found = {one.replace(",", "") for one in numbers(text)}
            checked += len(found)
            if wrong := {one for one in found if not stands(one, said)}:
                stale[row[:60]] = wrong
    assert checked > 80
    assert stale == {}


# -- links ------------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def broken(page: Path, text: str) -> list[str]:
    """The relative links of a text that lead nowhere, seen from `page`."""
    wrong = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def test_the_test_of_links_sees_what_is_broken(root: Path):
    page = root / "docs" / "README.md"
    text = (
        "[a](nowhere.md) [b](exact.md#nothing) [c](exact.md#our-numbers-beside-theirs) [d](https://x.org) ![e](no.png)"
    )
    assert broken(page, text) == ["nowhere.md", "exact.md#nothing", "no.png"]


def test_every_link_leads_somewhere(root: Path):
    found = pages(root)
    assert len(found) > 15
    assert {str(page.relative_to(root)): wrong for page in found if (wrong := broken(page, prose(page)))} == {}


def unknown_pages(root: Path, path: Path, text: str) -> list[str]:
    """The .md files that a source file names and that are neither under the root nor in its own top-level folder."""
    own = root / path.relative_to(root).parts[0]
    return [
        name
        for name in re.findall(r"(?<![\w./])[\w/-]+\.md\b|reference (?:section|table)", text)
        if not ((root / name).is_file() or (own / name).is_file())
    ]


def test_every_page_that_a_source_file_names_exists(root: Path):
    folders = ("suite", "cpu-ver", "gpu-ver", "densenet", "data", "benchmarks")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    here = root / "suite" / "hypertrail" / "problem.py"
    text = "as in offline.md, docs/exact.md and reference section 3; hashlib.md5"
    assert unknown_pages(root, here, text) == ["offline.md", "reference section"]
    found = {str(path.relative_to(root)): unknown_pages(root, path, path.read_text(encoding="utf-8")) for path in files}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


def test_the_index_names_every_page(root: Path):
    index = set(LINK.findall((root / "docs" / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in (root / "docs").glob("*.md")} - {"README.md"} <= index


def test_every_method_has_its_page(root: Path):
    from hypertrail import methods, online

    offline = ("exact", "drmad", "truncated", "forward", "implicit")
    text = "".join((root / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in offline)
    assert [one.__name__ for one in methods.Method.__args__ if f"`{one.__name__}" not in text] == []
    text = (root / "docs" / "online.md").read_text(encoding="utf-8")
    declared = [one for one in vars(online).values() if isinstance(one, type) and issubclass(one, online.Online)]
    named = [one.__name__ for one in declared if hasattr(one, "name")]
    assert len(named) >= 8
    assert [one for one in named if f"| `{one}`" not in text] == []


def test_every_python_file_that_a_page_names_exists(root: Path):
    folders = ("suite", "cpu-ver", "gpu-ver", "densenet", "data", "tests", "benchmarks")
    files = [f"/{path.relative_to(root)}" for folder in folders for path in (root / folder).rglob("*.py")]
    named = {(page.name, word) for page in pages(root) for word in re.findall(r"`([\w/-]+\.py)`", prose(page))}
    assert len(named) > 20
    assert [(page, word) for page, word in sorted(named) if not any(file.endswith(f"/{word}") for file in files)] == []
