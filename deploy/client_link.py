"""What `deploy/client.py` needs of sockets, TLS and websockets, whichever version of them is there. Python 3.10, no torch."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct

from kineflow.contracts import KineflowError
from kineflow.deploy.wire import WireError
from kineflow.extras import require


def encryption(url: str, authority: str) -> ssl.SSLContext | None:
    """Raises KineflowError for an authority that is none."""
    if not url.startswith("wss://"):
        return None
    try:
        return ssl.create_default_context(cafile=authority or None)
    except OSError as error:
        raise KineflowError(f"authority {authority}: {error}; a PEM file with a certificate is needed") from error


def bound_sending(raw: socket.socket, seconds: float) -> None:
    """Sending into a network that swallows it fails after so long; waiting for answers has timeouts of its own."""
    with contextlib.suppress(OSError, AttributeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def closed() -> type[Exception]:
    """What websockets raises on a connection that is no more."""
    error: type[Exception] = require("websockets.exceptions", "to ask a policy server").ConnectionClosed
    return error


def failures_to_connect() -> tuple[type[Exception], ...]:
    """All that can go wrong before the server's first message was read."""
    exceptions = require("websockets.exceptions", "to ask a policy server")
    return OSError, EOFError, WireError, exceptions.InvalidHandshake, exceptions.InvalidMessage, exceptions.ConnectionClosed


def in_words(error: BaseException | str) -> str:
    return error if isinstance(error, str) else f"{type(error).__name__}: {error}".rstrip(": ")
