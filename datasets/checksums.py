"""crc32c around every stored byte, and the error for bytes that cannot be what was written."""

from __future__ import annotations

import struct

import google_crc32c
import numpy as np

from kineflow.contracts import KineflowError

SIZE = 4  # bytes, little endian, behind what they protect (`docs: zarr codec crc32c`)


class CorruptData(KineflowError):
    """Bytes that cannot be what was written; the caller adds which store and the remedy."""


def crc32c(data: bytes | memoryview) -> int:
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


def with_crc(payload: bytes) -> bytes:
    return payload + struct.pack("<I", crc32c(payload))


def without_crc(data: bytes | memoryview, name: str) -> bytes:
    """The payload of `with_crc`.

    Raises:
        CorruptData: the checksum does not match; names `name`.
    """
    payload = bytes(data[:-SIZE])  # no copy where it is bytes
    if len(data) < SIZE or google_crc32c.value(payload) != int.from_bytes(data[-SIZE:], "little"):
        raise CorruptData(f"{name}: its bytes do not match their crc32c checksum")
    return payload
