"""A file in memory without a file descriptor: a store recorded episode by episode has more shards than a process may open."""

from __future__ import annotations

import ctypes
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError

_PROT_READ, _MAP_SHARED, _FAILED = 1, 1, 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)) - 1


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, read-only uint8 `[size]`; pages are read when they are touched and shared with other processes.

    A file that somebody cuts off afterwards ends the process (SIGBUS) where its lost part is read, as with any mapping.

    Raises:
        KineflowError: the machine allows no further mapping; names the remedy.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        address = _libc().mmap(None, size, _PROT_READ, _MAP_SHARED, file.fileno(), 0)
    if address in (None, _FAILED):
        raise KineflowError(
            f"{path}: cannot be mapped ({os.strerror(ctypes.get_errno())}); join small segments with "
            "`kineflow data compact`, or raise vm.max_map_count"
        )
    return np.asarray(_Mapping(address, size))


class _Mapping:
    """What the arrays over it keep alive."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"data": (address, True), "shape": (size,), "typestr": "|u1", "version": 3}
        weakref.finalize(self, _libc().munmap, address, size).atexit = False  # threads may still read then


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
