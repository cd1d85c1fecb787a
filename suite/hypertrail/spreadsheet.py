"""Rows of any keys as comma-separated values, which a spreadsheet may open without harm.

A spreadsheet takes a cell that begins with = + - @ for a formula, and a formula can send the cells beside it elsewhere. Names of
folders and settings come from outside, so such a text gets an apostrophe in front of it; numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .terminal import visible

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column for each key, in the order in which they come; numbers to the last digit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return as_sheet(columns, ([row.get(key, "") for key in columns] for row in rows))


def as_sheet(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The same of rows that have a value for every column. None is an empty cell."""
    text = io.StringIO()
    sheet = csv.writer(text, lineterminator="\n")
    sheet.writerow(map(harmless, columns))
    sheet.writerows(map(harmless, row) for row in rows)
    return text.getvalue()


def harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    return f"'{visible(cell)}" if cell.startswith(FORMULA) else visible(cell)
