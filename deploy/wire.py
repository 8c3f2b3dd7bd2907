"""Bytes of the policy server's protocol: MessagePack with arrays, never pickle. NumPy and msgpack alone, Python 3.10.

    array   {b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4", b"shape": [...]}
    scalar  {b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}

Arrays are written as `openpi-client` writes them (Physical-Intelligence/openpi, packages/openpi-client, msgpack_numpy.py), so its
clients and ours speak to one server. What comes in is a stranger's: only plain numbers are taken (no object, text, structured or
date types), lengths must agree with the bytes that are there, and the number of values in a message is bounded, because a
megabyte of MessagePack can stand for a million Python objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.extras import require

MOST_VALUES = 4096  # lists, mappings and their members in one message; an array is one
MOST_AXES = 8
DTYPES = frozenset(("|b1", "|u1", "|i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"))


class WireError(KineflowError):
    """Bytes or fields that are not a message of this protocol."""


def pack(message: Any) -> bytes:
    """Raises WireError for what cannot be sent: objects, arrays of other things than numbers."""
    try:
        packed: bytes = _msgpack().packb(message, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot be sent: {error}") from error
    return packed


def unpack(data: bytes) -> Any:
    """Arrays share the memory of `data` and are read-only.

    Raises:
        WireError: whatever is wrong with it.
    """
    budget = _Budget()
    try:
        return _msgpack().unpackb(
            data,
            object_hook=budget.mapping,
            list_hook=budget.list,
            ext_hook=_no_extension,
            max_array_len=MOST_VALUES,
            max_map_len=MOST_VALUES,
        )
    except WireError:
        raise
    except Exception as error:  # a stranger's bytes: every failure to read them is theirs
        raise WireError(f"not a message: {type(error).__name__}: {error}") from error


class _Budget:
    """How many values may still come; containers are reported innermost first, so a flood is seen while it is read."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def mapping(self, found: dict[Any, Any]) -> Any:
        self._take(len(found))
        if b"__ndarray__" in found:
            return _array(found)
        if b"__npgeneric__" in found:
            return _scalar(found)
        return found

    def list(self, found: list[Any]) -> list[Any]:
        self._take(len(found))
        return found

    def _take(self, members: int) -> None:
        self._left -= 1 + members
        if self._left < 0:
            raise WireError(f"more than {MOST_VALUES} values in one message; send numbers as arrays")


def _msgpack() -> Any:
    return require("msgpack", "to speak with a policy server")


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{type(value).__name__}: only numbers, text, lists, mappings and arrays are sent")
    native = value.dtype.newbyteorder("<") if value.dtype.byteorder == ">" else value.dtype
    if native.str not in DTYPES:
        raise TypeError(f"an array of {value.dtype}: only numbers are sent")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": native.str}
    whole = np.ascontiguousarray(value, native)
    data = whole.reshape(-1).view(np.uint8).data if whole.size else b""
    return {b"__ndarray__": True, b"data": data, b"dtype": native.str, b"shape": value.shape}


def _array(found: Mapping[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"array of shape {str(shape)[:60]}: up to {MOST_AXES} lengths are expected")
    if not isinstance(data, bytes):
        raise WireError(f"array whose data are {type(data).__name__}, not bytes")
    size = dtype.itemsize
    for length in shape:  # Python's integers: no overflow
        size *= length
    if size != len(data):
        raise WireError(f"array {dtype.str} {shape} of {len(data)} bytes: it needs {size}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(found: Mapping[Any, Any]) -> Any:
    value = found.get(b"data")
    if not isinstance(value, bool | int | float):
        raise WireError(f"scalar of {type(value).__name__}, not a number")
    return _dtype(found).type(value)


def _dtype(found: Mapping[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"array of {str(name)[:40]!r}: only {sorted(DTYPES)} are taken")
    return np.dtype(name)


def _no_extension(code: int, data: bytes) -> Any:
    raise WireError(f"extension type {code}: none is part of this protocol")
