"""One robot on the bench: base, policy node and guard in a rig, brought to ACTIVE, and put back after each fault."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from kineflow.deploy.ros2.rig import Rig, parameters, wait_for
from kineflow.interface import KineflowError

TRIES = 4  # on a machine under load topics are late, and the node refuses rightly


@dataclass
class Session:
    """`policy`: a toy's name, or module:function. `drawn`: how the base makes its pictures."""

    rig: Rig
    policy: str = "forward"
    guarded: bool = True
    drawn: str = "none"
    base_words: tuple[str, ...] = ()
    node_settings: dict[str, object] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    config: str = "nodes/wheeled"

    def up(self) -> None:
        """Everything runs and the base moves (policies that move it)."""
        self.start_base()
        if self.guarded and "guard" not in self.rig.processes:
            self.rig.start("guard", "guard")
        self.rig.press_estop(False)
        self.start_node()
        self.configure()
        self.activate()

    def start_base(self) -> None:
        if "base" not in self.rig.processes:
            self.rig.start("base", "base", "--draw", self.drawn, *self.base_words)
            self.rig.wait_for_publisher("front")

    def start_node(self) -> None:
        policy = self.policy if ":" in self.policy else f"kineflow.deploy.ros2.toy_policies:{self.policy}"
        words = ["--policy", policy, *self.overrides]
        listed = "[" + ", ".join(f"'{word}'" for word in words) + "]"
        self.rig.start("node", "policy", *parameters(config=self.config, overrides=listed, **self.node_settings))
        self.rig.meet()

    def configure(self) -> None:
        for _ in range(TRIES):
            if self.rig.change("configure"):
                return
        raise KineflowError(f"the node did not configure: {self.rig.log('node')[-2000:]}")

    def activate(self, moves: bool = True) -> None:
        """Raises KineflowError with the node's log where it refuses, or does not move within 5 s."""
        done = wait_for(lambda: self.rig.change("activate"), 5.0, 0.2)
        if not done:
            raise KineflowError(f"the node did not activate: {self.rig.log('node')[-2000:]}")
        if moves and not wait_for(lambda: bool(self.rig.heard) and not self.rig.heard[-1].is_zero, 5.0):
            raise KineflowError(f"the node does not move: {self.rig.status[-5:]}")

    def restart_node(self, settle: bool = True) -> None:
        """Another process, brought to ACTIVE; an e-stop or a tripped guard is released first."""
        self.rig.kill("node")
        self.rig.press_estop(False)
        if "guard" in self.rig.processes:
            self.rig.trigger("/guard/reset")
        self.start_node()
        if settle:
            self.configure()
            self.activate()

    def recover(self) -> None:
        """After a fault that leaves the node alive: everything on, latches cleared, ACTIVE and at speed."""
        for what in ("camera", "odom", "scan"):
            self.rig.fault(f"{what} on")
        self.rig.fault("stamp 0")
        self.rig.beating = True
        self.rig.press_estop(False)
        if "guard" in self.rig.processes:  # a machine that stalls trips it
            self.rig.trigger("/guard/reset")
        time.sleep(0.3)
        self.rig.trigger("/policy/reset_estop")
        self.rig.trigger("/policy/reset_fault")
        if self.rig.state() != "active":
            self.activate()
        elif not wait_for(lambda: not self.rig.heard[-1].is_zero, 5.0):
            raise KineflowError(f"the node does not move again: {self.rig.status[-5:]}")
        time.sleep(0.4)  # to its speed
