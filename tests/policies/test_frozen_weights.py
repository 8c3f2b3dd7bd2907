"""Checkpoints refer to frozen weights that are kept elsewhere: they are not in the file, and no others are taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kineflow.contracts import CameraSpec, FeatureSpec, Horizons, Interface, PolicyContract, VectorSpec
from kineflow.policies.checkpoint import CheckpointError, ChunkPolicy, load_policy
from kineflow.policies.ema import ExponentialMovingAverage
from kineflow.policies.encoders.efficientnet_lite import EfficientNetLite
from kineflow.policies.encoders.goal import GoalVision
from kineflow.policies.encoders.state import State
from kineflow.policies.frozen_weights import frozen_encoders, own_tensors
from kineflow.policies.golden import golden_pair
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.policy import PolicyConfig, PolicyNetwork
from kineflow.policies.policy_statistics import statistics_of

SPEC = FeatureSpec(VectorSpec(("v",), ("m/s",), "base", (-1.0,), (1.0,)), 10.0)
SEEN = Interface({"state": SPEC}, SPEC, {"front": CameraSpec(16, 16, 10.0)})


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """As if it had come from a hub."""
    torch.manual_seed(3)
    file = tmp_path / "backbone.safetensors"
    save_file(EfficientNetLite(32, 2, 8, weights="random").build().state_dict(), file)
    return file


def policy(weights: str) -> ChunkPolicy:
    frames = EfficientNetLite(32, 2, 8, weights=weights)
    encoder = GoalVision(frames=frames, token=16, attention_heads=2, depth=1, matching=4, state=State(width=8, depth=1, token=16))
    config = PolicyConfig(Horizons(1, 4, 2), MLP(width=16, depth=1), FlowMatching(steps=2), encoder, cameras=("front",))
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(64, 1, 1)).astype(np.float32), rng.normal(size=(64, 4, 1)).astype(np.float32)
    raw = {name: statistics_of(values[:, 0].astype(np.float64)) for name, values in (("state", state), ("action", action))}
    statistics = config.statistics(SEEN, raw, state, action)
    torch.manual_seed(0)
    network = PolicyNetwork(config, SEEN, statistics).eval()
    sampler = config.objective.sampler_spec()
    return ChunkPolicy(network, PolicyContract(SEEN, config.horizons, sampler, statistics, "0", {}, golden_pair(network)))


def test_a_checkpoint_has_no_weights_that_are_kept_elsewhere(backbone: Path, tmp_path: Path) -> None:
    made = policy(str(backbone))
    folder = made.save_pretrained(tmp_path / "saved")
    names = load_file(folder / "ema.safetensors").keys()
    assert names == {name for name in made.network.state_dict() if not name.startswith("encoder.frames.")}
    loaded = load_policy(folder).network.state_dict()  # replays the golden pair
    assert loaded.keys() == made.network.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in made.network.state_dict().items())


def test_random_frozen_weights_stay_in_it(tmp_path: Path) -> None:
    made = policy("random")
    folder = made.save_pretrained(tmp_path / "saved")
    assert load_file(folder / "ema.safetensors").keys() == made.network.state_dict().keys()
    load_policy(folder)  # though the network is built with other random weights


def test_other_frozen_weights_are_refused(backbone: Path, tmp_path: Path) -> None:
    folder = policy(str(backbone)).save_pretrained(tmp_path / "saved")
    state = load_file(backbone)
    state["stem.bias"][0] += 1e-6
    save_file(state, backbone)
    with pytest.raises(CheckpointError, match=r"other frozen weights of encoder\.frames \(fingerprint [0-9a-f]{12}, here "):
        load_policy(folder)


def test_another_backbone_is_refused(backbone: Path, tmp_path: Path) -> None:
    """config.yaml was edited: a file of ours without the part that it refers to."""
    folder = policy(str(backbone)).save_pretrained(tmp_path / "saved")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("frozen: true", "frozen: false"))
    with pytest.raises(CheckpointError, match=r"encoder\.frames .*here none"):
        load_policy(folder)


def test_checkpoints_from_before_still_load(backbone: Path, tmp_path: Path) -> None:
    """They carry everything, and what they carry is what counts."""
    made = policy(str(backbone))
    folder = made.save_pretrained(tmp_path / "saved")
    save_file({name: value.contiguous() for name, value in made.network.state_dict().items()}, folder / "ema.safetensors")
    state = load_file(backbone)
    save_file({name: value + 1 for name, value in state.items()}, backbone)
    loaded = load_policy(folder).network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in made.network.state_dict().items())


def test_the_average_shares_what_is_frozen(backbone: Path) -> None:
    network = policy(str(backbone)).network
    average = ExponentialMovingAverage(network, 0.5)
    assert average.network.encoder.frames is network.encoder.frames
    frozen, own = frozen_encoders(network)["encoder.frames"], own_tensors(network)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    average.update(100)  # half of the way
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    moved = dict(average.network.named_parameters())
    for name, value in network.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(moved[name], own[name] - 0.5)
