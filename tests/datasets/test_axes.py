"""Turning other people's axes into ours: SciPy for rotations, textbook points for the earth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from kineflow.datasets.importers.axes import (
    FROM_CAMERA,
    FROM_FRD,
    LocalFrame,
    camera_poses_to_rep103,
    ecef_from_geodetic,
    geodetic_from_ecef,
    quaternions,
    rotation_matrices,
)

QUATERNIONS = arrays(np.float64, (6, 4), elements=st.floats(-1, 1)).filter(lambda q: (np.linalg.norm(q, axis=1) > 0.1).all())


@settings(max_examples=60, deadline=None)
@given(QUATERNIONS)
def test_rotations_agree_with_scipy(q: np.ndarray) -> None:
    theirs = Rotation.from_quat(q)
    np.testing.assert_allclose(rotation_matrices(q), theirs.as_matrix(), atol=1e-12)
    ours = quaternions(theirs.as_matrix())
    np.testing.assert_allclose(np.abs(np.sum(ours * theirs.as_quat(), 1)), 1, atol=1e-12)
    assert ours[0, 3] >= 0
    assert (np.sum(ours[1:] * ours[:-1], 1) >= -1e-12).all()  # no jump between q and -q


def test_half_turns_are_exact() -> None:
    for axis in np.eye(3):
        found = quaternions(Rotation.from_rotvec(np.pi * axis).as_matrix()[None])
        np.testing.assert_allclose(np.abs(found[0, :3]), axis, atol=1e-9)


def test_a_camera_that_drives_forward_and_turns_left() -> None:
    # Camera axes: forward is z, left is -x. After 3 m it looks to the left: about its y axis (down) by -90 degrees.
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0], [-1.0, -0.5, 3.0]])
    left = Rotation.from_rotvec([0, -np.pi / 2, 0]).as_matrix()
    place, turn = camera_poses_to_rep103(positions, np.stack([np.eye(3), np.eye(3), left]))
    np.testing.assert_allclose(place, [[0, 0, 0], [3, 0, 0], [3, 1, 0.5]], atol=1e-12)
    np.testing.assert_allclose(turn[:2], [[0, 0, 0, 1]] * 2, atol=1e-12)
    np.testing.assert_allclose(turn[2], [0, 0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-12)  # yaw +90 degrees
    for matrix in (FROM_CAMERA, FROM_FRD):
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_points_of_the_earth() -> None:
    known = np.array([[0, 0, 0], [90, 0, 0], [0, 90, 100], [45, 45, 0]], np.float64)
    expected = [[6378137, 0, 0], [0, 0, 6356752.314245], [0, 6378237, 0], [3194419.145, 3194419.145, 4487348.409]]
    np.testing.assert_allclose(ecef_from_geodetic(known), expected, atol=1e-3)


@settings(max_examples=80, deadline=None)
@given(st.floats(-89.9, 89.9), st.floats(-179.9, 179.9), st.floats(-400, 9000))
def test_there_and_back(latitude: float, longitude: float, altitude: float) -> None:
    point = np.array([[latitude, longitude, altitude]])
    back = ecef_from_geodetic(geodetic_from_ecef(ecef_from_geodetic(point)))
    assert np.abs(back - ecef_from_geodetic(point)).max() < 1e-3


def test_local_axes_point_east_north_and_up() -> None:
    frame = LocalFrame(48.1, 11.5, 500.0)
    nearby = np.array([[48.1, 11.5001, 500.0], [48.1001, 11.5, 500.0], [48.1, 11.5, 507.0], [48.1, 11.5, 500.0]])
    found = frame.positions(ecef_from_geodetic(nearby))
    np.testing.assert_allclose(found, [[7.4455, 0, 0], [0, 11.119, 0], [0, 0, 7], [0, 0, 0]], atol=5e-3)
    np.testing.assert_allclose(frame.axes @ frame.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame.axes) == pytest.approx(1)
    near = LocalFrame.at(ecef_from_geodetic(np.array([[48.1, 11.5, 500.0]]))[0])
    assert near == frame
