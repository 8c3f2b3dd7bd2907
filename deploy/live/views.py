"""`--view WHAT`: which sink is meant."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from kineflow.deploy.live.drawing import Draws
from kineflow.deploy.live.feed import Paced
from kineflow.deploy.live.seen import Sink
from kineflow.interface import KineflowError

HELP = "terminal, foxglove (a server here; foxglove:PORT), rerun (its viewer), FILE.mcap or FILE.rrd; files are not paced"


def open_view(word: str, draws: Mapping[str, Draws]) -> tuple[Sink, str]:
    """The sink, and one line for the person.

    Raises:
        KineflowError: no such view, or it cannot be opened.
    """
    name, _, port = word.partition(":")
    if name == "terminal" and not port:
        from rich.console import Console

        from kineflow.deploy.live.terminal import Terminal

        return Paced(Terminal(Console(stderr=True))), ""  # the result goes to stdout
    if name == "foxglove":
        from kineflow.deploy.live.foxglove_view import PORT, FoxgloveView

        if port and not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise KineflowError(f"--view {word}: '{port}' is no port; write foxglove:8765")
        view = FoxgloveView(draws, port=int(port) if port else PORT, begin_s=time.time())
        return Paced(view), f"Foxglove: open ws://127.0.0.1:{view.port} in its app"
    if name == "rerun" and not port:
        from kineflow.deploy.live.rerun_view import RerunView

        return Paced(RerunView(draws)), ""
    file = Path(word)
    if file.suffix == ".mcap":
        from kineflow.deploy.live.foxglove_view import FoxgloveView

        return FoxgloveView(draws, file), f"written: {file}"
    if file.suffix == ".rrd":
        from kineflow.deploy.live.rerun_view import RerunView

        return RerunView(draws, file), f"written: {file}"
    raise KineflowError(f"--view {word}: name {HELP}")
