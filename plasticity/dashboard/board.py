"""TensorBoard that answers only under the names it was started for: ``python -m plasticity.dashboard.board``."""

from __future__ import annotations

from typing import Any

from absl import app
from tensorboard import default, main_lib, program

from plasticity.dashboard.hosts import Application, guarded


class GuardedServer(program.WerkzeugServer):
    """TensorBoard's server, behind :func:`guarded`."""

    def __init__(self, wsgi_app: Application, flags: Any) -> None:
        super().__init__(guarded(wsgi_app, flags.host or "localhost"), flags)


def main() -> None:
    """Run TensorBoard with the arguments of the command line."""
    main_lib.global_init()
    board = program.TensorBoard(plugins=default.get_plugins(), server_class=GuardedServer)
    app.run(board.main, flags_parser=board.configure)


if __name__ == "__main__":
    main()
