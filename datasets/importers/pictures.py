"""Single compressed pictures: JPEG and PNG to frames, and what can be said of their bytes without decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg

from kineflow.contracts import KineflowError
from kineflow.extras import require


def is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def decode_picture(data: bytes, what: str) -> np.ndarray:
    """RGB uint8 [H, W, 3], or uint16 [H, W] for a 16-bit grey PNG; grey and palette pictures become RGB, alpha is dropped.

    Raises:
        KineflowError: bytes that are no JPEG or PNG, or damaged ones; `what` names the picture.
    """
    try:
        if is_jpeg(data):
            return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data)
    except (ValueError, OSError, SyntaxError) as error:
        raise KineflowError(f"{what}: the picture cannot be decoded ({error}); copy the data again or drop it") from error
    raise KineflowError(f"{what}: neither JPEG nor PNG (it starts with {data[:8]!r}); convert the pictures first")


def _png(data: bytes) -> np.ndarray:
    import io

    image = require("PIL.Image", "to read pictures").open(io.BytesIO(data))
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    return np.asarray(image.convert("RGB"))


def decode_jpegs(jpegs: Sequence[bytes], shape: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] of one camera, whose frames are all `shape`; `names` say where each lies.

    Raises:
        KineflowError: bytes that are no JPEG, or a picture of another size; names it.
    """
    frames = np.empty((len(jpegs), *shape), np.uint8)
    for number, (data, name) in enumerate(zip(jpegs, names, strict=True)):
        if not is_jpeg(data):
            raise KineflowError(f"{name}: not a JPEG (it starts with {data[:8]!r}); copy the data again or drop the recording")
        frame = decode_picture(data, name)
        if frame.shape != tuple(shape):
            raise KineflowError(
                f"{name}: the picture is {list(frame.shape)}, the first of the data set is {list(shape)}; "
                "resize it, or import the recordings of each size apart"
            )
        frames[number] = frame
    return frames
