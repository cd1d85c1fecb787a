"""One ordinary HDF5 file out of a stored trajectory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from .durable import appearing, storing, write_all
from .errors import TrajectoryError
from .outline import LIBVER
from .trajectory import describe

if TYPE_CHECKING:
    from .store import StoredTrajectory

MARGIN = 2**20  # bytes, for what HDF5 adds to the payload


def export(trajectory: StoredTrajectory, path: Path) -> None:
    """Write ``path``: each name a contiguous data set (T, ...), ``step`` int64 (T,), attributes ``meta`` (JSON), ``start``,
    ``stop``. Costs one walk through the trajectory and the memory of that.

    HDF5 lays out the file, and we write the payload into it ourselves: HDF5 does not survive a disk that fills up while
    it has a file open, an ordinary write does.
    """
    if not len(trajectory):
        raise TrajectoryError(f"{trajectory.folder} is empty; append states before exporting")
    with storing(path.parent, "put that right, then export again"), appearing(path) as temp:
        offsets: dict[str, int | None] | None = None
        fd = -1
        try:
            for part in trajectory.forwards():
                if offsets is None:
                    offsets = _lay_out(trajectory, part.states, temp)
                    fd = os.open(temp, os.O_WRONLY)
                rows = part.start - trajectory.start
                steps = np.arange(part.start, part.stop, dtype=np.int64)
                for name, array in {**part.states, "step": steps}.items():
                    if array.nbytes and (offset := offsets[name]) is not None:
                        os.lseek(fd, offset + rows * (array.nbytes // len(array)), os.SEEK_SET)
                        write_all(fd, np.ascontiguousarray(array).data)
        finally:
            if fd >= 0:
                os.close(fd)


def _lay_out(trajectory: StoredTrajectory, states: dict[str, np.ndarray], temp: Path) -> dict[str, int | None]:
    """Make the file with room for everything and nothing written; say where each data set begins."""
    size = trajectory.nbytes + 8 * len(trajectory)
    # A full disk or a file size limit is to show here, before HDF5 meets it.
    if shutil.disk_usage(temp.parent).free < size + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open(temp, "wb") as file:
        file.truncate(size + MARGIN)
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.CONTIGUOUS)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    layout = {**describe(states)[1], "step": ((), np.dtype(np.int64))}
    offsets: dict[str, int | None] = {}
    with h5py.File(temp, "w", libver=LIBVER) as file:
        file.attrs["meta"] = json.dumps(trajectory.meta)
        file.attrs["start"], file.attrs["stop"] = trajectory.start, trajectory.stop
        for name, (shape, dtype) in layout.items():
            space = h5py.h5s.create_simple((len(trajectory), *shape))
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=create, lcpl=links)
            offsets[name] = file[name].id.get_offset()
    return offsets
