"""Calibrations come back as they were given, and those that cannot be one are refused with the name of the camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kineflow.datasets.camera_check import check_cameras
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.datasets.manifest import Calibration, CameraRecord, StoreError
from tests.datasets.sample_episodes import INTERFACE, LOW_DIM

# Looks forward from 0.5 m above and 0.1 m before the origin of the body, REP-103 axes.
GOOD = Calibration(
    ((60.0, 0.1, 4.0), (0.0, 61.0, 3.0), (0.0, 0.0, 1.0)),
    "plumb_bob",
    (0.1, -0.05, 0.0, 0.001, 0.0),
    ((0.0, 0.0, 1.0, 0.1), (-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.5), (0.0, 0.0, 0.0, 1.0)),
)


def rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def with_pose(change: Any) -> Calibration:
    pose = np.array(GOOD.body_from_camera)
    change(pose)
    return replace(GOOD, body_from_camera=rows(pose))


def test_a_calibration_survives_creation_and_commits(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras={"front": CameraRecord(calibration=GOOD)})
    assert EpisodeStore.open(store.path).manifest.cameras["front"].calibration == GOOD


@given(quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1), position=st.floats(-9, 9))
def test_every_rotation_is_accepted_and_its_mirror_image_is_not(quaternion: tuple[float, ...], position: float) -> None:
    x, y, z, w = np.array(quaternion) / np.linalg.norm(quaternion)
    axis = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.eye(3) + 2 * w * axis + 2 * axis @ axis, position
    check_cameras(INTERFACE, {"front": CameraRecord(calibration=replace(GOOD, body_from_camera=rows(pose)))})
    pose[:3, 0] *= -1
    with pytest.raises(StoreError, match="mirroring"):
        check_cameras(INTERFACE, {"front": CameraRecord(calibration=replace(GOOD, body_from_camera=rows(pose)))})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(GOOD, convention="ros"), "turn the axes to 'opencv'"),
        (replace(GOOD, intrinsics=GOOD.intrinsics[:2]), r"intrinsics: rows of \[3, 3\] numbers, needed are 3 x 3"),
        (replace(GOOD, intrinsics=((60.0, 0.0, 4.0), (0.0, 0.0, 3.0), (0.0, 0.0, 1.0))), "fx, fy > 0, in px"),
        (replace(GOOD, intrinsics=rows(np.array(GOOD.intrinsics).T)), "are not .*fx, s, cx"),
        (replace(GOOD, intrinsics=((60.0, 0.0, np.nan), *GOOD.intrinsics[1:])), "not finite"),
        (replace(GOOD, distortion=()), r"distortion \[\] of the model 'plumb_bob'"),
        (replace(GOOD, distortion_model="none"), "'none' and no coefficients"),
        (replace(GOOD, distortion=(np.inf,)), "finite coefficients"),
        (replace(GOOD, body_from_camera=GOOD.body_from_camera[:3]), "body_from_camera: rows of .* 4 x 4"),
        (replace(GOOD, body_from_camera=rows(np.array(GOOD.body_from_camera).T)), "is it transposed"),
        (with_pose(lambda pose: pose.__setitem__((slice(3), slice(3)), pose[:3, :3] * 1000)), "not a rotation.*remove scale"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, wrong: Calibration, message: str) -> None:
    with pytest.raises(StoreError, match=f"camera 'front'.*{message}"):
        EpisodeStore.create(tmp_path / "s.eps", INTERFACE, cameras={"front": CameraRecord(calibration=wrong)})
    assert not (tmp_path / "s.eps").exists()


def test_a_record_needs_its_camera(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"camera 'front' has a record but is not in the schema, which has \[\]"):
        EpisodeStore.create(tmp_path / "s.eps", LOW_DIM, cameras={"front": CameraRecord()})
