"""Who writes to a folder: a holder that lives is believed, one that is gone is not, near and far."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from hypertrail import UsageError
from hypertrail.runs import lock
from hypertrail_data import DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def gone():
    """The record of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        holder = lock.holder_of(child.pid)
    return holder


def put(path, holder):
    path.write_text(json.dumps(asdict(holder)) + "\n")


def without_flock(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "SETTLE", 0.05)


def test_it_says_who_holds_it_and_forgets_when_let_go(path):
    held = lock.Lock(path)
    there = lock.read(path)
    assert (there.process, there.place) == (os.getpid(), lock.place())
    assert there == lock.writer(path)
    assert lock.living(there)
    began = time.time() - float(subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True,
                                               text=True, check=True).stdout)  # fmt: skip
    assert there.started.startswith(time.strftime("%Y-%m-%dT%H", time.gmtime(began)))
    with pytest.raises(
        UsageError, match=f"is being written by process {os.getpid()} on .*; wait for it or name another"
    ):
        lock.Lock(path)
    held.release()
    held.release()
    assert path.read_text() == ""
    assert lock.writer(path) is None
    lock.Lock(path).release()


def test_a_holder_that_was_killed_is_taken_over_from(path, gone):
    put(path, gone)
    assert lock.writer(path) is None
    held = lock.Lock(path)
    assert held.took_over == gone
    held.release()


@pytest.mark.parametrize(
    "change",
    [
        {"process": 0}, {"process": -1}, {"process": 10**30}, {"process": "word"}, {"process": True}, {"process": None},
        {"ticks": -1}, {"ticks": "1"}, {"host": 3}, {"started": None}, {"place": []}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_writer_can_have_written_is_no_holder(path, change):
    """Process 0 and −1 stand for many processes, which always live: the lock would be held for ever."""
    record = asdict(lock.me()) | change
    path.write_text(json.dumps(record))
    assert lock.read(path) is None
    assert lock.writer(path) is None
    lock.Lock(path).release()


@pytest.mark.parametrize("text", ["word", "[1]", "null", "[" * 100_000, "9" * 5000, "\0" * 100])
def test_a_lock_that_holds_no_record_is_free(path, text):
    path.write_text(text)
    assert lock.writer(path) is None
    lock.Lock(path).release()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused(path, tmp_path, kind):
    target = tmp_path / "target"
    target.write_text("mine")
    {"link": lambda: path.symlink_to(target), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    assert lock.writer(path) is None
    with pytest.raises((DataError, OSError)):
        lock.Lock(path)
    assert target.read_text() == "mine"


def test_a_number_that_belongs_to_another_process_now_is_no_holder(path):
    parent = lock.holder_of(os.getppid())
    put(path, replace(parent, ticks=parent.ticks - 1))
    held = lock.Lock(path)
    assert held.took_over is not None
    held.release()


def test_the_record_counts_where_flock_does_not_reach(path):
    """flock is free, as on a file system that keeps it on each host, but the process of the record lives."""
    put(path, lock.holder_of(os.getppid()))
    with pytest.raises(UsageError, match=f"written by process {os.getppid()} on "):
        lock.Lock(path)
    assert lock.writer(path).process == os.getppid()


def test_without_flock_the_record_alone_decides(path, monkeypatch, gone):
    without_flock(monkeypatch)
    put(path, gone)
    held = lock.Lock(path)
    put(path, lock.holder_of(os.getppid()))
    with pytest.raises(UsageError, match="is being written by"):
        lock.Lock(path)
    held.release()


def test_without_flock_the_later_of_two_simultaneous_writers_wins(path, monkeypatch):
    without_flock(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: put(path, lock.holder_of(os.getppid())))
    with pytest.raises(UsageError, match=f"written by process {os.getppid()} on "):
        lock.Lock(path)


@pytest.fixture
def far(gone, monkeypatch):
    """The record of a process at another place, of which nothing can be asked; the times between beats are short."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STILL", 0.6)
    return replace(gone, host="node07", place="another boot")


def test_a_writer_at_another_place_is_known_by_its_beat(path, far):
    put(path, far)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(UsageError, match=r"by process \d+ on node07 "):
            lock.Lock(path)
        assert lock.writer(path) == far
    finally:
        ended.set()
        beating.join()
    held = lock.Lock(path)  # it looks for a while, then takes it
    assert held.took_over == far
    held.release()


def test_a_lock_of_another_place_that_is_long_untouched_is_taken_at_once(path, far, monkeypatch):
    put(path, far)
    os.utime(path, (0, time.time() - 5))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    assert lock.writer(path) is None
    lock.Lock(path).release()


def test_a_holder_touches_its_lock(path, far):
    held = lock.Lock(path)
    first = lock.modified(path)
    for _ in range(100):
        time.sleep(0.05)
        if lock.modified(path) != first:
            break
    else:
        pytest.fail("no beat in five seconds")
    held.release()


@pytest.mark.parametrize("text", ["process 12 on node07\n", "[1]", "{}", "null", '{"process": 12}', "\0\0\0"])
def test_a_record_that_cannot_be_read_is_none(path, text):
    path.write_text(text)
    assert lock.writer(path) is None
    lock.Lock(path).release()


def test_a_zombie_writes_no_more(path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = lock.holder_of(child.pid)
    assert lock.living(holder)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not lock.living(holder)
    child.communicate()
