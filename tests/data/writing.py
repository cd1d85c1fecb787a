"""Not a test: states that are a pure function of their step, and a program that appends them until it is killed."""

from __future__ import annotations

import sys

import numpy as np

from hypertrail_data import StoredTrajectory

SEGMENT_BYTES = 20_000


def states(start: int, stop: int) -> dict[str, np.ndarray]:
    """Every dtype, several ranks, nested and dotted names, signed zeros and infinities; about 3.3 kB a step."""
    step = np.arange(start, stop)
    noise = np.sin(np.outer(step + 1.0, np.arange(1.0, 601.0)))
    noise[:, 0], noise[:, 1] = np.inf, -0.0
    return {
        "w/block1.conv3/W": noise.reshape(-1, 20, 30).astype(np.float32),
        "w/block1.conv3/b": noise[:, :101].copy(),
        "v": noise[:, ::-1][:, :7].astype(np.float32),
        "exact/v.fixed": (step[:, None] << 40) + np.arange(3),
        "step count": step.astype(np.int32),
    }


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Same names, dtypes, shapes and bits."""
    return sorted(found) == sorted(expected) and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


def main(folder: str, seed: int) -> None:
    """Go on where the folder's trajectory ends; say after each block how far it is acknowledged."""
    sizes = np.random.default_rng(seed)
    with StoredTrajectory.open(folder, "a") as trajectory:
        while True:
            step = trajectory.stop
            trajectory.append(step, states(step, step + int(sizes.integers(1, 12))))
            if sizes.random() < 0.1:
                trajectory.flush()
            print(trajectory.acknowledged, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
