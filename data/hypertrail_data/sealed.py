"""Lines of JSON that carry a check sum of themselves: a line that was changed by so much as one bit is not believed."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def seal(record: dict[str, Any]) -> bytes:
    """One line of compact JSON that carries a check sum of itself: its last key is ``check``, the first 16 hexadecimal
    digits of the sha256 of the line as it reads without that key."""
    return _compact({**record, "check": check_sum(record)}) + b"\n"


def check_sum(record: dict[str, Any]) -> str:
    """The first 16 hexadecimal digits of the sha256 of a record in compact JSON."""
    return hashlib.sha256(_compact(record)).hexdigest()[:16]


def unseal(line: bytes) -> dict[str, Any]:
    """The record of a line made by ``seal``. Raises ValueError if so much as one bit of the line is not as it was written."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or "check" not in record:
            raise ValueError("it has no check sum")
        record.pop("check")
        if seal(record) != line:
            raise ValueError("its check sum does not match")
    except RecursionError as error:  # from reading the line, or from writing it anew
        raise ValueError("it is nested too deep") from error
    return record


def _compact(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
