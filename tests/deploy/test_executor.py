"""The executor in virtual time: which observation each executed action answers, and what happens to answers that do not come."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from kineflow.contracts import ActionChunk, ContractError, FeatureSpec, GoalSpec, Interface, VectorSpec
from kineflow.deploy.asking import Question
from kineflow.deploy.roll_forward import RollForward
from kineflow.deploy.simulate import Trace, drive, simulated
from kineflow.policies.deadline import Latency, LatencyTable
from tests.deploy.closed_form import STEP_S, Counting, contract, control, executor, limits, tell_tale

NONE = (-1, -1)


def run(of, latency=0.0, limit_s=3.0, rate_hz=10.0, ask=None, robot=None, start_s=0.0) -> Trace:  # type: ignore[no-untyped-def]
    """One episode of the counting robot; `latency` in seconds, or a function of the question."""
    taken = latency if callable(latency) else lambda question: latency
    robot = robot or Counting(limit_s, start_s)
    return drive(simulated(control(of), robot, taken, rate_hz, limit_s, start_s), ask or partial(tell_tale, of.contract))


def executed(trace: Trace) -> list[tuple[int, int]]:
    """(count seen, index in the chunk) at each tick; NONE where the robot rested."""
    return [NONE if t.intent.action is None else (int(t.intent.action[0]), int(t.intent.action[1])) for t in trace.ticks]


def reasons(trace: Trace) -> list[str]:
    return [t.intent.reason for t in trace.ticks]


def test_receding_horizon_executes_four_of_eight_and_looks_again() -> None:
    assert executed(run(executor("receding")))[:10] == [
        *((0, i) for i in range(4)), *((4, i) for i in range(4)), (8, 0), (8, 1)
    ]  # fmt: skip


def test_receding_horizon_rests_while_the_policy_thinks() -> None:
    trace = run(executor("receding"), latency=0.2)
    assert executed(trace)[:9] == [NONE, NONE, (0, 0), (0, 1), (0, 2), (0, 3), NONE, NONE, (6, 0)]
    assert reasons(trace)[6] == "waiting for the next chunk"


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
def test_the_first_d_actions_of_a_new_chunk_are_past(delay: int) -> None:
    """Asked at actions 0, 4, 8, ...; what is executed is of the newest chunk, in its place."""
    trace = executed(run(executor("async"), latency=delay * STEP_S))
    assert trace[:delay] == [NONE] * delay
    for k, (seen, index) in enumerate(trace[delay:]):
        question = max(0, (k - delay) // 4) * 4 if k >= delay else 0
        # The first chunk was waited for: its action 0 was executed at `delay`, so counts run `delay` ahead of actions.
        assert (seen, index) == (question + (delay if question else 0), k - question), k


def test_the_delay_counts_begun_actions() -> None:
    """0.11 s are two actions: the first begins with the question, the second while it is answered."""
    for latency, delay in ((0.1, 1), (0.11, 2), (0.2, 2), (0.31, 4)):
        assert run(executor("async"), latency=latency).diagnostics["delay_actions"] == delay


def test_ticks_between_boundaries_hold_the_action() -> None:
    slow, fast = (executed(run(executor("async"), latency=0.2, rate_hz=rate)) for rate in (10.0, 50.0))
    assert fast[::5] == slow
    assert all(fast[k] == fast[k - k % 5] for k in range(len(fast)))


def test_the_worst_of_the_last_ten_answers_is_expected() -> None:
    """Promise 13: one slow answer is expected again for as long as it is among the last ten."""
    delays: list[int] = []

    def latency(question: Question) -> float:
        delays.append(question.delay)
        return 0.35 if question.number == 3 else 0.15

    run(executor("async"), latency=latency, limit_s=10.0)
    assert delays[:20] == [1, 2, 2, 2, *[4] * 10, *[2] * 6]


def test_without_time_the_robot_stops_and_goes_on_when_there_is_time_again() -> None:
    """Promise 13 without a table: d > H - s, so stop; chunks that came too late are not executed."""

    def latency(question: Question) -> float:
        return 0.6 if 2 <= question.number < 6 else 0.1

    trace = run(executor("async", delay_window=3), latency=latency, limit_s=12.0)
    wanted, said = executed(trace), reasons(trace)
    assert "inference too slow: 6 actions pass, at most 4 may" in said
    stopped = [k for k, reason in enumerate(said) if reason.startswith("inference too slow")]
    assert all(wanted[k] == NONE for k in stopped)
    assert NONE not in wanted[stopped[-1] + 2 :]
    assert trace.diagnostics["late chunk"] >= 1


def test_fewer_steps_are_taken_before_the_robot_stops(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Promise 13 with a table: a machine that got 3 times slower takes 4 steps instead of 10; ten times slower, it stops."""
    table = LatencyTable(tuple(Latency(n, 1, 0.9 * s, s, 100) for n, s in ((1, 0.05), (4, 0.1), (10, 0.25))))
    table.save(tmp_path / "latency.json")
    p99 = {row.steps: row.p99_s for row in table.rows}
    for slower, expected in ((1.0, {10}), (3.0, {4}), (10.0, {1})):
        steps: list[int] = []

        def latency(question: Question, slower: float = slower, steps: list[int] = steps) -> float:
            steps.append(question.request.steps)
            return slower * p99[steps[-1]]

        trace = run(executor("async", latency_table=str(tmp_path / "latency.json")), latency=latency, limit_s=10.0)
        assert set(steps[2:]) == expected, slower
        assert ("inference too slow" in reasons(trace)[-1]) == (slower == 10.0)


def test_temporal_ensembling_weights_older_chunks_more() -> None:
    of = executor("ensemble", contract(prediction=4, execution=1), ensemble_decay=0.5)
    seen = [t.intent.action[0] for t in run(of).ticks[:6] if t.intent.action is not None]
    weights = np.exp(-0.5 * np.arange(4))
    assert seen[1] == pytest.approx((0 * weights[0] + 1 * weights[1]) / weights[:2].sum())
    assert seen[5] == pytest.approx((weights @ [2, 3, 4, 5]) / weights.sum())


def test_rtc_is_asked_with_what_is_left_and_how_much_of_it_is_committed() -> None:
    of, asked = executor("rtc"), list[Question]()

    def ask(question: Question) -> ActionChunk:
        asked.append(question)
        return tell_tale(of.contract, question)

    run(of, latency=0.2, ask=ask)
    assert asked[0].request.prefix is None
    prefix = asked[2].request.prefix
    assert prefix is not None
    # The second chunk is 2 actions old when it comes, and 4 when the third question is asked: 4 are left.
    assert prefix.actions[0, :4, 1].tolist() == [4, 5, 6, 7]
    assert (prefix.actions[0, :4, 0] == asked[1].observation.state[0, -1, 0]).all()
    assert prefix.delay == 2
    assert prefix.soft_mask[0, :2].tolist() == [1, 1]
    assert (prefix.soft_mask[0, 2:4] > 0).all()
    assert (prefix.soft_mask[0, 4:] == 0).all()
    assert prefix.method == "guided"


@pytest.mark.parametrize(("mode", "method"), [("rtc_exact", "exact"), ("trained_rtc", "start"), ("hard_prefix", "start")])
def test_the_other_prefixes(mode: str, method: str) -> None:
    of, asked = executor(mode, contract(clean_start=4)), list[Question]()

    def ask(question: Question) -> ActionChunk:
        asked.append(question)
        return tell_tale(of.contract, question)

    run(of, latency=0.2, ask=ask)
    prefix = asked[3].request.prefix
    assert prefix is not None
    assert prefix.method == method
    assert (prefix.soft_mask[0] > 0).sum() == (2 if method == "start" else 4)


def test_a_trained_start_that_was_too_short_is_not_joined() -> None:
    """More actions passed than the chunk begins with: the old chunk has enough left, so it goes on."""

    def latency(question: Question) -> float:
        return 0.3 if question.number == 2 else 0.1

    of = executor("trained_rtc", contract(prediction=12, execution=3, clean_start=4), execution=3)
    trace = run(of, latency=latency)
    assert trace.diagnostics["more actions passed than it began with"] == 1
    assert NONE not in executed(trace)[1:]


def test_a_policy_that_did_not_learn_to_begin_with_actions_is_refused() -> None:
    with pytest.raises(ContractError, match="clean_start is 0"):
        executor("trained_rtc")


def test_modes_that_a_policy_cannot_do_are_refused() -> None:
    with pytest.raises(ContractError, match="8 of 8 actions executed leave no time to think in mode async"):
        executor("async", execution=8)
    executor("receding", execution=8)
    made = contract()
    regression = replace(made, sampler=replace(made.sampler, solver="regression"))
    executor("async", regression)
    with pytest.raises(ContractError, match="a regression policy does not sample; use receding or async"):
        executor("rtc", regression)


def test_bid_takes_the_candidate_nearest_to_the_plan() -> None:
    of = executor("bid", candidates=5)

    def ask(question: Question) -> ActionChunk:
        """Five plans, 0 to 4 and in another order each time; to stay with the first is to choose the same again."""
        order = np.random.default_rng(question.number).permutation(5)
        return ActionChunk(np.tile(order[:, None, None], (1, 8, 2)).astype(np.float32), STEP_S, np.zeros(5))

    wanted = {seen for seen, _ in executed(run(of, latency=0.2, ask=ask)) if seen >= 0}
    assert len(wanted) == 1
    free = executor("async")
    jumps = run(free, latency=0.2, ask=lambda q: ActionChunk(ask(q).actions[:1], STEP_S, np.zeros(1))).jumps
    assert max(jumps) > 0  # the order does change


def test_roll_forward_shows_the_state_in_which_the_chunk_begins() -> None:
    """An action sets the count; while two actions pass, the policy is shown the count after them, and its chunk begins there."""
    vector = VectorSpec(("count",), ("1",), "none", (-1e6,), (1e6,))
    interface = Interface({"count": FeatureSpec(vector, 10.0)}, FeatureSpec(vector, 10.0))
    made, asked = contract(interface=interface), list[Question]()
    of = executor("async", made, roll_forward=True)

    def ask(question: Question) -> ActionChunk:
        asked.append(question)
        ahead = question.observation.state[:, -1:, :] + 1 + np.arange(8)[None, :, None]
        return ActionChunk(ahead.astype(np.float32), STEP_S, np.zeros(1))

    trace = run(of, latency=0.2, ask=ask)
    wanted = [t.intent.action[0] for t in trace.ticks if t.intent.action is not None]
    assert wanted[:20] == list(range(1, 21))  # one count after the other, across every seam
    assert asked[1].begin == asked[0].begin + 4 + 2
    assert asked[1].observation.state[0, :, 0].tolist() == [5, 6]  # after the committed actions 5 and 6
    with pytest.raises(ContractError, match=r"nothing in the state \['count'\] follows from the actions"):
        executor("async", roll_forward=True)


def test_a_pose_rolls_along_the_arc() -> None:
    from kineflow.config import load_config

    interface = load_config(Interface, "interfaces/navigation")
    roll, size = RollForward.of(interface), sum(s.vector.size for s in interface.features.values())
    state = np.zeros((2, size), np.float32)
    state[:, -1] = 1  # qw
    after = roll(state, np.tile(np.array([[1.0, 0, 0, np.pi / 2]]), (10, 1)), 0.1)[-1]
    # A quarter of a circle of radius 2 / pi, in one second.
    np.testing.assert_allclose(after[-7:-4], [2 / np.pi, 2 / np.pi, 0], atol=1e-6)
    np.testing.assert_allclose(after[-4:], [0, 0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-6)
    names = [n for spec in interface.features.values() for n in spec.vector.names]
    assert after[names.index("vx")] == 1
    assert after[names.index("yaw_rate")] == pytest.approx(np.pi / 2)


def test_lost_answers_are_asked_for_again() -> None:
    of = executor("async", answer_timeout_s=0.3)

    def ask(question: Question) -> ActionChunk | None:
        return None if question.number == 2 else tell_tale(of.contract, question)

    trace = run(of, latency=0.1, ask=ask)
    assert trace.diagnostics["lost answers"] == 1
    assert executed(trace)[-1][0] > 20


def test_answers_out_of_order_are_not_executed() -> None:
    """The second answer is overtaken: its question had been given up and asked anew."""
    of = executor("async", answer_timeout_s=0.3)
    trace = run(of, latency=lambda question: 0.9 if question.number == 1 else 0.1)
    assert trace.diagnostics["answers too late"] == 1
    seen = [s for s, _ in executed(trace) if s >= 0]
    assert seen == sorted(seen)


def test_failures_are_retried_and_ten_in_a_row_are_a_fault() -> None:
    of = executor("async", retry_s=0.0)

    def failing(question: Question) -> ActionChunk:
        if question.number in (1, 2):
            raise RuntimeError("out of memory")
        if question.number in (4,):
            return ActionChunk(np.full((1, 8, 2), np.nan, np.float32), STEP_S, np.zeros(1))
        if question.number >= 7:
            raise OSError("gone")
        return tell_tale(of.contract, question)

    trace = run(of, latency=0.1, ask=failing, limit_s=6.0)
    assert trace.diagnostics["failed answers"] == 3 + 10
    assert reasons(trace)[-1] == "fault: the policy failed 10 times in a row (OSError: gone)"
    assert executed(trace)[-1] == NONE
    of.clear_goal(6.1)  # another goal does not mend it
    of.observe("count", np.array([0.0]), 6.1, 6.1)
    assert of.tick(6.1).reason.startswith("fault")
    of.reset(7.0, "operator")
    assert of.tick(7.0).reason == "no observation of count"


def test_a_chunk_is_used_up_and_the_last_action_is_not_repeated() -> None:
    """Promise 4: the tick after the last action has no action."""
    of = executor("async", answer_timeout_s=5.0)
    trace = run(of, latency=lambda question: 0.1 if question.number == 0 else 4.0)
    wanted = executed(trace)
    assert wanted[1:9] == [(0, i) for i in range(8)]
    assert wanted[9] == NONE
    assert reasons(trace)[9] == "chunk used up"


def test_stale_observations_stop_the_robot_and_fresh_ones_start_it() -> None:
    """Promise 2: older than 0.2 s by receipt."""
    of = executor("async", observations=limits(max_age_s=0.2))
    trace = run(of, latency=0.1, rate_hz=50.0, limit_s=4.0, robot=Counting(4.0, silent=(1.0, 2.0)))
    stale = [t.now_s for t in trace.ticks if t.intent.reason.startswith("stale observation")]
    assert 0.9 + 0.2 <= stale[0] <= 0.9 + 0.2 + 0.02 + 1e-9  # within a tick
    assert stale[-1] < 2.0
    after = [t for t in trace.ticks if t.now_s > 2.15]
    assert all(t.intent.action is not None and t.intent.action[0] >= 20 for t in after)


def test_reset_while_an_answer_is_under_way_discards_it() -> None:
    of = executor("async")
    for k in range(2):
        of.observe("count", np.array([k]), k * STEP_S, k * STEP_S)
    question = of.question(0.1)
    assert question is not None
    of.reset(0.15, "operator")
    assert of.answer(question, tell_tale(of.contract, question), 0.2) == "earlier epoch"
    of.observe("count", np.array([2.0]), 0.2, 0.2)
    assert of.tick(0.2).action is None
    again = of.take_question()
    assert again is not None
    assert again.epoch == question.epoch + 1
    assert again.request.seeds[0] == question.request.seeds[0]  # the same episode of noise from its beginning


@pytest.mark.parametrize("jump", [-5.0, -0.001, 1.5])
def test_a_jump_of_the_clock_flushes(jump: float) -> None:
    """Promise 14: any backward, forward by more than a second."""
    of = executor("async")
    of.observe("count", np.array([0.0]), 0.0, 0.0)
    question = of.question(0.0)
    assert question is not None
    of.answer(question, tell_tale(of.contract, question), 0.05)
    assert of.tick(0.06).action is not None
    of.observe("count", np.array([0.0]), 0.06 + jump, 0.06 + jump)
    assert of.tick(0.06 + jump).reason == "no observation of count"
    assert of.counts["clock jumps"] == 1


def test_without_its_goal_nothing_is_asked_and_on_arrival_nothing_is_done() -> None:
    made = contract()
    made = replace(made, interface=replace(made.interface, goals={"point": GoalSpec("point")}))

    class Told:
        instruction, has_arrived, passed, ahead = "", False, 0, list[float]()

        def goal(self) -> dict[str, np.ndarray]:
            return {"point": np.ones(3, np.float32)}

        def answered(self, chunk: ActionChunk, row: int) -> None:
            self.ahead.append(float(chunk.actions[row, 0, 0]))

        def executed(self) -> None:
            self.passed += 1
            self.has_arrived = self.passed == 10

    of, told = executor("async", made), Told()
    of.observe("count", np.array([0.0]), 0.0, 0.0)
    assert of.question(0.0) is None
    assert of.tick(0.0).reason == "no goal"
    of.set_goal(told, 0.0)
    asked: list[Question] = []

    def ask(question: Question) -> ActionChunk:
        asked.append(question)
        return tell_tale(made, question)

    trace = run(of, latency=0.1, ask=ask)
    assert (asked[0].observation.goal["point"] == np.ones((1, 3))).all()
    assert told.passed == 10
    assert sum(t.intent.action is not None for t in trace.ticks) == 10
    assert reasons(trace)[-1] == "arrived"
    assert len(told.ahead) == len(asked) <= 4
