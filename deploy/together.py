"""Many simulated robots, one policy: questions that are alike are asked in one batched call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from kineflow.contracts import ActionChunk, CommittedPrefix, Observation, Policy, SamplingRequest
from kineflow.deploy.asking import Question
from kineflow.deploy.simulate import Answer, Episode, Trace

AskAll = Callable[[Sequence[Question]], Sequence[Answer]]


def drive_together(episodes: Sequence[Episode], ask: AskAll) -> list[Trace]:
    """Each episode to its end, all waiting for each other's questions; the traces in the order of the episodes."""
    traces: dict[int, Trace] = {}
    pending: dict[int, Question] = {}

    def advance(index: int, answer: Answer, is_first: bool) -> None:
        try:
            pending[index] = next(episodes[index]) if is_first else episodes[index].send(answer)
        except StopIteration as end:
            pending.pop(index, None)
            traces[index] = end.value

    for index in range(len(episodes)):
        advance(index, None, is_first=True)
    while pending:
        waiting = dict(pending)
        for index, answer in zip(waiting, ask(list(waiting.values())), strict=True):
            advance(index, answer, is_first=False)
    return [traces[index] for index in range(len(episodes))]


def asks_together(policy: Policy) -> AskAll:
    """Answers of `policy`, one call for all questions with equal steps, delay and kind of prefix."""

    def ask(questions: Sequence[Question]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        groups: dict[Any, list[int]] = {}
        for i, question in enumerate(questions):
            groups.setdefault(_kind(question), []).append(i)
        for members in groups.values():
            chunk = policy.predict(*stacked([questions[i] for i in members]))
            first = 0
            for i in members:
                last = first + len(questions[i].request.seeds)
                answers[i] = rows_of(chunk, first, last)
                first = last
        return [answers[i] for i in range(len(questions))]

    return ask


def _kind(question: Question) -> tuple[Any, ...]:
    request, goal = question.request, question.observation.goal
    prefix = None if request.prefix is None else (request.prefix.delay, request.prefix.method)
    return request.steps, request.guidance_scale, prefix, tuple(goal), bool(question.observation.instruction)


class Asked(Protocol):
    """An observation and what is wanted, whoever asks."""

    @property
    def observation(self) -> Observation: ...

    @property
    def request(self) -> SamplingRequest: ...


def stacked(questions: Sequence[Asked]) -> tuple[Observation, SamplingRequest]:
    """Questions that are alike as one, in fresh arrays."""
    seen, requests = [q.observation for q in questions], [q.request for q in questions]
    observation = Observation(
        np.concatenate([o.state for o in seen]),
        np.concatenate([o.stamp_s for o in seen]),
        {name: np.concatenate([o.images[name] for o in seen]) for name in seen[0].images},
        {name: np.concatenate([o.goal[name] for o in seen]) for name in seen[0].goal},
        tuple(words for o in seen for words in o.instruction),
    )
    prefixes = [request.prefix for request in requests if request.prefix is not None]
    prefix = None
    if prefixes:
        actions, mask = np.concatenate([p.actions for p in prefixes]), np.concatenate([p.soft_mask for p in prefixes])
        prefix = CommittedPrefix(actions, mask, prefixes[0].delay, prefixes[0].method)
    seeds = np.concatenate([request.seeds for request in requests])
    return observation, SamplingRequest(seeds, requests[0].steps, requests[0].guidance_scale, prefix)


def rows_of(chunk: ActionChunk, first: int, last: int) -> ActionChunk:
    """Rows `first` to `last` of a chunk."""
    said = (None if v is None else v[first:last] for v in (chunk.stop_probability, chunk.ahead_s, chunk.distance))
    return ActionChunk(chunk.actions[first:last], chunk.step_s, np.asarray(chunk.stamp_s)[first:last], *said)
