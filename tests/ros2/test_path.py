"""A path follower by the whole node: the rest of the plan while it may move, and to stay where it is after a fault."""

from __future__ import annotations

import time

import numpy as np
import pytest
from nav_msgs.msg import Path as Plan

from kineflow.config import find_config
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import Rig, wait_for
from kineflow.deploy.ros2.session import Session


@pytest.mark.real_time
def test_a_follower_is_told_the_plan_and_to_stay_after_a_fault() -> None:
    with Rig() as rig:
        plans = list[tuple[float, Plan]]()
        rig.node.create_subscription(
            Plan, "plan", lambda m: plans.append((time.monotonic(), m)), profile(Quality(True, depth=20))
        )
        session = Session(rig, guarded=False, overrides=("--robot", str(find_config("robots/wheeled_path"))))
        session.start_base()
        rig.press_estop(False)
        session.start_node()
        session.configure()
        assert plans == []
        session.activate(moves=False)
        assert wait_for(lambda: bool(plans) and len(plans[-1][1].poses) > 5, 60), rig.status[-3:]
        begin = time.monotonic()
        assert wait_for(lambda: len([now for now, _ in plans if now >= begin]) >= 11, 60)
        told = [plan for now, plan in plans if now >= begin]
        pause_s = np.median(np.diff([now for now, _ in plans if now >= begin]))
        assert 0.15 <= pause_s <= 0.25, "five a second"
        ends = [plan.poses[-1].pose.position for plan in told]
        assert all(0.2 < end.x <= 0.4 * 1.6 + 1e-6 and abs(end.y) < 1e-6 for end in ends), "0.4 m/s, 1.6 s at the most"
        assert told[-1].header.frame_id == "base_link"
        assert rig.heard == [], "nobody else is told velocities"
        at = rig.fault("camera off")
        assert wait_for(lambda: len(plans[-1][1].poses) == 1, 30), rig.status[-3:]
        assert plans[-1][0] - at <= 0.25 + 0.15
        time.sleep(0.5)
        assert {len(plan.poses) for now, plan in plans if now > at + 0.45} == {1}
