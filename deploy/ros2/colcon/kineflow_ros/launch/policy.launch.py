"""The policy node and its guard: ros2 launch kineflow_ros policy.launch.py config:=nodes/wheeled [autostart:=true]

Each is a process of the Python that has Kineflow (`python:=`), so that a venv serves. The guard is one of its own on purpose.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration

ARGUMENTS = {
    "python": ("python3", "the interpreter in whose environment kineflow is installed"),
    "config": ("nodes/wheeled", "the node's configuration: a YAML file, or the name of one of Kineflow's"),
    "autostart": ("false", "configure and activate without a lifecycle manager"),
    "use_sim_time": ("false", "stamps by /clock; watchdogs stay on the monotonic clock"),
    "guard": ("true", "start the process that stops the robot when the node is killed or frozen"),
    "command_topic": ("cmd_vel", "what the guard sends its stop to: the node's own command topic"),
    "command_type": ("twist_stamped", "of that topic, twist_stamped or twist: the adapter of the robot's profile"),
}


def generate_launch_description():
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    start = [value["python"], "-m", "kineflow.deploy.ros2.start"]
    parameters = ["--ros-args"]
    for name in ("config", "autostart", "use_sim_time"):
        parameters += ["-p", [f"{name}:=", value[name]]]
    guard = [*start, "guard", "--command-topic", value["command_topic"], "--type", value["command_type"]]
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, text) in ARGUMENTS.items()
    ]
    # SIGINT first: the node sends its zeros. It needs less than a second.
    return LaunchDescription(
        [
            *declared,
            ExecuteProcess(cmd=guard, name="guard", output="screen", condition=IfCondition(value["guard"]), respawn=True),
            ExecuteProcess(cmd=[*start, "policy", *parameters], name="policy", output="screen", sigterm_timeout="3"),
        ]
    )
