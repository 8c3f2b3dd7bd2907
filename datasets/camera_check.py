"""What the records of cameras must satisfy: a codec that exists, and a calibration that can be one. Errors name the camera."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kineflow.contracts import Interface
from kineflow.datasets.codecs import check_policy
from kineflow.datasets.manifest import Calibration, CameraRecord, StoreError

CONVENTION = "opencv"
_TOLERANCE = 1e-4  # of matrices that were printed with five digits


def check_cameras(interface: Interface, records: Mapping[str, CameraRecord]) -> None:
    """Raise StoreError unless each record belongs to a camera of `interface` and is one that can be used."""
    for name, record in records.items():
        if name not in interface.cameras:
            raise StoreError(f"camera '{name}' has a record but is not in the schema, which has {sorted(interface.cameras)}")
        check_policy(record.codec, name)
        if record.calibration is not None:
            _check_calibration(record.calibration, f"calibration of camera '{name}'")


def _check_calibration(calibration: Calibration, what: str) -> None:
    if calibration.convention != CONVENTION:
        raise StoreError(
            f"{what}: convention '{calibration.convention}'; turn the axes to '{CONVENTION}' (x right, y down, z forward)"
        )
    k = _matrix(calibration.intrinsics, 3, f"{what}, intrinsics")
    if k[0, 0] <= 0 or k[1, 1] <= 0 or not np.array_equal(np.tril(k, -1)[1:], np.zeros((2, 3))) or k[2, 2] != 1:
        raise StoreError(f"{what}: intrinsics {k.tolist()} are not [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, in px")
    if not np.isfinite(calibration.distortion).all() or (calibration.distortion_model == "none") != (not calibration.distortion):
        raise StoreError(
            f"{what}: distortion {list(calibration.distortion)} of the model '{calibration.distortion_model}'; "
            "give the model's finite coefficients, or 'none' and no coefficients"
        )
    pose = _matrix(calibration.body_from_camera, 4, f"{what}, body_from_camera")
    rotation = pose[:3, :3]
    if not np.array_equal(pose[3], [0, 0, 0, 1]):
        raise StoreError(f"{what}: the last row of body_from_camera is {pose[3].tolist()}, not [0, 0, 0, 1]; is it transposed?")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _TOLERANCE or np.linalg.det(rotation) < 0:
        raise StoreError(
            f"{what}: the upper left 3 x 3 of body_from_camera is not a rotation (R R^T = 1, det R = +1): "
            f"{rotation.tolist()}; remove scale and mirroring"
        )


def _matrix(rows: tuple[tuple[float, ...], ...], size: int, what: str) -> np.ndarray:
    if len(rows) != size or any(len(row) != size for row in rows):
        raise StoreError(f"{what}: rows of {[len(row) for row in rows]} numbers, needed are {size} x {size}, row major")
    matrix = np.array(rows, np.float64)
    if not np.isfinite(matrix).all():
        raise StoreError(f"{what}: {matrix.tolist()} is not finite")
    return matrix
