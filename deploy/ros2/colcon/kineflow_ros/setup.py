"""The colcon package: launch files, parameters, and the bridge of the action."""

from setuptools import setup

NAME = "kineflow_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/policy.launch.py", "launch/recorder.launch.py"]),
        (f"share/{NAME}/config", ["config/policy.yaml", "config/recorder.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    license="Apache-2.0",
    description="Launch files and parameters for Kineflow's nodes",
    entry_points={"console_scripts": [f"run_policy_action = {NAME}.run_policy_action:main"]},
)
