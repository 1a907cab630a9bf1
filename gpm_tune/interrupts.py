"""Signals that ask the program to stop, and a stop that loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

TERMINATION = (signal.SIGTERM, signal.SIGHUP)  # of Slurm, Kubernetes, systemd, `timeout`; of a lost terminal
STOPPING = (signal.SIGINT, *TERMINATION)


_stop: _Stop | None = None  # of the blocks of `interruptible` that are open
_last: signal.Signals | None = None  # what ended the latest ones


class _Stop:
    """Blocks of `interruptible`, one in another, and the signal that has ended them."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.callbacks: list[Callable[[], object]] = []

    def handle(self, number: int, _frame: FrameType | None) -> None:
        _leave_lost_terminal()
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = "a second Ctrl-C" if number == signal.SIGINT else "Ctrl-C"
        with suppress(OSError, RuntimeError):  # it may have come in the middle of another line
            print(f"stopping, so that nothing is lost; {again} ends at once", file=sys.stderr, flush=True)
        for callback in self.callbacks:
            callback()


@contextmanager
def interruptible(on_interrupt: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Within the block a signal that asks to stop calls the function; gives what tells of a signal.

    After it a Ctrl-C ends at once, and SIGTERM and SIGHUP, which may come more than once, do no more. A
    block within a block ends with it. Outside of the main thread, where Python allows no handlers, signals
    do what they do elsewhere; so does one that was ignored from the start, as by `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield bool
        return
    with nullcontext(_stop) if _stop else _handled() as stop, _called(stop, on_interrupt):
        yield lambda: stop.signal is not None


@contextmanager
def _handled() -> Iterator[_Stop]:
    global _stop, _last
    stop = _stop = _Stop()
    _last = None
    before: dict[signal.Signals, Any] = {}
    for number in STOPPING:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop, _last = None, stop.signal


@contextmanager
def _called(stop: _Stop, on_interrupt: Callable[[], object]) -> Iterator[None]:
    stop.callbacks.append(on_interrupt)
    try:
        if stop.signal:
            on_interrupt()
        yield
    finally:
        stop.callbacks.remove(on_interrupt)


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP end by KeyboardInterrupt, as Ctrl-C: what is open is closed."""
    global _last
    _last = None
    before = {number: signal.getsignal(number) for number in TERMINATION}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    global _last
    _leave_lost_terminal()
    if _last not in TERMINATION:  # else it is on its way to the end, where it must not be stopped
        _last = signal.Signals(number)
        raise KeyboardInterrupt


def exit_code() -> int:
    """With which a program ends that was asked to stop: 143 and 129 after SIGTERM and SIGHUP, else 130."""
    return 128 + (_last or signal.SIGINT)


def _leave_lost_terminal() -> None:
    """Write to nowhere what a terminal that has gone would refuse with an error."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


@contextmanager
def sheltering() -> Iterator[None]:
    """Make the processes that are started within the block deaf to SIGTERM and SIGHUP.

    Such a signal often goes to a whole group (`timeout`, a terminal) or to all that a job has started
    (systemd, Slurm): who leads the others stops them. Handlers that are changed within are put back.
    """
    handlers = {number: signal.getsignal(number) for number in TERMINATION}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # set by Python
                    signal.signal(number, handler)  # again: a library of C may have set its own since
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def heed_termination() -> Callable[[], bool]:
    """From now on SIGTERM and SIGHUP end nothing in this process; gives what tells whether one has come.

    In a process that was started deaf none ever does.
    """
    asked = threading.Event()
    for number in TERMINATION:
        signal.signal(number, lambda _number, _frame: asked.set())
    return asked.is_set
