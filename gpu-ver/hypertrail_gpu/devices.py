"""Which devices share the work of a step: one (the default), several of this process, or those of several processes.

    engine = hypertrail.load("gpu")
    engine.devices.use(4)              # the first four devices of this process; "all": every device there is
    with engine.devices.using(2): …    # the same for a while
    engine.devices.join()              # first of all, in each process of an srun: one computation in all of them

Data-parallel: weights, velocities, hyperparameters and data lie on every device; of each batch a device has its share of
the examples. The compiler (GSPMD) adds the sums between devices, for gradients, Hessian-vector products and the statistics of
batch norm, which stay those of the whole batch: the same functions, the same program text, other roundings.
With one device nothing of this is compiled in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hypertrail.errors import UsageError

Array = Any
Tree = Any

AXIS = "batch"


@dataclass(frozen=True)
class Layout:
    """How arrays lie on the devices in use. mesh: None for one device, where every method here does nothing."""

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def over(self, *axes: str | None) -> NamedSharding:
        """The sharding that cuts these axes; no axes: the whole array on every device."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def jit(self, f: Callable[..., Any], **how: Any) -> Any:
        """`jax.jit`, whose arguments and results lie whole on every device: what is shared between them is inside."""
        if self.mesh is None:
            return jax.jit(f, **how)
        return jax.jit(f, in_shardings=self.over(), out_shardings=self.over(), **how)

    def put(self, tree: Tree, dtype: Any = None) -> Tree:
        """Host arrays onto the devices, whole on each. The host arrays must be equal in all processes."""

        def one(x: Any) -> Array:
            if self.mesh is None or (isinstance(x, jax.Array) and x.sharding == self.over()):
                return jnp.asarray(x, dtype)
            x = np.asarray(x, dtype)
            x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
            return jax.make_array_from_callback(x.shape, self.over(), lambda index: x[index])

        return jax.tree.map(one, tree)

    def share(self, tree: Tree, axis: int = 0) -> Tree:
        """Inside a program: from here on each device works on its part of this axis, the one of the examples.

        Arrays whose axis the number of devices does not divide stay whole: every device then does all of them.
        """
        if self.mesh is None:
            return tree

        def one(x: Array) -> Array:
            if x.shape[axis] % self.count:
                return x
            return lax.with_sharding_constraint(x, self.over(*[None] * axis, AXIS))

        return jax.tree.map(one, tree)

    def whole(self, tree: Tree) -> Tree:
        """Inside a program: from here on every device has all of these arrays again."""
        return tree if self.mesh is None else lax.with_sharding_constraint(tree, self.over())

    def rounded(self, size: int) -> int:
        """The smallest number from `size` on that the devices can share."""
        return -(-size // self.count) * self.count

    def refuse(self, batch: int) -> None:
        if batch % self.count:
            raise UsageError(
                f"a batch of {batch} examples cannot be shared by {self.count} devices; expected a multiple of "
                f"{self.count}: change the batch, or use 1 device or a number that divides {batch}"
            )


_layout = Layout()


def layout() -> Layout:
    """What is in use."""
    return _layout


def use(count: int | str = "all") -> int:
    """Let every later call of the engine share its batches over `count` devices; returns how many that are.

    count: 1 (as at the start), a number (also as a string, from a command line), or 'all'. After `join` only 'all': every
    device of every process. A problem compiles once for each number of devices. Raises UsageError for more than there are.
    """
    global _layout
    found = jax.devices()
    wanted = len(found) if count == "all" else number(count)
    if jax.process_count() > 1 and wanted != len(found):
        raise UsageError(
            f"devices {count}: {jax.process_count()} processes have joined, with {len(found)} devices; use 'all'"
        )
    if wanted > len(found):
        raise UsageError(
            f"devices {count}, expected 1 to {len(found)}: this machine has {', '.join(map(str, found))} (for tests, "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N makes N devices of a processor)"
        )
    _layout = Layout() if wanted == 1 else Layout(Mesh(np.array(found[:wanted]), (AXIS,)))
    return wanted


@contextmanager
def using(count: int | str = "all") -> Iterator[int]:
    """`use` for the length of a with-block."""
    global _layout
    before = _layout
    try:
        yield use(count)
    finally:
        _layout = before


def number(count: int | str) -> int:
    try:
        wanted = int(count)
    except ValueError:
        wanted = 0
    if wanted < 1:
        raise UsageError(f"devices {count!r}, expected a number from 1 on, or 'all'")
    return wanted


# -- several processes ----------------------------------------------------------------------------------------------------


def tasks() -> int:
    """How many processes were started together, by the environment's word: JAX_NUM_PROCESSES, or Slurm's SLURM_NTASKS in a step
    of srun; 1 where neither is set. Raises UsageError for what is no number from 1 on."""
    if "JAX_NUM_PROCESSES" in os.environ:
        return variable("JAX_NUM_PROCESSES", 1)
    step = "SLURM_STEP_NODELIST" in os.environ and "SLURM_NTASKS" in os.environ
    return variable("SLURM_NTASKS", 1) if step else 1


def variable(name: str, least: int) -> int:
    """The number in a variable of the environment, which must be there. UsageError for anything else than one from `least` on."""
    said = os.environ[name].strip()
    if not said.isascii() or not said.isdigit() or int(said) < least:
        raise UsageError(
            f"{name}={os.environ[name]!r} in the environment, expected a number from {least} on; set or unset it"
        )
    return int(said)


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    local_devices: list[int] | None = None,
    wait: int = 300,
) -> int:
    """Make one computation of all processes that call this, then `use("all")`; returns the number of devices.

    Each process must make the same calls of the engine in the same order, with the same problems and hyperparameters, and
    each gets the same results. To be called before anything else of JAX.

    coordinator: "host:port" of process 0; process: 0 … processes − 1. What is None comes from JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, else from the job's scheduler as JAX finds it (Slurm: `srun --ntasks=8 …`, one
    process for each GPU; Open MPI). local_devices: the numbers of this process' GPUs; None: in a job of a scheduler the one
    of its local rank, else all. wait: seconds until all must be there. Sums between processors run over gloo, between GPUs
    over NCCL.
    Raises UsageError where the processes cannot be found, or where JAX has been used already.
    """
    if jax.distributed.is_initialized():
        return use("all")
    processes = tasks() if processes is None and "JAX_NUM_PROCESSES" in os.environ else processes
    if process is None and "JAX_PROCESS_ID" in os.environ:
        process = variable("JAX_PROCESS_ID", 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if local_devices is None and tasks() > 1 and visible and "," not in visible:
        local_devices = [0]  # `srun --gpus-per-task=1` shows each process its own, which JAX would number by local rank
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The preemption service would take SIGTERM for itself, by which a run is stopped in good order.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process, local_devices, initialization_timeout=wait)
    except (ValueError, RuntimeError) as problem:
        raise UsageError(
            f"cannot join processes ({str(problem).splitlines()[0]}); start them with srun, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID in each, and join before anything else of JAX"
        ) from problem
    return use("all")


def process() -> tuple[int, int]:
    """(number of this process, how many have joined): (0, 1) without `join`. Only process 0 should write files."""
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def gathered(mine: int) -> list[int]:
    """The numbers of all processes, below 2^31, in their order. Every process must ask; each waits for all."""
    if process()[1] == 1:
        return [mine]
    from jax.experimental import multihost_utils

    numbers = np.asarray(multihost_utils.process_allgather(np.array(mine, np.int32)))
    return [int(number) for number in numbers.reshape(-1)]
