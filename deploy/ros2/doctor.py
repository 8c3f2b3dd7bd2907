"""What of ROS 2 on this machine would keep a node from working, in silence or with exit code 102; rclpy is not imported here.

The rate of pictures is measured by a process of its own, which is killed when it hangs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path

from kineflow.deploy.doctor import Finding
from kineflow.deploy.ros2.environment import (
    PROFILE,
    PROFILE_NAMES,
    RosInstallation,
    check_domain,
    check_log_folder,
    check_rmw,
    find_installation,
    stale_segments,
)
from kineflow.interface import KineflowError

_RANGES = ("OFF", "LOCALHOST", "SUBNET", "SYSTEM_DEFAULT")
_SEGMENT_BYTES = 4 * 2**20  # of a publisher: at least four pictures of 640x480
_GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
_START_S = 30.0  # of a process with ROS in it, on a busy machine


def examine_ros(
    topic: str | None = None,
    rate_hz: float = 30.0,
    seconds: float = 4.0,
    environ: Mapping[str, str] | None = None,
    shm: Path = Path("/dev/shm"),
) -> list[Finding]:
    """Everything; the rate of `topic` only where nothing else keeps a node from starting."""
    environ = os.environ if environ is None else environ
    installation, found = rclpy_found(environ)
    findings = [found, *rest_of_wheels(environ, installation)]
    findings += [middleware(environ, installation), domain(environ), discovery(environ), logs(environ)]
    findings += [fast_dds_profile(environ, installation), shared_memory(shm), segments(shm)]
    if topic:
        if any(finding.level == "fail" for finding in findings):
            to_do = "do first what is said above"
            findings.append(Finding("fail", f"pictures on {topic}", "not measured: a node could not start here", to_do))
        else:
            findings.append(picture_rate(topic, rate_hz, seconds, environ))
    return findings


def rclpy_found(environ: Mapping[str, str]) -> tuple[RosInstallation | None, Finding]:
    """Where rclpy comes from: wheels, apt, nowhere, or two places at once."""
    try:
        installation = find_installation(environ)
    except KineflowError as error:
        if importlib.util.find_spec("rclpy") is None:
            return None, Finding("fail", "rclpy", "not installed here", str(error).removeprefix("no rclpy here: "))
        return None, Finding("fail", "rclpy", *_split(error))
    origin = getattr(importlib.util.find_spec("rclpy"), "origin", "")
    kind = "wheels of PyPI" if installation.kind == "wheels" else "the distribution (apt)"
    return installation, Finding("ok", "rclpy", f"from {kind}, {installation.distribution or 'distribution unknown'}: {origin}")


def rest_of_wheels(environ: Mapping[str, str], installation: RosInstallation | None) -> list[Finding]:
    """The wheels start Python a second time with a library path; a child of a cleaned environment may lack it."""
    wheels = importlib.util.find_spec("ros_wheels_bootstrapper") is not None
    if not wheels:
        return []
    what = "re-start of Python by the wheels"
    if environ.get(_GUARD) and not environ.get("LD_LIBRARY_PATH"):
        to_do = f"unset {_GUARD} too, or keep LD_LIBRARY_PATH: children inherit one without the other"
        return [Finding("fail", what, f"{_GUARD} is set, LD_LIBRARY_PATH is not: rclpy finds no libraries", to_do)]
    if installation is not None and installation.kind == "apt":
        to_do = "remove the package ros-wheels-bootstrapper from this environment"
        return [Finding("warn", what, "the hook of the wheels is here, but rclpy is the distribution's", to_do)]
    return [Finding("ok", what, "18 ms at each start")]


def middleware(environ: Mapping[str, str], installation: RosInstallation | None) -> Finding:
    """RMW_IMPLEMENTATION against what is installed: a wrong one ends the process with 102 and no exception."""
    asked = environ.get("RMW_IMPLEMENTATION", "")
    if installation is None:
        return Finding("warn", "RMW", f"RMW_IMPLEMENTATION={asked or 'not set'}: not checked", "first do what is said of rclpy")
    found = f"RMW_IMPLEMENTATION={asked or 'not set'}; installed: {', '.join(installation.rmws) or 'none'}"
    return _checked("RMW", found, lambda: check_rmw(environ, installation.rmws))


def domain(environ: Mapping[str, str]) -> Finding:
    return _checked("domain", f"ROS_DOMAIN_ID={environ.get('ROS_DOMAIN_ID') or 'not set: 0'}", lambda: check_domain(environ))


def logs(environ: Mapping[str, str]) -> Finding:
    """rclpy.init fails without a folder for logs."""
    home = environ.get("ROS_HOME") or (f"{environ['HOME']}/.ros" if environ.get("HOME") else "")
    folder = Path(environ.get("ROS_LOG_DIR") or f"{home}/log")
    finding = _checked("logs", str(folder), lambda: check_log_folder(environ))
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    if finding.level == "ok" and not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding("fail", "logs", f"{folder} cannot be written", "set ROS_LOG_DIR to a folder that can")
    return finding


def discovery(environ: Mapping[str, str]) -> Finding:
    """How far DDS looks for others."""
    asked = environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    if asked and asked not in _RANGES:
        return Finding("fail", "discovery", f"ROS_AUTOMATIC_DISCOVERY_RANGE={asked}", f"set it to one of {', '.join(_RANGES)}")
    if not asked and environ.get("ROS_LOCALHOST_ONLY") == "1":
        to_do = "export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST; the older variable is going away (Humble knows it alone)"
        return Finding("warn", "discovery", "ROS_LOCALHOST_ONLY=1", to_do)
    if asked == "OFF":
        return Finding("warn", "discovery", "ROS_AUTOMATIC_DISCOVERY_RANGE=OFF: no node finds another", "set LOCALHOST or SUBNET")
    if asked in ("", "SUBNET", "SYSTEM_DEFAULT"):
        to_do = "where all nodes run on this machine: export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, before rclpy.init"
        found = (
            f"ROS_AUTOMATIC_DISCOVERY_RANGE={asked or 'not set'}: multicast on the network, every robot in the domain is heard"
        )
        return Finding("warn", "discovery", found, to_do)
    return Finding("ok", "discovery", f"ROS_AUTOMATIC_DISCOVERY_RANGE={asked}")


def fast_dds_profile(environ: Mapping[str, str], installation: RosInstallation | None) -> Finding:
    """Without a large segment at the publisher, 640x480 pictures with best effort are lost: 0 to 13 of 150 arrive."""
    what = "Fast DDS profile"
    asked = environ.get("RMW_IMPLEMENTATION", "")
    if asked and "fastrtps" not in asked:
        return Finding("ok", what, f"not needed with {asked}")
    named = {name: environ[name] for name in PROFILE_NAMES if environ.get(name)}
    if not named:
        to_do = f"our nodes take {PROFILE} by themselves; start the cameras' drivers with FASTDDS_DEFAULT_PROFILES_FILE={PROFILE}"
        return Finding(
            "warn", what, "no profile in this shell: the publisher's segment decides, and 0.5 MB loses pictures", to_do
        )
    if len(named) == 2:
        return Finding(
            "warn", what, "both names of the variable are set", f"unset {PROFILE_NAMES[1]} (Humble: {PROFILE_NAMES[0]})"
        )
    ((name, file),) = named.items()
    found = f"{name}={file}"
    try:
        sizes = [int(e.text or 0) for e in ElementTree.parse(file).iter() if e.tag.rpartition("}")[2] == "segment_size"]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        return Finding("fail", what, f"{found}: {error}", f"Fast DDS only logs that; name a readable profile, such as {PROFILE}")
    if max(sizes, default=0) < _SEGMENT_BYTES:
        to_do = f"give its SHM transport a segment_size of 16777216, as {PROFILE} has"
        return Finding("warn", what, f"{found}: its largest segment has {max(sizes, default=0)} bytes", to_do)
    return Finding("ok", what, f"{found}: segments of {max(sizes) / 2**20:.0f} MB")


def shared_memory(folder: Path) -> Finding:
    """Room for the segments: 17 MB for each process with our profile."""
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        to_do = "mount a tmpfs there (containers: --ipc=host or --shm-size=512m)"
        return Finding("fail", "shared memory", f"{folder} cannot be written", to_do)
    free = shutil.disk_usage(folder).free / 2**20
    if free < 128:
        return Finding("warn", "shared memory", f"{free:.0f} MB free in {folder}", "make it larger; containers: --shm-size=512m")
    return Finding("ok", "shared memory", f"{free:.0f} MB free in {folder}")


def segments(folder: Path) -> Finding:
    """What killed processes left behind."""
    stale = stale_segments(folder)
    if not stale:
        return Finding("ok", "stale segments", f"none in {folder}")
    size = sum(file.stat().st_size for file in stale if file.exists()) / 2**20
    first = " ".join(str(file) for file in stale[:4]) + " ..." * (len(stale) > 4)
    to_do = f"our nodes remove them at their start; by hand: rm {first}"
    return Finding("warn", "stale segments", f"{len(stale)} with {size:.0f} MB, of processes that were killed", to_do)


def picture_rate(topic: str, rate_hz: float, seconds: float, environ: Mapping[str, str]) -> Finding:
    """Pictures that really arrive, by a subscription as the node's would be."""
    what = f"pictures on {topic}"
    command = [sys.executable, "-m", "kineflow.deploy.ros2.image_rate", topic, str(seconds)]
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=_START_S + 2 * seconds)
    except subprocess.TimeoutExpired:
        return Finding(
            "fail", what, f"no answer from rclpy within {_START_S + 2 * seconds:.0f} s", "look at the middleware's output"
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1].removeprefix("kineflow: ")
        return Finding("fail", what, f"{said} (exit code {done.returncode})", "start the camera, or name its topic; see /rosout")
    return judged(what, json.loads(lines[-1]), rate_hz)


def judged(what: str, measured: Mapping[str, object], rate_hz: float) -> Finding:
    """By the node's own rule: below half of the expected rate is an error."""
    came, offered = float(str(measured["rate_hz"])), str(measured["offered"])
    found = f"{came:.1f} Hz of {rate_hz:g}, {float(str(measured['bytes'])) / 1e6:.2f} MB each, {measured['type']}, {offered}"
    if came >= 0.9 * rate_hz:
        return Finding("ok", what, found)
    to_do = (
        f"start its driver with FASTDDS_DEFAULT_PROFILES_FILE={PROFILE}, let it offer reliable, or publish CompressedImage"
        if "best effort" in offered
        else "look whether the camera itself is so slow, and at the load of the machine"
    )
    return Finding("fail" if came < 0.5 * rate_hz else "warn", what, found, to_do)


def _checked(what: str, found: str, check: Callable[[], None]) -> Finding:
    try:
        check()
    except KineflowError as error:
        return Finding("fail", what, *_split(error))
    return Finding("ok", what, found)


def _split(error: KineflowError) -> tuple[str, str]:
    """What is, and what to do."""
    for sign in (". ", "; ", ": "):
        found, _, to_do = str(error).partition(sign)
        if to_do:
            return found, to_do
    return str(error), "see the message"
