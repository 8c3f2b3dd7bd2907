"""export.json: what is in the folder of an exported policy, how it was checked, and which inputs its models take.

FOLDER/{export.json, contract.json, act_4.onnx, look.onnx, ...}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kineflow.config import ConfigError, from_plain
from kineflow.contracts import KineflowError, to_json

EXPORT_FILE, EXPORT_VERSION = "export.json", 1
Format = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "bf16", "int8"]


class ExportError(KineflowError):
    """A policy that cannot be exported, or an exported one that cannot be used as it is."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    dtype: str  # NumPy's name
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFile:
    """One model. `files`: the first one is what the runtime opens, others hold its weights."""

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Words:
    """How a text becomes the numbers that the model takes, without torch; texts in `table` need no rule.

    hashed: `kineflow.policies.encoders.static_words.HashedWords`; named: 1 where one of `names` is mentioned; table: only those.
    """

    kind: Literal["hashed", "named", "table"]
    dim: int
    names: tuple[str, ...] = ()
    table: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityResult:
    """Errors against `Policy.predict` of the original over `inputs` random questions, relative to the answers' scale."""

    model: str
    runtime: str
    precision: str
    shape: str
    inputs: int
    error: float  # the largest
    median: float
    allowed: float
    holds: bool


@dataclass(frozen=True)
class LatencyResult:
    """Milliseconds of one call; `load` is the machine's one-minute load average before it."""

    model: str
    runtime: str
    precision: str
    steps: int
    threads: int
    p50_ms: float
    p95_ms: float
    least_ms: float
    calls: int
    load: float


@dataclass(frozen=True)
class Manifest:
    """See the module. `act` maps the number of solver steps to a model, `default_steps` is the contract's."""

    source: str
    format: Format
    precision: Precision
    threads: int
    default_steps: int
    draws: Mapping[str, int]  # of noise, by steps
    act: Mapping[str, ModelFile]
    look: Mapping[str, ModelFile]  # by the size of the frames, "96x96"; empty: frames go into `act` as they are
    words: Words | None
    takes_prefix: bool
    explores: bool  # may be asked without a goal
    progress: str  # the goal video that `ahead_s` is about
    golden_tolerance: float
    parity: tuple[ParityResult, ...]
    latency: tuple[LatencyResult, ...]
    hashes: Mapping[str, str]  # SHA-256 of each file beside this one
    versions: Mapping[str, str]
    export_version: int = EXPORT_VERSION

    def write(self, folder: Path) -> None:
        (folder / EXPORT_FILE).write_text(to_json(self))


def read_manifest(folder: Path) -> Manifest:
    """Of the exported policy in `folder`; all its files are there and are the ones that were checked.

    Raises:
        ExportError: no such file, a newer version, or a model that is missing or was changed.
    """
    file = folder / EXPORT_FILE
    try:
        data = json.loads(file.read_text())
        if isinstance(data, dict) and data.get("export_version", 1) > EXPORT_VERSION:
            raise ExportError(
                f"{file}: export version {data['export_version']}, this kineflow reads up to {EXPORT_VERSION}; upgrade"
            )
        manifest: Manifest = from_plain(Manifest, data, str(file))
    except (OSError, json.JSONDecodeError, ConfigError) as error:
        raise ExportError(f"{file}: cannot be read ({error}); export the policy again") from error
    for name, expected in manifest.hashes.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            what = "is not the file that was exported and checked" if path.is_file() else "is missing"
            raise ExportError(f"{path}: {what}; export the policy again")
    return manifest


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
