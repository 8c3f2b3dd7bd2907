"""How requests reach a G1's locomotion service: through Unitree's own SDK, or over UDP to the simulated robot."""

from __future__ import annotations

import importlib
import socket
import time
from typing import Any, Protocol

from kineflow.deploy.adapters.settings import G1Settings, host_and_port
from kineflow.deploy.adapters.unitree_wire import read_response, request
from kineflow.interface import KineflowError

TIMED_OUT, NOT_SENT = 3104, 3102  # the SDK's codes


class Link(Protocol):
    """Waits for the answer, but not for long."""

    def call(self, api: int, parameter: str) -> tuple[int, str]:
        """Api id and JSON in, code (0: done) and JSON out."""

    def close(self) -> None: ...


def open_link(settings: G1Settings) -> Link:
    """Raises:
    KineflowError: the SDK is not installed, or the address is none.
    """
    if settings.interface.startswith("udp:"):
        return UdpLink(host_and_port(settings.interface[4:], "g1.interface"), settings.timeout_s)
    return SdkLink(settings.interface, settings.timeout_s)


class SdkLink:
    """By Unitree's SDK over DDS on a network interface. One in each process: so the SDK wants it."""

    def __init__(self, interface: str, timeout_s: float) -> None:
        try:
            channel: Any = importlib.import_module("unitree_sdk2py.core.channel")
            loco: Any = importlib.import_module("unitree_sdk2py.g1.loco.g1_loco_client")
        except ImportError as error:
            raise KineflowError(
                f"a G1 is spoken to through Unitree's SDK, which is not installed here ({error}); install unitree_sdk2py from "
                "github.com/unitreerobotics/unitree_sdk2_python (BSD-3; it wants cyclonedds 0.10.2, so Python 3.10)"
            ) from None
        channel.ChannelFactoryInitialize(0, interface)
        self._client = loco.LocoClient()
        self._client.SetTimeout(timeout_s)
        self._client.Init()

    def call(self, api: int, parameter: str) -> tuple[int, str]:
        code, data = self._client._Call(api, parameter)  # what each method of the SDK's clients calls
        return int(code), data or ""

    def close(self) -> None:
        """The SDK has no way to."""


class UdpLink:
    """The same requests, byte for byte, as datagrams: for deploy/adapters/simulated_g1.py."""

    def __init__(self, address: tuple[str, int], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._wire.connect(address)

    def call(self, api: int, parameter: str) -> tuple[int, str]:
        number, until = time.monotonic_ns(), time.monotonic() + self._timeout_s
        try:
            self._wire.send(request(number, api, parameter))
            while (left := until - time.monotonic()) > 0:
                self._wire.settimeout(left)
                try:
                    answered, of, code, data = read_response(self._wire.recv(4096))
                except KineflowError:
                    continue
                if (answered, of) == (number, api):
                    return code, data
        except TimeoutError:
            return TIMED_OUT, ""
        except OSError:  # nobody listens there
            return NOT_SENT, ""
        return TIMED_OUT, ""

    def close(self) -> None:
        self._wire.close()
