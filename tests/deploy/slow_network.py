"""A network between client and server, on loopback: it delays, stalls, swallows and cuts, in the middle of messages as well."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator


class Network:
    """Forwards `port` to `target`. `delay_s` each way; `stall_s` every `stall_every` pieces, as a lost packet sent again does;
    `cut_after` bytes of answers of each connection, then it is broken; `swallows`: nothing arrives, nothing breaks; `freezes`:
    nothing is taken any more."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_s = self.stall_s = 0.0
        self.stall_every, self.cut_after, self.swallows, self.freezes = 0, 0, False, False
        self.cuts = self.stalls = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.freezes = False
        self._listening.close()
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [near, far]
            threading.Thread(target=self._forward, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(far, near, True), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = pieces = 0
        with contextlib.suppress(OSError, ValueError):
            while select.select([source], [], [])[0]:
                while self.freezes:
                    time.sleep(0.01)
                if not (data := source.recv(1 << 16)):
                    break
                pieces += 1
                stalls = self.stall_every and pieces % self.stall_every == 0
                self.stalls += bool(stalls)
                time.sleep(self.delay_s + (self.stall_s if stalls else 0.0))
                if self.swallows:
                    continue
                if answers and self.cut_after and passed + len(data) > self.cut_after:
                    sink.sendall(data[: max(self.cut_after - passed, 1)])
                    self.cuts += 1
                    break
                sink.sendall(data)
                passed += len(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def network(target: int) -> Iterator[Network]:
    made = Network(target)
    try:
        yield made
    finally:
        made.close()
