"""Dataclasses to plain data and JSON; standard library only."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and infinities to what JSON can hold; an infinite bound becomes the string "inf"/"-inf"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def to_json(value: Any) -> str:
    """Indented JSON of a contract value; NaN is refused."""
    return json.dumps(to_plain(value), indent=2, allow_nan=False) + "\n"
