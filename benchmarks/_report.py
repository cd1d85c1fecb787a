"""Where and when a table was made, and the table as Markdown and JSON in benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _machine import installed, processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("hypertrail", "numpy", "jax", "jaxlib", "optax", "torch", "torchopt")


def environment(threads: int) -> dict[str, Any]:
    """Machine, cores, versions, date, command. No host name and no path."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{processor()} ({platform.machine()}), {platform.system()}",
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def target(words: str, value: float, limit: float) -> dict[str, Any]:
    return {"target": words, "value": value, "limit": limit, "met": bool(value <= limit)}


def write(
    name: str, title: str, data: dict[str, Any], header: list[str], rows: list[list[str]], notes: list[str]
) -> None:
    """data: JSON as it is, with 'environment' and 'targets'; header, rows and notes: the Markdown table around it."""
    env = data["environment"]
    versions = ", ".join(f"{name} {one}" for name, one in env["versions"].items())
    where = f"{env['machine']}, {env['cores']} cores, {env['threads']} used, load {env['load']} before the start"
    lines = [f"# {title}", "", f"`{env['command']}`, {env['date']}. {where}. Python {env['python']}, {versions}.", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| target | measured | limit | |", "|---|---|---|---|"]
    lines += [
        f"| {t['target']} | {t['value']:.3g} | {t['limit']:g} | {'met' if t['met'] else 'MISSED'} |"
        for t in data["targets"]
    ]
    lines += ["", *notes, ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(lines))
