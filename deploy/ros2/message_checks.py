"""Is a message what the configuration says? Frame, size, encoding, joints: looked at on the first messages. No ROS here.

Each check gives what is wrong with a message, or "".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kineflow.contracts import KineflowError
from kineflow.deploy.ros2.images import depth_as_sent
from kineflow.deploy.ros2.node_config import CameraTopic, FeatureTopic
from kineflow.deploy.ros2.readers import read_feature, read_picture
from kineflow.interface import CameraSpec

Check = Callable[[Any], str]


def picture_check(camera: CameraTopic, spec: CameraSpec) -> Check:
    """Frame, size and encoding of a camera's messages."""

    def check(message: Any) -> str:
        if camera.frame and message.header.frame_id != camera.frame:
            return f"frame_id is '{message.header.frame_id}', configured is '{camera.frame}'; correct the one that is wrong"
        named = camera.height, camera.width
        if not camera.compressed and any(want not in (0, have) for want, have in zip(named, (message.height, message.width))):
            return f"pictures are {message.width}x{message.height}, configured {camera.width}x{camera.height}; correct one"
        return _fault(lambda: read_picture(message, spec))

    return check


def depth_check() -> Check:
    """Encoding and size of a depth camera's messages."""
    return lambda message: _fault(lambda: depth_as_sent(message))


def feature_check(topic: FeatureTopic, names: tuple[str, ...]) -> Check:
    """Frame of a pose or a velocity, names of joints."""
    in_frame = frame_check(topic.frame, child=topic.kind == "odometry_velocity")

    def check(message: Any) -> str:
        return in_frame(message) or _fault(lambda: read_feature(message, topic.kind, names))

    return check


def frame_check(frame: str, child: bool = False) -> Check:
    """header.frame_id, or child_frame_id, is `frame`; "" allows any."""

    def check(message: Any) -> str:
        found = str(message.child_frame_id if child else message.header.frame_id)
        return "" if frame in ("", found) else f"frame is '{found}', configured is '{frame}'; correct the one that is wrong"

    return check


def _fault(read: Callable[[], Any]) -> str:
    try:
        read()
    except KineflowError as error:
        return str(error)
    return ""
