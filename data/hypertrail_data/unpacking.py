"""The arrays of a segment that HDF5 has to take apart, because its bytes around them are not just as we write them.

Nothing in such a file is believed. HDF5 lets a data set keep its values in another file, lets a link lead into one, and lets a
few bytes claim an array of 10 TB: each of these is refused before a value is read. HDF5 is given the bytes that were checked,
not the name of the file, so nobody can exchange it in between. It says where the values lie and does not unpack them: on a
chunk that is shorter than its check sum, for instance, its own filters crash.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import product
from math import prod

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5o, h5t, h5z

TYPES: dict[np.dtype, h5t.TypeID] = {  # the dtypes of trajectory.py, as HDF5 spells them
    np.dtype("float32"): h5t.IEEE_F32LE,
    np.dtype("float64"): h5t.IEEE_F64LE,
    np.dtype("int32"): h5t.STD_I32LE,
    np.dtype("int64"): h5t.STD_I64LE,
}
EXPANSION = 1100  # deflate makes at most 1032 bytes of one
SUM = 4  # bytes that fletcher32 adds to a chunk
# H5LT_FILE_IMAGE_DONT_COPY and _DONT_RELEASE of HDF5's H5LTpublic.h, which h5py does not name. Without them HDF5 would make a
# copy of the segment; with them the bytes have to stay until the file is closed.
LOOK_AT_OURS = 0x2 | 0x4


def unpack(image: np.ndarray) -> tuple[int, int, dict[str, np.ndarray]]:
    """start, stop and the arrays of a file with these bytes: read-only views of them wherever the file has them in one piece.

    Raises ValueError for a file that holds what no segment holds, and for damaged bytes whatever h5py raises.
    """
    states: dict[str, np.ndarray] = {}
    room = EXPANSION * len(image)  # bytes, for all that has to be unpacked
    with h5py.File(h5f.open_file_image(image, LOOK_AT_OURS)) as file:
        start, stop = _attribute(file, "start"), _attribute(file, "stop")
        for name, item in _data_sets(file):
            dtype, shape = _form(name, item)
            size = prod(shape) * dtype.itemsize
            offset = item.id.get_offset()  # None: chunked, as another writer may make it, or without elements
            if offset is not None:
                if offset + size > len(image):
                    raise ValueError(f"{name!r} ends beyond the end of the file")
                states[name] = image[offset : offset + size].view(dtype).reshape(shape)
                continue
            room -= max(size, prod(item.chunks or ()) * dtype.itemsize)
            if room < 0:
                raise ValueError(f"{name!r} would take more memory than a file of {len(image)} bytes can fill")
            states[name] = item[...] if item.chunks is None else _from_chunks(name, item, dtype, image)
            states[name].flags.writeable = False
    return start, stop, {name: states[name] for name in sorted(states)}


def _attribute(file: h5py.File, name: str) -> int:
    stored = h5a.open(file.id, name.encode())
    if stored.shape != () or stored.get_type().get_class() != h5t.INTEGER:
        raise ValueError(f"its attribute {name} is not an integer")
    return int(file.attrs[name])


def _data_sets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets with their paths. Raises ValueError for any object that is not reached by exactly one hard link: a link of
    another kind may lead into another file, and a second hard link may make a circle."""
    reached = {h5o.get_info(file["/"].id).addr}
    waiting = [("", file["/"])]
    while waiting:
        path, group = waiting.pop()
        for part in group:
            name = path + part
            # HDF5 takes a name with a slash for a path, which may lead through a link.
            if "/" in part or not isinstance(group.get(part, getlink=True), h5py.HardLink):
                raise ValueError(f"{name!r} is a link that leads out of its group")
            item = group[part]
            address = h5o.get_info(item.id).addr
            if address in reached:
                raise ValueError(f"{name!r} has a second name")
            reached.add(address)
            if isinstance(item, h5py.Group):
                waiting.append((name + "/", item))
            elif isinstance(item, h5py.Dataset):
                yield name, item
            else:
                raise ValueError(f"{name!r} is neither a group nor a data set")


def _form(name: str, item: h5py.Dataset) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of a data set that lies in this file. Raises ValueError for any other."""
    made = item.id.get_create_plist()
    # This comes first: HDF5 may open other files when it is asked for the shape.
    if made.get_layout() == h5d.VIRTUAL or made.get_external_count():
        raise ValueError(f"{name!r} has its values in another file")
    stored = item.id.get_type()
    dtype = next((dtype for dtype, spelled in TYPES.items() if stored.equal(spelled)), None)
    if dtype is None or item.shape is None:
        raise ValueError(f"{name!r} is not an array of {', '.join(map(str, TYPES))}")
    return dtype, item.shape


def _from_chunks(name: str, item: h5py.Dataset, dtype: np.dtype, image: np.ndarray) -> np.ndarray:
    """The values of a chunked data set. Every chunk has to be in the file."""
    whole = np.empty(item.shape, dtype)
    made = item.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    for corner in product(*(range(0, n, k) for n, k in zip(item.shape, item.chunks, strict=True))):
        chunk = item.id.get_chunk_info_by_coord(corner)
        if chunk.byte_offset is None or chunk.byte_offset + chunk.size > len(image):
            raise ValueError(f"{name!r} has a chunk that is not in the file")
        raw = image.data[chunk.byte_offset : chunk.byte_offset + chunk.size]
        used = [one for i, one in enumerate(filters) if not chunk.filter_mask >> i & 1]
        values = np.frombuffer(_unpacked(raw, used, dtype.itemsize, prod(item.chunks)), dtype).reshape(item.chunks)
        part = whole[tuple(slice(at, at + k) for at, k in zip(corner, item.chunks, strict=True))]
        part[...] = values[tuple(slice(n) for n in part.shape)]  # the last chunks reach over the edge
    return whole


def _unpacked(raw: bytes | memoryview, filters: list[int], itemsize: int, count: int) -> bytes | memoryview:
    """A chunk of ``count`` values before it went through the filters."""
    for one in reversed(filters):
        if one == h5z.FILTER_DEFLATE:
            raw = zlib.decompressobj().decompress(raw, itemsize * count + SUM)
        elif one == h5z.FILTER_SHUFFLE:
            raw = np.frombuffer(raw, np.uint8).reshape(itemsize, -1).T.tobytes()
        elif one == h5z.FILTER_FLETCHER32:
            raw = raw[:-SUM]  # a check sum, which the sha256 of the file makes superfluous
        else:
            raise ValueError(f"it is packed by filter {one} of HDF5, expected deflate, shuffle or fletcher32")
    return raw
