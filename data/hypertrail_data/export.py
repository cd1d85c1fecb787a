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
    with storing(path.parent, "put that right, then export again"), appearing(path) as fd:
        offsets: dict[str, int | None] | None = None
        for part in trajectory.forwards():
            offsets = offsets or _lay_out(trajectory, part.states, path.parent, fd)
            rows = part.start - trajectory.start
            steps = np.arange(part.start, part.stop, dtype=np.int64)
            for name, array in {**part.states, "step": steps}.items():
                if array.nbytes and (offset := offsets[name]) is not None:
                    os.lseek(fd, offset + rows * (array.nbytes // len(array)), os.SEEK_SET)
                    write_all(fd, np.ascontiguousarray(array).data)


def _lay_out(
    trajectory: StoredTrajectory, states: dict[str, np.ndarray], folder: Path, fd: int
) -> dict[str, int | None]:
    """Give the empty file ``fd``, which lies in ``folder``, room for everything, nothing written; say where each data set
    begins."""
    size = trajectory.nbytes + 8 * len(trajectory)
    # A full disk or a file size limit is to show here, before HDF5 meets it.
    if shutil.disk_usage(folder).free < size + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, size + MARGIN)
    os.ftruncate(fd, 0)  # HDF5 would take the zeros for a damaged file of its own
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.CONTIGUOUS)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    layout = {**describe(states)[1], "step": ((), np.dtype(np.int64))}
    offsets: dict[str, int | None] = {}
    # HDF5 is given our descriptor, not a name that may by now be that of another file.
    with open(fd, "r+b", closefd=False) as opened, h5py.File(opened, "w", libver=LIBVER) as file:
        file.attrs["meta"] = json.dumps(trajectory.meta)
        file.attrs["start"], file.attrs["stop"] = trajectory.start, trajectory.stop
        for name, (shape, dtype) in layout.items():
            space = h5py.h5s.create_simple((len(trajectory), *shape))
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=create, lcpl=links)
            offsets[name] = file[name].id.get_offset()
    return offsets
