"""CIFAR-10: 60 000 colour images, 32x32, 10 classes (Krizhevsky 2009). The last 10 000 are the official test set.

Published twice: as plain records (``cifar-10-binary.tar.gz``) and as Python pickles. The plain records are preferred; a pickle
can run anything, so it is opened only when its hash is the original's, and even then with hardly anything allowed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .bounded import Unpacking
from .checks import reason
from .dataset import Dataset
from .download import RemoteFile, fetch, verified
from .errors import DataError
from .places import Place, cache_folder, named_folders, open_bytes, read_bytes, warn_unless_original


@dataclass(frozen=True)
class Batch:
    """One sixth of the set: sha256 of its plain records, md5 of its pickle (all that is published)."""

    name: str
    sha256: str
    md5: str


BATCHES = (
    Batch(
        "data_batch_1",
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "c99cafc152244af753f735de768cd75f",
    ),
    Batch(
        "data_batch_2",
        "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "d4bba439e000b95fd0a9bffe97cbabec",
    ),
    Batch(
        "data_batch_3",
        "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "54ebc095f3ab1f0389bbae665268c751",
    ),
    Batch(
        "data_batch_4",
        "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "634d18415352ddfa80567beed471001a",
    ),
    Batch(
        "data_batch_5",
        "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "482c414d41f54cd18b22e5b47cb7c3cb",
    ),
    Batch(
        "test_batch",
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        "40351d587109b95175f43aff81a1287e",
    ),
)
BINARY = RemoteFile(
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170_052_171,
    ("https://www.cs.toronto.edu/~kriz/",),
)
PICKLED = RemoteFile(
    "cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    170_498_071,
    (),  # it is never downloaded: the plain records are
)
BINARY_FOLDER, PICKLED_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
ROWS, PIXELS = (
    10_000,
    3 * 32 * 32,
)  # of a batch, of a record; a record is its label and then its pixels, channel by channel
PICKLE_AT_MOST = 2**25  # bytes; a pickled batch has about 31 035 704
OTHERS_AT_MOST = 2**24  # bytes that an archive may hold besides the batches; the published ones hold three small files
MEMBERS_AT_MOST = 1000  # of an archive; the published ones have nine


def load_cifar10(
    data_dir: Place | None = None,
    cache_dir: Place | None = None,
    progress: bool = True,
    batches: tuple[Batch, ...] = BATCHES,
    binary: RemoteFile = BINARY,
    pickled: RemoteFile = PICKLED,
) -> Dataset:
    """x uint8 (60000, 32, 32, 3) in 0 .. 255, y int32 (60000,) in 0 .. 9; see ``registry.load`` for places and errors.

    A folder may hold, in the order of preference: the folder ``cifar-10-batches-bin`` (or be it), ``cifar-10-binary.tar.gz``,
    the folder ``cifar-10-batches-py``, ``cifar-10-python.tar.gz``.
    """
    for folder in named_folders(data_dir):
        if (found := _from_folder(folder, batches, pickled)) is not None:
            return found
    cache = cache_folder(cache_dir)
    if not os.path.lexists(cache / binary.name) and (content := verified(cache / pickled.name, pickled)) is not None:
        return _from_pickled_archive(cache / pickled.name, content, batches)
    content = fetch(binary, cache, progress)
    return _from_binary_archive(cache / binary.name, io.BytesIO(content), batches)


def _from_folder(folder: Path, batches: tuple[Batch, ...], pickled: RemoteFile) -> Dataset | None:
    for place in (folder / BINARY_FOLDER, folder):
        if any(os.path.isfile(place / f"{batch.name}.bin") for batch in batches):
            return _from_binary_folder(place, batches)
    if os.path.isfile(path := folder / BINARY.name):
        with open_bytes(path) as file:
            return _from_binary_archive(path, file, batches)
    if os.path.isdir(path := folder / PICKLED_FOLDER):
        return _from_pickled_folder(path, batches)
    if os.path.isfile(path := folder / pickled.name):
        return _from_pickled_archive(path, _original(path, pickled), batches)
    return None


# Plain records


def _from_binary_folder(place: Path, batches: tuple[Batch, ...]) -> Dataset:
    _all_there(place, [f"{batch.name}.bin" for batch in batches])
    contents = {batch.name: read_bytes(place / f"{batch.name}.bin", _batch_size()) for batch in batches}
    return _from_binary(place, contents, batches)


def _from_binary_archive(path: Path, file: IO[bytes], batches: tuple[Batch, ...]) -> Dataset:
    size = _batch_size()
    contents = _unpack(path, file, _members(BINARY_FOLDER, ".bin", batches), (size, size))
    return _from_binary(path / BINARY_FOLDER, contents, batches)


def _from_binary(place: Path, contents: dict[str, bytes], batches: tuple[Batch, ...]) -> Dataset:
    paths = [place / f"{batch.name}.bin" for batch in batches]
    raw = [contents[batch.name] for batch in batches]
    records = list(map(_records, paths, raw))
    hashes = [batch.sha256 for batch in batches]
    return _assemble(records, tuple(itertools.chain(*map(warn_unless_original, paths, raw, hashes))))


def _batch_size() -> int:
    return ROWS * (1 + PIXELS)


def _records(path: Path, raw: bytes) -> np.ndarray:
    """The records of one batch, uint8 (10000, 3073)."""
    expected = _batch_size()
    if len(raw) != expected:
        raise DataError(
            f"{path} has {len(raw)} bytes, expected {expected}: it is cut short or another file; replace it"
        )
    records = np.frombuffer(raw, np.uint8).reshape(ROWS, 1 + PIXELS)
    if records[:, 0].max() > 9:
        raise DataError(f"{path} has the label {records[:, 0].max()}, expected 0 .. 9: it is not CIFAR-10; replace it")
    return records


def _assemble(records: list[np.ndarray], notes: tuple[str, ...] = ()) -> Dataset:
    x = np.empty((len(records) * ROWS, 32, 32, 3), np.uint8)
    for i, part in enumerate(records):
        x[i * ROWS : (i + 1) * ROWS] = part[:, 1:].reshape(ROWS, 3, 32, 32).transpose(0, 2, 3, 1)
    y = np.concatenate([part[:, 0] for part in records])
    return Dataset("cifar10", x, y, classes=10, official_test=ROWS, notes=notes)


# Pickles


def _from_pickled_folder(place: Path, batches: tuple[Batch, ...]) -> Dataset:
    _all_there(place, [batch.name for batch in batches])
    parts = []
    for batch in batches:
        raw = read_bytes(place / batch.name, PICKLE_AT_MOST)
        if (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != batch.md5:
            raise DataError(
                f"{place / batch.name} is a pickle with md5 {found[:12]}.., expected {batch.md5[:12]}..; an unknown pickle is "
                f"not opened: use the binary version ({BINARY.name})"
            )
        parts.append(_unpickle(place / batch.name, raw))
    return _assemble(parts)


def _original(path: Path, pickled: RemoteFile) -> bytes:
    raw = read_bytes(path, pickled.size)
    if hashlib.sha256(raw).hexdigest() != pickled.sha256:
        raise DataError(
            f"the sha256 of {path} is not {pickled.sha256[:12]}..; an archive of unknown pickles is not opened: put the "
            f"original there, or use the binary version ({BINARY.name})"
        )
    return raw


def _from_pickled_archive(path: Path, raw: bytes, batches: tuple[Batch, ...]) -> Dataset:
    """``raw`` has been verified: it is the published archive, of which ``path`` is the name for messages alone."""
    contents = _unpack(path, io.BytesIO(raw), _members(PICKLED_FOLDER, "", batches), (0, PICKLE_AT_MOST))
    return _assemble([_unpickle(path / PICKLED_FOLDER / batch.name, contents[batch.name]) for batch in batches])


def _unpickle(path: Path, raw: bytes) -> np.ndarray:
    """The records of one batch, uint8 (10000, 3073)."""
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        pixels, labels = content[b"data"], np.asarray(content[b"labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (ROWS, PIXELS) or labels.shape != (ROWS,):
            raise ValueError(f"data {pixels.dtype} {pixels.shape}, labels {labels.shape}")
        if not 0 <= labels.min() <= labels.max() <= 9:
            raise ValueError(f"labels {labels.min()} .. {labels.max()}")
    except Exception as error:  # a pickle can fail in any way it likes
        raise DataError(
            f"{path} is not a batch of CIFAR-10 ({reason(error)}); use the binary version ({BINARY.name})"
        ) from error
    return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)


def _dtype(kind: bytes | str, align: int, copy: int) -> np.dtype:
    # The pickles are of 2009 and pass integers, which NumPy has come to warn of.
    return np.dtype(kind.decode() if isinstance(kind, bytes) else kind, bool(align), bool(copy))


class _Unpickler(pickle.Unpickler):
    """Plain containers, bytes, numbers, and NumPy arrays: nothing else can be made, nothing can be called."""

    RECONSTRUCT = np.empty(0).__reduce__()[0]
    ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed") from None


# Both


def _members(folder: str, suffix: str, batches: tuple[Batch, ...]) -> dict[str, str]:
    """{path in the archive: name of the batch}"""
    return {f"{folder}/{batch.name}{suffix}": batch.name for batch in batches}


def _unpack(path: Path, file: IO[bytes], wanted: dict[str, str], sizes: tuple[int, int]) -> dict[str, bytes]:
    """{name of a batch: its bytes}, out of an archive that may be anything. Its members may be in any order.

    sizes: the smallest and the largest a batch can be. Nothing larger is read, however it is declared.
    """
    contents: dict[str, bytes] = {}
    stream = Unpacking(file, path, max(sizes), len(wanted) * max(sizes) + OTHERS_AT_MOST)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]  # it reads, seeks and tells
            for number, member in enumerate(archive):
                if number >= MEMBERS_AT_MOST:
                    raise DataError(f"{path} has more than {MEMBERS_AT_MOST} members; put the original there")
                if (name := wanted.get(member.name)) and member.isreg() and not member.issparse():
                    if not sizes[0] <= member.size <= sizes[1]:
                        raise DataError(
                            f"{path / member.name} has {member.size} bytes, expected {sizes[1]}; put the original there"
                        )
                    contents[name] = archive.extractfile(member).read()
    except DataError:
        raise
    except Exception as error:  # tarfile can raise nearly anything on what was made to mislead it
        raise DataError(f"{path} is damaged or cut short ({reason(error)}); put the original there") from error
    if missing := [member for member, name in wanted.items() if name not in contents]:
        raise DataError(f"{path} lacks {', '.join(missing)}; put the original there")
    return contents


def _all_there(place: Path, names: list[str]) -> None:
    if missing := [name for name in names if not os.path.isfile(place / name)]:
        raise DataError(f"{place} holds only part of CIFAR-10; missing: {', '.join(missing)}; add them")
