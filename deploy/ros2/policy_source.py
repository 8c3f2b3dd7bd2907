"""From the name in a node's configuration to something that answers questions; torch is loaded only where the policy needs it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from kineflow.contracts import KineflowError, Policy


def load(name: str) -> Policy:
    """An exported folder, run, checkpoint or kineflow://NAME; or "module:function", which is called.

    Raises:
        KineflowError: no such thing, or what came is no policy.
    """
    if ":" in name and "//" not in name and not Path(name).exists():
        policy: Any = _made_by(name)
    else:
        from kineflow.deploy.loading import load_policy

        policy = load_policy(name)
    if not isinstance(policy, Policy):
        raise KineflowError(f"'{name}' made {type(policy).__name__}, which is no policy: it needs `contract` and `predict`")
    return policy


def _made_by(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise KineflowError(f"policy '{name}': {error}; name an importable 'module:function'") from error
