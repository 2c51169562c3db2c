"""Start TensorBoard on a folder of runs and print links into it."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plasticity.dashboard.hosts import EVERYWHERE, in_address, reached_as
from plasticity.dashboard.layout import layers_url, pinned_url, tab_url
from plasticity.storage.rows import find_runs, metric_tags, read_metrics

# TensorBoard keeps 1,000 points a curve by default and loses short spikes.
_FLAGS = ("--samples_per_plugin", "scalars=10000,images=50,histograms=200", "--reload_interval", "5")
_START_SECONDS, _STOP_SECONDS = 120, 5


def serve(logdir: Path | str, port: int = 6006, host: str = "127.0.0.1", open_: bool = False) -> int:
    """Run TensorBoard on ``logdir`` until Ctrl-C or a terminate signal and return an exit code; errors are one line.

    ``port`` is the first one tried, 0 lets the system choose; ``open_`` opens the link in a browser.
    """
    folder = Path(logdir)
    if not folder.is_dir():
        return _fail(f"no folder {folder}; pass the folder that holds the runs")
    try:
        with _terminate_is_interrupt(), Server(folder, port, host) as server:
            server.wait_ready()
            link = _announce(folder, server.url)
            if host in EVERYWHERE:
                print(f"From elsewhere: {tab_url(f'http://{socket.gethostname()}:{server.port}')}", flush=True)
            if open_:
                webbrowser.open(link)
            server.wait()
            return _fail(f"TensorBoard stopped by itself: {server.last_words()}")
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        return _fail(str(error))


class Server:
    """A TensorBoard process on the first free port from ``port`` on; it ends with the ``with`` block.

    OSError if no port is free or the process does not start.
    """

    def __init__(self, logdir: Path, port: int = 6006, host: str = "127.0.0.1") -> None:
        self.logdir, self.host = logdir, host
        self.port = free_port(host, port)
        self.url = f"http://{in_address(reached_as(host))}:{self.port}"

    def __enter__(self) -> Server:
        self._output = tempfile.TemporaryFile()
        command = [
            sys.executable,
            "-m",
            "plasticity.dashboard.board",
            "--logdir",
            str(self.logdir),
            "--host",
            self.host,
        ]
        command += ["--port", str(self.port), *_FLAGS]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()

    def wait_ready(self) -> None:
        """Return once the server answers; OSError if it ended or took longer than two minutes."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise OSError(f"TensorBoard did not start: {self.last_words()}")
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                return
            time.sleep(0.1)
        raise OSError(f"TensorBoard does not answer at {self.url}: {self.last_words()}")

    def wait(self) -> int:
        """Wait until the process ends and return its exit code."""
        return self.process.wait()

    def last_words(self) -> str:
        """Return the last line the process printed."""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def free_port(host: str, port: int, attempts: int = 100) -> int:
    """Return the first free port of ``host`` from ``port`` on; OSError if none of ``attempts`` is."""
    for candidate in range(port, min(port + attempts, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise OSError(f"cannot listen on {in_address(host)}:{candidate}: {error.strerror}") from error
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {host} from {port} on; pass another one")


def _announce(folder: Path, url: str) -> str:
    runs = find_runs(folder)
    tags = {tag for run in runs for tag in metric_tags(read_metrics(run))}
    count = f"{len(runs)} run{'s' * (len(runs) != 1)} in" if runs else "no runs yet, they will appear as they start, in"
    print(f"Plasticity: {tab_url(url)}   {count} {folder}")
    if tags:
        print(f"At a glance: {pinned_url(url, tags)}")
        print(f"Layer by layer: {layers_url(url)}   (untick 'Ignore outliers', it cuts off the worst layer)")
    print(
        "The Plasticity tab refreshes itself; the others: gear, top right, 'Reload data'. Ctrl-C ends it.", flush=True
    )
    return tab_url(url)


@contextlib.contextmanager
def _terminate_is_interrupt() -> Iterator[None]:
    """Let a terminate or hang-up signal end the block as Ctrl-C does; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    print(f"plasticity dashboard: {message}", file=sys.stderr)
    return 1
