#!/usr/bin/env bash
# Makes the virtual environment and installs Kineflow (editable) with the named extras. Usage: python.sh PYTHON VENV EXTRAS
set -euo pipefail
python=$1 venv=$2 extras=$3
cd "$(dirname "$0")/.."

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Kineflow's training side needs Python 3.11 or newer; '$python' is $("$python" --version). Set PYTHON=python3.11" >&2
  exit 1
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "set-up 1/2: virtual environment in $venv"
  "$python" -m venv "$venv" || { echo "cannot make it: install the package python3-venv" >&2; exit 1; }
fi
echo "set-up 2/2: kineflow[$extras] (torch is the large part; a few minutes, once)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
install() {
  "$venv/bin/python" -m pip install --progress-bar on --quiet --constraint .ci/constraints.txt "$@" 2> >(grep -v -e "^WARNING: Location" -e "^$" >&2)
}
install --editable ".[$extras]"
# What the tests use of torchcfm needs torch, NumPy and POT; the packages it asks for are for its examples (plots, Lightning).
# Of robomimic they use the reader of its files: torch, h5py and termcolor; the rest it asks for is simulators and logging.
# openpi-client asks for an older NumPy than it needs; its websocket client uses msgpack, websockets, typing_extensions alone.
if [[ ",$extras," == *,parity,* ]]; then install --no-deps torchcfm robomimic termcolor openpi-client; fi
