"""A run of the policy as an action: `ros2 run kineflow_ros run_policy_action`. Needs the package kineflow_interfaces.

It asks the policy node by its service `policy/run` and follows `policy/run/feedback` and `policy/run/result`: the node itself
needs no message of its own. Two threads and a reentrant group, or a cancel would be heard when the run is over. Not run here.
"""

import time

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from kineflow_interfaces.action import RunPolicy
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from std_srvs.srv import SetBool

LOOK_S = 0.05
ANSWER_S = 5.0


class RunPolicyAction(Node):
    """One run at a time: the node itself cancels a run when another one is begun."""

    def __init__(self):
        super().__init__("run_policy_action")
        group = ReentrantCallbackGroup()
        kept = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._told = {}
        self._words = self.create_publisher(String, "instruction", kept)
        self._pose = self.create_publisher(PoseStamped, "goal_pose", kept)
        self._run = self.create_client(SetBool, "policy/run", callback_group=group)
        for topic, quality in (("policy/run/feedback", 10), ("policy/run/result", kept)):
            self.create_subscription(DiagnosticStatus, topic, self._on_run, quality, callback_group=group)
        self._server = ActionServer(
            self,
            RunPolicy,
            "run_policy",
            self._execute,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
            callback_group=group,
        )

    def _on_run(self, status):
        values = {pair.key: pair.value for pair in status.values}
        self._told[values.get("run", "")] = values

    def _ask(self, begin):
        """(done, message) of the node's service."""
        if not self._run.wait_for_service(timeout_sec=ANSWER_S):
            return False, "the policy node does not offer policy/run"
        future, until = self._run.call_async(SetBool.Request(data=begin)), time.monotonic() + ANSWER_S
        while not future.done() and time.monotonic() < until:
            time.sleep(LOOK_S)
        if not future.done():
            return False, f"the policy node did not answer within {ANSWER_S:g} s"
        return future.result().success, future.result().message

    def _execute(self, handle):
        goal, result, begin = handle.request, RunPolicy.Result(), time.monotonic()
        if goal.instruction:
            self._words.publish(String(data=goal.instruction))
        if goal.goal_pose.header.frame_id:
            self._pose.publish(goal.goal_pose)
        done, message = self._ask(True)
        if not done:
            handle.abort()
            result.state, result.why = "failed", message
            return result
        number, is_cancelled = message.removeprefix("run "), False
        while True:
            values = self._told.get(number, {})
            if values.get("state", "running") != "running":
                break
            late = goal.timeout_s > 0 and time.monotonic() - begin > goal.timeout_s
            if (handle.is_cancel_requested or late) and not is_cancelled:
                is_cancelled = self._ask(False)[0]
            feedback = RunPolicy.Feedback(seconds=float(values.get("seconds", 0.0)))
            feedback.outcome, feedback.why = values.get("outcome", ""), values.get("why", "")
            handle.publish_feedback(feedback)
            time.sleep(4 * LOOK_S)
        result.state, result.why, result.seconds = values["state"], values.get("why", ""), float(values.get("seconds", 0.0))
        if handle.is_cancel_requested:
            handle.canceled()
        elif result.state == "done":
            handle.succeed()
        else:
            handle.abort()
        return result


def main():
    rclpy.init()
    node, executor = RunPolicyAction(), MultiThreadedExecutor(num_threads=3)
    executor.add_node(node)
    try:
        executor.spin()
    except KeyboardInterrupt:
        node._ask(False)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
