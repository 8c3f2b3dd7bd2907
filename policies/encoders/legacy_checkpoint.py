"""Tensors of a checkpoint that PyTorch wrote before version 1.6, without unpickling it: no code of the file is run.

Such a file is five pickles and the raw storages. Its pickles are read as a list of opcodes (`pickletools`), of which the few that
describe dicts of tensors are interpreted here; calls and names of functions stay data, and anything else is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
    "HalfStorage": np.dtype("<f2"),
}
_MARK = object()


class CheckpointError(KineflowError):
    """A file that is not a dict of tensors in the old format."""


def read_legacy_checkpoint(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Tensor name -> array, of a checkpoint that is one flat dict of tensors.

    Raises:
        CheckpointError: another format; names `name`.
    """
    file = io.BytesIO(data)
    try:
        pickles: list[Any] = [_plain(file) for _ in range(5)]
        magic, _, system, tensors, keys = pickles
        if magic != _MAGIC or not system["little_endian"]:
            raise CheckpointError(f"{name}: no checkpoint of PyTorch before 1.6; save it as safetensors")
        dtypes = {key: _DTYPES[kind[1]] for kind, key in map(_storage, tensors.values())}
        storages = {key: _numbers(file, dtypes[key]) for key in keys}
        return {tensor: _array(call, storages) for tensor, call in tensors.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise CheckpointError(
            f"{name}: holds something else than one dict of tensors ({error!r}); save it as safetensors"
        ) from error


def _numbers(file: io.BytesIO, dtype: np.dtype[Any]) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _storage(call: tuple[Any, ...]) -> tuple[tuple[str, str], str]:
    """Kind and key of the storage in `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)`."""
    (function, arguments) = call
    if function != ("torch._utils", "_rebuild_tensor_v2"):
        raise ValueError(f"call of {function}")
    _, kind, key, *_ = arguments[0]
    return kind, key


def _array(call: tuple[Any, ...], storages: dict[str, np.ndarray]) -> np.ndarray:
    _, offset, shape, strides, *_ = call[1]
    values = storages[_storage(call)[1]]
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if min((offset, *shape, *strides), default=0) < 0 or last >= len(values) > 0:
        raise ValueError(f"a tensor that ends at {last} in a storage of {len(values)}")
    steps = [stride * values.itemsize for stride in strides]
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], shape, steps), order="C")


def _plain(file: io.BytesIO) -> Any:
    """The next pickle as plain values: a global is (module, name), a call is (what, arguments)."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    constants: dict[str, Any] = {"EMPTY_TUPLE": (), "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
    operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(file)
    for opcode, argument, _ in operations:
        kind = opcode.name
        if kind in ("PROTO", "STOP"):
            continue
        if kind in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif kind in constants:
            stack.append(constants[kind])
        elif kind in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if kind == "EMPTY_DICT" else [])
        elif kind in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"):
            stack.append(argument)
        elif kind == "GLOBAL":
            stack.append(tuple(argument.split(" ")))
        elif kind in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(_pop(stack, int(kind[-1]))))
        elif kind in ("TUPLE", "SETITEMS", "APPENDS"):
            _collect(kind, _to_mark(stack), stack)
        elif kind == "SETITEM":
            key, value = _pop(stack, 2)
            stack[-1][key] = value
        elif kind == "BINPERSID":
            pass  # the description of a storage stays where it is
        elif kind == "REDUCE":
            function, arguments = _pop(stack, 2)
            stack.append({} if function == ("collections", "OrderedDict") else (function, arguments))
        elif kind == "BUILD":
            stack.pop()  # attributes of the dict: versions of modules
        else:
            raise ValueError(f"opcode {kind}")
    return stack.pop()


def _pop(stack: list[Any], count: int) -> list[Any]:
    taken = stack[-count:]
    del stack[-count:]
    return taken


def _to_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
    return _pop(stack, len(stack) - place)[1:]


def _collect(kind: str, values: list[Any], stack: list[Any]) -> None:
    if kind == "TUPLE":
        stack.append(tuple(values))
    elif kind == "SETITEMS":
        stack[-1].update(zip(values[::2], values[1::2]))
    else:
        stack[-1].extend(values)
