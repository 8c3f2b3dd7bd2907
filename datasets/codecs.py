"""How frames of one camera are stored in one segment: chosen by probing, encoded and decoded here.

    lz4hc   blosc lz4hc, lossless         RGB that compresses at least 3 times (simulators); depth always, bytes shuffled
    jpeg    zarr codec `kineflow.jpeg`    other RGB, quality 95; or the source's own JPEG bytes, byte for byte

Every encoded frame is followed by its crc32c. The policy of a camera (`CameraRecord.codec`) says what may be chosen:
"auto", "lossless" (source JPEGs are then decoded) or "jpeg:QUALITY". JPEG is decoded as libjpeg-turbo does with its
accurate DCT and smooth upsampling, which is what `simplejpeg` does by default.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simplejpeg
from numcodecs import blosc

from kineflow.contracts import KineflowError
from kineflow.datasets.checksums import CorruptData, with_crc

POLICIES = ("auto", "lossless", "jpeg:<1 to 100>")
LZ4HC_LEVEL = 7  # of what is written; on PushT smaller and faster to decode than 5, at the price of 1.3 times the encoding
PROBED_FRAMES = 64
LOSSLESS_FROM = 3.0  # times smaller: below it natural images cost 4 to 8 times the disk of JPEG
QUALITY = 95
FULL_COLOUR_FROM = 95  # quality from which chroma keeps its resolution
_LOSSLESS_NAMES = ("lossless", "blosc-lz4hc")  # the second: stores of format version 1
_JPEG_POLICY = re.compile(r"jpeg:(100|[1-9]\d?)")
blosc.use_threads = False  # its pool costs more than it gives at the size of a frame, and does not survive a fork
_BLOSC_SIZES = struct.Struct("<I4xI")  # decoded and encoded bytes, in the header
_CRC32C = {"name": "crc32c"}


@dataclass(frozen=True)
class FrameCodec:
    """The codec of one camera array. `quality` is "source" where the JPEG bytes are the source's own.

    `probe_ratio` is how many times smaller lz4hc made the probed frames; None where nothing was probed.
    """

    name: Literal["lz4hc", "jpeg"]
    quality: int | Literal["source"] | None = None
    subsampling: str | None = None  # "444", "422", "420", ... of the chroma
    probe_ratio: float | None = None

    @property
    def lossy(self) -> bool:
        """What is read differs from what was given; False for source JPEGs, whose bytes are kept."""
        return self.name == "jpeg" and self.quality != "source"

    def same_bytes(self, other: FrameCodec) -> bool:
        """True when frames of both can be in one array."""
        return (self.name, self.quality) == (other.name, other.quality)

    @property
    def name_and_quality(self) -> str:
        if self.name == "lz4hc":
            return self.name
        return f"jpeg {'of the source' if self.quality == 'source' else f'q{self.quality}'} {self.subsampling}"

    def attributes(self) -> dict[str, Any]:
        """Attributes of the array, from which `from_metadata` makes this again."""
        known = {"codec": self.name, "quality": self.quality, "subsampling": self.subsampling, "probe_ratio": self.probe_ratio}
        return {name: value for name, value in known.items() if value is not None}

    def zarr_codecs(self, frame_shape: Sequence[int]) -> list[dict[str, Any]]:
        """The `codecs` of one frame in Zarr metadata."""
        if self.name == "jpeg":
            given = {name: value for name, value in self.attributes().items() if name in ("quality", "subsampling")}
            return [{"name": "kineflow.jpeg", "configuration": given}, _CRC32C]
        depth = len(frame_shape) == 2
        shuffle = {"shuffle": "shuffle", "typesize": 2} if depth else {"shuffle": "noshuffle", "typesize": 1}
        configuration = {"cname": "lz4hc", "clevel": LZ4HC_LEVEL, **shuffle, "blocksize": 0}
        plain = {"name": "bytes", "configuration": {"endian": "little"}} if depth else {"name": "bytes"}
        return [plain, {"name": "blosc", "configuration": configuration}, _CRC32C]


LZ4HC = FrameCodec("lz4hc")


def from_metadata(codecs: Any, attributes: Any, frame_shape: Sequence[int]) -> FrameCodec:
    """The codec that an array's metadata describe; arrays of format version 1 have no attributes.

    Raises:
        ValueError: it is none of ours.
    """
    found = FrameCodec(**{"name" if key == "codec" else key: value for key, value in ({"codec": "lz4hc"} | attributes).items()})
    expected = found.zarr_codecs(frame_shape)
    if found.name == "lz4hc":  # no matter to who decodes
        expected[1]["configuration"]["clevel"] = codecs[1]["configuration"]["clevel"]
    if codecs != expected:
        raise ValueError(f"codecs {codecs} are not the ones of this format version, {expected}")
    return found


def check_policy(policy: str, camera: str) -> None:
    """Refuse a policy that means nothing.

    Raises:
        KineflowError: names the camera and what a policy can be.
    """
    if policy not in ("auto", *_LOSSLESS_NAMES) and not _JPEG_POLICY.fullmatch(policy):
        raise KineflowError(f"camera '{camera}': codec '{policy}' is not known; choose one of {', '.join(POLICIES)}")


def choose(policy: str, frames: np.ndarray, source_jpeg: Sequence[bytes] | None = None) -> FrameCodec:
    """The codec for `frames` ([n, H, W, 3] uint8 or [n, H, W] uint16) under `policy`; a probe of at most 64 frames decides
    "auto" where there are no source JPEGs."""
    if frames.dtype == np.uint16 or policy in _LOSSLESS_NAMES:
        return LZ4HC
    if source_jpeg is not None:
        _, _, _, subsampling = simplejpeg.decode_jpeg_header(source_jpeg[0])
        return FrameCodec("jpeg", "source", str(subsampling))
    if policy != "auto":
        return _jpeg(int(policy.removeprefix("jpeg:")))
    return _probe(frames[np.unique(np.linspace(0, len(frames) - 1, PROBED_FRAMES).round().astype(int))])


def _probe(frames: np.ndarray) -> FrameCodec:
    size = sum(map(len, encode_frames(frames, LZ4HC)))
    ratio = round(frames.nbytes / size, 2)
    if ratio < LOSSLESS_FROM and sum(map(len, encode_frames(frames, _jpeg(QUALITY)))) < size:  # tiny frames: JPEG is larger
        return _jpeg(QUALITY, ratio)
    return FrameCodec("lz4hc", probe_ratio=ratio)


def encode_frames(frames: np.ndarray, codec: FrameCodec) -> list[bytes]:
    """Each of `frames` as it lies in its shard. The same pixels give the same bytes, except where libjpeg-turbo changes."""
    return [encode_frame(frame, codec) for frame in frames]


def encode_frame(frame: np.ndarray, codec: FrameCodec) -> bytes:
    frame = np.ascontiguousarray(frame)
    if codec.name == "jpeg":
        return with_crc(encode_jpeg(frame, codec))
    shuffle, size = (blosc.SHUFFLE, 2) if frame.dtype == np.uint16 else (blosc.NOSHUFFLE, 1)
    values = frame.astype(frame.dtype.newbyteorder("<"), copy=False).reshape(-1)
    return with_crc(blosc.compress(values, b"lz4hc", LZ4HC_LEVEL, shuffle, 0, size))


def encode_jpeg(frame: np.ndarray, codec: FrameCodec) -> bytes:
    quality, subsampling = (QUALITY, "444") if codec.quality in (None, "source") else (codec.quality, codec.subsampling)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", subsampling))


def keep_jpegs(sources: Sequence[bytes], height: int, width: int, what: str) -> list[bytes]:
    """Source JPEGs as they lie in a shard: their own bytes, each decoded once to know that it can be.

    Raises:
        KineflowError: one of them is damaged or has another size; names it as `what`, frame number.
    """
    image = np.empty((height, width, 3), np.uint8)
    for number, source in enumerate(sources):
        try:
            decode_jpeg(source, image)
        except CorruptData as error:
            raise KineflowError(f"{what}, frame {number}: the source's JPEG cannot be kept: {error}; drop or repair it") from None
    return [with_crc(bytes(source)) for source in sources]


def decode_frame(payload: bytes | memoryview, codec: FrameCodec, out: np.ndarray) -> None:
    """Decode `payload` (without its crc32c) into `out`, C-contiguous, of the frame's shape and dtype.

    Raises:
        CorruptData: the payload is not such a frame.
    """
    if codec.name == "jpeg":
        decode_jpeg(payload, out)
        return
    out.reshape(-1).view(np.uint8).data[:] = decode_lz4hc(payload, out.nbytes)


def decode_lz4hc(payload: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes of a frame. Without a buffer to decode into, because that and a copy cost less than its checks.

    Raises:
        CorruptData: the payload is not such a frame.
    """
    if len(payload) < 16 or _BLOSC_SIZES.unpack_from(payload, 4) != (size, len(payload)):
        raise CorruptData(f"it is not a blosc buffer of {size} bytes")
    try:
        return bytes(blosc.decompress(payload))
    except (RuntimeError, ValueError) as error:
        raise CorruptData(f"it cannot be decompressed ({error})") from None


def decode_jpeg(data: bytes | memoryview, out: np.ndarray) -> None:
    """Decode a JPEG of exactly the size of `out`, uint8 [H, W, 3].

    Raises:
        CorruptData: damaged, or another size.
    """
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", buffer=out.reshape(-1))
    except ValueError as error:
        raise CorruptData(f"it is not a JPEG of {out.shape[1]} x {out.shape[0]} pixels ({error})") from None
    if image.shape != out.shape:
        raise CorruptData(
            f"it is a JPEG of {image.shape[1]} x {image.shape[0]} pixels instead of {out.shape[1]} x {out.shape[0]}"
        )


def check_jpeg(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG that can be decoded to its end, found at an eighth of its size: six tenths of the time.

    Raises:
        CorruptData: no JPEG, or one that is cut or damaged.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise CorruptData(f"these bytes are not a JPEG image ({error})") from None
    try:
        simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        raise CorruptData(f"this JPEG of {height} x {width} cannot be decoded ({error})") from None
    return height, width


def _jpeg(quality: int, ratio: float | None = None) -> FrameCodec:
    return FrameCodec("jpeg", quality, "444" if quality >= FULL_COLOUR_FROM else "420", ratio)
