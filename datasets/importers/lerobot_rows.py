"""Rows of one episode out of LeRobot's parquet files, and columns as arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.datasets.importers.lerobot_layout import PURPOSE, Listed
from kineflow.datasets.importers.pictures import decode_picture, is_jpeg
from kineflow.extras import require

_COPY = "the file is damaged or not whole, copy the data set again"


class RowReader:
    """Reads the rows of an episode; keeps the row groups that it read last, since the next episode may be in them, too."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._file: Path | None = None
        self._opened: Any = None
        self._episodes = np.zeros(0, np.int64)
        self._held: tuple[list[int], Any] = ([], None)  # row groups of the file, and their table

    def read(self, listed: Listed) -> Any:
        """An Arrow table of `listed.length` rows, in file order.

        Raises:
            KineflowError: a missing or damaged file, a missing column, or another number of rows than the metadata say.
        """
        pyarrow, parquet = require("pyarrow", PURPOSE), require("pyarrow.parquet", PURPOSE)
        try:
            if self._file != listed.data:
                self._open(parquet, listed.data)
            rows = np.flatnonzero(self._episodes == listed.index)
            if len(rows) != listed.length or rows[-1] - rows[0] + 1 != len(rows):
                order = "in one piece " if len(rows) == listed.length else ""
                raise KineflowError(
                    f"{listed.data}, episode {listed.index}: {len(rows)} rows, the metadata say {listed.length} {order}; {_COPY}"
                )
            groups, first = self._groups(int(rows[0]), int(rows[-1]))
            if self._held[0] != groups:
                self._held = (groups, self._opened.read_row_groups(groups, self._columns))
        except FileNotFoundError:
            raise KineflowError(f"episode {listed.index}: {listed.data} is missing; copy the data set again") from None
        except (OSError, pyarrow.ArrowException) as error:
            self._file = None
            raise KineflowError(f"{listed.data}, episode {listed.index}: {str(error)[:200]}; {_COPY}") from error
        return self._held[1].slice(int(rows[0]) - first, listed.length)

    def _open(self, parquet: Any, file: Path) -> None:
        self._file, self._held = None, ([], None)
        self._opened = parquet.ParquetFile(file, page_checksum_verification=True)  # where the pages have one: ours do
        missing = sorted({*self._columns, "episode_index"} - set(self._opened.schema_arrow.names))
        if missing:
            remedy = "LeRobot or meta/info.json asks for it: restore it or correct the declaration"
            raise KineflowError(f"{file}: no column {', '.join(missing)}; {remedy}")
        self._episodes = self._opened.read(["episode_index"])["episode_index"].to_numpy()
        self._file = file

    def _groups(self, first: int, last: int) -> tuple[list[int], int]:
        """Row groups that hold rows `first` to `last`, and the row with which they begin."""
        found: list[int] = []
        begins = start = 0
        for group in range(self._opened.metadata.num_row_groups):
            stop = start + self._opened.metadata.row_group(group).num_rows
            if start <= last and stop > first:
                begins = begins if found else start
                found.append(group)
            start = stop
        return found, begins


def vectors(column: Any, width: int, what: str) -> np.ndarray:
    """A column of numbers, or of lists of numbers however deep, as [T, width] in its own dtype.

    Raises:
        KineflowError: missing values, or rows of another size.
    """
    types = require("pyarrow.types", PURPOSE)
    values, rows = column.combine_chunks(), len(column)
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        if values.null_count:
            raise KineflowError(f"{what}: {values.null_count} of {rows} rows are empty; fill or drop them")
        values = values.flatten()
    if values.null_count:
        raise KineflowError(f"{what}: {values.null_count} values are empty; fill or drop them")
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "fiub" or numbers.size != rows * width:
        raise KineflowError(
            f"{what}: {numbers.size} values of {numbers.dtype} in {rows} rows, meta/info.json says {width} a row; correct it"
        )
    return np.asarray(numbers.reshape(rows, width))


def pictures(column: Any, root: Path, shape: tuple[int, ...], what: str) -> tuple[np.ndarray, list[bytes]]:
    """A column of encoded pictures as frames [T, *shape], and their bytes where all are JPEG (else none).

    Raises:
        KineflowError: a missing or damaged picture, or one of another size; names the frame.
    """
    encoded = [_bytes(entry, root, f"{what}, frame {row}") for row, entry in enumerate(column.to_pylist())]
    kind = np.uint8 if len(shape) == 3 else np.uint16
    frames = np.empty((len(encoded), *shape), kind)
    for row, data in enumerate(encoded):
        name = f"{what}, frame {row}"
        picture = _tiff(data, name) if data[:4] in (b"II*\0", b"MM\0*") else decode_picture(data, name)
        if picture.shape != shape or picture.dtype != kind:
            said = f"meta/info.json says {np.dtype(kind).name} {list(shape)}"
            raise KineflowError(f"{name}: {picture.dtype} {list(picture.shape)}, {said}; correct it")
        frames[row] = picture
    return frames, encoded if all(map(is_jpeg, encoded)) else []


def _bytes(entry: Any, root: Path, what: str) -> bytes:
    data, path = (entry.get("bytes"), entry.get("path")) if isinstance(entry, dict) else (entry, None)
    if data is not None:
        return bytes(data)
    file = root / str(path)
    if path is None or ".." in Path(path).parts or not file.is_file():
        raise KineflowError(f"{what}: neither bytes nor a file of the data set (path {path!r}); copy the data set again")
    return file.read_bytes()


def _tiff(data: bytes, what: str) -> np.ndarray:
    image = require("PIL.Image", "to read depth pictures")
    try:
        opened = np.asarray(image.open(io.BytesIO(data), formats=["TIFF"]))
    except (OSError, ValueError, SyntaxError) as error:
        raise KineflowError(f"{what}: the picture cannot be decoded ({error}); copy the data again or drop it") from error
    return opened
