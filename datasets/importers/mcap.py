"""Import MCAP logs: one file is one episode; a crashed recorder's file is read up to its last whole chunk.

Format: the MCAP specification (foxglove/mcap): 8 bytes of magic, then records of opcode uint8, length uint64, content; messages
lie in chunks (zstd, lz4 or none), each with a CRC-32. The framing is read here and not by the package `mcap`, whose stream
reader takes what a truncated record still has for the whole of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kineflow.contracts import KineflowError
from kineflow.datasets.importers.ros_log import open_logs
from kineflow.datasets.importers.ros_topics import LogMessage, Topic
from kineflow.datasets.importers.source import ImportOptions, Source
from kineflow.extras import require

MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _ATTACHMENT, _METADATA, _DATA_END = 3, 4, 5, 6, 9, 12, 15
_LARGEST_CHUNK = 4 << 30
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time


@dataclass(frozen=True)
class McapLog:
    """One MCAP file as a `Log`."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.name

    def messages(self, left_out: dict[str, str] | None = None) -> Iterator[LogMessage]:
        """All messages in the order of the file; what the file holds besides goes into `left_out` as thing -> reason.

        Raises:
            KineflowError: not MCAP, or a chunk whose bytes do not match its checksum; names file and offset.
        """
        topics = _Topics(self.path)
        with open(self.path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise KineflowError(f"{self.path} is not an MCAP file (it does not start with the MCAP magic); give another file")
            for opcode, offset, content in _records(self.path, file, left_out):
                if opcode in (_ATTACHMENT, _METADATA) and left_out is not None:
                    kind = "attachment" if opcode == _ATTACHMENT else "metadata record"
                    left_out[f"{self.label}: {kind} at byte {offset}"] = "not a message"
                inner = _inside(content, self.path, offset) if opcode == _CHUNK else [(opcode, content)]
                for kind_of_record, data in inner:
                    found = topics.take(kind_of_record, data, offset)
                    if found is not None:
                        yield found


def open_mcap(path: Path, options: ImportOptions) -> Source:
    """One .mcap file, or a folder whose .mcap files are episodes in the order of their names. See ros_log.py for what is
    carried and how the action is chosen.

    Raises:
        KineflowError: no MCAP there, damaged chunks, or no stream that can be the action; says what to write in the schema.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.mcap"))
    if not files:
        raise KineflowError(f"{path} holds no .mcap file; give a file or the folder of some (a rosbag2 folder: --format rosbag2)")
    return open_logs("mcap", path, [McapLog(file) for file in files], options)


class _Topics:
    """Channels and schemas met so far; turns message records into LogMessages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._channels: dict[int, Topic] = {}

    def take(self, opcode: int, data: bytes, offset: int) -> LogMessage | None:
        try:
            if opcode == _MESSAGE:
                channel, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(data)
                if log_ns >= 2**63:
                    raise struct.error(f"log time {log_ns} ns is beyond the year 2262")
                return LogMessage(self._channels[channel], log_ns, data[_MESSAGE_HEAD.size :])
            if opcode == _SCHEMA:
                number = struct.unpack_from("<H", data)[0]
                name, at = _text(data, 2)
                encoding, at = _text(data, at)
                # A definition may be binary (protobuf): then nobody reads it here.
                self._schemas[number] = (name, encoding, _part(data, at)[0].decode(errors="replace"))
            if opcode == _CHANNEL:
                number, schema = struct.unpack_from("<HH", data)
                topic, at = _text(data, 4)
                encoding = _text(data, at)[0]
                self._channels[number] = Topic(topic, *self._schemas.get(schema, ("", "", "")), encoding)
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            problem = f"a record of kind {opcode} cannot be read ({type(error).__name__}: {error})"
            raise KineflowError(f"{self._path}, byte {offset}: {problem}; try `mcap recover`") from error
        return None


def _records(path: Path, file: BinaryIO, left_out: dict[str, str] | None) -> Iterator[tuple[int, int, bytes]]:
    """(opcode, offset, content) up to the end of the data section, or to the last whole record of a truncated file."""
    size = path.stat().st_size
    while (offset := file.tell()) < size:
        head = file.read(9)
        length = struct.unpack("<Q", head[1:])[0] if len(head) == 9 else size
        if offset + 9 + length > size:
            break
        if head[0] == _DATA_END:
            return
        yield head[0], offset, file.read(length)
    if left_out is not None:
        lost = f"{size - offset} bytes of an unfinished record" if offset < size else "nothing after the last whole record"
        left_out[f"{path.name}: end"] = f"the recorder did not finish the file; read up to byte {offset}, {lost} lost"


def _inside(content: bytes, path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """The records of one chunk; a chunk whose length was written is whole, so a wrong one is damage and refused."""
    remedy = "the file is damaged; copy it again, or keep what is whole with `mcap recover`"
    try:
        size, crc = struct.unpack_from("<QI", content, 16)
        compression, at = _text(content, 28)
        length = struct.unpack_from("<Q", content, at)[0]
        packed = content[at + 8 : at + 8 + length]
        data = _decompressed(compression, packed, size)
    except (struct.error, UnicodeDecodeError, ValueError, RuntimeError) as error:
        raise KineflowError(f"{path}, chunk at byte {offset}: it cannot be decompressed ({error}); {remedy}") from error
    if len(data) != size or (crc and zlib.crc32(data) != crc):
        raise KineflowError(f"{path}, chunk at byte {offset}: its bytes do not match their CRC-32; {remedy}")
    position = 0
    while position < len(data):
        if position + 9 > len(data):
            raise KineflowError(f"{path}, chunk at byte {offset}: its last record is not whole; {remedy}")
        length = struct.unpack_from("<Q", data, position + 1)[0]
        end = position + 9 + length
        if end > len(data):
            raise KineflowError(f"{path}, chunk at byte {offset}: a record ends after the chunk; {remedy}")
        yield data[position], data[position + 9 : end]
        position = end


def _decompressed(compression: str, packed: bytes, size: int) -> bytes:
    if compression == "":
        return packed
    if size > _LARGEST_CHUNK:  # or a damaged length would be believed and its memory asked for
        raise ValueError(f"{size} bytes of one chunk")
    if compression == "lz4":
        return bytes(require("lz4.frame", "to read compressed MCAP").decompress(packed))
    if compression == "zstd":
        zstandard = require("zstandard", "to read compressed MCAP")
        try:
            return bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=size))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    raise ValueError(f"unknown compression '{compression}'")


def _text(data: bytes, at: int) -> tuple[str, int]:
    part, end = _part(data, at)
    return part.decode(), end


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    length = struct.unpack_from("<I", data, at)[0]
    end = at + 4 + length
    if end > len(data):
        raise struct.error(f"a field of {length} bytes at byte {at} of {len(data)}")
    return data[at + 4 : end], end
