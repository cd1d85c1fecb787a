"""Reading archives that somebody else has made: no call can ask for more than is expected, and nothing is unpacked beyond it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO

from .checks import reason
from .errors import DataError

SKIP = 2**20  # bytes that are read at once where they are only passed over


class Bounded:
    """A binary file of which no more than ``at_once`` bytes can be read by one call; for a library that believes the file."""

    def __init__(self, file: IO[bytes], path: Path, at_once: int) -> None:
        self._file, self._path, self._at_once = file, path, at_once

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, or all that follows where it is negative."""
        content = self._file.read(size if 0 <= size <= self._at_once else self._at_once + 1)
        if size > self._at_once or len(content) > self._at_once:
            raise DataError(
                f"one part of {self._path} has more than {self._at_once} bytes, which is more than belongs there; put the "
                "original there"
            )
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class Unpacking(Bounded):
    """What a gz file unpacks to, read forwards only, no more than ``at_most`` bytes in all."""

    def __init__(self, packed: IO[bytes], path: Path, at_once: int, at_most: int) -> None:
        super().__init__(gzip.GzipFile(fileobj=packed), path, at_once)  # type: ignore[arg-type]  # it reads, seeks and tells
        self._at_most = at_most

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        if self.tell() > self._at_most:
            raise DataError(
                f"{self._path} unpacks to more than {self._at_most} bytes, more than belongs there; put the original there"
            )
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        """Going back would unpack all anew, and headers that point back could be followed for ever."""
        if whence or position < self.tell():
            raise DataError(f"{self._path} is damaged: one of its headers points back; put the original there")
        while self.tell() < position and self.read(min(SKIP, self._at_once, position - self.tell())):
            pass
        return self.tell()


def unpacked(packed: IO[bytes], path: Path, at_most: int) -> bytes:
    """All that the gz file unpacks to, which is no more than ``at_most`` bytes. Raises DataError."""
    try:
        return Unpacking(packed, path, at_most + 1, at_most).read(at_most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short ({reason(error)}); put the original there") from error
