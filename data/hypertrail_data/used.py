"""Which data a computation really used: whoever listens hears of every Splits that make_splits makes meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[str, Any], None]  # how the data were drawn, in words; the Splits

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def recording(listener: Listener) -> Iterator[None]:
    """While this lasts, call ``listener(key, splits)`` for every Splits that is made in this context.

    ``key`` says in words which ones they are: "digits: train 1000, valid 300, select 97, test 400, seed 0". Recordings may
    be nested: all of them hear. Threads that are started inside begin with no listener. What the listener raises ends the
    call that made the splits: a run refuses in this way to go on with other data.
    """
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def announce(key: str, splits: Any) -> None:
    """Tell every listener of this context. For those that make Splits by other means than make_splits."""
    for listener in _listeners.get():
        listener(key, splits)
