"""Policies that see: pooling and shifts against closed forms, learning where something is, and every image that does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kineflow.config import from_plain
from kineflow.contracts import (
    CameraSpec,
    ContractError,
    Episode,
    FeatureSpec,
    FeatureStatistics,
    Horizons,
    Interface,
    KineflowError,
    Observation,
    SamplingRequest,
    Stream,
    VectorSpec,
    Window,
)
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.envs.pusht import PushT
from kineflow.policies.augmentation import AffineSymmetry
from kineflow.policies.checkpoint import CheckpointError, ChunkPolicy, load_policy
from kineflow.policies.encoders.state import State
from kineflow.policies.encoders.vision import SpatialSoftmax, Vision, random_shift
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.observed import Observed
from kineflow.policies.optimiser import Optimiser
from kineflow.policies.policy import PolicyConfig
from kineflow.policies.privileged import Probe
from kineflow.policies.train import TrainConfig, Trainer, train

SIZE = 32
SPOT = VectorSpec(("x", "y"), ("px", "px"), "image", (0.0, 0.0), (32.0, 32.0))
SEEN = Interface({"state": FeatureSpec(SPOT, 10.0)}, FeatureSpec(SPOT, 10.0), {"front": CameraSpec(SIZE, SIZE, 10.0)})
POLICY = PolicyConfig(
    horizons=Horizons(1, 4, 2),
    head=MLP(width=64, depth=1),
    objective=FlowMatching(steps=4),
    encoder=Vision(channels=(8, 16), token=32, depth=1, shift=0, state=State(width=32, depth=1, token=32)),
    features=(),
    cameras=("front",),
    action_scaling="isotropic",
)


def picture(x: float, y: float) -> np.ndarray:
    """A white disc at (x, y) on black: the only place where the answer is written."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    disc = np.clip(3.5 - np.hypot(columns - x, rows - y), 0, 1)
    return np.repeat((255 * disc).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes in which the right action is to stay at the disc."""
    path, rng = tmp_path_factory.mktemp("seen") / "spots.eps", np.random.default_rng(0)
    store = EpisodeStore.create(path, SEEN, clock="nominal_10hz")
    stamps = np.arange(8, dtype=np.int64) * 100_000_000
    with store.writer(50) as writer:
        for _ in range(60):
            where = np.tile(rng.uniform(6, 26, 2), (8, 1)).astype(np.float32)
            frames = np.tile(picture(*where[0]), (8, 1, 1, 1))
            streams = {"state": where, "action": where, "front": frames}
            writer.add(Episode({n: Stream(v, stamps) for n, v in streams.items()}, clock="nominal_10hz"))
    return path


@pytest.fixture(scope="module")
def trained(spots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "spots"
    fast = Optimiser(learning_rate=3e-3, warmup_steps=20, ema_decay=0.98)
    train(
        TrainConfig(
            POLICY, store=spots, steps=200, batch_size=32, noise_samples=4, optimiser=fast, validate_every=200, threads=1
        ),
        run,
    )
    return run


def seen(where: np.ndarray) -> Observation:
    frames = np.stack([picture(x, y) for x, y in where])[:, None]
    return Observation(np.zeros((len(where), 1, 0), np.float32), np.zeros((len(where), 1)), {"front": frames})


def test_a_policy_learns_where_things_are_from_images_alone(trained: Path) -> None:
    where = np.random.default_rng(1).uniform(7, 25, (16, 2))
    policy = load_policy(trained)
    assert policy.contract.interface.features == {}
    actions = policy.predict(seen(where), SamplingRequest(np.arange(16))).actions
    error = np.abs(actions.mean(axis=1) - where).mean()
    blind = np.abs(where - where.mean(axis=0)).mean()
    assert error < 0.3 * blind
    # In the picture of another disc it goes there: the image decides, not the noise.
    swapped = policy.predict(seen(where[::-1]), SamplingRequest(np.arange(16))).actions
    assert np.abs(swapped.mean(axis=1) - where[::-1]).mean() < 0.3 * blind


def test_checkpoint_with_images_replays_its_golden_pair(trained: Path, tmp_path: Path) -> None:
    policy = load_policy(trained)
    folder = policy.save_pretrained(tmp_path / "copy")
    again = ChunkPolicy.from_pretrained(folder)
    request, observation = SamplingRequest(np.arange(3)), seen(np.full((3, 2), 12.0))
    assert np.array_equal(again.predict(observation, request).actions, policy.predict(observation, request).actions)
    golden = (folder / "contract.json").read_text()
    number = repr(policy.contract.golden.actions[0][0])
    (folder / "contract.json").write_text(golden.replace(number, repr(policy.contract.golden.actions[0][0] + 5)))
    with pytest.raises(CheckpointError, match="does not reproduce the golden output"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, r"observation.images has no 'front' \(it has \[\]\)"),
        (
            {"front": np.zeros((2, 1, 16, 32, 3), np.uint8)},
            r"is uint8 \(2, 1, 16, 32, 3\), .* uint8 \(2, 1, 32, 32, 3\)",
        ),
        ({"front": np.zeros((2, 1, 32, 32, 3), np.float32)}, r"is float32 .* the policy needs uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(trained: Path, images: dict[str, np.ndarray], message: str) -> None:
    observation = replace(seen(np.full((2, 2), 9.0)), images=images)
    with pytest.raises(ContractError, match=message):
        load_policy(trained).predict(observation, SamplingRequest(np.arange(2)))


def test_spatial_softmax_is_the_expected_position() -> None:
    cells = torch.full((1, 3, 4, 5), -40.0)
    cells[0, 0, 3, 0] = 0  # bottom left
    cells[0, 1] = 0  # everywhere: the centre
    cells[0, 2, 0, 4] = cells[0, 2, 2, 4] = 0  # half way between two rows of the right edge
    expected = torch.tensor([[-1.0, 0.0, 1.0, 1.0, 0.0, -1 + 2 / 3]])
    torch.testing.assert_close(SpatialSoftmax(4, 5)(cells), expected, atol=1e-6, rtol=0)


def test_random_shifts_are_shifts() -> None:
    frames = torch.arange(6 * 2 * 5 * 7, dtype=torch.uint8).reshape(6, 2, 5, 7)
    torch.manual_seed(0)
    shifted = random_shift(frames.repeat(20, 1, 1, 1), 2).numpy()
    assert shifted.shape == (120, 2, 5, 7)
    chosen = set()
    for row, image in enumerate(shifted):
        padded = np.pad(frames[row % 6].numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
        places = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[:, y : y + 5, x : x + 7], image)]
        assert places, "neither a crop nor a shift"
        chosen.add(places[0])
    assert len(chosen) > 15


def test_training_images_are_shifted_and_others_are_not() -> None:
    encoder = replace(POLICY.encoder, shift=4).build(VectorSpec((), (), "", (), ()), 1, SEEN.cameras)  # type: ignore[type-var]
    images = torch.from_numpy(np.stack([picture(9, 20)])[:, None])
    observed = Observed(torch.zeros(1, 1, 0), {"front": images})
    torch.manual_seed(0)
    assert not torch.equal(encoder.train()(observed), encoder(observed))
    assert torch.equal(encoder.eval()(observed), encoder(observed))


def test_tokens_of_cameras_cells_and_state() -> None:
    cameras = {"left": CameraSpec(32, 48, 10.0), "front": CameraSpec(32, 32, 10.0)}
    images = {name: torch.zeros(2, 3, spec.height, spec.width, 3, dtype=torch.uint8) for name, spec in cameras.items()}
    observed = Observed(torch.zeros(2, 3, 2), images)
    for pool, count in (("keypoints", 2 + 1), ("grid", 4 * 4 + 4 * 6 + 1)):
        encoder = replace(POLICY.encoder, pool=pool).build(SPOT, 3, cameras)  # type: ignore[type-var,arg-type]
        assert encoder.token_shape == (count, 32)
        assert encoder(observed).shape == (2, count, 32)


@pytest.mark.parametrize(
    ("config", "cameras", "message"),
    [
        (Vision(), {}, "needs at least one camera"),
        (Vision(channels=(12,)), SEEN.cameras, r"must be multiples of 8 .* got \(12,\)"),
        (Vision(token=64), SEEN.cameras, "Vision.token 64 and Vision.state.token 256 differ"),
        (State(), SEEN.cameras, r"names \['front'\], but a State encoder sees no images"),
    ],
)
def test_encoders_that_cannot_be_built(config: Vision | State, cameras: dict[str, CameraSpec], message: str) -> None:
    with pytest.raises(KineflowError, match=message):
        config.build(SPOT, 1, cameras)


def test_a_policy_without_any_input_is_refused(spots: Path, tmp_path: Path) -> None:
    with pytest.raises(KineflowError, match="needs at least one feature in policy"):
        State().build(VectorSpec((), (), "", (), ()), 1, {})
    with pytest.raises(KineflowError, match="windows need a feature or a camera"):
        train(TrainConfig(replace(POLICY, encoder=State(), cameras=()), store=spots, steps=1), tmp_path / "r")


def test_unknown_camera_is_named(spots: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"camera 'wrist' is not offered; there are \['front'\]"):
        train(TrainConfig(replace(POLICY, cameras=("wrist",)), store=spots, steps=1), tmp_path / "r")


def test_reflection_of_pusht_reflects_its_picture() -> None:
    """What the image of the symmetry says is what the simulator draws at the reflected state, but for rounding of edges."""
    matrix = ((0, -1, 0, 0, 0), (-1, 0, 0, 0, 0), (0, 0, 0, -1, 0), (0, 0, -1, 0, 0), (0, 0, 0, 0, -1))
    symmetry: AffineSymmetry = from_plain(
        AffineSymmetry,
        {
            "state_matrix": matrix,
            "state_offset": [512, 512, 512, 512, np.pi / 2],
            "action_matrix": [[0, -1], [-1, 0]],
            "action_offset": [512, 512],
            "angles": [4],
            "images": "anti_transpose",
            "probability": 1.0,
        },
        "test",
    )
    env = PushT(cameras=("top",))
    state = np.array([120.0, 330.0, 200.0, 280.0, 0.7], np.float32)
    here, _ = env.reset(options={"state": state})
    there, _ = env.reset(options={"state": symmetry.state(here["state"][None].astype(np.float32))[0]})
    blank = np.zeros((1, 1, 2), np.float32)
    pad = np.zeros((1, 1), bool)
    window = Window(here["state"][None, None], blank, pad, pad, {"top": here["top"][None, None]})
    reflected = symmetry(window, np.random.default_rng(0)).images["top"][0, 0].astype(int)
    difference = np.abs(reflected - there["top"]).mean()
    assert difference < 2.0
    assert np.abs(here["top"].astype(int) - there["top"]).mean() > 4 * difference


def test_symmetry_that_says_nothing_of_images_is_refused(spots: Path, tmp_path: Path) -> None:
    nothing = AffineSymmetry((), (), ((0.0, 1.0), (1.0, 0.0)), (0.0, 0.0))
    with pytest.raises(ContractError, match=r"symmetry\.images is 'unknown' and camera 'front' is 32 x 32"):
        train(TrainConfig(POLICY, store=spots, steps=1, symmetry=nothing), tmp_path / "r")


# --- privileged supervision -------------------------------------------------------------------------------------------


def test_privileged_features_teach_the_encoder_and_stay_out_of_the_contract(spots: Path, tmp_path: Path) -> None:
    """With the head's loss gone (learning from the probe alone) the tokens still tell where the disc is."""
    config = TrainConfig(replace(POLICY, privileged=("state",)), store=spots, steps=120, batch_size=32, threads=1)
    trainer = Trainer(replace(config, optimiser=Optimiser(learning_rate=3e-3, warmup_steps=10, ema_decay=0.9)), tmp_path / "r")
    assert trainer.network.probe is not None
    for parameter in trainer.network.head.parameters():
        parameter.requires_grad_(False)  # its output stays zero: no gradient reaches the encoder through it
    for _ in trainer.steps():
        pass
    batch = trainer._batch(np.arange(24), trainer.data.validation)
    assert batch.privileged is not None
    assert batch.observed.state.shape == (24, 1, 0)
    network = trainer.ema.network.eval()
    assert network.probe is not None
    with torch.no_grad():
        error = network.probe(network.encoder(batch.observed), batch.privileged).mean().item()
    assert error < 0.1  # of the variance of the position
    policy = load_policy(tmp_path / "r")
    assert policy.contract.interface.features == {}
    policy.predict(seen(np.full((2, 2), 9.0)), SamplingRequest(np.arange(2)))


def test_probe_is_a_standardised_least_squares_reading() -> None:
    statistics = FeatureStatistics(9, (1.0, -2.0), (0.5, 4.0), (0, 0), (1, 1), (0, 0), (1, 1))
    probe = Probe((2, 3), statistics)
    torch.nn.init.zeros_(probe.read.weight)
    probe.read.bias.data = torch.tensor([1.0, 0.0])
    truth = torch.tensor([[1.5, -2.0], [1.0, 2.0]])  # standardised: (1, 0) and (0, 1)
    torch.testing.assert_close(probe(torch.randn(2, 2, 3), truth), torch.tensor([0.0, 1.0]))


def test_privileged_features_of_a_state_policy_are_refused(spots: Path, tmp_path: Path) -> None:
    config = replace(POLICY, features=("state",), cameras=(), privileged=("state",), encoder=State(width=32, depth=1, token=32))
    with pytest.raises(KineflowError, match=r"policy\.privileged names \('state',\), .* the encoder is a State"):
        train(TrainConfig(config, store=spots, steps=1), tmp_path / "r")
