"""The three MAVLink messages that a velocity needs, byte for byte; written from the protocol's public definitions.

https://mavlink.io/en/guide/serialization.html (framing, X.25 checksum, truncation) and messages/common.html (HEARTBEAT 0,
SET_POSITION_TARGET_LOCAL_NED 84). pymavlink would do the same, but its licence is LGPL: not one that we depend on. It agrees
with this file byte for byte (tests/deploy/test_adapters_mavlink_wire.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEARTBEAT, VELOCITY_TARGET = 0, 84
_EXTRA = {HEARTBEAT: 50, VELOCITY_TARGET: 143}  # of the checksum: a hash of each message's definition
_BODY_NED = 8  # x forward, y right, z down, by heading: PX4 and ArduPilot turn it by the yaw alone
_VELOCITY_AND_YAW_RATE = 0x05C7  # ignore position, acceleration, yaw
_ONBOARD_CONTROLLER, _NO_AUTOPILOT, _ACTIVE = 18, 8, 4
CUSTOM_MODE, ARMED = 1, 128  # flags of base_mode
V1, V2 = 0xFE, 0xFD


@dataclass(frozen=True)
class Packet:
    """`payload` as it was sent: version 2 leaves zeros away at its end."""

    message: int
    system: int
    component: int
    payload: bytes


@dataclass(frozen=True)
class Heartbeat:
    """MAVLink's HEARTBEAT."""

    custom_mode: int
    type: int
    autopilot: int
    base_mode: int
    status: int


def checksum(data: bytes) -> int:
    """CRC-16/MCRF4XX, in MAVLink's documents X.25."""
    crc = 0xFFFF
    for byte in data:
        word = byte ^ (crc & 0xFF)
        word = (word ^ (word << 4)) & 0xFF
        crc = (crc >> 8) ^ (word << 8) ^ (word << 3) ^ (word >> 4)
    return crc & 0xFFFF


def frame(message: int, payload: bytes, sequence: int, system: int, component: int) -> bytes:
    """A packet of version 2, unsigned."""
    payload = payload.rstrip(b"\0") or payload[:1]
    header = struct.pack("<BBBBBBBBH", V2, len(payload), 0, 0, sequence & 0xFF, system, component, message & 0xFF, message >> 8)
    crc = checksum(header[1:] + payload + bytes([_EXTRA[message]]))
    return header + payload + struct.pack("<H", crc)


def heartbeat(sequence: int, system: int, component: int) -> bytes:
    """We are an onboard computer, and active."""
    payload = struct.pack("<IBBBBB", 0, _ONBOARD_CONTROLLER, _NO_AUTOPILOT, 0, _ACTIVE, 3)
    return frame(HEARTBEAT, payload, sequence, system, component)


def velocity_target(
    frd: tuple[float, float, float],
    yaw_rate: float,
    boot_ms: int,
    sequence: int,
    system: int,
    component: int,
    target: tuple[int, int],
) -> bytes:
    """Fly with this velocity (m/s) and turn (rad/s, clockwise from above) of the body's forward, right, down.

    `target`: system and component of the autopilot; `boot_ms` since our start.
    """
    numbers = (0.0, 0.0, 0.0, *frd, 0.0, 0.0, 0.0, 0.0, yaw_rate)
    payload = struct.pack("<I11fHBBB", boot_ms & 0xFFFFFFFF, *numbers, _VELOCITY_AND_YAW_RATE, *target, _BODY_NED)
    return frame(VELOCITY_TARGET, payload, sequence, system, component)


def packets(datagram: bytes) -> Iterator[Packet]:
    """The packets of versions 1 and 2 in a datagram whose message we know and whose checksum is right; others are skipped."""
    at = 0
    while at + 8 <= len(datagram):
        found, size = _packet_at(datagram, at)
        at += size
        if found is not None:
            yield found


def _packet_at(datagram: bytes, at: int) -> tuple[Packet | None, int]:
    """The packet that begins here, if it is one, and by how many bytes to go on."""
    start, length = datagram[at], datagram[at + 1]
    if start == V2 and at + 12 <= len(datagram):
        flags, system, component = datagram[at + 2], datagram[at + 5], datagram[at + 6]
        begin, message = at + 10, int.from_bytes(datagram[at + 7 : at + 10], "little")
    elif start == V1:
        flags, system, component = 0, datagram[at + 3], datagram[at + 4]
        begin, message = at + 6, datagram[at + 5]
    else:
        return None, 1
    end = begin + length
    size = end + 2 + (13 if flags & 1 else 0) - at  # a signature may follow
    if flags & ~1 or at + size > len(datagram):
        return None, 1
    if message not in _EXTRA:  # cannot be checked
        return None, size
    if checksum(datagram[at + 1 : end] + bytes([_EXTRA[message]])) != int.from_bytes(datagram[end : end + 2], "little"):
        return None, 1
    return Packet(message, system, component, datagram[begin:end]), size


def read_heartbeat(packet: Packet) -> Heartbeat:
    return Heartbeat(*struct.unpack("<IBBBBB", packet.payload.ljust(9, b"\0")[:9])[:5])


def read_velocity(packet: Packet) -> tuple[tuple[float, float, float], float]:
    """Velocity forward, right, down (m/s) and turn (rad/s) of a SET_POSITION_TARGET_LOCAL_NED."""
    numbers = struct.unpack("<I11fHBBB", packet.payload.ljust(53, b"\0")[:53])
    return (numbers[4], numbers[5], numbers[6]), numbers[11]
