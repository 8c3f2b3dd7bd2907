"""Zarr codec `kineflow.jpeg`, by which zarr-python opens our JPEG segments; found through the entry-point group `zarr.codecs`.

A chunk is one RGB frame, uint8 with shape [1, ..., H, W, 3], stored as one JPEG (JFIF) of its size. `configuration` says
how frames were encoded and is not needed to decode them: `quality` (1 to 100, or "source": bytes kept as they came) and
`subsampling` of the chroma ("444", "420", ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

from kineflow.datasets.codecs import FrameCodec, decode_jpeg, encode_jpeg


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """See the module."""

    quality: int | str = 95
    subsampling: str = "444"
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JpegCodec:
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        return {"name": "kineflow.jpeg", "configuration": {"quality": self.quality, "subsampling": self.subsampling}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if len(shape) < 3 or shape[-1] != 3:
            raise ValueError(f"kineflow.jpeg stores frames [..., H, W, 3]; the array has shape {shape}")

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        frame = np.empty(chunk_spec.shape[-3:], np.uint8)
        decode_jpeg(chunk_bytes.to_bytes(), frame)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(frame.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        frame = chunk_array.as_numpy_array().reshape(chunk_spec.shape[-3:])
        quality: Any = self.quality
        return chunk_spec.prototype.buffer.from_bytes(encode_jpeg(frame, FrameCodec("jpeg", quality, self.subsampling)))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size of a JPEG depends on its contents")
