"""Compiled programs in a folder: loaded again to the same bits, shared by processes, and never the reason why a run ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail import cli, runs
from hypertrail.experiments import drmad_digits
from hypertrail_gpu import compilation_cache, program_store
from hypertrail_gpu.program_store import SUFFIX, ProgramStore, why_unsafe

HYPERTRAIL = Path(sys.executable).with_name("hypertrail")
ROSENBROCK = ["run", "rosenbrock", "--steps", "4", "--updates", "1"]


@pytest.fixture(autouse=True)
def jax_as_it_is_installed(monkeypatch):
    """Without the variables and the cache of the test session, and keeping whatever takes time."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    names = (compilation_cache.FOLDER, compilation_cache.ENABLED, compilation_cache.SIZE, compilation_cache.SECONDS)
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (None, True, -1, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.take_out_of_jax()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.take_out_of_jax()


@pytest.fixture
def hits():
    """A list that grows by an entry for every program that was loaded instead of compiled."""
    seen: list[str] = []

    def listener(event: str, **details: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            seen.append(event)

    jax.monitoring.register_event_listener(listener)
    yield seen
    jax.monitoring.unregister_event_listener(listener)


def compute() -> bytes:
    """The result of a program that JAX has to compile or to load: it is a new function at every call."""

    def program(x):
        return jnp.sum(jnp.sin(x) @ x.T, axis=0)

    return np.asarray(jax.jit(program)(np.linspace(0, 1, 600, dtype=np.float32).reshape(30, 20))).tobytes()


@contextlib.contextmanager
def recorded():
    """The warnings of a with-block, as the terminal would show them."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        yield shown


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


# -- on and off ------------------------------------------------------------------------------------------------------------


def test_a_program_is_loaded_the_second_time_and_computes_the_same(tmp_path, hits):
    plain = compute()
    with compilation_cache.using(folder=tmp_path / "compiled") as state:
        assert state == {"on": True, "folder": str(tmp_path / "compiled"), "why": "default"}
        first = compute()
        assert not hits
        assert files(tmp_path / "compiled")
        second = compute()
        assert hits
    assert plain == first == second
    assert (tmp_path / "compiled").stat().st_mode & 0o777 == 0o700
    hits.clear()
    compute()
    assert not hits, "after the with-block JAX has no cache"


def test_importing_turns_nothing_on(tmp_path):
    program = (
        "import hypertrail as h, jax; engine = h.load('gpu');"
        "import jax._src.compilation_cache as c;"
        "jax.jit(lambda x: x + 1)(1.0); print(engine.compilation_cache.describe()['on'], c._cache)"
    )
    environment = {**os.environ, "HYPERTRAIL_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["False", "None"]
    assert not list(tmp_path.iterdir())


def test_use_lasts_until_the_process_ends_and_survives_using(tmp_path, hits):
    state = compilation_cache.use(tmp_path / "mine")
    try:
        with compilation_cache.using(folder=tmp_path / "other"):
            compute()
        with compilation_cache.using(wanted=False):
            compute()
        assert not files(tmp_path / "mine")
        assert compilation_cache.describe() == state
        compute()
        assert files(tmp_path / "mine")
        assert not hits
    finally:
        compilation_cache._state, compilation_cache._store = {"on": False, "folder": None, "why": "not asked for"}, None


def test_the_variables_of_jax_are_obeyed(tmp_path, hits, monkeypatch):
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path / "ours"))
    jax.config.update(compilation_cache.FOLDER, str(tmp_path / "theirs"))
    with compilation_cache.using() as state:
        compute()
        compute()
    assert state == {"on": True, "folder": str(tmp_path / "theirs"), "why": "JAX_COMPILATION_CACHE_DIR"}
    assert hits
    assert list((tmp_path / "theirs").glob("jit_program-*-cache"))
    with compilation_cache.using(wanted=False) as state:
        hits.clear()
        compute()
    assert not hits
    assert state["why"] == "--no-compilation-cache"
    assert getattr(jax.config, compilation_cache.ENABLED), "and JAX is as it was"
    jax.config.update(compilation_cache.FOLDER, None)
    jax.config.update(compilation_cache.SIZE, 0)
    with compilation_cache.using() as state:
        assert (state["on"], state["why"]) == (False, "JAX_COMPILATION_CACHE_MAX_SIZE")
    jax.config.update(compilation_cache.SIZE, 1000)
    with compilation_cache.using():
        assert compilation_cache._store.limit == 1000
    jax.config.update(compilation_cache.ENABLED, False)
    with compilation_cache.using() as state:
        assert (state["on"], state["why"]) == (False, "JAX_ENABLE_COMPILATION_CACHE")
        compute()
    assert not files(tmp_path / "ours" / "compiled")


@pytest.mark.parametrize("given", ["0", None])
def test_the_least_time_is_ours_unless_the_user_names_one(tmp_path, monkeypatch, given):
    if given is None:
        monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        jax.config.update(compilation_cache.SECONDS, 1.0)
    with compilation_cache.using(folder=tmp_path / "compiled"):
        seconds = getattr(jax.config, compilation_cache.SECONDS)
        assert seconds == (compilation_cache.LEAST_SECONDS if given is None else float(given))


def test_another_number_of_threads_or_another_processor_is_another_program(tmp_path, hits, monkeypatch):
    def key() -> str:
        compilation_cache.more_of_key.cache_clear()
        return compilation_cache.more_of_key()

    try:
        with compilation_cache.using(folder=tmp_path / "compiled"):
            compute()
            monkeypatch.setattr(compilation_cache.threads, "count", lambda: 77)
            assert "threads 77" in key()
            compute()
            monkeypatch.setattr(compilation_cache, "lines_of_cpuinfo", lambda: {"model name : another"})
            key()
            compute()
            assert not hits
            compute()
            assert hits
    finally:
        compilation_cache.more_of_key.cache_clear()


# -- a folder that is no good costs a line ---------------------------------------------------------------------------------


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


@pytest.mark.parametrize(
    "damage", [truncated, flipped, lambda _: b"", lambda _: b"garbage " * 1000, lambda content: content + b"more"]
)
def test_a_damaged_file_is_told_and_made_anew(tmp_path, hits, damage):
    folder = tmp_path / "compiled"
    with compilation_cache.using(folder=folder):
        right = compute()
    for path in files(folder):
        path.write_bytes(damage(path.read_bytes()))
    with recorded() as shown, compilation_cache.using(folder=folder):
        assert compute() == right
        assert not hits
    assert [str(one.message).endswith("was damaged and is made anew") for one in shown] == [True]
    with recorded() as shown, compilation_cache.using(folder=folder):
        assert compute() == right
        assert hits
    assert not shown


def test_what_xla_cannot_load_is_one_line_too(tmp_path):
    """Whole files, but with something else in them: of another build of XLA, say."""
    folder = tmp_path / "compiled"
    with compilation_cache.using(folder=folder):
        right = compute()
        jax.jit(lambda x: x * 3)(np.ones(3))
    for path in files(folder):
        program_store.write_whole(path, hashlib.sha256(b"what").digest() + b"what")
    with recorded() as shown, compilation_cache.using(folder=folder):
        assert compute() == right
        jax.jit(lambda x: x * 3)(np.ones(3))
    assert len(shown) == 1
    assert "\n" not in str(shown[0].message)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_folder_is_one_line(tmp_path, hits, monkeypatch, number):
    folder, tried = tmp_path / "compiled", []
    with compilation_cache.using(folder=folder):
        right = compute()

    def refusing(source, target):
        tried.append(target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(program_store.os, "replace", refusing)
    with recorded() as shown, compilation_cache.using(folder=folder):
        assert compute() == right
        assert hits, "what is there is still loaded"
        for factor in (2, 3, 4):
            jax.jit(lambda x, factor=factor: x * factor)(np.ones(3))
    assert [os.strerror(number) in str(one.message) for one in shown] == [True]
    assert len(tried) == 1
    assert not list(folder.glob(".*")), "and nothing half written is left"


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (disk / "fill").write_bytes(bytes(4096))
        right = compute()
        with recorded() as shown, compilation_cache.using(folder=disk / "compiled"):
            for factor in range(2, 12):
                jax.jit(lambda x, factor=factor: jnp.sin(x) * factor)(np.ones(300))
            assert compute() == right
        assert ["No space left on device" in str(one.message) for one in shown] == [True]
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with recorded() as shown, compilation_cache.using(folder=disk / "compiled"):
            assert compute() == right
        assert ["Read-only file system" in str(one.message) for one in shown] == [True]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def foreign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uid = os.geteuid()
    monkeypatch.setattr(program_store.os, "geteuid", lambda: uid + 1)
    return "belongs to user"


def open_to_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.chmod(0o777)
    return "others may write"


def open_to_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.chmod(0o770)
    return "others may write"


def a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    return "cannot be made"


@pytest.mark.parametrize("unsafe", [foreign, open_to_all, open_to_group, a_file])
def test_code_of_others_is_neither_run_nor_written(tmp_path, hits, monkeypatch, unsafe):
    folder = tmp_path / "compiled"
    with compilation_cache.using(folder=folder):
        right = compute()
    expected = unsafe(folder, monkeypatch)
    before = files(folder)
    with recorded() as shown, compilation_cache.using(folder=folder) as state:
        assert compute() == right
        jax.jit(lambda x: x * 5)(np.ones(3))
    assert not hits
    assert files(folder) == before
    assert [expected in str(one.message) for one in shown] == [True]
    assert state["on"] is False
    assert expected in state["why"]


def test_a_file_that_others_may_write_and_a_link_are_not_loaded(tmp_path, hits):
    folder = tmp_path / "compiled"
    with compilation_cache.using(folder=folder):
        right = compute()
    for path in files(folder):
        path.chmod(0o666)
    with recorded() as shown, compilation_cache.using(folder=folder):
        assert compute() == right
    assert len(shown) == 1
    for path in files(folder):
        path.chmod(0o600)
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    with recorded() as shown, compilation_cache.using(folder=folder):
        assert compute() == right
    assert len(shown) == 1
    assert not hits


# -- the store -------------------------------------------------------------------------------------------------------------


def test_what_was_used_least_recently_goes_first(tmp_path):
    store = ProgramStore(tmp_path, limit=3 * (1000 + program_store.CHECKSUM_BYTES))
    for moment, key in enumerate("abc"):
        store.put(key, key.encode() * 1000)
        os.utime(store.path_of(key), (moment, moment))
    assert store.get("a") == b"a" * 1000
    store.put("d", b"d" * 1000)
    assert [store.get(key) is not None for key in "abcd"] == [True, False, True, True]
    store.put("too large", bytes(10_000))
    assert store.get("too large") is None
    assert [store.get(key) is not None for key in "acd"] == [True] * 3


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    for name, age in ((".dead.unfinished", 2 * program_store.ABANDONED), (".living.unfinished", 1.0)):
        (tmp_path / name).write_bytes(bytes(5000))
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    ProgramStore(tmp_path, limit=2000).put("a", bytes(1000))
    assert len(files(tmp_path)) == 1
    assert [path.name for path in tmp_path.glob(".*")] == [".living.unfinished"]


def test_without_a_limit_nothing_goes(tmp_path):
    store = ProgramStore(tmp_path)
    for n in range(20):
        store.put(str(n), bytes(1000))
    assert len(files(tmp_path)) == 20


def test_a_folder_is_made_for_us_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        assert why_unsafe(tmp_path / "a" / "compiled") == ""
        ProgramStore(tmp_path / "a" / "compiled").put("key", b"program")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "compiled").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in files(tmp_path / "a" / "compiled")] == [0o600]


WRITER = """
import importlib.util, random, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
spec = importlib.util.spec_from_file_location("program_store", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
store = module.ProgramStore(Path(sys.argv[2]), limit=1_000_000)
moments, loaded = random.Random(int(sys.argv[3])), 0
for _ in range(400):
    n = moments.randrange(12)
    program = store.get(str(n))
    if program is None:
        store.put(str(n), bytes([n]) * 150_000)
    elif program == bytes([n]) * 150_000:
        loaded += 1
    else:
        sys.exit("a program that nobody has kept")
print(loaded)
"""


def test_many_processes_share_a_folder_and_some_are_killed(tmp_path):
    words = [sys.executable, "-c", WRITER, program_store.__file__, str(tmp_path)]
    living = [
        subprocess.Popen([*words, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for n in range(6)
    ]
    for process in living[4:]:
        while not files(tmp_path) and process.poll() is None:
            pass
        process.kill()
    answers = [process.communicate() for process in living]
    for process, (loaded, complaint) in list(zip(living, answers, strict=True))[:4]:
        assert process.returncode == 0, complaint
        assert int(loaded) > 0
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1_000_000 + 300_000


# -- the command line ------------------------------------------------------------------------------------------------------


def test_a_run_says_where_its_programs_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path / "cache"))
    jax.clear_caches()
    folder = tmp_path / "run"
    assert cli.main([*ROSENBROCK, "--run-dir", str(folder)]) == 0
    said = json.loads((folder / "env.json").read_text())["engine"]["compilation_cache"]
    assert said == {"on": True, "folder": str(tmp_path / "cache" / "compiled"), "why": "default"}
    assert files(tmp_path / "cache" / "compiled")
    assert compilation_cache.describe()["on"] is False, "and the process is as it was"
    assert cli.main([*ROSENBROCK, "--run-dir", str(folder), "--no-compilation-cache"]) == 0
    assert "nothing to do" in capsys.readouterr().out, "it is no difference of config"
    other = tmp_path / "without"
    assert cli.main([*ROSENBROCK, "--run-dir", str(other), "--no-compilation-cache"]) == 0
    said = json.loads((other / "env.json").read_text())["engine"]["compilation_cache"]
    assert said == {"on": False, "folder": None, "why": "--no-compilation-cache"}
    assert capsys.readouterr().err == ""


def test_it_is_no_part_of_what_is_asked_for_and_a_launch_hands_it_on(tmp_path, capsys):
    config = drmad_digits.Config()
    hashes = {
        runs.config_record("drmad-digits", drmad_digits.Config(compilation_cache=on))["hash"] for on in (True, False)
    }
    assert hashes == {runs.config_record("drmad-digits", config)["hash"]}
    words = ["launch", "drmad-digits", "--cluster", "local", "--dry-run", "--no-compilation-cache", "--runs-dir"]
    assert cli.main([*words, str(tmp_path)]) == 0
    assert "--no-compilation-cache" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["verify", "drmad-digits"], ["verify", "everything"], ["run", "chaos"]])
def test_each_command_that_compiles_knows_the_word(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    assert "--no-compilation-cache" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_at_once_and_a_refused_folder_in_real_processes(tmp_path):
    """Four processes fill an empty folder at once; then the folder is opened to all: one line, and the same numbers."""
    environment = {**os.environ, "HYPERTRAIL_CACHE": str(tmp_path)}

    def start(name):
        words = [HYPERTRAIL, *ROSENBROCK, "--run-dir", tmp_path / name]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    answers = [process.communicate() for process in [start(f"run{n}") for n in range(4)]]
    assert [complaint for _, complaint in answers] == [""] * 4
    (tmp_path / "compiled").chmod(0o777)
    _, complaint = start("run4").communicate()
    assert len(complaint.splitlines()) == 1
    assert complaint.startswith("hypertrail: warning: no compilation cache: others may write to")
    metrics = {(tmp_path / f"run{n}" / "metrics.jsonl").read_bytes() for n in range(5)}
    assert len(metrics) == 1
