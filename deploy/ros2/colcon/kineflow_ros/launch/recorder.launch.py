"""The recorder: ros2 launch kineflow_ros recorder.launch.py config:=recorders/wheeled"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration

ARGUMENTS = {
    "python": ("python3", "the interpreter in whose environment kineflow is installed"),
    "config": ("recorders/wheeled", "the recorder's configuration: a YAML file, or the name of one of Kineflow's"),
}


def generate_launch_description():
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    words = [value["python"], "-m", "kineflow.deploy.ros2.start", "recorder", "--ros-args", "-p", ["config:=", value["config"]]]
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, text) in ARGUMENTS.items()
    ]
    # It commits the episode that it is recording before it ends.
    return LaunchDescription([*declared, ExecuteProcess(cmd=words, name="recorder", output="screen", sigterm_timeout="30")])
