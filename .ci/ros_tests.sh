#!/usr/bin/env bash
# Runs tests/ros2 with real rclpy in .venv-ros (made first): on loopback only, with a kill that a wedged process cannot ignore.
# Usage: ros_tests.sh PYTHON MARKERS
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 markers=$2
status=0; bash .ci/ros_env.sh "$python" || status=$?
if [[ $status -eq 3 ]]; then exit 0; fi
if [[ $status -ne 0 ]]; then exit "$status"; fi
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST OMP_NUM_THREADS=1
unset RMW_IMPLEMENTATION ROS_DOMAIN_ID FASTDDS_DEFAULT_PROFILES_FILE
status=0
timeout -k 10 1200 .venv-ros/bin/python -m pytest -c tests/ros2/pytest.ini -m "$markers" tests/ros2 || status=$?
if [[ $status -eq 5 ]]; then exit 0; fi  # no test of that kind
exit "$status"
