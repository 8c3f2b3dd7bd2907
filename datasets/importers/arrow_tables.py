"""Parquet and Feather tables of numbers and names, read by pyarrow without pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kineflow.contracts import KineflowError
from kineflow.extras import require


def read_columns(file: Path, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    """`columns` of the table in `file` (.parquet or .feather); numbers keep their type, text becomes an array of str.

    Raises:
        KineflowError: not such a table, damaged, a column that is missing, or one with empty cells; names file and column.
    """
    arrow = require("pyarrow", "to read Parquet and Feather")
    reader = require(f"pyarrow.{'parquet' if file.suffix == '.parquet' else 'feather'}", "to read Parquet and Feather")
    try:
        table = reader.read_table(file)
    except (arrow.ArrowException, OSError) as error:
        raise KineflowError(f"{file}: not a whole {file.suffix[1:]} table ({str(error)[:200]}); copy it again") from error
    found: dict[str, np.ndarray] = {}
    for name in columns:
        if name not in table.column_names:
            raise KineflowError(f"{file} has no column '{name}', only {sorted(table.column_names)}; not a table of this format")
        if table.column(name).null_count:
            raise KineflowError(f"{file}, column '{name}': {table.column(name).null_count} cells are empty; copy the file again")
        values = table.column(name).to_numpy()
        found[name] = values.astype(str) if values.dtype == object else values
    return found
