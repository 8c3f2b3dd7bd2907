"""An arm by the whole node: begins where the joints are, keeps their limits, holds after a fault and an e-stop, falls silent."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from kineflow.deploy.ros2.qos import Quality, profile
from kineflow.deploy.ros2.rig import Rig, wait_for
from kineflow.deploy.ros2.session import Session

NAMES = [f"joint_{i}" for i in range(1, 7)]
BEGIN = np.array([-0.1, 0.5, -0.3, 0.0, 0.2, 1.0])


class Arm:
    """Goes where it is told; says where it is, 50 times a second, while `speaks`."""

    def __init__(self, rig: Rig) -> None:
        self.positions, self.told, self.speaks = BEGIN.copy(), list[tuple[float, np.ndarray]](), True
        self._node, self._ending = rig.node, threading.Event()
        self._states = rig.node.create_publisher(JointState, "joint_states", profile(Quality(True)))
        topic = "joint_trajectory_controller/joint_trajectory"
        rig.node.create_subscription(JointTrajectory, topic, self._on_trajectory, profile(Quality(True, depth=100)))
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(2.0)

    def since(self, begin_s: float) -> np.ndarray:
        return np.array([positions for now, positions in self.told if now >= begin_s])

    def _on_trajectory(self, message: Any) -> None:
        assert list(message.joint_names) == NAMES
        self.positions = np.array(message.points[-1].positions)
        self.told.append((time.monotonic(), self.positions))

    def _speak(self) -> None:
        while not self._ending.wait(0.02):
            if self.speaks:
                message = JointState(name=NAMES, position=self.positions.tolist())
                message.header.stamp = self._node.get_clock().now().to_msg()
                self._states.publish(message)


@pytest.mark.real_time
def test_an_arm_moves_within_its_limits_and_holds() -> None:
    with Rig() as rig:
        arm = Arm(rig)
        try:
            session = Session(rig, policy="arm", guarded=False, config="nodes/arm")
            rig.press_estop(False)
            session.start_node()
            session.configure()
            assert arm.told == []
            session.activate(moves=False)
            assert wait_for(lambda: arm.positions[0] > 0.1, 60), rig.status[-3:]
            arm.speaks = False
            silent_s = time.monotonic()
            assert wait_for(lambda: "observation" in rig.status[-1][1], 30), rig.status[-3:]
            time.sleep(0.5)
            still_s = time.monotonic()
            assert wait_for(lambda: len(arm.since(still_s)) >= 10, 30), "a position is held by saying it"
            held = arm.since(still_s - 0.1)
            assert (held == held[0]).all()
            assert held[0][0] < 0.39, "it stopped on its way"
            arm.speaks = True
            assert wait_for(lambda: arm.positions[0] > 0.399, 60), rig.status[-3:]
            told = arm.since(0.0)
            assert np.abs(told[0] - BEGIN).max() < 0.01, "begins where it is"
            assert np.abs(told[:, 1:] - BEGIN[1:]).max() < 0.01
            assert np.abs(np.diff(told, axis=0)).max() <= 0.8 * 0.1 + 1e-9, "0.8 rad/s, over no more than a late tick"
            at = rig.press_estop(True)
            assert wait_for(lambda: rig.state() == "inactive", 60), rig.status[-3:]
            after = arm.since(at + 0.2)
            assert (after == after[0]).all()
            count = len(arm.told)
            time.sleep(0.4)
            assert len(arm.told) == count, "inactive is silent"
            assert silent_s < at
        finally:
            arm.close()
