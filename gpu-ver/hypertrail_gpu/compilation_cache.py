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

The numbers stay the same: the program is the one that would have been compiled. How many threads run it is not part of it
(threads.py).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from hypertrail_data import DataError
from hypertrail_data.places import cache_folder

from . import devices
from .program_store import ProgramStore, why_unsafe

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

    folder: None for hypertrail's own, or what JAX_COMPILATION_CACHE_DIR says. A folder that cannot be used (see
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
                jax.config.update(ENABLED, False)
                forget()
                _state, _store = off("--no-compilation-cache")
            yield describe()
    finally:
        _state, _store = before
        for name, value in settings.items():
            jax.config.update(name, value)
        forget()
        if _store is not None:
            put_into_jax(_store)


def decided(folder: Path | None) -> tuple[dict[str, Any], ProgramStore | None]:
    """Put a store into JAX where one can be had: (what came of it, the store)."""
    if not getattr(jax.config, ENABLED):
        return off("JAX_ENABLE_COMPILATION_CACHE")
    theirs = getattr(jax.config, FOLDER)
    if folder is None and theirs:
        return {"on": True, "folder": str(theirs), "why": "JAX_COMPILATION_CACHE_DIR"}, None
    limit = getattr(jax.config, SIZE) if named(SIZE, -1) else LIMIT
    if limit == 0:
        return off("JAX_COMPILATION_CACHE_MAX_SIZE")
    try:
        place = folder or cache_folder(None) / "compiled"
        problem = why_unsafe(place)
    except (DataError, RuntimeError) as missing:  # RuntimeError: there is no home folder
        problem = str(missing)
    if not problem:
        store = ProgramStore(place, None if limit < 0 else limit)
        if not put_into_jax(store):
            problem = f"JAX {jax.__version__} has no place for it"
    if problem:
        if devices.process()[0] == 0:
            way_out = "name a folder of yours with HYPERTRAIL_CACHE, or say --no-compilation-cache"
            warnings.warn(f"no compilation cache: {problem}; {way_out}", stacklevel=4)
        return off(problem)
    if not named(SECONDS, 1.0):
        jax.config.update(SECONDS, LEAST_SECONDS)
    return {"on": True, "folder": str(place), "why": "default"}, store


def off(why: str) -> tuple[dict[str, Any], None]:
    return {"on": False, "folder": None, "why": why}, None


def named(setting: str, default: float) -> bool:
    """Whether the user has set this setting of JAX, by its variable or in Python."""
    return setting.upper() in os.environ or getattr(jax.config, setting) != default


def put_into_jax(store: ProgramStore) -> bool:
    """Let JAX ask `store` instead of a cache of its own. False where this version of JAX has no such place: it is not public."""
    try:
        from jax._src import compilation_cache as jax_cache

        jax_cache.reset_cache()
        with jax_cache._cache_initialized_mutex:
            assert jax_cache._cache is None
            assert jax_cache._cache_initialized is False
            jax_cache._cache, jax_cache._cache_initialized = store, True
    except (ImportError, AttributeError, AssertionError):
        return False
    return True


def forget() -> None:
    """Let JAX ask anew, at its next compilation, whether it has a cache and which."""
    from jax.experimental.compilation_cache import compilation_cache as jax_cache

    jax_cache.reset_cache()


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
