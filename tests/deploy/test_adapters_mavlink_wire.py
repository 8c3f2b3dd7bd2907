"""Our MAVLink, byte for byte, against pymavlink: recorded bytes always, the library itself where a person installed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kineflow.deploy.adapters.mavlink_wire import (
    HEARTBEAT,
    VELOCITY_TARGET,
    checksum,
    heartbeat,
    packets,
    read_heartbeat,
    read_velocity,
    velocity_target,
)

# Made with pymavlink 2.4.50 (LGPL: the tool, not what it puts out); "received" is what autopilots send.
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "mavlink_vectors.json").read_text())


def ours(v: dict[str, Any]) -> bytes:
    return velocity_target(
        tuple(v["frd"]), v["yaw_rate"], v["boot_ms"], v["sequence"], v["system"], v["component"], tuple(v["target"])
    )


def test_the_checksum_of_the_specification() -> None:
    assert checksum(b"123456789") == 0x6F91  # check value of CRC-16/MCRF4XX


@pytest.mark.parametrize("vector", VECTORS["heartbeat"])
def test_heartbeats_are_the_recorded_bytes(vector: dict[str, Any]) -> None:
    assert heartbeat(*vector["args"]).hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["velocity"])
def test_velocities_are_the_recorded_bytes(vector: dict[str, Any]) -> None:
    assert ours(vector).hex() == vector["hex"]
    (packet,) = packets(ours(vector))
    assert (packet.message, packet.system, packet.component) == (VELOCITY_TARGET, vector["system"], vector["component"])
    assert read_velocity(packet) == (tuple(vector["frd"]), vector["yaw_rate"])


@pytest.mark.parametrize("vector", VECTORS["received"], ids=lambda v: v["what"])
def test_heartbeats_of_autopilots_are_understood(vector: dict[str, Any]) -> None:
    (packet,) = packets(b"\xfe\xfd noise" + bytes.fromhex(vector["hex"]))
    said = read_heartbeat(packet)
    assert (packet.message, packet.system, packet.component) == (HEARTBEAT, 1, 1)
    assert (said.custom_mode, said.base_mode) == (vector["custom_mode"], vector["base_mode"])


@pytest.mark.parametrize("vector", VECTORS["received"], ids=lambda v: v["what"])
def test_a_damaged_heartbeat_is_none(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    begin = len(data) - (13 if "signed" in vector["what"] else 0)
    for at in range(begin - 11, begin):  # payload and checksum
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        assert [p for p in packets(bytes(damaged)) if p.message == HEARTBEAT] == []


@pytest.mark.parametrize("vector", VECTORS["received"], ids=lambda v: v["what"])
def test_a_heartbeat_cut_short_is_none(vector: dict[str, Any]) -> None:
    """Also within the signature, which belongs to it."""
    data = bytes.fromhex(vector["hex"])
    for cut in range(1, 13 if "signed" in vector["what"] else 3):
        assert list(packets(data[:-cut])) == []


@given(st.binary(max_size=400))
def test_noise_is_never_an_error(data: bytes) -> None:
    for packet in packets(data):
        read_heartbeat(packet)
        read_velocity(packet)


def test_the_library_agrees_now() -> None:
    """The peer itself, both ways; pymavlink is LGPL, so no extra of ours brings it: pip install pymavlink."""
    common = pytest.importorskip("pymavlink.dialects.v20.common")
    reader = common.MAVLink(None)
    reader.robust_parsing = True
    for sequence in range(40):
        data = velocity_target((0.1 * sequence, -1.5, 0.25), -0.5, 1000 * sequence, sequence, 7, 191, (1, 1))
        (said,) = reader.parse_buffer(data)
        assert said.get_type() == "SET_POSITION_TARGET_LOCAL_NED"
        assert (said.vx, said.vy, said.vz, said.yaw_rate) == pytest.approx((0.1 * sequence, -1.5, 0.25, -0.5), rel=1e-6)
        assert (said.coordinate_frame, said.type_mask) == (common.MAV_FRAME_BODY_NED, 0x05C7)
        assert (said.get_srcSystem(), said.get_srcComponent(), said.target_system) == (7, 191, 1)
        (beat,) = reader.parse_buffer(heartbeat(sequence, 7, 191))
        assert beat.type == common.MAV_TYPE_ONBOARD_CONTROLLER
        writer = common.MAVLink(None, srcSystem=7, srcComponent=191)
        writer.seq = sequence
        assert common.MAVLink_heartbeat_message(18, 8, 0, 0, 4, 3).pack(writer) == heartbeat(sequence, 7, 191)
