"""TFRecord files and tf.train.Example messages without TensorFlow: framing with masked crc32c, and a small protobuf reader.

A record is: length uint64, masked crc32c of those 8 bytes uint32, payload, masked crc32c of the payload uint32, all
little-endian. An Example is a map from name to a list of bytes, float32 or int64.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.datasets.zarr_v3 import crc32c

Value: TypeAlias = "list[bytes] | np.ndarray"  # bytes, float32 [n] or int64 [n]
_HEADER, _FOOTER = 12, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Record:
    """Where one record lies; `number` counts from 0 in its file."""

    file: Path
    number: int
    offset: int  # of the payload
    length: int


class WireError(ValueError):
    """Bytes that are not a protobuf message."""


def find_records(file: Path) -> list[Record]:
    """All records of `file`; reads and checks their headers only.

    Raises:
        KineflowError: a header whose checksum is wrong, or a record that ends after the file does.
    """
    found: list[Record] = []
    size = file.stat().st_size
    with open(file, "rb") as opened:
        while (offset := opened.tell()) < size:
            header = opened.read(_HEADER)
            if len(header) < _HEADER:
                raise _broken(file, len(found), f"{len(header)} bytes are left where a header of {_HEADER} should be")
            length, expected = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != expected:
                raise _broken(file, len(found), f"the checksum of its length (offset {offset}) is wrong")
            if offset + _HEADER + length + _FOOTER > size:
                raise _broken(file, len(found), f"it ends at byte {offset + _HEADER + length + _FOOTER}, the file has {size}")
            found.append(Record(file, len(found), offset + _HEADER, length))
            opened.seek(length + _FOOTER, os.SEEK_CUR)
    return found


def read_record(record: Record) -> bytes:
    """The payload, checked against its crc32c."""
    with open(record.file, "rb") as opened:
        opened.seek(record.offset)
        data = opened.read(record.length + _FOOTER)
    payload = data[: record.length]
    if len(data) != record.length + _FOOTER or struct.unpack("<I", data[record.length :])[0] != masked_crc32c(payload):
        raise _broken(record.file, record.number, "its bytes do not match their checksum")
    return payload


def write_records(file: Path, payloads: list[bytes]) -> None:
    """The same framing, written (for fixtures and exports)."""
    with open(file, "wb") as opened:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            opened.write(length + struct.pack("<I", masked_crc32c(length)) + payload + struct.pack("<I", masked_crc32c(payload)))


def masked_crc32c(data: bytes) -> int:
    """crc32c, rotated right by 15 and shifted by a constant, so that a checksum of checksums is no special case."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_example(record: Record) -> Mapping[str, Value]:
    """The features of the tf.train.Example in `record`.

    Raises:
        KineflowError: damaged bytes, or a payload that is not an Example.
    """
    try:
        return parse_example(read_record(record))
    except WireError as error:
        raise _broken(record.file, record.number, f"it is not a tf.train.Example ({error})") from error


def parse_example(data: bytes) -> dict[str, Value]:
    """Example -> features (field 1) -> map entries (field 1): key (1), value (2).

    Raises:
        WireError: not such a message; never anything else, whatever the bytes.
    """
    features: dict[str, Value] = {}
    for entry in (e for f in _messages(data, 1) for e in _messages(f, 1)):
        keys, values = list(_messages(entry, 1)), list(_messages(entry, 2))
        if len(keys) > 1 or len(values) > 1:
            raise WireError("a map entry with several keys or values")
        try:
            name = keys[0].decode() if keys else ""
        except UnicodeDecodeError as error:
            raise WireError("a feature name that is not UTF-8") from error
        features[name] = _feature(values[0] if values else b"")
    return features


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of one protobuf message: an int for varint and fixed types, else bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {position}")
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"wire type {kind} at byte {position}")
        if size > len(data) - position:
            raise WireError(f"field {number} needs {size} bytes at byte {position}, {len(data) - position} are left")
        part, position = data[position : position + size], position + size
        yield number, kind, part if kind == _BYTES else int.from_bytes(part, "little")


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    for number, _, value in fields(data):
        if number == wanted:
            if not isinstance(value, bytes):
                raise WireError(f"field {number} is a number where a message should be")
            yield value


def _feature(data: bytes) -> Value:
    found: Value = []
    for number, _, value in fields(data):
        if not isinstance(value, bytes) or number not in (1, 2, 3):
            continue
        found = list(_messages(value, 1)) if number == 1 else _floats(value) if number == 2 else _integers(value)
    return found


def _floats(data: bytes) -> np.ndarray:
    parts = []
    for number, kind, value in fields(data):
        if number != 1:
            continue
        raw = value if isinstance(value, bytes) else value.to_bytes(4, "little") if kind == _FIXED32 else b"?"
        if len(raw) % 4:
            raise WireError("a float list that is not made of 4-byte floats")
        parts.append(raw)
    return np.frombuffer(b"".join(parts), "<f4")


def _integers(data: bytes) -> np.ndarray:
    numbers: list[int] = []
    for number, kind, value in fields(data):
        if number != 1:
            continue
        if isinstance(value, bytes):
            position = 0
            while position < len(value):
                one, position = _varint(value, position)
                numbers.append(one)
        elif kind == _VARINT:
            numbers.append(value)
        else:
            raise WireError("an int64 list of fixed-size numbers")
    return np.array(numbers, np.uint64).view(np.int64)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise WireError(f"a number that ends after byte {len(data)}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise WireError(f"a number of more than 64 bits at byte {position}")


def _broken(file: Path, number: int, problem: str) -> KineflowError:
    return KineflowError(f"{file}, record {number}: {problem}; the file is damaged or incomplete, copy or download it again")
