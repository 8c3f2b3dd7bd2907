"""What must be right before `rclpy.init`, because afterwards the process ends inside C, or talks to nobody, without a word.

An RMW that is not installed ends the process with exit code 102; a domain beyond 232 ends it in Fast DDS; two DDS builds in one
process fail at random; without a profile 640x480 pictures do not arrive. Here each is one sentence. rclpy is not imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kineflow.interface import KineflowError

PROFILE = Path(__file__).with_name("fastdds_profile.xml")
PROFILE_NAMES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
HIGHEST_DOMAIN = 232  # the port of a higher one would be above 65535
OLD_NAME = ("humble", "iron")  # distributions whose Fast DDS knows the older name of the variable
_SEGMENT = re.compile(r"fast(?:dds|rtps)_[0-9a-f]{16}(?:_el)?")
_SEGMENT_PATH = re.compile(r"fast(?:dds|rtps)_[0-9a-f]{16}")
_RMW_WHEELS = ("ros-rmw-fastrtps-cpp", "ros-rmw-fastrtps-dynamic-cpp", "ros-rmw-cyclonedds-cpp", "ros-rmw-zenoh-cpp")


@dataclass(frozen=True)
class RosInstallation:
    """Where rclpy would come from; `rmws`: installed middlewares by the name that RMW_IMPLEMENTATION takes."""

    kind: Literal["wheels", "apt"]
    rmws: tuple[str, ...]
    distribution: str


def find_installation(environ: Mapping[str, str]) -> RosInstallation:
    """The rclpy that `import rclpy` would take.

    Raises:
        KineflowError: none is importable, or it is a wheel in a shell where another ROS was sourced.
    """
    spec = importlib.util.find_spec("rclpy")
    if spec is None or spec.origin is None:
        raise KineflowError(
            "no rclpy here: on a robot source the distribution's setup file in a venv made with --system-site-packages; on an "
            "x86_64 Linux machine without ROS `make ros2` makes .venv-ros from wheels (pip install 'kineflow[ros2]')"
        )
    wheels = _wheels_beside(Path(spec.origin))
    if wheels is None:
        return RosInstallation("apt", _apt_rmws(environ), environ.get("ROS_DISTRO", ""))
    check_not_mixed(environ)
    return RosInstallation("wheels", wheels, "kilted")


def check_not_mixed(environ: Mapping[str, str]) -> None:
    """For rclpy from wheels.

    Raises:
        KineflowError: another ROS is sourced in the shell; its libraries would be found among the wheels' own, in random order.
    """
    if sourced := environ.get("AMENT_PREFIX_PATH"):
        raise KineflowError(
            f"rclpy is a wheel, but a ROS is sourced in this shell (AMENT_PREFIX_PATH={sourced}): two builds of DDS would mix at "
            "random. Use a shell without it, or an environment without the ROS wheels"
        )
    foreign = [part for part in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if "/opt/ros/" in part + "/"]
    if foreign:
        raise KineflowError(f"rclpy is a wheel, but LD_LIBRARY_PATH has another ROS: {foreign[0]}. Use a shell without it")


def check_settings(environ: Mapping[str, str], rmws: tuple[str, ...]) -> None:
    """Domain, middleware, log folder.

    Raises:
        KineflowError: one of them cannot work; names the variable, its value and the remedy.
    """
    check_domain(environ)
    check_rmw(environ, rmws)
    check_log_folder(environ)


def check_domain(environ: Mapping[str, str]) -> None:
    domain = environ.get("ROS_DOMAIN_ID", "")
    if domain and not (domain.isascii() and domain.isdigit() and int(domain) <= HIGHEST_DOMAIN):
        raise KineflowError(f"ROS_DOMAIN_ID is '{domain}'; it must be a whole number from 0 to {HIGHEST_DOMAIN}")


def check_rmw(environ: Mapping[str, str], rmws: tuple[str, ...]) -> None:
    rmw = environ.get("RMW_IMPLEMENTATION", "")
    if rmw and rmw not in rmws:
        raise KineflowError(f"RMW_IMPLEMENTATION is '{rmw}', installed here: {', '.join(rmws) or 'none'}; install it or unset it")
    if not rmws:
        raise KineflowError("rclpy has no middleware: pip install 'ros-kilted-rclpy[fastrtps]', or the apt package of an RMW")


def check_log_folder(environ: Mapping[str, str]) -> None:
    if not (environ.get("HOME") or environ.get("ROS_LOG_DIR") or environ.get("ROS_HOME")):
        raise KineflowError("neither HOME nor ROS_LOG_DIR is set, and rclpy needs a folder for its logs: set ROS_LOG_DIR")


def prepare(environ: MutableMapping[str, str] | None = None) -> RosInstallation:
    """Check everything and name our Fast DDS profile; call it before rclpy is imported.

    The user's own profile stays. It must exist: Fast DDS only logs a missing one.

    Raises:
        KineflowError: see `find_installation` and `check_settings`; or the profile is missing.
    """
    environ = os.environ if environ is None else environ
    installation = find_installation(environ)
    check_settings(environ, installation.rmws)
    chosen = next((name for name in PROFILE_NAMES if environ.get(name)), None)
    if chosen is None:
        chosen = PROFILE_NAMES[1] if installation.distribution in OLD_NAME else PROFILE_NAMES[0]
        environ[chosen] = str(PROFILE)
    if not Path(environ[chosen]).is_file():
        raise KineflowError(f"{chosen} names {environ[chosen]}, which is no file; unset it to take kineflow's profile")
    return installation


def clean_stale_segments(folder: Path = Path("/dev/shm"), alive: Path = Path("/proc")) -> int:
    """Remove the `stale_segments`, and say how many."""
    stale = stale_segments(folder, alive)
    for file in stale:
        file.unlink(missing_ok=True)
    return len(stale)


def stale_segments(folder: Path = Path("/dev/shm"), alive: Path = Path("/proc")) -> list[Path]:
    """Fast DDS's shared-memory segments that no process maps any more: a kill leaves 17 MB.

    Ports (shared by all participants) and files of other users stay. A segment counts as used as long as a process of this user
    maps it or has its lock file open.
    """
    segments = [file for file in folder.glob("fast*_*") if _SEGMENT.fullmatch(file.name) and file.stat().st_uid == os.getuid()]
    if not segments:
        return []
    used: set[str] = set()
    for process in alive.glob("[0-9]*"):
        try:
            used.update(_SEGMENT_PATH.findall((process / "maps").read_text()))
            used.update(Path(os.readlink(link)).name.split(" ")[0].removesuffix("_el") for link in (process / "fd").iterdir())
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return [file for file in segments if file.name.removesuffix("_el") not in used]


def _wheels_beside(origin: Path) -> tuple[str, ...] | None:
    """Middlewares from wheels, when this rclpy is one: a distribution 'ros-rclpy' that owns that very file."""
    try:
        wheel = importlib.metadata.distribution("ros-rclpy")
    except importlib.metadata.PackageNotFoundError:
        return None
    if Path(str(wheel.locate_file("rclpy/__init__.py"))).resolve() != origin.resolve():
        return None
    installed = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}
    return tuple(name.removeprefix("ros-").replace("-", "_") for name in _RMW_WHEELS if name in installed)


def _apt_rmws(environ: Mapping[str, str]) -> tuple[str, ...]:
    prefixes = [Path(part) for part in environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if part]
    index = "share/ament_index/resource_index/rmw_typesupport"
    return tuple(sorted({file.name for prefix in prefixes if (prefix / index).is_dir() for file in (prefix / index).iterdir()}))
