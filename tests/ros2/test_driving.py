"""The simulated base driven through ROS 2: to a goal told by topic, in shadow mode, and with pictures that do not arrive."""

from __future__ import annotations

import array
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped
from nav_msgs.msg import Odometry, Path as Plan
from sensor_msgs.msg import Image
from std_msgs.msg import String

from kineflow.config import CONFIG_ROOT
from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import Rig, wait_for
from kineflow.deploy.ros2.session import Session

GOAL = (1.2, 0.5)

# Fast DDS as it comes: a segment of half a megabyte, smaller than a picture.
PLAIN = '<?xml version="1.0" encoding="UTF-8" ?>\n<dds xmlns="http://www.eprosima.com"><profiles></profiles></dds>\n'


@pytest.mark.real_time
def test_the_base_drives_to_a_goal_told_by_topic() -> None:
    """What the camera sees is drawn by MuJoCo; the toy goes by odometry. In shadow mode first: planned, and nothing moves."""
    with Rig() as rig:
        places, shadows, plans = list[tuple[float, float]](), list[TwistStamped](), list[Plan]()
        session = Session(rig, policy="to_point", guarded=False, drawn="coarse", overrides=("--shadow",))
        session.start_base()
        rig.press_estop(False)
        session.start_node()
        rig.node.create_subscription(
            Odometry, "odom", lambda m: places.append((m.pose.pose.position.x, m.pose.pose.position.y)), profile(Quality(False))
        )
        rig.node.create_subscription(TwistStamped, "shadow_cmd_vel", shadows.append, profile(Quality(True)))
        rig.node.create_subscription(Plan, "policy/chunk/path", plans.append, 1)
        goal = rig.node.create_publisher(PoseStamped, "goal_pose", profile(Quality(True)))
        message = PoseStamped()
        message.header.frame_id, message.pose.orientation.w = "odom", 1.0
        message.pose.position.x, message.pose.position.y = GOAL
        session.configure()
        session.activate(moves=False)
        assert wait_for(lambda: any("no goal" in text for _, text in rig.status), 30.0), rig.status
        goal.publish(message)
        assert wait_for(lambda: any(m.twist.linear.x > 0.1 or m.twist.angular.z > 0.1 for m in shadows), 30.0), rig.status
        assert rig.heard == []
        assert math.hypot(*places[-1]) < 0.02
        assert wait_for(lambda: bool(plans) and plans[-1].header.frame_id == "base_link", 30.0)

        rig.kill("node")
        session.overrides = ()
        session.start_node()
        session.configure()
        session.activate(moves=False)
        goal.publish(message)
        assert wait_for(lambda: math.dist(places[-1], GOAL) < 0.12, 90.0), (places[-1], rig.status[-4:])
        assert wait_for(lambda: abs(rig.heard[-1].vx) < 0.1, 30.0)


@pytest.mark.real_time
def test_pictures_without_our_profile_do_not_configure(tmp_path: Path) -> None:
    """Best effort and the default segment, a seventh of such a picture: few arrive, and the node says what to do about it.
    Without priority: who empties the segment at once loses little."""
    plain = tmp_path / "plain.xml"
    plain.write_text(PLAIN)
    with Rig(priority=0) as rig:
        size = ("--width", "1280", "--height", "960")
        rig.start("base", "base", "--draw", "none", *size, environment={"FASTDDS_DEFAULT_PROFILES_FILE": str(plain)})
        rig.wait_for_publisher("front")
        rig.press_estop(False)
        session = Session(rig)
        session.start_node()
        assert not rig.change("configure")
        assert "camera 'front': '/front' arrives at" in rig.log("node")
        assert "fastdds_profile.xml" in rig.log("node")


def test_a_depth_camera_keeps_it_out_of_obstacles_without_a_scanner(tmp_path: Path) -> None:
    """A picture of metres that come closer: it drives while there is room, and stands while there is none."""
    text = (CONFIG_ROOT / "nodes" / "wheeled.yaml").read_text()
    depths = "depths: {near: {topic: depth, rate_hz: 10.0, fx: 50, fy: 50, cx: 31.5, cy: 23.5, mount: {z: 0.5}}}"
    config = tmp_path / "node.yaml"
    config.write_text(text.replace("scan_topic: scan", depths))
    with Rig() as rig:
        metres, ending = [3.0], threading.Event()
        publisher = rig.node.create_publisher(Image, "depth", profile(Quality(False)))

        def film() -> None:
            while not ending.wait(0.04):
                message = Image(height=48, width=64, step=128, encoding="16UC1")
                message.header.stamp = rig.node.get_clock().now().to_msg()
                message.data = array.array("B", np.full((48, 64), round(1e3 * metres[0]), np.uint16).tobytes())
                publisher.publish(message)

        filming = threading.Thread(target=film, daemon=True)
        filming.start()
        try:
            session = Session(rig, guarded=False, config=str(config))
            session.up()
            metres[0] = 0.3
            assert wait_for(lambda: rig.heard[-1].vx < 1e-3, 20.0), rig.status[-3:]
            metres[0] = 3.0
            assert wait_for(lambda: rig.heard[-1].vx > 0.3, 20.0), rig.status[-3:]
            ending.set()  # the camera is gone
            assert wait_for(lambda: "depth 'near' went silent" in rig.status[-1][1], 20.0), rig.status[-3:]
        finally:
            ending.set()
            filming.join(2.0)


@pytest.mark.slow
def test_an_instruction_for_a_policy_without_one_is_not_heard() -> None:
    """Goal topics that the policy does not take are not subscribed."""
    with Rig() as rig:
        session = Session(rig, guarded=False)
        session.up()
        rig.node.create_publisher(String, "instruction", profile(Quality(True)))
        time.sleep(1.0)
        assert rig.node.count_subscribers("instruction") == 0
