"""ROS pictures to arrays without cv_bridge: sensor_msgs/Image and CompressedImage in, uint8 RGB or uint16 depth in mm out.

Takes anything with the message's fields, so it needs no ROS. Rows may be padded (`step`) and of either byte order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from kineflow.interface import CameraSpec, KineflowError

# encoding -> (dtype, channels, which channels make RGB)
_COLOURS: dict[str, tuple[type, int, tuple[int, ...]]] = {
    "rgb8": (np.uint8, 3, (0, 1, 2)),
    "bgr8": (np.uint8, 3, (2, 1, 0)),
    "rgba8": (np.uint8, 4, (0, 1, 2)),
    "bgra8": (np.uint8, 4, (2, 1, 0)),
    "mono8": (np.uint8, 1, (0, 0, 0)),
    "8UC1": (np.uint8, 1, (0, 0, 0)),
    "8UC3": (np.uint8, 3, (2, 1, 0)),  # OpenCV's own order
    "mono16": (np.uint16, 1, (0, 0, 0)),
}
_DEPTHS: dict[str, type] = {"16UC1": np.uint16, "mono16": np.uint16, "32FC1": np.float32}


class PictureError(KineflowError):
    """A message that is no picture of the kind that the policy needs."""


def colours(message: Any) -> UInt8[np.ndarray, "H W 3"]:
    """sensor_msgs/Image in colour or grey to RGB; 16-bit grey is scaled to 8.

    Raises:
        PictureError: unknown encoding, or data that do not fit the stated size.
    """
    if message.encoding not in _COLOURS:
        raise PictureError(f"pictures with encoding '{message.encoding}' are not known; publish one of {sorted(_COLOURS)}")
    dtype, channels, order = _COLOURS[message.encoding]
    pixels = _pixels(message, dtype, channels)
    if dtype is np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if order == (0, 1, 2) and channels == 3:
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels[..., order])


def depth_mm(message: Any) -> UInt16[np.ndarray, "H W"]:
    """sensor_msgs/Image of depth (REP 118: uint16 mm, or float32 m with NaN or infinity for nothing) to mm, 0 for nothing.

    Raises:
        PictureError: unknown encoding, or data that do not fit the stated size.
    """
    values = depth_as_sent(message)
    if values.dtype == np.uint16:
        return values
    metres = np.where(np.isfinite(values) & (values > 0), values, 0.0)
    return np.minimum(np.rint(1e3 * metres), 65535).astype(np.uint16)


def depth_as_sent(message: Any) -> UInt16[np.ndarray, "H W"] | Float32[np.ndarray, "H W"]:
    """sensor_msgs/Image of depth as it is: uint16 mm, or float32 m in which infinity (free) and NaN (nothing) differ.

    Raises:
        PictureError: unknown encoding, or data that do not fit the stated size.
    """
    if message.encoding not in _DEPTHS:
        raise PictureError(f"depth with encoding '{message.encoding}' is not known; publish one of {sorted(_DEPTHS)}")
    return np.ascontiguousarray(_pixels(message, _DEPTHS[message.encoding], 1)[..., 0])


def decompressed(message: Any, camera: CameraSpec) -> np.ndarray:
    """sensor_msgs/CompressedImage: JPEG of colours, PNG of colours or of depth (with compressed_depth_image_transport's header).

    Raises:
        PictureError: it cannot be decoded.
    """
    data, is_depth = bytes(message.data), camera.kind == "depth"
    if is_depth and "compressedDepth" in message.format:
        if message.format.startswith("32FC1"):
            raise PictureError("compressed depth of floats is not known; publish 16UC1 in mm")
        data = data[12:]  # two floats and an enum that matter to floats alone
    if data[:2] == b"\xff\xd8" and not is_depth:
        import simplejpeg

        try:
            return simplejpeg.decode_jpeg(data, "RGB")  # type: ignore[no-any-return]
        except ValueError as error:
            raise PictureError(f"a compressed picture is damaged: {error}") from error
    return _png(data, is_depth)


def fitted(picture: np.ndarray, camera: CameraSpec) -> np.ndarray:
    """Scaled to the policy's size: cut to its shape about the middle, then averaged over whole areas (nearest for depth).

    The cut keeps the angles of a pixel alike in both directions; who wants another view publishes it.
    """
    height, width = picture.shape[:2]
    if (height, width) == (camera.height, camera.width):
        return picture
    scale = min(height / camera.height, width / camera.width)
    rows, columns = round(scale * camera.height), round(scale * camera.width)
    top, left = (height - rows) // 2, (width - columns) // 2
    part = np.ascontiguousarray(picture[top : top + rows, left : left + columns])
    if camera.kind == "depth" or scale < 1:  # depth must not be mixed; enlarging has nothing to average
        return np.asarray(part[_nearest(rows, camera.height)][:, _nearest(columns, camera.width)])
    # Whole rows first: they are contiguous, and there are five times fewer of them afterwards.
    down = _sums(part.reshape(rows, -1), camera.height)
    turned = np.ascontiguousarray(down.reshape(camera.height, columns, 3).transpose(1, 0, 2)).reshape(columns, -1)
    areas = np.outer(_widths(columns, camera.width), _widths(rows, camera.height))
    mean = _sums(turned, camera.width).reshape(camera.width, camera.height, 3) / areas[..., None]
    return np.ascontiguousarray(np.rint(mean).astype(np.uint8).transpose(1, 0, 2))


def _sums(values: np.ndarray, wanted: int) -> np.ndarray:
    """uint32 sums of neighbouring rows `[N, M]` -> `[wanted, M]`. By rows: reduceat converts as it goes, ten times slower."""
    first, widths = _edges(len(values), wanted), np.diff(np.append(_edges(len(values), wanted), len(values)))
    total: np.ndarray = values[first].astype(np.uint32)
    for k in range(1, int(widths.max())):
        there = widths > k
        if there.all():
            total += values[first + k]
        else:
            total[there] += values[first[there] + k]
    return total


def _nearest(size: int, wanted: int) -> np.ndarray:
    return ((np.arange(wanted) + 0.5) * size / wanted).astype(np.int64)


def _edges(size: int, wanted: int) -> np.ndarray:
    return (np.arange(wanted) * size) // wanted


def _widths(size: int, wanted: int) -> np.ndarray:
    return np.diff(np.append(_edges(size, wanted), size)).astype(np.float32)


def _pixels(message: Any, dtype: type, channels: int) -> np.ndarray:
    height, width, step = int(message.height), int(message.width), int(message.step)
    needed = width * channels * np.dtype(dtype).itemsize
    data = np.frombuffer(message.data, np.uint8)
    if min(height, width) < 1 or step < needed or data.size < height * step:
        raise PictureError(
            f"a picture says {width} x {height}, {message.encoding}, {step} bytes a row, and has {data.size} bytes: not whole"
        )
    rows = data[: height * step].reshape(height, step)[:, :needed]
    kind = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    return np.ascontiguousarray(rows).view(kind).reshape(height, width, channels).astype(dtype, copy=False)


def _png(data: bytes, is_depth: bool) -> np.ndarray:
    from io import BytesIO

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data)) as picture:
            return np.asarray(picture, np.uint16) if is_depth else np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise PictureError(f"a compressed picture cannot be read ({len(data)} bytes): {error}; publish JPEG or PNG") from error
