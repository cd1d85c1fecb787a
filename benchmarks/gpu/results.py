"""The report: one JSON file and one Markdown file, both written anew after every row, so that a cut-off run keeps what it had."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from plan import SECTIONS, Part, Row

UNFINISHED = "The run has not come to its end: what is here is what it had until then."


class Report:
    """What a run has said so far. `data` is the JSON; every method that changes it writes both files."""

    def __init__(self, folder: Path, name: str, title: str, environment: dict[str, Any]) -> None:
        self.folder, self.name = folder, name
        self.data: dict[str, Any] = {
            "title": title,
            "environment": environment,
            "machine": {},
            "finished": False,
            "sections": {section: {"title": words, "parts": [], "rows": [], "notes": []} for section, words in SECTIONS.items()},
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def start(self, part: Part, status: str = "running") -> dict[str, Any]:
        """The record of a part, which `end` completes. status: "skipped: …" for one that is not started."""
        record = {"name": part.name, "status": status, "seconds": 0.0, "xla_flags": part.flags}
        self.data["sections"][part.section]["parts"].append(record)
        self.write()
        return record

    def end(self, record: dict[str, Any], status: str, seconds: float) -> None:
        record.update(status=status, seconds=round(seconds, 1))
        self.write()

    def row(self, section: str, row: Row) -> None:
        self.data["sections"][section]["rows"].append(row)
        self.write()

    def write(self) -> None:
        replace(self.folder / f"{self.name}.json", json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")
        replace(self.folder / f"{self.name}.md", markdown(self.data))

    def wrong(self) -> list[str]:
        """A line for each part that did not end well and each row that is not as it should be. What was skipped is no fault."""
        lines = []
        for name, section in self.data["sections"].items():
            lines += [
                f"{name}, {part['name']}: {part['status']}"
                for part in section["parts"]
                if part["status"] != "done" and not part["status"].startswith("skipped")
            ]
            lines += [f"{name}, {title(row)}: not as it should be" for row in section["rows"] if row.get("ok") is False]
        return lines


def title(row: Row) -> str:
    return next((value for value in row.values() if isinstance(value, str)), "")


def replace(path: Path, text: str) -> None:
    """The whole new text or the whole old one, also for a process that is killed meanwhile."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def markdown(data: dict[str, Any]) -> str:
    lines = [f"# {data['title']}", "", *about(data), ""]
    if not data["finished"]:
        lines += [f"**{UNFINISHED}**", ""]
    for section in data["sections"].values():
        lines += [f"## {section['title']}", "", *state(section), ""]
        if section["rows"]:
            lines += [*table(section["rows"]), ""]
        lines += [*section["notes"], ""] if section["notes"] else []
    return "\n".join(lines)


def about(data: dict[str, Any]) -> list[str]:
    """Where, when and with what, as a list."""
    env, machine = data["environment"], data["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    facts = {
        "Date": env["date"],
        "Command": f"`{env['command']}`",
        "GPU": "; ".join(env["gpus"]) or "none",
        "Device of JAX": machine.get("words", "not known, see the first section"),
        "Processor": f"{env['processor']}, load {env['load']} before the start",
        "Versions": f"Python {env['python']}, hypertrail {env['hypertrail']}, {versions}",
        "Commit": f"{env['commit']}; digest of the sources {env['sources']}",
        "XLA_FLAGS": f"`{env['xla_flags']}`" if env["xla_flags"] else "none, but for those in the tables",
        "Precision of float32 products": machine.get("products", "not known"),
        "Time": f"{data['seconds']:.0f} s of a budget of {data['budget']:.0f} s" if "seconds" in data else "cut off",
    }
    return [f"- {name}: {words}" for name, words in facts.items()]


def state(section: dict[str, Any]) -> list[str]:
    """One sentence on how the parts of a section went."""
    if not section["parts"]:
        return ["Nothing was measured."]
    seconds = sum(part["seconds"] for part in section["parts"])
    words = [
        f"{part['name']}: {part['status']}" for part in section["parts"] if part["status"] != "done"
    ]  # of the rest there is nothing to say
    done = sum(part["status"] == "done" for part in section["parts"])
    return [
        f"{done} of {len(section['parts'])} parts done, {seconds:.0f} s. " + " ".join(f"**{one}.**" for one in words)
    ]


def table(rows: list[Row]) -> list[str]:
    """The columns are the keys of the rows, in the order in which they first come up."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "ok"))
    judged = any(row.get("ok") is not None for row in rows)
    lines = ["| " + " | ".join(columns + ["verdict"] * judged) + " |", "|" + "---|" * (len(columns) + judged)]
    for row in rows:
        cells = [spelled(row.get(column)) for column in columns]
        lines.append(
            "| " + " | ".join(cells + [{True: "met", False: "MISSED", None: ""}[row.get("ok")]] * judged) + " |"
        )
    return lines


def spelled(value: Any) -> str:
    """Numbers with three digits that count, so that a table can be read; the JSON has all of them."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == 0 or not math.isfinite(value):
            return f"{value:g}"
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
