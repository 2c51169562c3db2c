"""Stop on SIGTERM, SIGHUP and Ctrl-C after the step that is under way, so that a loop can save before it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

NAMES_OF_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")
ENDING = tuple(getattr(signal, name) for name in NAMES_OF_SIGNALS if hasattr(signal, name))
"""Signals after which a run is saved: of a scheduler, Ctrl-C, a terminal that closes; SIGBREAK is Windows' own."""
SHOW_CURSOR = b"\x1b[?25h"
"""Control sequence that shows the cursor, which a live display hides and a process that ends at once leaves hidden."""


def own_group() -> dict[str, Any]:
    """Return what `subprocess.Popen` takes so that Ctrl-C reaches this process only, which passes it on once."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def pass_on(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a process of its own group; on Windows, where others kill at once, as Ctrl-Break."""
    if sys.platform == "win32":
        number = signal.CTRL_BREAK_EVENT
    process.send_signal(number)


class Stopper:
    """A ``with`` block in which ``ENDING`` are remembered, for a loop that asks :meth:`stop` after every step.

    A second signal leaves at once, with exit code 128 + its number: 143 (SIGTERM), 130 (SIGINT), 129 (SIGHUP).
    Handlers are restored on exit. A signal that was ignored before stays ignored, as Ctrl-C for a job that a shell put
    into the background, or SIGHUP under nohup. Outside the main thread, which alone may set handlers, nothing is
    changed and :meth:`stop` stays False.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came, None so far."""
        self._before: dict[signal.Signals, Any] = {}

    def stop(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 128 + the signal's number, 0 without one."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: set by C code, and could not be restored
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal = signal.Signals(number)
            _say(f"{name}: stopping after this step; once more leaves at once")
            return
        _say(f"{name} again: leaving at once")
        os._exit(128 + number)


def _say(text: str) -> None:
    """Write to stderr without Python's buffers, which the interrupted code may be in the middle of."""
    try:
        terminal = SHOW_CURSOR if sys.stderr is not None and os.isatty(2) else b""
        os.write(2, terminal + b"\n" + text.encode() + b"\n" if terminal else text.encode() + b"\n")
    except OSError:
        pass  # nobody listens
