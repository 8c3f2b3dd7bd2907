"""datasets/formats.md has a row for each format in and out, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from kineflow.datasets import convert
from kineflow.datasets.exporters.target import EXPORTS
from kineflow.datasets.importers.source import FORMATS

PAGE = (Path(convert.__file__).resolve().parent / "formats.md").read_text()


def rows(title: str) -> dict[str, list[str]]:
    """First cell, without its quotes -> the other cells."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert not any("--format" in line[0] for line in lines[1:])
    return {line[0].strip("`"): line[1:] for line in lines if "--format" not in line[0]}


def test_every_format_has_its_row_and_no_other() -> None:
    assert sorted(rows("In")) == sorted(FORMATS)
    assert sorted(rows("Out")) == sorted(EXPORTS)


def test_rows_are_whole_and_their_tests_exist_and_use_the_format() -> None:
    for title, columns in (("In", 5), ("Out", 4)):
        for name, cells in rows(title).items():
            assert len(cells) == columns, name
            (test,) = re.findall(r"`(test_\w+\.py)`", cells[-1])
            text = (Path(__file__).parent / test).read_text()
            module = (FORMATS if title == "In" else EXPORTS)[name].split(":")[0].rsplit(".", 1)[1]
            assert name in text or module in text, f"{test} says nothing of {name}"
