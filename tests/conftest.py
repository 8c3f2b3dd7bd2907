"""Suite-wide rules: shapes checked at run time, threads, skips (in CI a failure unless tests/expected_skips.txt says why), and
tests of real time that are run again on a busy machine (tests/run_again.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from tests.run_again import pytest_report_teststatus, pytest_runtest_protocol, pytest_terminal_summary  # noqa: F401

# Shapes and types of everything between an observation and a chunk are checked at run time in tests, and free in production.
# Here, before anything imports these modules.
CHECKED = (
    "paths",
    "predictions",
    "field",
    "guidance",
    "samplers",
    "stepping",
    "multistep",
    "time_grids",
    "losses",
    "regression",
    "objectives",
    "analytic",
    "policy",
    "observed",
    "normaliser",
    "time_densities",
    "couplings",
    "flow_map",
    "adaptive",
    "streaming",
    "question",
    "flow_map_losses",
    "mix_flow",
    "cost_guidance",
    "nearest",
    "constraints",
    "inpainting",
    "real_time_chunking",
    "refinement",
    "conservativity",
)
FOLDERS = ("heads", "encoders", "search", "distillation", "compose")
MODULES = [f"kineflow.policies.{name}" for name in (*CHECKED, *FOLDERS)]
install_import_hook(MODULES, "beartype.beartype")

# How long an example takes is a matter of what else the machine does.
settings.register_profile("any machine", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

EXPECTED = Path(__file__).parent / "expected_skips.txt"
_skipped: list[tuple[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append((report.nodeid, str(report.longrepr[2])))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") != "true":
        return
    allowed = [line.split("#")[0].strip() for line in EXPECTED.read_text().splitlines() if line.split("#")[0].strip()]
    surprising = [(node, reason) for node, reason in _skipped if not any(node.startswith(a) for a in allowed)]
    for node, reason in surprising:
        print(f"\nskipped in CI without an entry in {EXPECTED.name}: {node}: {reason}")
    if surprising and exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads() -> None:
    """One thread everywhere: bitwise comparisons must not depend on the core count, and two that spin crawl on a busy machine."""
    import torch

    torch.set_num_threads(1)
