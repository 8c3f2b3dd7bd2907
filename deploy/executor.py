"""The executor: observations in, an intended action at every tick out; chunks are asked for ahead of time and joined.

    observe() ---> window ---> question(now) ---> someone asks the policy ---> answer(question, chunk, now)
                                                                                 |
    tick(now) <--- the action that the plan has for now <--- chunks by epoch <---+

It reads no clock, sleeps nowhere and has no thread: simulation, bag replay and the robot call the same functions with their own
times. An action begins at a boundary, every `step_s`; questions are made there, before the action begins, so what is left of the
old chunk and what is seen belong together. `reset` begins an epoch: answers to questions of an earlier one are thrown away.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kineflow.contracts import ActionChunk, Observation, PolicyContract, SamplingRequest
from kineflow.deploy.asking import (
    FollowsGoal,
    Question as Question,
    RollsForward,
    blank_prefix,
    blank_window,
    in_rows,
    nearest_to_plan,
    rest_of_plan,
    rolled,
)
from kineflow.deploy.chunks import ChunkBuffer, Placed
from kineflow.deploy.delays import DelayForecast, Pace
from kineflow.deploy.executor_config import PREFIXED, ExecutorConfig
from kineflow.deploy.governor import Intent
from kineflow.deploy.observations import ObservationBuffer
from kineflow.deploy.roll_forward import RollForward
from kineflow.policies.deadline import LatencyTable
from kineflow.policies.noise_seed import noise_seed

NO_GOAL, ARRIVED = "no goal", "arrived"
AT_REST = (NO_GOAL, ARRIVED)
_COUNTED = ("questions", "chunks", "starved", "stops", "late chunk", "failed answers", "lost answers", "answers too late")


class Executor:
    """See the module. Not thread-safe: `deploy/runner.py` holds a lock around every call."""

    def __init__(self, contract: PolicyContract, config: ExecutorConfig, roll: RollsForward | None = None) -> None:
        """`roll`: how the state follows the actions, where `config.roll_forward` is set (default: as their names say).

        Raises:
            KineflowError: a latency table that cannot be read.
            ContractError: a mode that this policy cannot do, or a state that does not follow from actions.
        """
        config.check(contract)
        self.contract, self.config = contract, config
        self._roll = (roll or RollForward.of(contract.interface)) if config.roll_forward else None
        self.step_s = 1 / contract.interface.action.rate_hz
        self._horizon = contract.horizons.prediction
        self._execution = config.execution or contract.horizons.execution
        table = LatencyTable.load(Path(config.latency_table)) if config.latency_table else None
        self.delays = DelayForecast(self.step_s, config.delay_window, config.initial_delay, table, config.rows)
        self.observations = ObservationBuffer(contract.interface, contract.horizons.observation, self.step_s, config.observations)
        self._chunks = ChunkBuffer(config.ensemble_decay if config.mode == "ensemble" else None)
        self._told: FollowsGoal | None = None
        self.counts: Counter[str] = Counter()
        self.jumps: deque[float] = deque(maxlen=1000)  # |a - a before| where a new chunk took over, raw
        self.seams = self._failures = 0
        self._failed = ""
        self._seed, self._epoch, self._last_tick_s = config.seed, 0, None
        self._begin_epoch("not started")

    _last_tick_s: float | None

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def told(self) -> FollowsGoal | None:
        return self._told

    @property
    def has_arrived(self) -> bool:
        """The policy said so: nothing is executed until there is another goal."""
        return self._told is not None and self._told.has_arrived

    @property
    def longest_delay(self) -> int:
        """Actions that may pass before a chunk comes, so that the old one lasts: d <= H - s, s being at least d."""
        if self.config.mode == "receding":
            return self._horizon
        longest = min(self._horizon - self._execution, max(self._execution, self._horizon // 2))
        return min(longest, self.contract.sampler.clean_start) if self.config.mode == "trained_rtc" else longest

    def observe(self, stream: str, value: np.ndarray, stamp_s: float, received_s: float) -> str:
        """One sample of a feature or camera; why it was not taken, or "". Both times are of the monotonic clock of `tick`."""
        return self.observations.put(stream, value, stamp_s, received_s)

    def set_goal(self, told: FollowsGoal, now_s: float) -> None:
        """Go for another goal; what was planned for the old one is dropped."""
        self._told = told
        self._begin_epoch("new goal")

    def clear_goal(self, now_s: float) -> None:
        self._told = None
        self._begin_epoch("no goal")

    def reset(self, now_s: float, reason: str, seed: int | None = None) -> None:
        """Forget observations and chunks; answers under way will be thrown away. `seed` of the noise of the next epoch."""
        self.observations.forget()
        self._seed = self.config.seed if seed is None else seed
        self._last_tick_s = None
        self._failures, self._failed = 0, ""
        self.counts["resets"] += 1
        self._begin_epoch(reason)

    def _begin_epoch(self, reason: str) -> None:
        self._epoch += 1
        self._chunks.clear()
        self._waiting: Question | None = None  # made, not yet fetched
        self._asked: Question | None = None  # not yet answered
        self._consumed = self._since_switch = self._number = 0
        self._asked_at = -math.inf
        self._next_s: float | None = None  # when the next action begins; None: nothing is executed
        self._retry_s: float | None = None
        self._executing: tuple[np.ndarray, Placed] | None = None
        self._previous: np.ndarray | None = None
        self._pace = Pace(None, 0)
        self._why = self._said = reason

    def question(self, now_s: float) -> Question | None:
        """What the policy is to be asked now, once; None while nothing is due."""
        self._make_question(now_s)
        return self.take_question()

    @property
    def has_question(self) -> bool:
        return self._waiting is not None

    def take_question(self) -> Question | None:
        """The one that the last `tick` made, for threads that do not tick."""
        made, self._waiting = self._waiting, None
        return made

    def tick(self, now_s: float) -> Intent:
        """The action wanted at `now_s`, or why there is none. Call it at a steady rate, at least once in each `step_s`."""
        self._watch_clock(now_s)
        self._make_question(now_s)
        if reason := self._stopped(now_s) or (self._slow if self._pace.is_too_slow else ""):
            self._rest()
            return self._intent(None, reason, -1)
        self._advance(now_s)
        if self._executing is None:
            return self._intent(None, self.observations.misalignment() or self._why, -1)
        action, chunk = self._executing
        return self._intent(action, "", self._consumed - 1 - chunk.begin)

    def _intent(self, action: np.ndarray | None, reason: str, index: int) -> Intent:
        self._said = reason
        return Intent(action, reason, self.observations.heard_s, self._epoch, index, rests=reason in AT_REST)

    def ahead(self) -> Float[np.ndarray, "N A"]:
        """What the plan has from now on, the action that is being executed first; N is 0 where nothing is."""
        if self._executing is None:
            return np.zeros((0, self.contract.interface.action.vector.size), np.float32)
        action, chunk = self._executing
        newest = self._chunks.newest or chunk
        until = len(chunk.actions) if newest is chunk else max(newest.begin - chunk.begin, 0)
        rest = [] if newest is chunk else [newest.actions[max(self._consumed - newest.begin, 0) :]]
        return np.concatenate([action[None], chunk.actions[self._consumed - chunk.begin : until], *rest])

    def answer(self, question: Question, chunk: ActionChunk, now_s: float) -> str:
        """The policy's answer; why it was thrown away, or "". It is executed from the next boundary on."""
        if reason := self._not_awaited(question):
            return reason
        if fault := self._fault(question, chunk):
            self.reject(question, fault, now_s)
            return fault
        row = nearest_to_plan(chunk.actions, question.plan)
        if self._told is not None:  # what it makes of the answer may fail: then there was none
            self._told.answered(chunk, row)
        self._asked, self._failures = None, 0
        seconds = max(now_s - question.asked_s, 0.0)
        self.delays.record(seconds, question.request.steps)
        if reason := "asked to measure" if self._pace.is_too_slow else self._late(question, seconds):
            self.counts[reason] += 1
            self._asked_at = -math.inf
            return reason
        # Waited for at rest: it begins with its first action.
        begin = question.begin if self._next_s is not None else self._consumed
        if self.config.mode == "receding":
            begin = self._consumed
        self._chunks.put(Placed(np.array(chunk.actions[row], np.float32), begin, question.number))
        self.counts["chunks"] += 1
        return ""

    def reject(self, question: Question, reason: str, now_s: float) -> None:
        """No answer: the policy failed, or the answer was refused. It is asked anew, until too many have failed in a row."""
        if self._not_awaited(question):
            return
        self._asked, self._retry_s = None, now_s + self.config.retry_s
        self._asked_at = -math.inf  # due again
        self._failures += 1
        self.counts["failed answers"] += 1
        self._failed = reason

    def warm_up(self) -> list[Question]:
        """Questions of this executor's shapes and steps, to be asked before the first real one; answers are not for `answer`."""
        window, rows = blank_window(self.contract), self.config.rows
        words = window.instruction[0] if window.instruction else ""
        asked = in_rows(window, rows, window.goal, words)
        prefix = blank_prefix(self.contract, self.config, self._execution, min(1, self.longest_delay))
        return [
            Question(asked, SamplingRequest(np.arange(rows, dtype=np.int64), steps, prefix=prefix), -1, -1, 0.0, 0, 0)
            for steps in self.delays.known_steps or (None,)
        ]

    def diagnostics(self, now_s: float) -> dict[str, Any]:
        """Numbers for a person: queue, delay, latencies, ages, counts (since the executor was made)."""
        p50, p95 = self.delays.percentiles_s()
        return {
            "mode": self.config.mode,
            "epoch": self._epoch,
            "executing": self._executing is not None,
            "why": self._said,
            "actions_left": self._chunks.left(self._consumed),
            "consumed": self._consumed,
            "delay_actions": self._pace.delay,
            "steps": self._pace.steps or self.contract.sampler.steps,
            "latency_p50_s": p50,
            "latency_p95_s": p95,
            "ages_s": self.observations.ages_s(now_s),
            "dropped": dict(self.observations.dropped),
            "seam_jump_p99": float(np.percentile(np.array(self.jumps), 99)) if self.jumps else 0.0,
            "has_arrived": self.has_arrived,
            **dict.fromkeys(_COUNTED, 0),
            **self.counts,
        }

    def _watch_clock(self, now_s: float) -> None:
        last, self._last_tick_s = self._last_tick_s, now_s
        if last is None or 0 <= now_s - last <= self.config.max_gap_s:
            return
        self.reset(now_s, f"clock jumped {now_s - last:+.3g} s")
        self.counts["clock jumps"] += 1
        self._last_tick_s = now_s

    def _stopped(self, now_s: float) -> str:
        """Why nothing may be executed, whatever chunks there are."""
        if self._failures >= self.config.max_failures:
            return f"fault: the policy failed {self._failures} times in a row ({self._failed})"
        if self.contract.interface.goals and self._told is None:
            return NO_GOAL
        if self.has_arrived:
            return ARRIVED
        return self.observations.silence(now_s)

    @property
    def _slow(self) -> str:
        return f"inference too slow: {self._pace.delay} actions pass, at most {self.longest_delay} may"

    def _rest(self) -> None:
        if self._executing is not None or self._next_s is not None:
            self.counts["stops"] += 1
        self._chunks.clear()
        self._executing, self._next_s, self._previous, self._why = None, None, None, "no chunk yet"

    def _advance(self, now_s: float) -> None:
        """Begin the actions that are due; after a late tick more than one."""
        if self._next_s is None:
            if self._chunks.at(self._consumed) is None:
                return
            self._next_s = now_s
        while self._next_s is not None and now_s >= self._next_s - self.config.slack_s:
            self._begin_action()

    def _begin_action(self) -> None:
        assert self._next_s is not None
        found = self._chunks.at(self._consumed)
        before = self._executing[1].number if self._executing else -1
        waits = self.config.mode == "receding" and self._since_switch >= self._execution
        if found is None or (waits and found[1].number == before):
            self._why = "waiting for the next chunk" if waits else "chunk used up"
            self.counts["starved"] += not waits
            self._chunks.clear()
            self._executing, self._next_s = None, None
            return
        action, chunk = found
        if chunk.number != before:
            self._since_switch = 0
            if self._previous is not None:
                self.jumps.append(float(np.linalg.norm(action - self._previous)))
                self.seams += 1
        self._executing, self._previous = found, action
        self._consumed += 1
        self._since_switch += 1
        self._next_s += self.step_s
        if self._told is not None:
            self._told.executed()

    def _make_question(self, now_s: float) -> None:
        """At a boundary, or at rest: make the question that is due."""
        if self._asked is not None and now_s - self._asked.asked_s > self.config.answer_timeout_s:
            self.counts["lost answers"] += 1
            self.delays.record(now_s - self._asked.asked_s, self._asked.request.steps)  # it took at least so long
            self.reject(self._asked, "no answer in time", now_s)
        at_boundary = self._next_s is None or now_s >= self._next_s - self.config.slack_s
        if self._asked is not None or not at_boundary or not self._is_due(now_s):
            return
        pace = self.delays.choose(self.longest_delay)
        if self.config.mode == "receding":
            pace = replace(pace, is_too_slow=False)  # it rests meanwhile
        if pace.is_too_slow and not self._pace.is_too_slow:
            self.counts["too slow"] += 1
        self._pace = pace
        if self._pace.is_too_slow:
            self._rest()
        self._waiting = self._asked = self._asked_about(self.observations.window(), pace, now_s)
        self._asked_at, self._number = self._consumed, self._number + 1
        self.counts["questions"] += 1

    def _is_due(self, now_s: float) -> bool:
        """Enough of the chunk is used up, and there is something to ask about."""
        if self._retry_s is not None and now_s < self._retry_s - self.config.slack_s:
            return False
        if self._stopped(now_s) or self.observations.misalignment():
            return False
        if self._next_s is None:
            return not self._chunks.left(self._consumed)
        if self.config.mode == "receding":
            newest, has_next = self._chunks.newest, False
            if newest is not None and self._executing is not None:
                has_next = newest.number != self._executing[1].number
            return self._since_switch >= self._execution and not has_next
        return self._consumed - self._asked_at >= max(self._execution, self._pace.delay)

    def _asked_about(self, window: Observation, pace: Pace, now_s: float) -> Question:
        """Rolled forward, the new chunk begins where the committed actions end."""
        begin, delay = self._consumed, pace.delay
        if self._roll is not None and self._next_s is not None and not pace.is_too_slow:
            window, known = rolled(self._roll, window, self._chunks, begin, delay, self.step_s)
            begin, delay = begin + known, 0
        plan = None
        if self._next_s is not None:
            plan = rest_of_plan(self.config, self._chunks, begin, max(self._execution, pace.delay), delay, self.step_s)
        goal, words = ({}, "") if self._told is None else (self._told.goal(), self._told.instruction)
        rows, first = self.config.rows, self._number * self.config.rows
        seeds = np.array([noise_seed(self._seed, first + row) for row in range(rows)], np.int64)
        request = SamplingRequest(seeds, pace.steps, prefix=plan if self.config.mode in PREFIXED else None)
        observation = in_rows(window, rows, goal, words)
        return Question(observation, request, self._epoch, self._number, now_s, begin, pace.delay, plan)

    def _not_awaited(self, question: Question) -> str:
        if question.epoch != self._epoch:
            self.counts["answers of an earlier epoch"] += 1
            return "earlier epoch"
        if self._asked is None or question.number != self._asked.number:
            self.counts["answers too late"] += 1
            return "another question was asked since"
        return ""

    def _fault(self, question: Question, chunk: ActionChunk) -> str:
        expected = (self.config.rows, self._horizon, self.contract.interface.action.vector.size)
        if chunk.actions.shape != expected:
            return f"actions {chunk.actions.shape}, the contract says {expected}"
        return "" if np.isfinite(chunk.actions).all() else "actions are not finite"

    def _late(self, question: Question, seconds: float) -> str:
        """Why a good answer must not be executed any more."""
        if self.config.mode == "receding":
            return ""
        delay = self.delays.actions(seconds)
        if delay > self.longest_delay:
            return "late chunk"
        has_next = self._chunks.left(self._consumed) >= max(self._execution, delay)
        if self.config.mode == "trained_rtc" and self._next_s is not None and delay > question.delay and has_next:
            return "more actions passed than it began with"
        return ""
