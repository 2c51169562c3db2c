"""Signals, with real processes: the first one is remembered, the second one leaves at once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from plasticity.commands.stopping import Stopper

LOOP = """
import os, signal, sys, time
from plasticity.commands.stopping import Stopper
print("before", flush=True)
with Stopper() as stopper:
    print("in", flush=True)
    if "background" in sys.argv:
        signal.raise_signal(signal.SIGINT)
        assert stopper.signal != signal.SIGINT
    while not stopper.stop():
        time.sleep(0.01)
    print("stopped by", stopper.signal.name, flush=True)
    while "stuck" in sys.argv:
        time.sleep(0.01)
print("saved", flush=True)
sys.exit(stopper.exit_code)
"""


@contextmanager
def start(*arguments: str, **options) -> Iterator[subprocess.Popen]:
    """A process in the loop, killed in the end if it did not stop."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LOOP, *arguments], **pipes, **options) as process:
        try:
            assert [process.stdout.readline() for _ in range(2)] == ["before\n", "in\n"]
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_lets_the_step_end_and_the_state_be_saved(number: int, code: int) -> None:
    with start() as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    name = signal.Signals(number).name
    assert out == f"stopped by {name}\nsaved\n"
    assert err == f"{name}: stopping after this step; once more leaves at once\n"
    assert process.returncode == code


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGINT, 130)],
)
def test_the_second_signal_leaves_at_once(first: int, second: int, code: int) -> None:
    with start("stuck") as process:
        process.send_signal(first)
        assert process.stdout.readline() == f"stopped by {signal.Signals(first).name}\n"
        process.send_signal(second)
        out, err = process.communicate(timeout=30)
    assert out == ""
    assert err.endswith(f"{signal.Signals(second).name} again: leaving at once\n")
    assert process.returncode == code


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """A shell without job control starts background jobs with SIGINT ignored."""
    with start("background", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "stopped by SIGTERM\nsaved\n"
        assert process.returncode == 143


def test_handlers_are_put_back_also_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopper = Stopper()

    def work() -> None:
        with stopper:
            assert not stopper.stop()
            assert stopper.exit_code == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopper.stop()
            assert stopper.exit_code == 143
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_nothing_is_changed() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Stopper() as stopper:
            seen.append((signal.getsignal(signal.SIGINT), stopper.stop()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
