"""The arrays of a segment that HDF5 has to take apart, because its bytes around them are not just as we write them.

Nothing in such a file is believed. HDF5 lets a data set keep its values in another file, lets a link lead into one, and lets a
few bytes claim an array of 10 TB: each of these is refused before a value is read. HDF5 is given the bytes that were checked,
not the name of the file, so nobody can exchange it in between.
"""

from __future__ import annotations

from collections.abc import Iterator
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
# Those that HDF5 and h5py bring along. For any other, HDF5 would look for a library on this machine and load it.
FILTERS = {
    h5z.FILTER_DEFLATE,
    h5z.FILTER_SHUFFLE,
    h5z.FILTER_FLETCHER32,
    h5z.FILTER_SZIP,
    h5z.FILTER_NBIT,
    h5z.FILTER_SCALEOFFSET,
    h5z.FILTER_LZF,
}
EXPANSION = 1100  # deflate makes at most 1032 bytes of one
LOOK_AT_OURS = 0x2 | 0x4  # H5LT_FILE_IMAGE_DONT_COPY and _DONT_RELEASE of hdf5_hl.h, which h5py does not name


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
            states[name] = item[...]
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
    if (
        made.get_layout() == h5d.VIRTUAL or made.get_external_count()
    ):  # first: asking for the shape may open other files
        raise ValueError(f"{name!r} has its values in another file")
    if not {made.get_filter(i)[0] for i in range(made.get_nfilters())} <= FILTERS:
        raise ValueError(f"{name!r} is packed by a filter that is not one of HDF5's own")
    stored = item.id.get_type()
    dtype = next((dtype for dtype, spelled in TYPES.items() if stored.equal(spelled)), None)
    if dtype is None or item.shape is None:
        raise ValueError(f"{name!r} is not an array of {', '.join(map(str, TYPES))}")
    return dtype, item.shape
