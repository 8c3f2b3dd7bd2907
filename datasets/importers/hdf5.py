"""HDF5 files of others, opened and walked with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.extras import require

PURPOSE = "to read HDF5"


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The file for reading, for the time of one read: nothing stays open across forks.

    Raises:
        KineflowError: not HDF5, or damaged: also where a read inside the block finds that out.
    """
    h5py = require("h5py", PURPOSE)
    _refuse_others(h5py, file)
    try:
        with h5py.File(file, "r") as found:
            yield found
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError for broken B-trees
        raise KineflowError(f"{file}: not a whole HDF5 file ({str(error)[:200]}); copy it again") from error
    except KeyError as error:
        if "Unable to" not in str(error):  # not of h5py
            raise
        problem = f"an object in it cannot be opened ({str(error)[:200]})"
        raise KineflowError(f"{file}: {problem}; copy it again, with all files that it links to, as one file") from error


def _refuse_others(h5py: Any, file: Path) -> None:
    """Files that never were HDF5, apart from damaged ones: the remedy differs."""
    if file.is_dir():
        raise KineflowError(f"{file} is a folder; give the HDF5 file itself")
    if file.is_file() and file.stat().st_size and not h5py.is_hdf5(file):
        with open(file, "rb") as others:
            start = others.read(8)
        remedy = "give the HDF5 file, or name the format of this one with --format"
        raise KineflowError(f"{file} is not an HDF5 file (it starts with {start!r}); {remedy}")


def leaves(group: Any, prefix: str = "") -> dict[str, Any]:
    """Path -> data set of everything below `group`; links to other places and files are not followed."""
    h5py = require("h5py", PURPOSE)
    found: dict[str, Any] = {}
    for name in sorted(group):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            found |= leaves(item, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = item
    return found


def text(value: Any) -> str:
    """An attribute or scalar that holds text, or an array of its bytes."""
    if isinstance(value, np.ndarray):
        value = value.tobytes() if value.dtype == np.uint8 else value.item() if value.shape == () else value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def json_of(value: Any, where: str) -> Any:
    """An attribute or scalar that holds JSON.

    Raises:
        KineflowError: it does not; `where` names it.
    """
    try:
        return json.loads(text(value))
    except ValueError as error:
        raise KineflowError(f"{where}: not JSON ({error}); correct it") from error
