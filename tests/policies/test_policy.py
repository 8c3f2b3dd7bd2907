"""The policy network and its checkpoint: geometry against closed forms, units, guidance, and every way to be bad."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kineflow.contracts import (
    CommittedPrefix,
    ContractError,
    FeatureStatistics,
    KineflowError,
    Observation,
    Policy,
    SamplingRequest,
)
from kineflow.policies.checkpoint import CheckpointError, ChunkPolicy, load_policy
from kineflow.policies.encoders.state import PlanarBody, State, StateFeatures
from kineflow.policies.normaliser import Normaliser
from kineflow.policies.objectives import FlowMatching, Regression
from kineflow.policies.observed import Observed
from kineflow.policies.policy import PolicyConfig, PolicyNetwork, TrainingBatch
from kineflow.policies.policy_statistics import statistics_of
from tests.policies.conftest import INTERFACE, POLICY, STATE

RNG = np.random.default_rng(0)


def windows(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    state = RNG.uniform(-3, 3, (n, 2, 3)).astype(np.float32)
    state[..., 2] %= 2 * np.pi
    return state, RNG.uniform(-3, 3, (n, 8, 2)).astype(np.float32)


def network(config: PolicyConfig = POLICY) -> PolicyNetwork:
    state, action = windows()
    raw = {"state": statistics_of(state[:, -1]), "action": statistics_of(action[:, 0])}
    torch.manual_seed(0)
    built = PolicyNetwork(config, INTERFACE, config.statistics(INTERFACE, raw, state, action))
    torch.nn.init.normal_(built.head.outputs.weight, std=0.1)
    return built.eval()


# --- encoder -----------------------------------------------------------------------------------------------------------


def test_features_are_the_geometry() -> None:
    config = State(bodies=(PlanarBody("x", "y", "angle", ((1.0, 0.0), (0.0, 2.0))),), observers=(("x", "y"),), periods=(4.0,))
    features = StateFeatures(config, STATE, 2)
    state = torch.tensor([[[0.0, 0.0, 6.2], [1.0, 2.0, 0.1]]], dtype=torch.float64)
    cos, sin = np.cos(0.1), np.sin(0.1)
    corners = [1 + cos, 2 + sin, 1 - 2 * sin, 2 + 2 * cos]
    # The observer is the body's own centre: the origin of its frame, with sines 0 and cosines 1.
    expected = [1, 2, sin, cos, *corners, 0, 0, 0, 0, 1, 1, 1, 2, 0.1 - 6.2 + 2 * np.pi]
    np.testing.assert_allclose(features(state)[0].numpy(), expected, atol=1e-12)
    assert features.size == len(expected)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 6.28), st.floats(-3, 3), st.floats(-3, 3))
def test_features_do_not_see_the_seam_of_an_angle(angle: float, x: float, y: float) -> None:
    features = StateFeatures(POLICY.encoder, STATE, 2)
    state = torch.tensor([[[x, y, angle], [y, x, angle / 2]]], dtype=torch.float64)
    turned = state.clone()
    turned[..., 2] += 2 * torch.pi
    torch.testing.assert_close(features(turned), features(state), atol=1e-9, rtol=0)


def test_unknown_dimension_of_a_body_is_refused() -> None:
    with pytest.raises(KineflowError, match=r"State encoder names \['block'\], but the state has \('x', 'y', 'angle'\)"):
        StateFeatures(State(bodies=(PlanarBody("x", "block", "angle", ()),)), STATE, 2)


def test_encoder_input_is_standardised() -> None:
    state, _ = windows(500)
    encoder = network().encoder
    features = (encoder.features(torch.from_numpy(state)) - encoder.mean) / encoder.std
    assert features.mean(0).abs().max() < 0.5
    assert 0.5 < features.std(0).min() < features.std(0).max() < 2


# --- units -------------------------------------------------------------------------------------------------------------

STATISTICS = FeatureStatistics(3, (1.0, 5.0), (2.0, 0.0), (-3.0, 5.0), (4.0, 5.0), (-2.0, 5.0), (3.0, 5.0))


@pytest.mark.parametrize(("scaling", "expected"), [("gaussian", 1.5), ("range", 1.0), ("quantile", 1.4)])
def test_normaliser_by_hand(scaling: str, expected: float) -> None:
    normaliser = Normaliser.from_statistics(STATISTICS, scaling)  # type: ignore[arg-type]
    values = torch.tensor([[4.0, 5.0]])
    torch.testing.assert_close(normaliser.normalise(values), torch.tensor([[expected, 0.0]]))
    torch.testing.assert_close(normaliser.restore(normaliser.normalise(values)), values)


@pytest.mark.parametrize("relative", [(), ("x", "y")])
@pytest.mark.parametrize("scaling", ["gaussian", "range", "quantile", "isotropic"])
def test_actions_survive_network_units(relative: tuple[str, ...], scaling: str) -> None:
    net = network(replace(POLICY, relative_to=relative, action_scaling=scaling))  # type: ignore[arg-type]
    state, action = (torch.from_numpy(a) for a in windows())
    units = net.units(Observed(state, {}))
    torch.testing.assert_close(units.restore(units.normalise(action)), action, atol=1e-5, rtol=1e-5)


def test_relative_chunks_are_translation_invariant() -> None:
    net = network()
    state, action = (torch.from_numpy(a) for a in windows())
    shift = torch.tensor([0.7, -0.3])
    moved = state.clone()
    moved[..., :2] += shift
    here, there = (net.units(Observed(s, {})) for s in (state, moved))
    torch.testing.assert_close(there.normalise(action + shift), here.normalise(action), atol=1e-5, rtol=1e-5)


def test_relative_to_something_that_is_not_there() -> None:
    with pytest.raises(ContractError, match=r"relative_to names \['z'\]"):
        network(replace(POLICY, relative_to=("x", "z")))
    with pytest.raises(ContractError, match="relative_to names 1 dimensions, the action has 2"):
        network(replace(POLICY, relative_to=("x",)))


# --- predict -----------------------------------------------------------------------------------------------------------


def observation(n: int) -> Observation:
    return Observation(np.random.default_rng(3).uniform(-3, 3, (n, 2, 3)).astype(np.float32), np.tile([4.9, 5.0], (n, 1)))


def test_prediction_is_pure_and_rows_stand_alone() -> None:
    net, seen, seeds = network(), observation(5), np.arange(5)
    first, again = net.predict(seen, SamplingRequest(seeds)), net.predict(seen, SamplingRequest(seeds))
    assert first.actions.dtype == np.float32
    assert first.actions.shape == (5, 8, 2)
    assert first.step_s == 0.1
    assert first.stamp_s.tolist() == [5.0] * 5
    assert np.array_equal(first.actions, again.actions)
    other = seeds.copy()
    other[3] = 77
    changed = (net.predict(seen, SamplingRequest(other)).actions != first.actions).any((1, 2))
    assert changed.tolist() == [False, False, False, True, False]


def test_steps_and_guidance_can_be_chosen_per_request() -> None:
    guided = network(replace(POLICY, objective=FlowMatching(condition_dropout=0.5)))
    assert guided.null_condition is not None
    torch.nn.init.normal_(guided.null_condition)
    seen, seeds = observation(2), np.arange(2)
    base = guided.predict(seen, SamplingRequest(seeds)).actions
    assert not np.array_equal(base, guided.predict(seen, SamplingRequest(seeds, steps=1)).actions)
    assert not np.array_equal(base, guided.predict(seen, SamplingRequest(seeds, guidance_scale=3.0)).actions)
    with pytest.raises(KineflowError, match="condition_dropout"):
        network().predict(seen, SamplingRequest(seeds, guidance_scale=3.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:, :1], r"has shape \(2, 1, 3\), the policy needs \(2, 2, 3\)"),
        (lambda s: s[:1], r"2 seeds for 1 observations; give one seed per row"),
        (lambda s: np.where(np.arange(3) == 1, np.nan, s), r"observation.state\[0, 0, 1\] is nan"),
    ],
)
def test_observations_that_do_not_fit_are_refused(change: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    seen = observation(2)
    with pytest.raises(ContractError, match=message):
        network().predict(replace(seen, state=change(seen.state)), SamplingRequest(np.arange(2)))


def test_what_would_be_ignored_is_refused() -> None:
    net, seen, seeds = network(), observation(2), np.arange(2)
    prefix = CommittedPrefix(np.zeros((2, 8, 2), np.float32), np.zeros((2, 8), np.float32), 1)
    with pytest.raises(ContractError, match="takes no prefix: Regression has no noise levels"):
        network(replace(POLICY, objective=Regression())).predict(seen, SamplingRequest(seeds, prefix=prefix))
    with pytest.raises(ContractError, match="takes no goal"):
        net.predict(replace(seen, goal={"point": np.zeros(2)}), SamplingRequest(seeds))
    with pytest.raises(ContractError, match="takes no instruction"):
        net.predict(replace(seen, instruction=("go", "go")), SamplingRequest(seeds))


def test_missing_statistics_are_an_error() -> None:
    state, action = windows()
    raw = {"state": statistics_of(state[:, -1]), "action": statistics_of(action[:, 0])}
    with pytest.raises(ContractError, match="no normalisation statistics for 'encoded_state'"):
        PolicyNetwork(POLICY, INTERFACE, raw)


def test_hidden_conditions_train_the_null_condition() -> None:
    net = network(replace(POLICY, objective=FlowMatching(condition_dropout=0.5)))
    state, action = (torch.from_numpy(a) for a in windows())
    batch = TrainingBatch(Observed(state, {}), action, torch.ones(64, 8))
    net.loss(batch, torch.Generator().manual_seed(0), noise_samples=2).backward()
    assert net.null_condition is not None
    assert net.null_condition.grad is not None
    assert net.null_condition.grad.abs().max() > 0


# --- checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoint_gives_the_same_policy(trained: Path, tmp_path: Path) -> None:
    policy = load_policy(trained)
    assert isinstance(policy, Policy)
    copy = ChunkPolicy.from_pretrained(policy.save_pretrained(tmp_path / "copy"))
    assert copy.contract == policy.contract
    seen, request = observation(4), SamplingRequest(np.arange(4))
    assert np.array_equal(copy.predict(seen, request).actions, policy.predict(seen, request).actions)
    files = {p.name for p in (trained / "checkpoints" / "00000300").iterdir()}
    assert files == {"model.safetensors", "ema.safetensors", "contract.json", "config.yaml", "train_state"}
    assert not [p for p in trained.rglob("*") if p.suffix in {".pt", ".pth", ".pkl", ".pickle", ".ckpt"}]


def test_trained_policy_follows_the_circles(trained: Path) -> None:
    """The mean of many samples lies on the circle seen in training, within a tenth of its radius; staying put does not."""
    angle = 0.5 + 0.1 * np.arange(10)
    circle = 1.5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    state = np.concatenate([circle[:2], angle[:2, None]], 1)[None].astype(np.float32)
    many = Observation(np.repeat(state, 64, 0), np.zeros((64, 2)))
    mean = load_policy(trained).predict(many, SamplingRequest(np.arange(64))).actions.mean(0)
    assert np.abs(mean[:4] - circle[3:7]).max() < 0.15
    assert np.abs(circle[1] - circle[3:7]).max() > 0.5


def damaged(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "checkpoints" / "00000300", tmp_path / "checkpoint"))


def edit_json(file: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_truncated_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = damaged(trained, tmp_path)
    weights = folder / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ema.safetensors: cannot be read .* cut short"):
        load_policy(folder)


def test_changed_statistics_are_caught_by_the_golden_pair(trained: Path, tmp_path: Path) -> None:
    """The classic silent failure: right weights, wrong normaliser."""
    folder = damaged(trained, tmp_path)

    def widen(contract: dict) -> None:  # type: ignore[type-arg]
        contract["statistics"]["action_chunk"]["std"][0] *= 1.5

    edit_json(folder / "contract.json", widen)
    with pytest.raises(CheckpointError, match="does not reproduce the golden output"):
        load_policy(folder)


def test_dropped_statistics_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = damaged(trained, tmp_path)
    edit_json(folder / "contract.json", lambda contract: contract["statistics"].pop("state"))
    with pytest.raises(ContractError, match="feature 'state' is declared but has no normalisation statistics"):
        load_policy(folder)


def test_newer_contract_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = damaged(trained, tmp_path)
    edit_json(folder / "contract.json", lambda contract: contract.update(contract_version=99, new_field=1))
    with pytest.raises(ContractError, match=r"contract version 99, this kineflow .* reads up to 1; upgrade kineflow"):
        load_policy(folder)


def test_weights_of_another_size_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = damaged(trained, tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("token: 16", "token: 17"))
    with pytest.raises(CheckpointError, match=r"weights do not fit the config\.yaml"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["nowhere", "some/where/else", "./typo", "nope/", "/nonexistent", "runs/typo", "a--b/c"])
def test_nothing_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped path is never looked up on the hub, and what the hub refuses as a name is one message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        KineflowError, match="is neither a folder" if name == "a--b/c" else "give a run folder, a checkpoint folder"
    ):
        load_policy(name)


def test_sampler_can_be_swapped_after_training(trained: Path) -> None:
    policy = load_policy(trained)
    swapped = policy.resampled("heun", 3)
    assert (swapped.contract.sampler.solver, swapped.contract.sampler.steps) == ("heun", 3)
    seen, request = observation(2), SamplingRequest(np.arange(2))
    assert not np.array_equal(swapped.predict(seen, request).actions, policy.predict(seen, request).actions)
    again = policy.predict(seen, request).actions
    assert np.array_equal(again, load_policy(trained).predict(seen, request).actions), "the original keeps its sampler"
    cold = policy.resampled(temperature=0.0)
    assert np.array_equal(cold.predict(seen, request).actions, cold.predict(seen, SamplingRequest(np.array([7, 8]))).actions)


def test_hub_name_from_the_local_cache_offline(trained: Path, tmp_path: Path) -> None:
    """The real huggingface_hub, offline: its cache layout is models--user--name/{refs,snapshots}."""
    model = tmp_path / "hub" / "models--robots--circles"
    revision = "0" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(revision)
    load_policy(trained).save_pretrained(model / "snapshots" / revision)
    code = (
        "import sys; from kineflow.policies.checkpoint import load_policy; print(load_policy(sys.argv[1]).contract.dataset_hash)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    found = subprocess.run([sys.executable, "-c", code, "robots/circles"], env=env, capture_output=True, text=True)
    assert found.stdout.strip() == load_policy(trained).contract.dataset_hash, found.stderr
    absent = subprocess.run([sys.executable, "-c", code, "robots/squares"], env=env, capture_output=True, text=True)
    assert "'robots/squares' is neither a folder nor in the local hub cache" in absent.stderr


def test_push_to_hub_uploads_what_loads(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        """Stands in for the network side only; the folder handed over is the real one."""

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert (name, private) == ("robots/circles", True)

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return repo_id

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert load_policy(trained).push_to_hub("robots/circles") == "robots/circles"
    assert load_policy(tmp_path / "uploaded").contract == load_policy(trained).contract
