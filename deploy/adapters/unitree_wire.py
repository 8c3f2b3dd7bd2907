"""Requests and responses of Unitree's services as bytes: what the SDK's DDS carries, and what the simulated robot hears over UDP.

    Request   identity (id, api id), lease, policy (priority, no reply), parameter (JSON), binary
    Response  identity (id, api id), status (code), data (JSON), binary

CDR of OMG's DDS-RTPS, little-endian, from the SDK's public message definitions (unitree_api/msg); checked byte for byte
against the SDK (tests/deploy/test_adapters_g1.py).
"""

from __future__ import annotations

import struct

from kineflow.interface import KineflowError

_ENCAPSULATION = b"\x00\x01\x00\x00"
_REQUEST, _RESPONSE = struct.Struct("<qqqi?"), struct.Struct("<qqi")


def request(number: int, api: int, parameter: str) -> bytes:
    """Without lease, of priority 0, to be answered."""
    return _ENCAPSULATION + _with_text(_REQUEST.pack(number, api, 0, 0, False), parameter)


def response(number: int, api: int, code: int, data: str) -> bytes:
    return _ENCAPSULATION + _with_text(_RESPONSE.pack(number, api, code), data)


def read_request(data: bytes) -> tuple[int, int, str]:
    """Number, api id, parameter.

    Raises:
        KineflowError: the bytes are none.
    """
    number, api, _, _, _ = _unpacked(_REQUEST, data)
    return number, api, _text(data[4:], _REQUEST.size)


def read_response(data: bytes) -> tuple[int, int, int, str]:
    """Number, api id, code, data.

    Raises:
        KineflowError: the bytes are none.
    """
    number, api, code = _unpacked(_RESPONSE, data)
    return number, api, code, _text(data[4:], _RESPONSE.size)


def _with_text(body: bytes, text: str) -> bytes:
    """A string with its length and its zero, then no binary."""
    words = text.encode() + b"\0"
    body = _aligned(body) + struct.pack("<I", len(words)) + words
    return _aligned(body) + struct.pack("<I", 0)


def _aligned(body: bytes) -> bytes:
    return body + bytes(-len(body) % 4)


def _unpacked(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if data[:4] != _ENCAPSULATION or len(data) < 4 + layout.size:
        raise KineflowError(f"{len(data)} bytes are no little-endian CDR of a Unitree service")
    return layout.unpack_from(data, 4)


def _text(body: bytes, at: int) -> str:
    at += -at % 4
    if len(body) < at + 4:
        raise KineflowError("the message ends before its text")
    (length,) = struct.unpack_from("<I", body, at)
    words = body[at + 4 : at + 4 + length]
    if len(words) != length or not words.endswith(b"\0"):
        raise KineflowError("the message ends within its text")
    return words[:-1].decode(errors="replace")
