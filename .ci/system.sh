#!/usr/bin/env bash
# Installs the system packages that the named purposes need and that are missing. Usage: system.sh [rendering] [browser] [jpeg] [egl] [osmesa]
set -uo pipefail
python=$(dirname "$0")/../.venv/bin/python
missing=() reasons=()

has_library() { "$python" -c "import ctypes; ctypes.CDLL('$1')" 2>/dev/null; }
need() { missing+=("$1"); reasons+=("  $1: $2"); }

for purpose in "$@"; do
  case $purpose in
    rendering)
      has_library libGL.so.1 || need libgl1 "OpenCV, which gym-pusht uses for pictures, links to OpenGL"
      has_library libgthread-2.0.so.0 || need libglib2.0-0 "OpenCV links to GLib"
      ;;
    browser)
      command -v chromium >/dev/null || command -v google-chrome >/dev/null || need chromium "the tests open the report in a real browser"
      ;;
    jpeg)
      has_library libturbojpeg.so.0 || need libturbojpeg0 "the compiled reader of frames decodes JPEG with it"
      ;;
    egl)
      has_library libEGL.so.1 || need libegl1 "simulated cameras are drawn through EGL"
      has_library libOpenGL.so.0 || need libopengl0 "EGL's OpenGL functions"
      compgen -G "/usr/lib/*/dri/*_dri.so" >/dev/null || need libgl1-mesa-dri "the software rasteriser behind EGL"
      ;;
    osmesa)
      has_library libOSMesa.so.8 || need libosmesa6 "the second way to draw simulated cameras, which the tests compare with the first"
      ;;
    *) echo "system.sh: unknown purpose '$purpose'" >&2; exit 2 ;;
  esac
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "system packages missing:"
printf '%s\n' "${reasons[@]}"
install="apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "run this once, then try again:  sudo sh -c 'apt-get update && $install'"
  if [ "${CI:-}" = true ]; then exit 1; fi
  exit 0
fi
echo "installing: ${missing[*]}"
if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install >/dev/null; }; then
  echo "could not install ${missing[*]}; without them the named purposes fail" >&2
  exit 1
fi
