"""Optional packages: imported where they are used, with one sentence on what to install when they are not there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kineflow.contracts import KineflowError


def require(module: str, extra: str) -> Any:
    """The module, imported now.

    Raises:
        KineflowError: it is not installed; names the extra of kineflow that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise KineflowError(f"this needs the package '{module}' ({error}); pip install 'kineflow[{extra}]'") from error
