"""rerun: the .rrd file read back by its own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rerun", reason="the extra rerun is 500 MB: pip install 'kineflow[rerun]'")

from kineflow.contracts import KineflowError
from kineflow.deploy.keep_out import Mount
from kineflow.deploy.live.drawing import CameraPlace, LiveConfig, drawings
from kineflow.deploy.live.rerun_view import TIMELINE, RerunView
from kineflow.deploy.ros2.toy_policies import forward
from tests.deploy.test_live import seen
from tests.deploy.watched import Kept, Plane, watched


def read(file: Path) -> dict[tuple[str, str], list[tuple[float, Any]]]:
    """By entity and component: seconds of the robot and value, in order."""
    from rerun.chunk import RrdReader

    found: dict[tuple[str, str], list[tuple[float, Any]]] = {}
    for chunk in RrdReader(file).stream():
        batch = chunk.to_record_batch()
        if TIMELINE not in batch.schema.names:
            continue
        times = [value.total_seconds() for value in batch.column(TIMELINE).to_pylist()]
        for name in batch.schema.names:
            values = batch.column(name).to_pylist() if ":" in name else []
            row = found.setdefault((chunk.entity_path, name), [])
            row += [(at, value) for at, value in zip(times, values) if value is not None]
    return {key: sorted(rows, key=lambda row: row[0]) for key, rows in found.items() if rows}


def test_the_file_is_what_happened(tmp_path: Path) -> None:
    kept, policy = Kept(), forward()
    draws = drawings(policy.contract.interface, LiveConfig({"front": CameraPlace(Mount(z=0.5, pitch=0.2), 60.0)}))
    view = RerunView(draws, tmp_path / "drive.rrd")
    watched(policy, kept, view, seconds=0.6)
    view.close()
    found = read(tmp_path / "drive.rrd")
    given = found["/command/vx/given", "Scalars:scalars"]
    np.testing.assert_allclose([at for at, _ in given], [look.at_s for look in kept.seen], atol=1e-6)
    np.testing.assert_allclose([value[0] for _, value in given], [look.commanded[0] for look in kept.seen])  # type: ignore[index]
    wanted = found["/command/vx/wanted", "Scalars:scalars"]
    assert 0 < len(wanted) < len(given)  # none before the first plan
    assert wanted[-1][1] == pytest.approx([0.4])
    assert found["/latency_ms/p50", "Scalars:scalars"][-1][1] == pytest.approx([60.0])
    pictures = found["/camera/front", "Image:buffer"]
    assert len(pictures) == len(kept.seen)
    np.testing.assert_array_equal(np.array(pictures[4][1][0], np.uint8).reshape(96, 96, 3), Plane.picture(5))
    last = kept.seen[-1]
    assert last.plan is not None
    (strip,) = found["/camera/front/plan", "LineStrips2D:strips"][-1][1]
    np.testing.assert_allclose(strip, draws["front"](last.plan, last.step_s, 96, 96) + 0.5, rtol=1e-5)
    (onward,) = found["/camera/front/onward", "LineStrips2D:strips"][-1][1]
    assert len(onward) == 31 > len(strip)
    (path,) = found["/plan", "LineStrips3D:strips"][-1][1]
    assert path[-1][0] == pytest.approx(0.4 * 0.1 * len(last.plan), rel=1e-5)
    said = [value[0] for _, value in found["/governor", "TextLog:text"]]
    assert said[0].startswith("stop")
    assert said[-1] == "pass"
    with pytest.raises(KineflowError, match="another"):
        RerunView({}, tmp_path / "drive.rrd")


def test_goals_and_depth(tmp_path: Path) -> None:
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    goal = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    view = RerunView({}, tmp_path / "goal.rrd")
    view.show(seen(pictures={"depth": depth}, goal={"image": goal}, words="to the kitchen"))
    view.close()
    found = read(tmp_path / "goal.rrd")
    buffer = bytes(found["/camera/depth", "DepthImage:buffer"][0][1][0])
    np.testing.assert_array_equal(np.frombuffer(buffer, "<u2").reshape(3, 4), depth)
    assert found["/camera/depth", "DepthImage:meter"][0][1] == [1000.0]
    np.testing.assert_array_equal(np.array(found["/goal/image", "Image:buffer"][0][1][0], np.uint8).reshape(5, 7, 3), goal)
    assert found["/goal", "TextDocument:text"][0][1] == ["to the kitchen"]
