"""Signals: a stop that loses nothing, what is deaf to them, and the exit code; all with real signals."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpm_tune.interrupts import STOPPING, TERMINATION, exit_code, interruptible, sheltering, terminable


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As in a program that has just started; afterwards all must be as it was."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number in TERMINATION:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    left = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert left == {**dict.fromkeys(TERMINATION, signal.SIG_DFL), signal.SIGINT: signal.default_int_handler}


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_told_to_all_blocks_and_is_the_exit_code(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    with interruptible(lambda: told.append("outer")) as outer:
        assert not outer()
        with interruptible(lambda: told.append("inner")) as inner:
            signal.raise_signal(number)
            assert (outer(), inner(), told) == (True, True, ["outer", "inner"])
        with interruptible(lambda: told.append("late")) as late:
            assert late(), "what begins afterwards ends at once"
    assert told == ["outer", "inner", "late"]
    assert exit_code() == CODES[number]
    assert capsys.readouterr().err.count("stopping, so that nothing is lost") == 1
    with interruptible() as again:
        assert not again()
    assert exit_code() == 130


def test_termination_may_be_repeated_and_ctrl_c_then_ends_at_once() -> None:
    told: list[bool] = []
    with interruptible(lambda: told.append(True)):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert told == [True]
    assert exit_code() == 143


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminable(), interruptible() as interrupted:
        signal.raise_signal(signal.SIGHUP)
        assert not interrupted()
    assert signal.signal(signal.SIGHUP, signal.SIG_DFL) is signal.SIG_IGN


def test_outside_of_the_main_thread_there_are_no_handlers() -> None:
    seen: list[object] = []

    def work() -> None:
        with interruptible() as interrupted, sheltering():
            seen.extend([signal.getsignal(signal.SIGTERM), interrupted()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL, False]


@pytest.mark.parametrize("number", TERMINATION)
def test_elsewhere_a_program_closes_what_is_open_and_ends(number: signal.Signals) -> None:
    with terminable():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # while it closes
    assert exit_code() == CODES[number]


def test_what_is_started_in_a_shelter_is_deaf_and_handlers_are_put_back() -> None:
    with interruptible() as interrupted:
        with sheltering():
            deaf = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library would
            signal.raise_signal(signal.SIGTERM)
            assert not interrupted(), "it has to wait"
        assert interrupted()
    for number in TERMINATION:
        deaf.send_signal(number)
    deaf.communicate(b"\n", timeout=60)
    assert deaf.returncode == 0


HUNG_UP = """
import sys, time
from gpm_tune.interrupts import exit_code, interruptible
with interruptible() as interrupted:
    print("ready", flush=True)
    while not interrupted():
        time.sleep(0.05)
    print("nobody reads this", flush=True)
open(sys.argv[1], "w").write("closed")
sys.exit(exit_code())
"""


def test_a_terminal_that_is_closed_does_not_break_what_still_prints(tmp_path: Path) -> None:
    file = tmp_path / "end"
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", HUNG_UP, file],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(theirs)
        assert os.read(ours, 100).startswith(b"ready")
        os.close(ours)
        assert process.wait(60) == 129
    assert file.read_text() == "closed"
