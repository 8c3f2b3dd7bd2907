"""Axes and frames of other people's data to ours: REP-103 (x forward, y left, z up), east-north-up, quaternions x y z w."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

# Rows are the axes of the new frame in the old one. Camera: x right, y down, z forward; FRD: x forward, y right, z down.
FROM_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
FROM_FRD = np.diag([1.0, -1.0, -1.0])

_A, _F = 6378137.0, 1 / 298.257223563  # WGS84: semi-major axis in m, flattening
_E2 = _F * (2 - _F)


def camera_poses_to_rep103(
    positions: Float64[np.ndarray, "T 3"], rotations: Float64[np.ndarray, "T 3 3"]
) -> tuple[Float64[np.ndarray, "T 3"], Float64[np.ndarray, "T 4"]]:
    """Poses of a camera in the frame of its first view, both with camera axes, to positions and quaternions with REP-103
    axes: the world and the body turn alike, so p' = C p and R' = C R C^T."""
    return positions @ FROM_CAMERA.T, quaternions(FROM_CAMERA @ rotations @ FROM_CAMERA.T)


def quaternions(rotations: Float64[np.ndarray, "T 3 3"]) -> Float64[np.ndarray, "T 4"]:
    """x y z w, unit length; of q and -q the one nearer to its predecessor, the first with w >= 0."""
    m = rotations
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    # Squares of 2x, 2y, 2z, 2w; dividing by the largest keeps half-turns exact.
    squares = np.stack([1 + 2 * m[:, i, i] - trace for i in range(3)] + [1 + trace], 1)
    x, y, z = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = np.stack(
        [
            np.stack([squares[:, 0], xy, xz, x], 1),
            np.stack([xy, squares[:, 1], yz, y], 1),
            np.stack([xz, yz, squares[:, 2], z], 1),
            np.stack([x, y, z, squares[:, 3]], 1),
        ],
        1,
    )
    found = rows[np.arange(len(m)), np.argmax(squares, 1)]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    turns = np.where(np.sum(found[1:] * found[:-1], 1) < 0, -1.0, 1.0)
    first = -1.0 if len(found) and found[0, 3] < 0 else 1.0
    signs = first * np.concatenate([[1.0], np.cumprod(turns)])[: len(found)]
    return np.asarray(found * signs[:, None])


def rotation_matrices(quaternions_xyzw: Float64[np.ndarray, "T 4"]) -> Float64[np.ndarray, "T 3 3"]:
    """The rotation that each quaternion stands for, whatever its length."""
    x, y, z, w = (quaternions_xyzw / np.linalg.norm(quaternions_xyzw, axis=1, keepdims=True)).T
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
        ],
        1,
    )


def ecef_from_geodetic(latitude_longitude_altitude: Float64[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 3"]:
    """Degrees and metres above the WGS84 ellipsoid to earth-centred metres."""
    latitude, longitude = np.radians(latitude_longitude_altitude[:, :2]).T
    altitude = latitude_longitude_altitude[:, 2]
    normal = _A / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
    flat = (normal + altitude) * np.cos(latitude)
    up = (normal * (1 - _E2) + altitude) * np.sin(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), up], 1)


def geodetic_from_ecef(ecef: Float64[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 3"]:
    """Inverse of `ecef_from_geodetic` to below a millimetre near the ground, by fixed-point iteration."""
    x, y, z = ecef.T
    flat = np.hypot(x, y)
    latitude = np.arctan2(z, flat * (1 - _E2))
    for _ in range(8):
        normal = _A / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
        latitude = np.arctan2(z + _E2 * normal * np.sin(latitude), flat)
    normal = _A / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
    altitude = flat * np.cos(latitude) + z * np.sin(latitude) - normal * (1 - _E2 * np.sin(latitude) ** 2)
    return np.stack([np.degrees(latitude), np.degrees(np.arctan2(y, x)), altitude], 1)


@dataclass(frozen=True)
class LocalFrame:
    """East-north-up axes touching the earth at an origin: float32 metres there are exact to a millimetre within 10 km, where
    float32 degrees or earth-centred metres would be off by half a metre."""

    latitude: float  # degrees
    longitude: float
    altitude: float  # m, WGS84

    @property
    def name(self) -> str:
        """The frame in a schema: enough to convert back."""
        return f"enu(WGS84 {self.latitude!r} {self.longitude!r} {self.altitude!r})"

    @property
    def axes(self) -> Float64[np.ndarray, "3 3"]:
        """Rows: east, north and up in earth-centred axes."""
        latitude, longitude = np.radians([self.latitude, self.longitude])
        (sf, cf), (sl, cl) = (np.sin(latitude), np.cos(latitude)), (np.sin(longitude), np.cos(longitude))
        return np.array([[-sl, cl, 0.0], [-sf * cl, -sf * sl, cf], [cf * cl, cf * sl, sf]])

    def positions(self, ecef: Float64[np.ndarray, "T 3"]) -> Float64[np.ndarray, "T 3"]:
        origin = ecef_from_geodetic(np.array([[self.latitude, self.longitude, self.altitude]]))
        return np.asarray((ecef - origin) @ self.axes.T)

    @classmethod
    def at(cls, ecef: Float64[np.ndarray, "3"]) -> LocalFrame:
        """The frame with its origin at this earth-centred point, rounded to 1e-7 degrees (1 cm) and 1 mm."""
        latitude, longitude, altitude = geodetic_from_ecef(ecef[None])[0]
        return cls(round(float(latitude), 7), round(float(longitude), 7), round(float(altitude), 3))
