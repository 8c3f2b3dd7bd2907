"""Finds and calls the compiled reader of frames (frames.c); everything works without it, only slower.

It is built when Kineflow is installed where a C compiler is. JPEG needs a libturbojpeg of the system as well, and is only
used if it gives exactly the pixels of `simplejpeg`, by which the stored frames are defined. KINEFLOW_NATIVE=0 switches
it off.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

_INTERFACE_VERSION = 1
_TURBOJPEG = ("libturbojpeg.so.0", "libturbojpeg.0.dylib")
_REBUILD = "install Kineflow again where a C compiler is (`pip install .`)"
OK, OUT_OF_RANGE, BAD_CHECKSUM, BAD_FRAME, NO_MEMORY = range(5)  # as in frames.c
CODECS = {"lz4hc": 0, "jpeg": 1}

# One line for each frame of a camera, and one for each mapped shard.
PLACE = np.dtype([("offset", "<i8"), ("length", "<i4"), ("shard", "<i4")])
SHARD = np.dtype([("address", "<u8"), ("size", "<u8"), ("codec", "<u8")])


@dataclass(frozen=True)
class NativeStatus:
    """Whether batches of frames are read by compiled code, and why not."""

    lossless: bool
    jpeg: bool
    reason: str

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.jpeg:
            return "frames are read by compiled code"
        if self.lossless:
            return f"lossless frames are read by compiled code, JPEG by Python ({self.reason})"
        return f"frames are read by Python, lossless ones 3 times slower than by compiled code ({self.reason})"


class _TurboJpeg(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("init", "header", "decompress", "destroy")]


class NativeFrames:
    """The library; its calls may run in many threads at once and do not hold the GIL."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.uses_crc_instruction = bool(library.kineflow_prepare(0))
        library.kineflow_crc32c.restype = ctypes.c_uint32
        self._library = library
        self._read = library.kineflow_read_frames
        number = ctypes.c_int64
        array: list[Any] = [ctypes.c_void_p, number]
        self._read.restype = number
        self._read.argtypes = [*array, *array, *array, ctypes.c_void_p, number, number, number, ctypes.c_void_p, ctypes.c_void_p]
        self._jpeg = _TurboJpeg()
        self.jpeg_problem = self._find_turbojpeg()

    def crc32c(self, data: bytes, *, portable: bool = False) -> int:
        """For tests: by the way that is in use, or the one of processors without the instruction."""
        self._library.kineflow_prepare(int(portable))
        try:
            return int(self._library.kineflow_crc32c(data, ctypes.c_uint64(len(data))))
        finally:
            self._library.kineflow_prepare(0)

    def batches(self, shards: np.ndarray, places: np.ndarray, frame_shape: tuple[int, ...], *, jpeg: bool) -> Batches:
        """Reader of the frames that `places` (PLACE) says lie in `shards` (SHARD); `jpeg`: some may be JPEG."""
        return Batches(self._read, (shards, places), frame_shape, self._jpeg if jpeg else _TurboJpeg())

    def _find_turbojpeg(self) -> str:
        """Take the functions of the system's libturbojpeg; returns why that cannot be, or nothing."""
        for name in _TURBOJPEG:
            try:
                turbo = ctypes.CDLL(name)
                found = [turbo.tjInitDecompress, turbo.tjDecompressHeader3, turbo.tjDecompress2, turbo.tjDestroy]
            except (OSError, AttributeError):
                continue
            self._turbo = turbo
            self._jpeg = _TurboJpeg(*(ctypes.cast(function, ctypes.c_void_p) for function in found))
            if self._same_pixels():
                return ""
            self._jpeg = _TurboJpeg()
            return f"{name} does not give the pixels of simplejpeg"
        return f"no {_TURBOJPEG[0]} on this machine"

    def _same_pixels(self) -> bool:
        rng = np.random.default_rng(0)
        image = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((7, 9, 1), np.int64)) + rng.integers(-20, 20, (35, 54, 3))
        image = np.clip(image, 0, 255).astype(np.uint8)
        for subsampling in ("444", "422", "420", "440", "Gray"):
            payload = simplejpeg.encode_jpeg(image, 90, "RGB", subsampling)
            if not np.array_equal(self._decoded(payload, image.shape), simplejpeg.decode_jpeg(payload)):
                return False
        return True

    def _decoded(self, payload: bytes, shape: tuple[int, ...]) -> np.ndarray:
        data = np.frombuffer(payload + self.crc32c(payload).to_bytes(4, "little"), np.uint8)
        shards = np.array([(data.ctypes.data, len(data), CODECS["jpeg"])], SHARD)
        out = np.zeros((1, *shape), np.uint8)
        self.batches(shards, np.array([(0, len(data), 0)], PLACE), shape, jpeg=True).read(np.zeros(1, np.int64), out)
        return np.asarray(out[0])


class Batches:
    """Calls of one camera's frames; what does not change between them is kept ready."""

    def __init__(self, call: Any, tables: tuple[np.ndarray, np.ndarray], frame_shape: tuple[int, ...], jpeg: _TurboJpeg) -> None:
        self._call, self._kept = call, (tables, jpeg)
        self._tables = [value for table in tables for value in (table.ctypes.data, len(table))]
        height, width, *channels = frame_shape
        self._rest = (height, width, 3 if channels else 2, ctypes.addressof(jpeg))

    def read(self, rows: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """Frames `rows` (int64 `[K]`) into `out` (`[K, H, W, 3]` uint8 or `[K, H, W]` uint16), both C-contiguous.

        Returns the status and how many frames were read before the one that it is about.
        """
        failed = ctypes.c_int64(0)
        row_data, out_data = rows.__array_interface__["data"][0], out.__array_interface__["data"][0]
        status = self._call(*self._tables, row_data, len(rows), out_data, *self._rest, ctypes.byref(failed))
        return int(status), failed.value


def native() -> NativeFrames | None:
    """The compiled reader; None where it is switched off, was not built or is of another version."""
    return None if _switched_off() else _load()[0]


def native_status() -> NativeStatus:
    if _switched_off():
        return NativeStatus(False, False, "switched off by KINEFLOW_NATIVE=0")
    library, problem = _load()
    if library is None:
        return NativeStatus(False, False, problem)
    return NativeStatus(True, not library.jpeg_problem, library.jpeg_problem)


def _switched_off() -> bool:
    return os.environ.get("KINEFLOW_NATIVE") == "0"


@cache
def _load() -> tuple[NativeFrames | None, str]:
    return load(Path(__file__).parent)


def load(folder: Path) -> tuple[NativeFrames | None, str]:
    """The library below `folder`, or why there is none that can be used."""
    found = [file for suffix in EXTENSION_SUFFIXES if (file := folder / f"_frames{suffix}").exists()]
    if not found:
        return None, f"it was not built; {_REBUILD}"
    try:
        library: Any = ctypes.CDLL(str(found[0]))
        version = library.kineflow_interface_version()
    except (OSError, AttributeError) as error:
        return None, f"{found[0]} cannot be loaded ({error}); {_REBUILD}"
    if version != _INTERFACE_VERSION:
        return None, f"{found[0]} was built from another version of Kineflow; {_REBUILD}"
    return NativeFrames(library), ""
