"""Flow pairs of the simulator, training on them, and what the shipped weights reach where nothing was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from kineflow.cli import main
from kineflow.contracts import KineflowError
from kineflow.envs.navigation.flow_pairs import ORDERED, STRIDE, UNKNOWN, FlowWorlds, film_world, film_worlds
from kineflow.policies.bench import flow as bench
from kineflow.policies.encoders.flow_net import FlowNet, FlowNetwork
from kineflow.policies.encoders.flow_peers import DIS
from kineflow.policies.flow_pairs import FIRST, SECOND, FlowPairs, end_point_error
from kineflow.policies.flow_training import FlowTrainConfig, FlowTrainer, matching_loss, measure, mirrored

HELD_OUT = FlowWorlds(("wheeled", "drone"), first_world=25200, worlds=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "pairs"
    film_worlds(HELD_OUT, folder)
    return folder


@pytest.fixture(scope="module")
def pairs(folder: Path) -> FlowPairs:
    return FlowPairs.read(film_worlds(HELD_OUT, folder))


def brightness_errors(frames: torch.Tensor, flow: torch.Tensor, known: torch.Tensor) -> tuple[float, float]:
    """Mean grey level difference of the pairs of a burst where the flow is known: without motion, and along the flow."""
    rows, columns = np.mgrid[0:96:STRIDE, 0:96:STRIDE].astype(np.float32)
    still, along = [], []
    for pair, (first, second) in enumerate(ORDERED):
        greys = [np.asarray(frames[i]).astype(np.float32).mean(axis=-1) for i in (first, second)]
        at, mask = np.asarray(flow[pair]), np.asarray(known[pair])
        there = cv2.remap(greys[1], columns + at[0], rows + at[1], cv2.INTER_LINEAR)
        still.append(np.abs(greys[1] - greys[0])[::STRIDE, ::STRIDE][mask])
        along.append(np.abs(there - greys[0][::STRIDE, ::STRIDE])[mask])
    return float(np.concatenate(still).mean()), float(np.concatenate(along).mean())


def test_flow_leads_to_the_same_brightness(pairs: FlowPairs) -> None:
    """In the pictures as they are, and mirrored."""
    flow, known = pairs.flow(torch.arange(len(pairs)))
    assert len(pairs) >= 8
    assert 0.3 < known.float().mean() < 1.0
    for frames, vectors, mask in ((pairs.frames, flow, known), mirrored(pairs.frames.float(), flow, known)):
        errors = [brightness_errors(*burst) for burst in zip(frames, vectors, mask)]
        still, along = (float(np.mean(side)) for side in zip(*errors))
        assert along < 0.45 * still, f"{along:.1f} grey levels along the flow, {still:.1f} without"


def test_mirroring_keeps_pixels_and_their_flow_together() -> None:
    """Each column of the pictures holds its number, each kept one of the flow that of its own: to the pixel."""
    columns = torch.arange(96.0)
    frames = columns[:, None].expand(2, 3, 96, 96, 3)
    flow = torch.stack([columns[::2], -columns[::2]]).unsqueeze(1).expand(2, 6, 2, 48, 48)
    turned, moved, known = mirrored(frames, flow, (flow > 40)[:, :, 0])
    at = turned[0, 0, 0, ::2, 0]
    assert at[0] == 94
    assert torch.equal(moved[0, 0, 0, 0], -at)
    assert torch.equal(moved[0, 0, 1, 0], -at)
    assert torch.equal(known[0, 0, 0], at > 40)


def test_a_burst_has_its_pairs_both_ways(pairs: FlowPairs) -> None:
    assert torch.equal(pairs.gap[:, 0::2], pairs.gap[:, 1::2])
    assert torch.equal(pairs.gap[:, 0] + pairs.gap[:, 4], pairs.gap[:, 2])  # 0 to 1 and 1 to 2 are 0 to 2
    assert [(int(a), int(b)) for a, b in zip(FIRST, SECOND)] == list(ORDERED)


def test_worlds_are_filmed_once_and_the_same(folder: Path) -> None:
    files = sorted(folder.glob("world-*.npz"))
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    film_worlds(HELD_OUT, folder)
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == {file: before[file] for file in files[1:]}
    again = film_world(HELD_OUT, 25200)
    assert again is not None
    with np.load(files[0], allow_pickle=False) as arrays:
        assert np.array_equal(arrays["frames"], again.frames)
        assert np.array_equal(arrays["flow"], again.flow)
        assert (arrays["flow"] == UNKNOWN).any()
    with pytest.raises(KineflowError, match="name another folder"):
        film_worlds(replace(HELD_OUT, movers=0), folder)
    files[0].write_bytes(b"rubbish")
    with pytest.raises(KineflowError, match="delete it, and it is filmed again"):
        FlowPairs.read(files)
    files[0].unlink()


def test_end_point_error(pairs: FlowPairs) -> None:
    """Of the true flow nothing, of no motion how far things moved, of a flow beside it by one pixel one."""
    flow, known = pairs.flow(torch.arange(len(pairs)))
    flow, known, gap = flow.flatten(0, 1), known.flatten(0, 1), pairs.gap.flatten()
    size = 24  # pairs that are seen at once

    def beside(right: float) -> float:
        starts = iter(range(0, 10_000, size))

        def see(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            start = next(starts)
            wide = flow[start : start + size].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            return wide + torch.tensor([right, 0.0])[:, None, None]

        return end_point_error(see, pairs).near

    assert beside(0.0) == 0
    assert beside(1.0) == pytest.approx(1.0)
    near = (gap <= 4) & (known.flatten(1).sum(dim=1) >= 50)
    moved = float((flow.norm(dim=1) * known)[near].sum() / known[near].sum())
    found = end_point_error(lambda first, second: torch.zeros(len(first), 2, 96, 96), pairs)
    assert found.near == pytest.approx(moved, rel=1e-5)
    assert found.pairs == int(near.sum())


def test_shipped_weights_beat_dis_where_nothing_was_trained(pairs: FlowPairs) -> None:
    """`kineflow bench flow` measures it on more worlds, and the time."""
    cv2.setNumThreads(1)
    ours, dis = (end_point_error(config.build(4).dense, pairs) for config in (FlowNet(), DIS("medium")))
    assert ours.near < 0.95 * dis.near
    assert ours.near < 0.4 * end_point_error(lambda first, second: torch.zeros(len(first), 2, 96, 96), pairs).near


def test_matches_are_learned_where_the_flow_leads() -> None:
    """A flow of one cell to the right and half a cell down: each cell's match is shared by two."""
    flow = torch.tensor([8.0, 4.0])[None, :, None, None].expand(1, 2, 48, 48)
    known = torch.ones(1, 48, 48, dtype=torch.bool)
    cells = torch.arange(144)
    right = torch.full((1, 144, 144), -20.0)
    for ahead in (1, 13):
        right[0, cells, (cells + ahead).clamp(max=143)] = 0.0
    shared = float(matching_loss(right, flow, known))
    assert shared == pytest.approx(np.log(2), rel=1e-3)
    assert float(matching_loss(right.roll(1, 2), flow, known)) > 5
    assert float(matching_loss(right, flow, torch.zeros_like(known))) == 0


def test_training_learns(pairs: FlowPairs) -> None:
    """One burst by heart, in the weights that are used: those averaged."""
    one = FlowPairs(pairs.frames[:1], pairs.units[:1], pairs.gap[:1])
    config = FlowTrainConfig(steps=30, batch=1, average=0.7, light=0.0, colour=0.0)
    torch.manual_seed(0)
    trainer = FlowTrainer(config, FlowNetwork(), one)
    before = measure(trainer.averaged(), one)
    losses = [loss for _, loss in trainer.steps()]
    after = measure(trainer.averaged(), one)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert after.near < 0.7 * before.near


def test_one_command_films_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worlds = ["--worlds.worlds", "1", "--worlds.first-world", "1", "--held-out.worlds", "1", "--held-out.first-world", "25201"]
    argv = ["train-flow", "train_flow/navigation", "--run", str(tmp_path), "--json", *worlds]
    assert main([*argv, "--steps", "2", "--batch", "2", "--measure-every", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 2
    assert len(list((tmp_path / "pairs").glob("world-*.npz"))) == 2
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    weights = tmp_path / "flow_net.safetensors"
    with safe_open(weights, "pt") as opened:
        assert json.loads(opened.metadata()["made"])["config"]["steps"] == 2
    trained = FlowNet(str(weights)).build(4)
    first = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    assert trained(first, first).shape == (1, 16, 4)


def test_bench_rows(pairs: FlowPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_film", lambda worlds: pairs)
    monkeypatch.setattr(bench, "REPEATS", 1)
    rows = {row.name: row for row in bench.bench_flow(quick=True)}
    goals = {name for name, row in rows.items() if row.goal}
    assert goals == {"flow.error.dis_medium", "flow.ms.dis_medium"}
    assert rows["flow.error.dis_medium"].holds
    assert rows["flow.error.dis_medium"].reference == pytest.approx(end_point_error(DIS().build(4).dense, pairs).near)
    assert all("OpenCV" in row.reference_version for name, row in rows.items() if "dis_" in name)
    assert "raft_small, random weights" in rows["flow.ms.raft_small"].reference_version
    assert rows["flow.ms.raft_small"].ratio is not None
    assert rows["flow.ms.raft_small"].ratio < 0.1


def test_refusals() -> None:
    with pytest.raises(KineflowError, match="name some of"):
        FlowWorlds(("boat",))
    with pytest.raises(KineflowError, match="must fit into drive_steps"):
        FlowWorlds(steps=(30,))
    with pytest.raises(KineflowError, match="must be at least 1"):
        FlowTrainConfig(steps=0)
    with pytest.raises(KineflowError, match="no flow pairs"):
        FlowPairs.read([])
