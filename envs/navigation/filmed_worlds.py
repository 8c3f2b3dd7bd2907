"""A folder of filmed worlds, one file of arrays each: filled where it was left, and only with films of one kind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from kineflow.contracts import KineflowError


class Worlds(Protocol):
    """A dataclass that says how worlds are filmed, and which: `worlds` of them from number `first_world` on."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def first_world(self) -> int: ...
    @property
    def worlds(self) -> int: ...


def film_folder(
    config: Worlds,
    folder: Path,
    film: Callable[[int], Mapping[str, np.ndarray] | None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """A file `world-<number>.npz` in `folder` for each world that `film` gives arrays of; those that are there stay.

    Raises:
        KineflowError: the folder holds worlds that were filmed otherwise.
    """
    how = {name: value for name, value in asdict(config).items() if name not in ("first_world", "worlds")}
    described, note = json.dumps(how, sort_keys=True), folder / "filmed.json"
    folder.mkdir(parents=True, exist_ok=True)
    if note.exists() and note.read_text() != described:
        raise KineflowError(f"{folder} holds worlds filmed as {note.read_text()}, not as {described}; name another folder")
    note.write_text(described)
    files = []
    for done, number in enumerate(range(config.first_world, config.first_world + config.worlds)):
        progress(done, config.worlds)
        file = folder / f"world-{number}.npz"
        if not file.exists():
            arrays = film(number)
            if arrays is None:
                continue
            draft = file.with_suffix(".draft")
            with draft.open("wb") as out:
                np.savez_compressed(out, allow_pickle=False, **arrays)
            os.replace(draft, file)
        files.append(file)
    progress(config.worlds, config.worlds)
    return files


def read_arrays(file: Path, names: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """Arrays of those names. Raises KineflowError for a file that is damaged or no file of `what`."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise KineflowError(f"{file} is no file of {what} ({error}); delete it, and it is filmed again") from None
