"""FlowDiT and the stop head: what they promise untrained, and a small navigation task learned by both families in seconds."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kineflow.config import load_config
from kineflow.contracts import (
    CameraSpec,
    FeatureSpec,
    FeatureStatistics,
    GoalSpec,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    PolicyContract,
    SamplingRequest,
    VectorSpec,
)
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.clip_follower import halted
from kineflow.policies.encoders.clip import CLIPText
from kineflow.policies.encoders.colours import Colours
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.scene_net import SceneNet
from kineflow.policies.encoders.small_vit import SmallViT
from kineflow.policies.encoders.state import State
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.field import HeadField
from kineflow.policies.golden import golden_pair
from kineflow.policies.guidance import ClassifierFreeGuidance, hidden
from kineflow.policies.heads.embedding import rotation
from kineflow.policies.heads.flow_dit import BodyLinear, FlowDiT, FlowDiTHead
from kineflow.policies.objectives import Diffusion, FlowMatching
from kineflow.policies.observed import Observed
from kineflow.policies.paths import CondOT
from kineflow.policies.policy import PolicyConfig, PolicyNetwork, TrainingBatch
from kineflow.policies.policy_statistics import statistics_of
from kineflow.policies.stop import Stop, StopHead
from kineflow.policies.train_config import TrainConfig

# --- A robot in a world of one row of four places: a light at `here` in its picture, and at `there` in the goal's ---

SIZE, H, PLACES = 8, 4, 4
STEPS, LR = 200, 3e-3
BODIES = ("left_handed", "right_handed")
STATE = VectorSpec((*BODIES, "speed"), ("", "", "m/s"), "base", (0.0, 0.0, -9.0), (1.0, 1.0, 9.0))
TURN = VectorSpec(("yaw_rate",), ("rad/s",), "base", (-9.0,), (9.0,))
DONE = VectorSpec(("done",), ("",), "", (-1.0,), (2.0,))
WORLD = Interface(
    {"body": FeatureSpec(STATE, 10.0), "done": FeatureSpec(DONE, 10.0)},
    FeatureSpec(TURN, 10.0),
    {"front": CameraSpec(SIZE, SIZE, 10.0)},
)
WAYS = {"image": GoalSpec("image", SIZE, SIZE), "video": GoalSpec("video", SIZE, SIZE, 2, 4.0), "words": GoalSpec("instruction")}
WORDS = ("go to the first lamp", "go to the second lamp", "go to the third lamp", "go to the last lamp")
POLICY = PolicyConfig(
    horizons=Horizons(2, H, 2),
    head=FlowDiT(width=32, depth=2, attention_heads=2, embodiments=2),
    objective=FlowMatching(steps=4),
    encoder=GoalVision(
        frames=Colours(SIZE, 4),
        text=HashedWords(16),
        embodiments=BODIES,
        token=32,
        queries=2,
        attention_heads=2,
        matching=8,
        depth=1,
        state=State(width=16, depth=1, token=32),
    ),
    features=("body",),
    cameras=("front",),
    goals=WAYS,
    stop="done",
    action_scaling="range",
)


def picture(place: np.ndarray) -> np.ndarray:
    """Places `[*B]` to frames `[*B, H, W, 3]`: a light column on noise-free dark."""
    column = np.arange(SIZE) // (SIZE // PLACES) == place[..., None]  # [*B, W]
    return np.broadcast_to((40 + 180 * column[..., None, :, None]).astype(np.uint8), (*place.shape, SIZE, SIZE, 3)).copy()


def command(here: np.ndarray, there: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Turn to where the goal is, the two bodies in opposite senses, the second twice as fast; the same in the whole chunk."""
    gain = np.array([0.5, -1.0])[body]
    return np.broadcast_to((gain * (there - here)).astype(np.float32)[:, None, None], (len(here), H, 1)).copy()


def situations(rows: int, seed: int, way: str | None = None) -> tuple[Observation, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Observation (every way to say the goal), commands, done, and which rows are told in which `way` (None: one at random)."""
    rng = np.random.default_rng(seed)
    here, there, body = rng.integers(0, PLACES, rows), rng.integers(0, PLACES, rows), rng.integers(0, 2, rows)
    state = np.concatenate([np.eye(2)[body], rng.normal(size=(rows, 1))], 1).astype(np.float32)[:, None].repeat(2, 1)
    video = np.stack([there, there], 1)
    goal = {"image": picture(there), "video": picture(video)}
    seen = Observation(
        state, np.zeros((rows, 2)), {"front": picture(here)[:, None].repeat(2, 1)}, goal, tuple(WORDS[place] for place in there)
    )
    chosen = np.full(rows, list(WAYS).index(way)) if way else rng.integers(0, 3, rows)
    given = {name: chosen == index for index, name in enumerate(WAYS)}
    return seen, command(here, there, body), (here == there).astype(np.float32), given


def as_observed(seen: Observation, given: dict[str, np.ndarray]) -> Observed:
    images, goals = ({name: torch.from_numpy(v) for name, v in values.items()} for values in (seen.images, seen.goal))
    return Observed(
        torch.from_numpy(seen.state), images, goals, {k: torch.from_numpy(v) for k, v in given.items()}, seen.instruction
    )


def told(seen: Observation, way: str) -> Observation:
    goal = {way: seen.goal[way]} if way in seen.goal else {}
    return replace(seen, goal=goal, instruction=seen.instruction if way == "words" else ())


def batch_of(rows: int, seed: int) -> TrainingBatch:
    seen, action, done, given = situations(rows, seed)
    return TrainingBatch(as_observed(seen, given), torch.from_numpy(action), torch.ones(rows, H), done=torch.from_numpy(done))


@functools.cache
def statistics() -> dict[str, FeatureStatistics]:
    seen, action, done, _ = situations(512, 99)
    raw = {"body": statistics_of(seen.state[:, 0].astype(np.float64)), "action": statistics_of(action[:, 0].astype(np.float64))}
    return POLICY.statistics(WORLD, {**raw, "done": statistics_of(done[:, None].astype(np.float64))}, seen.state, action)


def network(**changes: object) -> PolicyNetwork:
    torch.manual_seed(0)
    config = replace(POLICY, **changes)
    return PolicyNetwork(config, WORLD, statistics())


FLOW = FlowMatching(steps=4, condition_dropout=0.1)
DIFFUSION = Diffusion(steps=5)


@functools.cache
def learned(objective: FlowMatching | Diffusion, steps: int = STEPS, lr: float = LR) -> PolicyNetwork:
    """Trained for a few seconds; in evaluation mode. Diffusion takes the encoder that flow matching has trained."""
    net = network(objective=objective)
    if objective != FLOW:
        net.encoder.load_state_dict(learned(FLOW).encoder.state_dict())
        net.encoder.requires_grad_(False)
    weights = [p for p in net.parameters() if p.requires_grad]
    optimiser, generator = torch.optim.AdamW(weights, lr=lr), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for step in range(steps):
        optimiser.zero_grad()
        net.loss(batch_of(32, step), generator, noise_samples=4).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
    return net.eval()


def errors(net: PolicyNetwork) -> dict[str, float]:
    """Root mean square error of the chunks for each way to be told, relative to the commands' own size."""
    found = {}
    for way in WAYS:
        seen, action, _, _ = situations(128, 12345, way)
        chunk = net.predict(told(seen, way), SamplingRequest(np.arange(128)))
        found[way] = float(np.sqrt(np.mean((chunk.actions - action) ** 2) / np.mean(action**2)))
    return found


# --- Learned ---


@pytest.mark.parametrize(("objective", "limit"), [(FLOW, 0.5), (DIFFUSION, 0.65)], ids=["flow", "diffusion"])
def test_both_families_learn_to_go_where_each_kind_of_goal_says(objective: FlowMatching | Diffusion, limit: float) -> None:
    """1 is the error of standing still. Two bodies, which turn in opposite senses, are in the same batches."""
    assert max(errors(learned(objective)).values()) < limit


@pytest.mark.parametrize("way", WAYS)
def test_another_goal_or_body_turns_the_robot_around(way: str) -> None:
    net, rows = learned(FLOW), np.arange(16)
    here, left, right = np.full(16, 1), np.full(16, 0), np.full(16, 3)

    def turn(there: np.ndarray, body: int) -> float:
        seen, _, _, _ = situations(16, 3)
        state = np.concatenate([np.tile(np.eye(2, dtype=np.float32)[body], (16, 2, 1)), seen.state[..., 2:]], -1)
        goal = {"image": picture(there), "video": picture(np.stack([there] * 2, 1))}
        words = tuple(WORDS[place] for place in there)
        seen = replace(seen, state=state, images={"front": picture(here)[:, None].repeat(2, 1)}, goal=goal, instruction=words)
        return float(net.predict(told(seen, way), SamplingRequest(rows)).actions.mean())

    assert turn(right, 0) > 0.4 > -0.1 > turn(left, 0)  # exactly: 1 and -0.5
    assert turn(right, 1) < -0.8 < 0.3 < turn(left, 1)  # exactly: -2 and 1


def test_stop_head_learns_when_the_place_is_reached() -> None:
    seen, _, done, _ = situations(256, 777, "image")
    stop = learned(FLOW).predict(told(seen, "image"), SamplingRequest(np.arange(256))).stop_probability
    assert stop is not None
    assert stop.shape == (256,)
    assert ((stop > 0.5) == (done > 0.5)).mean() > 0.97


def test_guidance_hides_the_goal_and_not_the_robot() -> None:
    """At scale 0 the goal is unknown, the body is not: with other goals nothing changes, with the other body the spread does."""
    net = learned(FLOW)
    assert net.null_condition is not None
    assert net.null_condition.shape == (1, net.encoder.token_shape[0] - 1, 32)
    seen, _, _, _ = situations(64, 5)
    other, _, _, _ = situations(64, 6)
    other = replace(other, state=seen.state, images=seen.images)
    swapped = replace(seen, state=np.concatenate([seen.state[..., 1::-1], seen.state[..., 2:]], -1))

    def free(observation: Observation, scale: float = 0.0) -> np.ndarray:
        request = SamplingRequest(np.arange(64), guidance_scale=scale)
        return np.asarray(net.predict(told(observation, "image"), request).actions)

    np.testing.assert_array_equal(free(seen), free(other))
    assert np.abs(free(seen) - free(swapped)).mean() > 0.05
    assert np.abs(free(seen, 1.0) - free(other, 1.0)).mean() > 0.1


def test_hidden_condition_keeps_the_front() -> None:
    condition, null = torch.randn(3, 5, 4), torch.randn(1, 4, 4)
    assert torch.equal(hidden(condition, null), torch.cat([condition[:, :1], null.expand(3, -1, -1)], 1))
    assert torch.equal(hidden(condition, null.new_ones(1, 5, 4)), torch.ones(3, 5, 4))
    asked: list[torch.Tensor] = []

    def head(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        assert condition is not None
        asked.append(condition)
        return 0 * x

    field = ClassifierFreeGuidance(HeadField(head, CondOT(), "velocity"), null, 2.0)
    field(torch.randn(3, H, 1), torch.zeros(3), condition)
    assert torch.equal(asked[0], torch.cat([condition, hidden(condition, null)]))


def test_training_hides_only_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(objective=FlowMatching(condition_dropout=0.5))
    torch.nn.init.constant_(net.null_condition, 7.0)
    condition = net.encoder(batch_of(200, 0).observed)
    shown = net._hide(condition, torch.Generator().manual_seed(0))
    replaced = (shown[:, 1:] == 7).flatten(1).all(1)
    assert torch.equal(shown[:, 0], condition[:, 0])
    assert torch.equal(shown[~replaced], condition[~replaced])
    assert replaced.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_rows_do_not_depend_on_their_batch() -> None:
    net, (seen, _, _, _) = learned(FLOW), situations(4, 8)
    together = net.predict(told(seen, "video"), SamplingRequest(np.arange(4)))
    for row in range(4):
        one = Observation(
            seen.state[row : row + 1],
            seen.stamp_s[row : row + 1],
            {"front": seen.images["front"][row : row + 1]},
            {"video": seen.goal["video"][row : row + 1]},
        )
        alone = net.predict(one, SamplingRequest(np.array([row])))
        np.testing.assert_allclose(alone.actions[0], together.actions[row], rtol=1e-3, atol=1e-4)
        assert together.stop_probability is not None
        assert alone.stop_probability is not None
        np.testing.assert_allclose(alone.stop_probability[0], together.stop_probability[row], rtol=1e-3, atol=1e-4)


def test_checkpoint_brings_back_goals_and_stop(tmp_path: Path) -> None:
    net, (seen, _, _, _) = learned(FLOW), situations(3, 8)
    contract = PolicyContract(
        net.interface, POLICY.horizons, net.config.objective.sampler_spec(), statistics(), "0" * 64, {}, golden_pair(net)
    )
    again = load_policy(ChunkPolicy(net, contract).save_pretrained(tmp_path))
    request = SamplingRequest(np.arange(3))
    before, after = net.predict(told(seen, "words"), request), again.predict(told(seen, "words"), request)
    np.testing.assert_array_equal(before.actions, after.actions)
    assert after.stop_probability is not None
    np.testing.assert_array_equal(before.stop_probability, after.stop_probability)
    assert again.contract.interface.goals == WAYS


# --- The head ---

A, N, D = 4, 5, 16
SMALL = FlowDiT(width=32, depth=2, attention_heads=2, embodiments=3)


def inputs(batch: int = 3, horizon: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(batch, N, D, generator=generator)
    condition[:, 0, :3] = F.one_hot(torch.arange(batch) % 3, 3).float()
    return torch.randn(batch, horizon, A, generator=generator), torch.rand(batch, generator=generator), condition


def head(config: FlowDiT = SMALL, **how: bool) -> FlowDiTHead:
    """As if trained for a while: every layer that is zero at first has some size."""
    torch.manual_seed(0)
    built = config.build(8, A, (N, D), **how)
    for parameter in built.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return built


def test_new_head_says_zero_and_new_block_nothing() -> None:
    new, (x, t, condition) = SMALL.build(8, A, (N, D)), inputs()
    assert torch.equal(new(x, t, condition), torch.zeros(3, 8, A))
    tokens, prepared = torch.randn(3, 8, 32), new.prepare(condition)
    assert torch.equal(new.blocks[0](tokens, torch.zeros(3, 1, 9 * 32), prepared.key_value[0], rotation(8, 16, tokens)), tokens)


def test_every_token_has_a_gradient_and_a_place() -> None:
    trained, (x, t, condition) = head(), inputs()
    condition.requires_grad_()
    trained(x, t, condition).square().sum().backward()
    assert condition.grad is not None
    assert condition.grad.abs().amax(dim=(0, 2)).min() > 1e-3
    order = [0, 2, 1, 3, 4]
    assert (trained(x, t, condition[:, order]) - trained(x, t, condition)).abs().max() > 1e-3


def test_each_token_is_seen_by_attention_too() -> None:
    """Not by the signal alone: the same signal, other keys and values, another answer."""
    trained, (x, t, condition) = head(), inputs()
    prepared = trained.prepare(condition)
    for token in range(N):
        changed = condition.clone()
        changed[:, token] += 1
        mixed = replace(prepared, key_value=trained.prepare(changed).key_value)
        assert (trained.answer(x, t, mixed) - trained.answer(x, t, prepared)).abs().max() > 1e-4


def test_every_parameter_of_every_body_learns() -> None:
    trained = head()
    trained(*inputs()).square().sum().backward()
    assert [name for name, p in trained.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_a_body_learns_from_its_own_windows_alone() -> None:
    trained, (x, t, condition) = SMALL.build(8, A, (N, D)), inputs(6)
    torch.nn.init.normal_(trained.action_out.shared.weight)
    condition[:, 0, :3] = torch.tensor([0.0, 1.0, 0.0])
    optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (trained(x, t, condition) - 1).square().mean().backward()
        optimiser.step()
    for layer in (trained.action_in, trained.action_out):
        assert layer.corrections is not None
        assert torch.equal(layer.corrections[[0, 2]], torch.zeros_like(layer.corrections[[0, 2]]))
        assert layer.corrections[1].abs().max() > 1e-3
    # A body that was never seen uses what all share.
    unseen, nobody = condition.clone(), condition.clone()
    unseen[:, 0, :3], nobody[:, 0, :3] = torch.tensor([1.0, 0.0, 0.0]), 0.0
    prepared = trained.prepare(unseen)
    shared = trained.answer(x, t, replace(prepared, body=nobody[:, 0, :3]))
    assert torch.equal(trained.answer(x, t, prepared), shared)


def test_body_linear_is_a_linear_layer_for_each_body() -> None:
    torch.manual_seed(0)
    layer, x = BodyLinear(3, 2, 2), torch.randn(2, 5, 3)
    assert layer.corrections is not None
    torch.nn.init.normal_(layer.corrections)
    answer = layer(x, torch.eye(2))
    for body in range(2):
        rows = layer.corrections[body].view(4, 2)
        expected = F.linear(x[body], layer.shared.weight + rows[:3].T, layer.shared.bias + rows[3])
        torch.testing.assert_close(answer[body], expected)
    assert BodyLinear(3, 2, 1).corrections is None


def test_fixed_condition_is_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, (x, t, condition) = head(), inputs()
    fixed = trained.fixed(condition)
    assert torch.equal(fixed(x, t, condition), trained(x, t, condition))
    other = condition.flip(0)
    assert torch.equal(fixed(x, t, other), trained(x, t, other))


def test_rows_under_one_condition_share_its_keys() -> None:
    """Three noises for each row: the same answers, and the same gradients, as with the condition written out three times."""
    trained, (x, t, condition) = head(), inputs()
    x, t = torch.randn(9, 8, A), torch.rand(9)
    gradients = []
    for shared in (False, True):
        trained.zero_grad()
        given = condition.clone().requires_grad_()
        repeated = given.repeat(3, 1, 1)
        answer = trained.fixed(given, repeated)(x, t, repeated) if shared else trained(x, t, repeated)
        answer.square().sum().backward()
        gradients.append([answer.detach(), given.grad, *(p.grad for p in trained.parameters())])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_training_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net, rows = network(), []
    prepare = net.head.prepare
    monkeypatch.setattr(net.head, "prepare", lambda condition: rows.append(len(condition)) or prepare(condition))
    net.loss(batch_of(5, 0), torch.Generator(), noise_samples=3)
    assert rows == [5]


def test_shared_keys() -> None:
    """One set of keys and values, which every block looks at in its own way."""
    shared, (x, t, condition) = head(replace(SMALL, shared_keys=True)), inputs()
    prepared = shared.prepare(condition)
    assert len(prepared.key_value) == SMALL.depth
    assert all(pair is prepared.key_value[0] for pair in prepared.key_value)
    own = sum(p.numel() for p in head().parameters())
    assert own - sum(p.numel() for p in shared.parameters()) == (SMALL.depth - 1) * 2 * SMALL.width * (SMALL.width + 1)
    shared(x, t, condition).square().sum().backward()
    assert [name for name, p in shared.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_patches_of_actions() -> None:
    """Half as many tokens; each action still has its own place and its own time."""
    patched, (x, t, condition) = head(replace(SMALL, patch=2)), inputs()
    assert patched.blocks[0]._among(torch.randn(3, 4, 32), rotation(4, 16, x)).shape == (3, 4, 32)
    whole = patched(x, t, condition)
    assert whole.shape == x.shape
    torch.testing.assert_close(patched(x, t[:, None].expand(-1, 8), condition), whole, rtol=1e-4, atol=1e-5)
    for action in range(8):
        times, moved = t[:, None].repeat(1, 8), x.clone()
        times[:, action] = 0.9
        moved[:, action] += 1
        assert (patched(x, times, condition) - whole).abs().max() > 1e-4
        change = (patched(moved, t, condition) - whole).abs().amax(dim=(0, 2))
        assert change.min() > 1e-5
    with pytest.raises(KineflowError, match="patch 3"):
        replace(SMALL, patch=3).build(8, A, (N, D))


def test_a_solver_prepares_its_condition_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls = network(), []
    prepare = net.head.prepare
    monkeypatch.setattr(net.head, "prepare", lambda condition: calls.append(1) or prepare(condition))
    seen, _, _, _ = situations(2, 0)
    net.predict(told(seen, "image"), SamplingRequest(np.arange(2), steps=4))
    assert len(calls) == 1


def test_head_for_flow_maps() -> None:
    """Two times: end = t is the velocity; a derivative in time exists with the plain attention kernel."""
    trained, (x, t, condition) = head(SMALL, two_times=True), inputs()
    torch.testing.assert_close(trained(x, t, condition, t), trained(x, t, condition))
    assert (trained(x, t, condition, t + 0.2) - trained(x, t, condition)).abs().max() > 1e-3
    with pytest.raises(KineflowError, match="cannot jump"):
        head()(x, t, condition, t)


@pytest.mark.parametrize("horizon", [1, 5, 20])
def test_any_horizon_and_a_time_per_action(horizon: int) -> None:
    trained, (x, t, condition) = head(), inputs(horizon=horizon)
    per_action = trained(x, t[:, None].expand(-1, horizon), condition)
    torch.testing.assert_close(trained(x, t, condition), per_action, rtol=1e-4, atol=1e-5)


def test_bfloat16() -> None:
    trained, (x, t, condition) = head(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        answer = trained(x, t, condition)
    exact = trained(x, t, condition)
    assert ((answer.float() - exact).square().mean() / exact.square().mean()).sqrt() < 0.05


@pytest.mark.parametrize("change", [{"width": 30}, {"embodiments": 0}, {"embodiments": 17}])
def test_sizes_that_do_not_fit(change: dict[str, int]) -> None:
    with pytest.raises(KineflowError, match="FlowDiT"):
        replace(SMALL, **change).build(8, A, (N, D))


def test_head_and_encoder_must_mean_the_same_bodies() -> None:
    with pytest.raises(KineflowError, match="3, but the encoder tells 2 apart"):
        replace(POLICY, head=replace(POLICY.head, embodiments=3))
    plain = replace(POLICY, encoder=State(token=32), head=FlowDiT(width=32), cameras=(), goals={}, stop="")
    with pytest.raises(KineflowError, match="tells 0 apart"):
        replace(plain, head=FlowDiT(width=32, embodiments=2))


# --- Stopping ---


def test_stop_loss_weighs_both_answers_the_same() -> None:
    """With logit 0 each kind of window contributes half of weight x log 2, however rare it is."""
    stop = StopHead(Stop(weight=0.3, width=8), (N, D), done_share=0.05)
    for parameter in stop.parameters():
        torch.nn.init.zeros_(parameter)
    condition, done = torch.randn(200, N, D), (torch.arange(200) < 10).float()
    losses = stop.loss(condition, done)
    assert losses[:10].sum().item() == pytest.approx(losses[10:].sum().item(), rel=1e-4)
    assert losses.mean().item() == pytest.approx(0.3 * math.log(2), rel=1e-4)


def test_similarity_alone_is_a_threshold() -> None:
    stop = StopHead(Stop(width=8), (N, D), 0.5, similarity=(1, 2))
    torch.nn.init.zeros_(stop.out[-1].weight)
    torch.nn.init.zeros_(stop.out[-1].bias)
    condition = torch.randn(2, N, D)
    condition[:, 1, :2] = torch.tensor([[0.9, 0.4], [0.1, 0.4]])
    torch.testing.assert_close(stop(condition), torch.tensor([5 * 0.4 - 5 * 0.1, 5 * -0.4 - 5 * 0.1]))


@pytest.mark.parametrize("shapes", [True, False])
def test_stop_shapes_the_encoder_where_it_may(shapes: bool) -> None:
    net, batch = network(stop_head=Stop(shapes_encoder=shapes)), batch_of(8, 0)
    assert net.stop is not None
    assert batch.done is not None
    net.stop.loss(net.encoder(batch.observed), batch.done).mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.encoder.parameters()) == shapes
    assert all(p.grad is None for p in net.head.parameters())


@pytest.mark.parametrize(
    ("answers", "halts"),
    [
        ([0.9, 0.9, 0.9], True),
        ([0.1, 0.9, 0.9, 0.9], True),
        ([0.9, 0.9], False),
        ([0.9, 0.9, 0.9, 0.1], False),
        ([0.9, 0.1, 0.9, 0.9], False),
        ([0.9, 0.9, math.nan], False),
        ([0.5, 0.5, 0.5], False),
        ([], False),
    ],
)
def test_one_confident_mistake_does_not_halt(answers: list[float], halts: bool) -> None:
    assert bool(halted(np.array(answers))) == halts
    assert halted(np.array([answers, answers])).tolist() == [halts, halts]


def test_halt_needs_an_answer() -> None:
    with pytest.raises(KineflowError, match="at least 1"):
        halted(np.array([0.9]), consecutive=0)


# --- Sizes ---


SCENE, LIKE_DINO = SceneNet("random"), SmallViT(size=64, grid=4, width=384, depth=0)


@pytest.mark.parametrize(
    ("name", "millions", "frames"),
    [
        ("navigation_flow", 5, SCENE),
        ("navigation_flow_small", 2, SCENE),
        ("navigation_diffusion", 5, SCENE),
        ("navigation_flow_43m", 43, LIKE_DINO),
    ],
)
def test_shipped_sizes(name: str, millions: float, frames: SceneNet | SmallViT) -> None:
    """Without the frozen backbones, for which stand-ins of the same width are built here: no weights are fetched."""
    config, interface = load_config(TrainConfig, f"train/{name}").policy, load_config(Interface, "interfaces/navigation")
    assert isinstance(config.encoder, GoalVision)
    words = HashedWords(512) if isinstance(config.encoder.text, CLIPText) else config.encoder.text
    encoder = replace(config.encoder, frames=frames, text=words)
    config = replace(config, encoder=encoder)
    ones = FeatureStatistics(9, *((1.0,) * 4,) * 6)
    body, done = FeatureStatistics(9, *((1.0,) * 3,) * 6), FeatureStatistics(9, *((0.1,),) * 6)
    chunk, state = (
        FeatureStatistics(9, *((1.0,) * 32,) * 6),
        FeatureStatistics(9, *((1.0,) * 4 * config.horizons.observation,) * 6),
    )
    known = {"velocity": ones, "embodiment": body, "stop": done, "action": ones, "action_chunk": chunk, "encoded_state": state}
    net = PolicyNetwork(config, interface, known)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, rel=0.1)
