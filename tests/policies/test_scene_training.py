"""SceneNet learns: targets by hand, a few steps, the same after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.place_views import PlaceViews
from kineflow.policies.encoders.scene_net import SceneNet
from kineflow.policies.scene_training import SceneLearner, SceneTraining, Views, evaluate, targets, train_scene


def test_targets_share_a_place_among_the_cells_around_it() -> None:
    place, seen = torch.zeros(1, 12, 12, 2), torch.zeros(1, 12, 12, dtype=torch.bool)
    place[0, 0, 1] = torch.tensor([4.0 + 8 * 3.25, 4.0 + 8 * 5.5])  # column 3.25, row 5.5 of cells
    place[0, 4, 4] = torch.tensor([4.0 + 8 * 11.2, 0.0])  # beyond the middle of the last column, above that of the first row
    seen[0, 0, 1] = seen[0, 4, 4] = True
    shares = targets(place, seen)[0]
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(144))
    wanted = {(5, 3): 0.375, (5, 4): 0.125, (6, 3): 0.375, (6, 4): 0.125}
    for (row, column), share in wanted.items():
        assert shares[1, row * 12 + column] == pytest.approx(share)
    assert shares[4 * 12 + 4, 0 * 12 + 11] == pytest.approx(1.0)
    assert shares[0, 144] == 1.0, "what is not seen is nowhere"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SceneTraining:
    views = PlaceViews(worlds=2, groups=3)
    return SceneTraining(
        views,
        replace(views, first_world=25_000, worlds=1),
        tmp_path_factory.mktemp("views"),
        steps=4,
        batch_size=4,
        warmup_steps=2,
        evaluate_every=2,
    )


def test_a_stopped_run_goes_on_to_the_same_weights(config: SceneTraining, tmp_path: Path) -> None:
    scores = train_scene(config, tmp_path / "whole", progress=False)
    assert 0 < scores.error_px < 100
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == 2

    class Killed(Exception):
        pass

    import kineflow.policies.scene_training as module

    saved = module._save

    def save_then_die(*arguments: object) -> None:
        saved(*arguments)  # type: ignore[arg-type]
        raise Killed

    module._save = save_then_die  # type: ignore[assignment]
    try:
        with pytest.raises(Killed):
            train_scene(config, tmp_path / "stopped", progress=False)
    finally:
        module._save = saved
    train_scene(config, tmp_path / "stopped", progress=False)
    first, second = (load_file(tmp_path / name / "scene_net.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    encoder = SceneNet(str(tmp_path / "whole" / "scene_net.safetensors")).build()
    assert encoder(torch.zeros(1, 96, 96, 3, dtype=torch.uint8)).shape == (1, 36, 182)
    with pytest.raises(KineflowError, match="another configuration"):
        train_scene(replace(config, seed=1), tmp_path / "whole", progress=False)


def test_it_learns_a_few_places_by_heart(config: SceneTraining) -> None:
    from kineflow.envs.navigation.place_views import film_views

    torch.set_num_threads(1)
    torch.manual_seed(0)
    views, learner = Views(film_views(replace(config.views, worlds=1), config.folder / "training")), SceneLearner()
    before = evaluate(learner, views, 40)
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    for step in range(60):
        loss = learner.loss(views.pairs(8, np.random.default_rng(step), shaded=True), 0.5, 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = evaluate(learner, views, 40)
    assert after.error_px < 0.75 * before.error_px
    assert after.error_px < after.still_px
    assert after.depth < 0.8 * before.depth
