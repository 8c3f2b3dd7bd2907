"""The core's shapes and types are checked at run time in these tests (jaxtyping + beartype) and free in production."""

from __future__ import annotations

from jaxtyping import install_import_hook

CORE = ("paths", "predictions", "field", "guidance", "samplers", "losses", "regression", "objectives", "analytic")

install_import_hook([f"kineflow.policies.{name}" for name in CORE], "beartype.beartype")
