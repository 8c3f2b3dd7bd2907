"""The managed node by which a policy drives a robot.

`python -m kineflow.deploy.ros2.start policy --ros-args -p config:=nodes/wheeled`

    configure    load, contract against robot and topics, wiring looked at live, subscribe, warm up     nothing is published
    activate     fresh observations needed; commands leave at the robot's rate, zero until the e-stop source was heard
    deactivate   three zeros, then silence          cleanup    all is let go          shutdown, Ctrl-C, SIGTERM: as deactivate
    ~/run        true: follow the policy until it is done; false: come to rest, stay active. ~/run/feedback, ~/run/result tell

Threads: main waits for signals, one spins these callbacks, one asks the policy, one sends commands at absolute times and holds
the watchdogs (deploy/runner.py). Watchdogs go by the monotonic clock; a jump of the ROS clock throws away plan and observations.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from kineflow.config import load_config
from kineflow.contracts import ActionChunk, KineflowError
from kineflow.deploy.asking import FollowsGoal, Question
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.deploy.ros2.assembly import assemble
from kineflow.deploy.ros2.contract_check import check as check_contract
from kineflow.deploy.ros2.goals import GoalInbox
from kineflow.deploy.ros2.inputs import GoalInputs, Inputs
from kineflow.deploy.ros2.intake import GoalIntake, Intake
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.outputs import CommandOutput, Reports, spoken
from kineflow.deploy.ros2.policy_source import load
from kineflow.deploy.ros2.process import run_process
from kineflow.deploy.ros2.rates import Rates
from kineflow.deploy.ros2.runs import CANCELLED, NO_RUN, Run, Runs
from kineflow.deploy.ros2.wires import wires
from kineflow.deploy.ros2.wiring import check_wiring
from kineflow.deploy.runner import Runner

REPORT_S = 1.0
WATCH_S = 0.05
FORWARD_JUMP_S = 1.0
SAY_AGAIN_S = 1.0
REST_TICKS = 20  # of WATCH_S: a second of zeros before the node falls silent
STOP_S = 0.3  # for the threads to end; one that is within the policy is left behind


class PolicyNode(LifecycleNode):  # type: ignore[misc]
    """See the module."""

    def __init__(self, context: Any) -> None:
        super().__init__("policy", context=context)
        self.ending = threading.Event()
        self._runner: Runner | None = None
        self._output: CommandOutput | None = None
        self._config_name = str(self.declare_parameter("config", "nodes/wheeled").value)
        self._overrides = list(self.declare_parameter("overrides", [""]).value or [])
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=Duration(seconds=FORWARD_JUMP_S), min_backward=Duration(nanoseconds=-1), on_clock_change=True
            ),
            post_callback=self._clock_jumped,
        )
        self._group = MutuallyExclusiveCallbackGroup()
        self.create_service(SetBool, "~/run", self._on_run)
        self.create_service(Trigger, "~/reset_estop", self._on_reset_estop)
        self.create_service(Trigger, "~/reset_fault", self._on_reset_fault)
        self.create_service(Trigger, "~/damp", self._on_damp)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a frozen /clock must not silence reports
        self._watch = self.create_timer(WATCH_S, self._watch_over, clock=steady)
        self._reported_s, self._said = 0.0, ("", "")
        self._rested = 0
        self._held: Any = None  # positions at the last look
        self._refused, self._refused_s = "", 0.0
        self._told: FollowsGoal | None = None
        self._runs = Runs()
        self._planned: tuple[Any, float] | None = None
        self._latest: tuple[Any, float] | None = None  # newest chunk and its step
        if bool(self.declare_parameter("autostart", False).value):
            self._autostart = self.create_timer(0.2, self._start_alone, clock=steady)

    # -- lifecycle ------------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._refusing("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._refusing("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_running()
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._let_go()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._let_go()
        self.ending.set()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._let_go()
        return TransitionCallbackReturn.SUCCESS

    def stop_now(self) -> None:
        """The last word: closes the output and says stop; any thread."""
        output = self._output
        if output is not None:
            output.stop()
        self._stop_running()

    def _refusing(self, what: str, do: Any) -> TransitionCallbackReturn:
        """A refusal is one message, and the node stays as it was."""
        try:
            do()
        except KineflowError as error:
            if str(error) != self._refused or time.monotonic() - self._refused_s > SAY_AGAIN_S:  # autostart tries on and on
                self.get_logger().error(f"cannot {what}: {error}")
                self._refused, self._refused_s = str(error), time.monotonic()
            if what == "configure":
                self._let_go()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # rclpy would go to on_error without a word
            self.get_logger().fatal(f"cannot {what}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
            raise
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        try:
            config = load_config(NodeConfig, self._config_name, [word for word in self._overrides if word])
        except SystemExit:  # of the parser of overrides, which printed why
            raise KineflowError(f"overrides {self._overrides} are not understood; write them as on a command line") from None
        robot = load_config(RobotProfile, config.robot)
        policy = load(config.policy)
        contract = policy.contract
        check_contract(contract, robot, config)
        qualities = check_wiring(self.context, wires(contract, robot, config), config.wiring_timeout_s, self.get_namespace())
        self._config, self._robot, self._contract = config, robot, contract
        made = assemble(contract, robot, config)
        self._governor, self._governed, self._control = made.governor, made.governed, made.control

        def ask(question: Question) -> ActionChunk:
            chunk = policy.predict(question.observation, question.request)
            self._latest = (chunk.actions[0], chunk.step_s)
            return chunk

        self._ask = ask
        self._output, self._reports = CommandOutput(self, robot, config), Reports(self, robot, config)
        self._governed.waits = self._output.robot.waits
        self._runner = self._new_runner()
        rates = {name: topic.rate_hz for name, topic in config.cameras.items()}
        self._rates = Rates(rates | {name: topic.rate_hz for name, topic in config.features.items() if topic.topic})
        self._inputs = Inputs(self, qualities, Intake(contract, robot, config, self._governor, self._observe))
        inbox = GoalInbox(contract, config.goals.video_rate_hz)
        self._goals = GoalInputs(self, GoalIntake(inbox, config, self._follow))
        self._runner.warm_up(config.warm_up_calls)
        self._latest = None
        self._reports.status("inactive")
        self.get_logger().info(f"configured: {config.policy} for {robot.name}")

    def _activate(self) -> None:
        assert self._output is not None
        now = time.monotonic()
        if silence := self._control.executor.observations.silence(now):
            raise KineflowError(f"{silence}; activation needs fresh observations of every stream")
        self._governor.activate(now, self._output.robot.held(now))
        self._runner = self._new_runner()
        self._runner.set_goal(self._told) if self._told else self._runner.reset("activated")
        self._rested = 0
        if self._config.starts == "at_once":
            self._begin_run("activated anew", now)
        else:
            self._governed.paused = NO_RUN
        self._output.open()
        self._runner.start()

    def _new_runner(self) -> Runner:
        assert self._output is not None
        return Runner(self._control, self._ask, self._output, self._robot.rate_hz)

    def _stop_running(self) -> None:
        output, runner = self._output, self._runner
        if output is not None:
            output.stop()
            self._governor.deactivate()
            self._tell_end(self._runs.end("cancelled", "deactivated", time.monotonic()))
        if runner is not None:
            try:
                runner.stop(STOP_S)
            except Exception as error:  # of the output thread; the stop was said above
                self.get_logger().error(f"commands had ended: {type(error).__name__}: {error}")
            self._governor.stopped()

    def _let_go(self) -> None:
        self._stop_running()
        if self._output is not None:
            self._output.close()
        for part in ("_inputs", "_goals", "_reports"):
            if (found := self.__dict__.pop(part, None)) is not None:
                found.close()
        self._output = self._runner = None

    # -- while it runs ---------------------------------------------------------------------------------------------------

    def _observe(self, stream: str, value: Any, stamp_s: float, received_s: float) -> str:
        runner = self._runner
        return runner.observe(stream, value, stamp_s, received_s) if runner is not None else "not configured"

    def _follow(self, told: FollowsGoal | None) -> None:
        self._told = told
        if self._runner is not None:
            self._runner.set_goal(told)
            if self._config.starts == "at_once" and self._state_label() == "active":
                self._begin_run("another goal was told", time.monotonic())

    def _clock_jumped(self, jump: Any) -> None:
        if self._runner is not None:
            self._runner.reset("the ROS clock jumped")

    def _on_run(self, request: Any, response: Any) -> Any:
        """true: begin a run (with the goal last told), to be followed on ~/run/feedback; false: come to rest and stay there."""
        now = time.monotonic()
        if self._runner is None or (request.data and not self._governor.state(now)["active"]):
            response.success, response.message = False, "not active; activate the node first"
            return response
        self._runner.reset("told to run" if request.data else CANCELLED)
        if request.data:
            self._begin_run("another run was begun", now, by_service=True)
        else:
            self._governed.paused = CANCELLED
            self._tell_end(self._runs.end("cancelled", CANCELLED, now))
        response.success, response.message = True, f"run {self._runs.run.number}" if self._runs.run else CANCELLED
        return response

    def _begin_run(self, why_ended: str, now: float, by_service: bool = False) -> None:
        self._tell_end(self._runs.begin(now, why_ended, by_service))
        self._governed.paused = ""

    def _tell_end(self, ended: Run | None) -> None:
        """After a run the robot rests until the next one, where runs are asked for."""
        if ended is None or self._output is None:
            return
        if self._config.starts == "asked":
            self._governed.paused = ended.why
        self._reports.run(ended)

    def _on_reset_estop(self, request: Any, response: Any) -> Any:
        """Clears the latch when its source says released. The node must be activated again as well."""
        if self._runner is None:
            response.success, response.message = False, "not configured"
            return response
        reason = self._governor.reset_estop(time.monotonic())
        response.success, response.message = not reason, reason or "cleared; activate again"
        return response

    def _on_reset_fault(self, request: Any, response: Any) -> Any:
        if self._runner is not None:
            self._runner.reset("fault reset")
            self._governor.reset_fault(time.monotonic())
        response.success = self._runner is not None
        return response

    def _on_damp(self, request: Any, response: Any) -> Any:
        """The operator's alone: the joints of a humanoid yield, it may fall."""
        reason = self._output.damp() if self._output is not None else "not configured"
        response.success, response.message = not reason, reason or "damped"
        return response

    def _start_alone(self) -> None:
        """Configure and activate without a lifecycle manager; a refused configuration is tried again, with its message."""
        label = self._state_label()
        if label == "unconfigured":
            self.trigger_configure()
        elif label == "inactive":
            self.trigger_activate()
        if self._state_label() == "active":
            self._autostart.cancel()

    def _state_label(self) -> str:
        return str(self._state_machine.current_state[1])

    def _watch_over(self) -> None:
        """Reports every second and on change; and the e-stop that needs a new activation."""
        if self._runner is None or self._output is None:
            return
        label, now = self._state_label(), time.monotonic()
        self._output.follow(self._runner.ahead, self._control.executor.step_s)
        ticked = self._output.last
        why = "" if ticked is None or label != "active" else "; ".join(ticked.command.reasons)
        outcome = ticked.command.outcome if ticked is not None and label == "active" else label
        if failure := self._output.failure or self._runner.failure:
            raise KineflowError(f"no more commands: {failure}")  # ends the process, which says stop: see process.py
        self._rates.look(self._inputs.intake.received, now)
        said = (outcome, why.split(":")[0])
        if now - self._reported_s >= REPORT_S or said != self._said:
            self._report(label, outcome, why, now)
            self._reported_s, self._said = now, said
        governor = self._governor.state(now)
        may_move, has_arrived = label == "active" and governor["active"], self._control.executor.has_arrived
        still = governor["still_because"] or why
        self._tell_end(self._runs.watch(now, may_move=may_move, has_arrived=has_arrived, why=still))
        if self._runs.is_feedback_due(now) and self._runs.run is not None:
            self._reports.run(self._runs.run, outcome, why)
        if self._latest is not None and self._latest is not self._planned:
            self._planned = self._latest
            self._reports.plan(*self._latest, moves=outcome in ("pass", "clamp"))
        if label == "active" and not governor["active"] and self._is_at_rest(ticked):
            self.trigger_deactivate()  # an e-stop or a fault: reset AND activation are needed, as promised

    def _is_at_rest(self, ticked: Any) -> bool:
        """Zeros go on for a while, for whoever listens."""
        values = None if ticked is None else ticked.command.values
        if self._robot.kind == "position":
            last, self._held = self._held, values
            moves = values is not None and last is not None and bool((values != last).any())
        else:
            moves = values is not None and bool(values.any())
        self._rested = 0 if moves else self._rested + 1
        return self._rested > REST_TICKS

    def _report(self, label: str, outcome: str, why: str, now: float) -> None:
        assert self._runner is not None
        assert self._output is not None
        values = {"state": label, "outcome": outcome, "why": why, "shadow": self._config.shadow, "fifo": self._output.fifo}
        values |= self._runner.diagnostics()
        values |= {"governor": self._governor.state(now), "sent": self._output.sent, "robot": self._output.robot.state(now)}
        values |= spoken(self._robot, None if label != "active" else self._output.last)
        values |= {
            "received": dict(self._inputs.intake.received),
            "input_faults": dict(self._inputs.intake.faults),
            "goal_fault": self._goals.fault,
            "rates_hz": dict(self._rates.hz),
            "run": f"{self._runs.run.number}: {self._runs.run.state}" if self._runs.run else "none",
        }
        level = {"pass": "ok", "clamp": "ok", "inactive": "ok", "stop": "warn", "reject": "warn"}.get(outcome, "error")
        if level == "ok" and (slow := self._rates.slow):
            level, why = "warn", slow
        self._reports.diagnose(level, why or outcome, values)
        self._reports.status(f"{label}: {why}" if why else label)


def main() -> int:
    return run_process(PolicyNode, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
