"""MNIST: 70 000 handwritten digits, 28x28 (LeCun, Cortes, Burges). The last 10 000 are the official test set."""

from __future__ import annotations

import io
import itertools
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bounded import unpacked
from .dataset import Dataset
from .download import RemoteFile, fetch
from .errors import DataError
from .places import Place, cache_folder, named_folders, read_bytes, warn_unless_original


@dataclass(frozen=True)
class IdxFile:
    """One of the four files, published as ``name``.gz: sha256 and size as published; sha256 and shape of what is inside.

    A file in a named folder may have fewer rows than ``shape``, never more.
    """

    name: str
    sha256_gz: str
    sha256: str
    size_gz: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


FILES = (
    IdxFile(
        "train-images-idx3-ubyte",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        9_912_422,
        (60_000, 28, 28),
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        28_881,
        (60_000,),
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        1_648_877,
        (10_000, 28, 28),
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        4_542,
        (10_000,),
    ),
)
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
UBYTE = 0x08  # the idx type code of unsigned bytes


def load_mnist(
    data_dir: Place | None = None,
    cache_dir: Place | None = None,
    progress: bool = True,
    files: tuple[IdxFile, ...] = FILES,
    mirrors: tuple[str, ...] = MIRRORS,
) -> Dataset:
    """x uint8 (70000, 28, 28, 1) in 0 .. 255, y int32 (70000,) in 0 .. 9; see ``registry.load`` for places and errors.

    A named folder holds the four files, gz or unpacked, in itself or in ``mnist/``.
    """
    for folder in named_folders(data_dir):
        for place in (folder / "mnist", folder):
            if paths := _find(place, files):
                return _assemble(paths, list(map(_read, paths, files)), files)
    cache = cache_folder(cache_dir) / "mnist"
    paths = [cache / f"{file.name}.gz" for file in files]
    contents = [_fetched(path, file, mirrors, progress) for path, file in zip(paths, files, strict=True)]
    return _assemble(paths, contents, files)


def _find(place: Path, files: tuple[IdxFile, ...]) -> list[Path]:
    """The four paths, or none of them. Raises DataError if only some are there."""
    candidates = [[place / f"{file.name}.gz", place / file.name] for file in files]
    found = [next((path for path in pair if os.path.isfile(path)), None) for pair in candidates]
    missing = [file.name for file, path in zip(files, found, strict=True) if path is None]
    if len(missing) == len(files):
        return []
    if missing:
        raise DataError(f"{place} holds only part of MNIST; missing: {', '.join(missing)} (.gz or unpacked); add them")
    return [path for path in found if path is not None]


def _read(path: Path, file: IdxFile) -> bytes:
    """What the file of a named folder holds, unpacked. Packed anew it may be a little larger than what is inside."""
    if path.suffix != ".gz":
        return read_bytes(path, file.size)
    return unpacked(io.BytesIO(read_bytes(path, file.size + file.size // 100 + 4096)), path, file.size)


def _fetched(path: Path, file: IdxFile, mirrors: tuple[str, ...], progress: bool) -> bytes:
    packed = fetch(RemoteFile(path.name, file.sha256_gz, file.size_gz, mirrors), path.parent, progress)
    return unpacked(io.BytesIO(packed), path, file.size)


def _assemble(paths: list[Path], contents: list[bytes], files: tuple[IdxFile, ...]) -> Dataset:
    train_x, train_y, test_x, test_y = map(_parsed, paths, contents, files)
    for x, y, path in ((train_x, train_y, paths[1]), (test_x, test_y, paths[3])):
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or not len(y) or y.max() > 9:
            raise DataError(
                f"{path} and the images beside it do not fit together: images {x.shape}, labels {y.shape}, largest label "
                f"{y.max(initial=0)}; expected (N, 28, 28), (N,), at most 9: put the originals there"
            )
    x, y = np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])
    hashes = [file.sha256 for file in files]
    notes = itertools.chain(*map(warn_unless_original, paths, contents, hashes))
    return Dataset("mnist", x[..., None], y, classes=10, official_test=len(test_y), notes=tuple(notes))


def _parsed(path: Path, raw: bytes, file: IdxFile) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, type, rank, the sizes as big-endian uint32, then the values."""
    rank = len(file.shape)
    begin = 4 + 4 * rank
    if raw[:4] != bytes((0, 0, UBYTE, rank)):
        raise DataError(
            f"{path} begins with {raw[:4]!r}, expected an idx file of unsigned bytes of rank {rank}; put the original there"
        )
    shape = struct.unpack(f">{rank}I", raw[4:begin].ljust(4 * rank, b"\0"))
    if len(raw) != begin + math.prod(shape):
        raise DataError(
            f"{path} has {len(raw)} bytes, expected {begin} and then {shape} values: it is cut short; put the original there"
        )
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(shape)
