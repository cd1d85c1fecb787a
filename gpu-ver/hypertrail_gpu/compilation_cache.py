"""Programs that were compiled once are loaded the next time: JAX's persistent compilation cache, in a folder of hypertrail's.

    from hypertrail_gpu import compilation_cache

    compilation_cache.use()                  # for the rest of this process; before the first computation
    with compilation_cache.using(): …        # for a while; using(wanted=False): without any cache

The command line does this for `run` and `verify`; importing hypertrail does not. The folder is `compiled` in the folder of
hypertrail's downloads: HYPERTRAIL_CACHE, else the user's cache folder (XDG_CACHE_HOME/hypertrail or ~/.cache/hypertrail).
program_store.py says what is kept there and when a file is believed. JAX's own variables are obeyed:

    JAX_COMPILATION_CACHE_DIR                          JAX keeps its own cache there, in its own way
    JAX_ENABLE_COMPILATION_CACHE=0                     none
    JAX_COMPILATION_CACHE_MAX_SIZE                     bytes of the folder; 0: no cache; -1: no limit. Otherwise LIMIT
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS         what compiles faster is not kept. Otherwise LEAST_SECONDS
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES          what is smaller is not kept

The numbers stay the same. JAX's key of a program holds the program itself, its options, the versions of JAX and XLA and the
kind of device. What it lacks is added here (`more_of_key`): XLA cuts the loops of a program for as many threads as it has when
it compiles (threads.py), and the same home folder may be used by different processors.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from hypertrail_data import DataError
from hypertrail_data.places import cache_folder

from . import devices, threads
from .program_store import ProgramStore, why_unsafe

try:  # neither is public: without them there is no cache
    from jax._src import cache_key
    from jax._src import compilation_cache as jax_cache
except ImportError:
    cache_key = jax_cache = None

LIMIT = 2**30
LEAST_SECONDS = 0.2
FOLDER, ENABLED, SIZE, SECONDS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)

_state: dict[str, Any] = {"on": False, "folder": None, "why": "not asked for"}
_store: ProgramStore | None = None


def describe() -> dict[str, Any]:
    """{"on": whether programs are kept, "folder": where, "why": who decided it}, for env.json."""
    return dict(_state)


def use(folder: Path | None = None) -> dict[str, Any]:
    """Keep compiled programs in `folder` for the rest of this process, and load those that are there; returns `describe()`.

    folder: None for the one that JAX_COMPILATION_CACHE_DIR names, else hypertrail's own. A folder that cannot be used (see
    program_store.why_unsafe) costs one warning; nothing is raised, and everything is compiled as without a cache.
    """
    global _state, _store
    _state, _store = decided(folder)
    return describe()


@contextlib.contextmanager
def using(wanted: bool = True, folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """`use` for the length of a with-block, in which JAX's own warnings on its cache become one line at most.

    wanted: False for no cache at all, whatever the environment says.
    """
    global _state, _store
    before, settings = (_state, _store), {name: getattr(jax.config, name) for name in (ENABLED, SECONDS)}
    try:
        with at_most_one_warning():
            if wanted:
                use(folder)
            else:
                _state, _store = disabled("--no-compilation-cache")
            yield describe()
    finally:
        _state, _store = before
        for name, value in settings.items():
            jax.config.update(name, value)
        take_out_of_jax()
        if _state["on"]:
            put_into_jax(_store)


def decided(folder: Path | None) -> tuple[dict[str, Any], ProgramStore | None]:
    """Let JAX keep programs if that is possible: (what came of it, the store; None where JAX keeps them in its own way)."""
    if not getattr(jax.config, ENABLED):
        return disabled("JAX_ENABLE_COMPILATION_CACHE")
    limit = getattr(jax.config, SIZE) if named(SIZE, -1) else LIMIT
    if limit == 0:
        return disabled("JAX_COMPILATION_CACHE_MAX_SIZE")
    theirs = getattr(jax.config, FOLDER) if folder is None else None
    store, problem = (None, "") if theirs else stored_in(folder, limit)
    if not problem and not put_into_jax(store):
        problem = f"JAX {jax.__version__} has no place for it"
    if problem:
        if devices.process()[0] == 0:
            way_out = "name a folder of yours with HYPERTRAIL_CACHE, or say --no-compilation-cache"
            warnings.warn(f"no compilation cache: {problem}; {way_out}", stacklevel=3)
        return disabled(problem)
    if theirs:
        return {"on": True, "folder": str(theirs), "why": "JAX_COMPILATION_CACHE_DIR"}, None
    assert store is not None  # or there would be a problem
    if not named(SECONDS, 1.0):
        jax.config.update(SECONDS, LEAST_SECONDS)
    return {"on": True, "folder": str(store.folder), "why": "default"}, store


def stored_in(folder: Path | None, limit: int) -> tuple[ProgramStore | None, str]:
    """(the store in `folder` or in hypertrail's own, why there is none)."""
    try:
        folder = folder or cache_folder(None) / "compiled"
    except (DataError, RuntimeError) as missing:  # RuntimeError: there is no home folder
        return None, str(missing)
    problem = why_unsafe(folder)
    return (None, problem) if problem else (ProgramStore(folder, None if limit < 0 else limit), "")


def disabled(why: str) -> tuple[dict[str, Any], None]:
    jax.config.update(ENABLED, False)
    take_out_of_jax()
    return {"on": False, "folder": None, "why": why}, None


def named(setting: str, default: float) -> bool:
    """Whether the user has set this setting of JAX, by its variable or in Python."""
    return setting.upper() in os.environ or getattr(jax.config, setting) != default


# -- inside JAX, where no name is public -----------------------------------------------------------------------------------


def put_into_jax(store: ProgramStore | None) -> bool:
    """Let JAX ask `store` (None: a cache of its own), by keys with `more_of_key`. False where this JAX has no such places."""
    places = (jax_cache, "_cache"), (jax_cache, "_cache_initialized"), (cache_key, "custom_hook")
    if not all(hasattr(module, name) for module, name in places):
        return False
    take_out_of_jax()
    if store is not None:
        jax_cache._cache, jax_cache._cache_initialized = store, True
    cache_key.custom_hook = more_of_key
    return True


def take_out_of_jax() -> None:
    """JAX as it was; at its next compilation it asks anew whether it has a cache and which."""
    if jax_cache is not None:
        jax_cache.reset_cache()
        cache_key.custom_hook = HOOK


HOOK = getattr(cache_key, "custom_hook", str)  # adds nothing


@functools.cache
def more_of_key() -> str:
    """What a compiled program depends on besides what JAX knows: the number of threads, the processor's model and features."""
    return "\n".join([f"threads {threads.count()}", platform.machine(), *sorted(lines_of_cpuinfo())])


def lines_of_cpuinfo() -> set[str]:
    """The lines of /proc/cpuinfo that name the model and its features; none where there is no such file."""
    wanted = ("vendor_id", "model", "cpu family", "stepping", "flags", "Features", "CPU ")
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return {line for line in text.splitlines() if line.startswith(wanted)}
    return set()


@contextlib.contextmanager
def at_most_one_warning() -> Iterator[None]:
    """JAX warns of every program that it cannot read or keep, with the whole of the error; one line is enough."""
    show, told = warnings.showwarning, False

    def once(message: Any, *rest: Any, **more: Any) -> None:
        nonlocal told
        if "persistent compilation cache" not in str(message):
            show(message, *rest, **more)
        elif not told:
            told = True
            line = str(message).splitlines()[0][:300]
            show(type(message)(f"{line}; compiled anew, as everything that cannot be loaded or kept"), *rest, **more)

    warnings.showwarning = once
    try:
        yield
    finally:
        warnings.showwarning = show
