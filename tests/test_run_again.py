"""Tests of real time are run again, with fixtures of their own; others are not; and a test that always fails, fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITE = """
import pathlib, pytest
made = []

@pytest.fixture(scope="module")
def shared():
    made.append(1)
    yield len(made)

def runs(name):
    file = pathlib.Path(__file__).with_suffix("." + name)
    file.write_text("x" + (file.read_text() if file.exists() else ""))
    return len(file.read_text())

@pytest.mark.real_time
def test_third_time(shared, tmp_path):
    assert runs("third") == shared, "all that tests share is made anew"
    assert shared == 3, f"run {shared}"

@pytest.mark.real_time
def test_after_it(shared):
    assert shared == 3

@pytest.mark.real_time
def test_never(tmp_path):
    assert runs("never") == 0, "never"

@pytest.mark.real_time
def test_fixture(request, tmp_path):
    request.getfixturevalue("twice")

@pytest.fixture
def twice():
    assert runs("fixture") == 2

def test_unmarked():
    assert runs("unmarked") == 2, "once"
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_run_again(tmp_path: Path, workers: str) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --import-mode=importlib --strict-markers -p no:cacheprovider\nfilterwarnings = error\n"
        "markers =\n    real_time: run again\n"
    )
    (tmp_path / "conftest.py").write_text(
        "from tests.run_again import pytest_report_teststatus, pytest_runtest_protocol, pytest_terminal_summary\n"
    )
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(SUITE)
    words = ["-m", "pytest", "-p", "xdist.plugin", "-n", workers, "--dist", "loadfile", "-q" if int(workers) else "-vv"]
    command = [sys.executable, *words, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 failed, 6 passed, 10 run again" in done.stdout, done.stdout
    said = done.stdout.split("run again, since their subject is real time")[1]
    for name in ("test_a.py", "test_b.py"):
        found = re.findall(rf"^{name}::(\w+):", said, re.MULTILINE)
        assert sorted(found) == ["test_fixture"] + 2 * ["test_never"] + 2 * ["test_third_time"]
        for word, runs in (("third", 3), ("never", 3), ("fixture", 2), ("unmarked", 1)):
            assert len((tmp_path / name).with_suffix("." + word).read_text()) == runs
