#!/usr/bin/env bash
# Makes .venv-lerobot with the real lerobot package, for the test that it reads our export (tests/datasets/test_lerobot_peer.py).
# lerobot needs Python 3.12 and a PyTorch of its own (about 2.5 GB to fetch, 7 GB on disk), so it never shares our environment.
# Usage: lerobot_env.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.6.1 venv=.venv-lerobot

usable() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidates=("$@" python3.12 python3.13)
  if command -v pyenv >/dev/null; then candidates+=("$(pyenv root)"/versions/3.12*/bin/python "$(pyenv root)"/versions/3.13*/bin/python); fi
  if command -v uv >/dev/null; then candidates+=("$(uv python find 3.12 2>/dev/null || true)"); fi
  for python in "${candidates[@]}"; do
    if [[ -n $python ]] && usable "$python"; then echo "$python"; return; fi
  done
  return 1
}

if [[ -e $venv/.installed-$version ]]; then exit 0; fi
python=$(find_python "$@") || { echo "no Python 3.12 found: install one and run $0 PYTHON" >&2; exit 1; }
echo "lerobot $version in $venv with $("$python" --version)"
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "lerobot[dataset]==$version"
touch "$venv/.installed-$version"
