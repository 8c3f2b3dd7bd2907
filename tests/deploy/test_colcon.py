"""The colcon packages, which no test here can build: manifests, launch files and parameters say what Kineflow has."""

from __future__ import annotations

import ast
import itertools
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from kineflow.config import find_config, load_config
from kineflow.deploy.ros2.node_config import NodeConfig
from kineflow.deploy.ros2.recorder_config import RecorderConfig

COLCON = Path(__file__).resolve().parents[2] / "deploy" / "ros2" / "colcon"
ROS, INTERFACES = COLCON / "kineflow_ros", COLCON / "kineflow_interfaces"


@dataclass
class Said:
    """Any class of the launch system: what it was made with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the launch system, which is not on any index."""
    names = {
        "launch": ("LaunchDescription",),
        "launch.actions": ("DeclareLaunchArgument", "ExecuteProcess"),
        "launch.conditions": ("IfCondition",),
        "launch.substitutions": ("LaunchConfiguration",),
    }
    for module, classes in names.items():
        made = ModuleType(module)
        for name in classes:
            setattr(made, name, lambda *args, **kwargs: Said(args, kwargs))
        monkeypatch.setitem(sys.modules, module, made)


def described(name: str) -> tuple[dict[str, str], list[list[str]]]:
    """Arguments with their defaults, and the commands with those filled in."""
    described = runpy.run_path(str(ROS / "launch" / name))["generate_launch_description"]().args[0]
    defaults = {said.args[0]: said.kwargs["default_value"] for said in described if "default_value" in said.kwargs}

    def word(part: Any) -> str:
        if isinstance(part, list):
            return "".join(word(piece) for piece in part)
        return defaults[part.args[0]] if isinstance(part, Said) else str(part)

    return defaults, [[word(part) for part in said.kwargs["cmd"]] for said in described if "cmd" in said.kwargs]


@pytest.mark.usefixtures("launch")
def test_launch_files_start_nodes_that_exist_with_parameters_that_they_declare() -> None:
    from kineflow.deploy.ros2.start import NODES

    ros2 = COLCON.parent
    for name, expected in (("policy.launch.py", ["guard", "policy"]), ("recorder.launch.py", ["recorder"])):
        _, commands = described(name)
        assert [command[3] for command in commands] == expected
        for command in commands:
            assert command[:3] == ["python3", "-m", "kineflow.deploy.ros2.start"]
            source = (ros2 / f"{NODES[command[3]]}.py").read_text()
            for before, after in itertools.pairwise(command):
                if before == "-p" and not after.startswith("use_sim_time:="):
                    parameter, value = after.split(":=")
                    assert f'declare_parameter("{parameter}"' in source
                    assert parameter != "config" or find_config(value)
                if before.startswith("--") and before != "--ros-args":
                    assert f'"{before}"' in source


def test_parameter_files_name_nodes_parameters_and_configurations_that_exist() -> None:
    for name, node, kind in (("policy", "policy_node", NodeConfig), ("recorder", "recorder_node", RecorderConfig)):
        said = yaml.safe_load((ROS / "config" / f"{name}.yaml").read_text())["/**"][name]["ros__parameters"]
        source = (COLCON.parent / f"{node}.py").read_text()
        assert f'super().__init__("{name}"' in source
        assert all(f'declare_parameter("{parameter}"' in source for parameter in said if parameter != "use_sim_time")
        load_config(kind, said["config"])


def test_manifests_agree_with_what_is_there() -> None:
    for folder in (ROS, INTERFACES):
        package = ElementTree.parse(folder / "package.xml").getroot()
        assert package.get("format") == "3"
        assert package.findtext("name") == folder.name
        assert package.findtext("license") == "Apache-2.0"
    setup = ast.parse((ROS / "setup.py").read_text())
    files = [
        n.value
        for n in ast.walk(setup)
        if isinstance(n, ast.Constant) and str(n.value).startswith(("launch/", "config/", "package"))
    ]
    assert len(files) == 5
    assert all((ROS / str(file)).is_file() for file in files)
    assert {file.name for file in (ROS / "launch").iterdir() if file.suffix == ".py"} == {
        Path(str(file)).name for file in files if str(file).startswith("launch/")
    }
    assert (ROS / "resource" / "kineflow_ros").is_file()
    needed = {word.text for word in ElementTree.parse(ROS / "package.xml").getroot().iter("exec_depend")}
    sources = [file.read_text() for file in COLCON.parent.glob("*.py")]
    packages = {
        p
        for p in ("std_msgs", "geometry_msgs", "sensor_msgs", "nav_msgs", "trajectory_msgs", "diagnostic_msgs")
        for s in sources
        if f"from {p}.msg" in s
    }
    assert packages <= needed


def test_the_action_is_three_messages_of_known_types() -> None:
    typesys = pytest.importorskip("rosbags.typesys")
    parts = (INTERFACES / "action" / "RunPolicy.action").read_text().split("---\n")
    assert len(parts) == 3
    fields = []
    for text, kind in zip(parts, ("Goal", "Result", "Feedback")):
        found = typesys.get_types_from_msg(text, f"kineflow_interfaces/msg/RunPolicy{kind}")
        fields.append({name for name, _ in found[f"kineflow_interfaces/msg/RunPolicy{kind}"][1]})
    assert fields == [{"instruction", "goal_pose", "timeout_s"}, {"state", "why", "seconds"}, {"outcome", "why", "seconds"}]
    bridge = (ROS / "kineflow_ros" / "run_policy_action.py").read_text()
    ast.parse(bridge)
    for name in (
        "goal.instruction",
        "goal.goal_pose",
        "goal.timeout_s",
        "result.state",
        "result.why",
        "result.seconds",
        "feedback.outcome",
    ):
        assert name in bridge
    for topic in ("policy/run/feedback", "policy/run/result", "policy/run"):
        assert f'"{topic}"' in bridge
