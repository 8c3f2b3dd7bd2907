"""`kineflow export RUN --format onnx`: a policy as a folder of models that need no torch; whole and checked, or not at all.

trace --> write --> open in its runtime --> parity gate --> golden pair --> latency --> FOLDER
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import kineflow
from kineflow.contracts import to_json
from kineflow.deploy.export.gate import Asked, parity
from kineflow.deploy.export.graphs import (
    Graph,
    act_graph,
    draws_of,
    frozen_copy,
    look_graph,
    looks,
    takes_prefix,
)
from kineflow.deploy.export.latency import Timed, latency
from kineflow.deploy.export.questions import WORDS, random_questions
from kineflow.deploy.export.writing import (
    WAYS,
    WEIGHTS_ONLY,
    lighter,
    openvino_of,
    quantised,
    write_onnx,
    write_openvino,
    write_torch,
)
from kineflow.deploy.exported import ExportedPolicy, opened
from kineflow.deploy.exported_manifest import (
    ExportError,
    Format,
    LatencyResult,
    Manifest,
    ModelFile,
    ParityResult,
    Precision,
    Words,
    sha256,
)
from kineflow.deploy.runtimes import Model
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.goal import GoalVisionEncoder
from kineflow.policies.golden import error_of
from kineflow.policies.policy import PolicyNetwork
from kineflow.policies.provenance import package_versions

PRECISIONS: Mapping[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32",),
    "openvino": ("fp32", "bf16", "int8"),
    "torch": ("fp32",),
}
PACKAGE: Mapping[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
GOLDEN: Mapping[Precision, float] = {"fp32": 1e-3, "bf16": 4e-2, "int8": 1e-1}  # on load: other processors round differently
CALIBRATION = 64  # questions by which int8 is scaled; others than those of the gate


@dataclass(frozen=True)
class ExportConfig:
    """What to write. `steps`: numbers of solver steps beside the policy's own, each a model."""

    format: Format = "onnx"
    precision: Precision = "fp32"
    steps: tuple[int, ...] = ()
    threads: int = 1
    inputs: int = 8  # questions of the parity gate, at least 8
    instructions: tuple[str, ...] = ()  # texts, for policies whose text encoder needs torch
    measured_threads: tuple[int, ...] = ()  # for the latency report; empty: none
    ways: tuple[str, ...] = WAYS  # to OpenVINO, tried in this order

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS[self.format]:
            raise ExportError(f"format {self.format} has no precision {self.precision}; it has {list(PRECISIONS[self.format])}")
        if self.threads < 1 or min(self.steps, default=1) < 1:
            raise ExportError(f"threads {self.threads} and steps {list(self.steps)} must be at least 1")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    manifest: Manifest
    megabytes: float


def export_models(policy: Any, source: str, target: Path, config: ExportConfig) -> Exported:
    """`policy` as the folder `target`, which must not exist.

    Raises:
        ExportError: not a policy of one network, a folder that is there, a runtime that does not convert a model, or answers that
            are further from the original's than the gate allows; nothing is left of such an export.
    """
    if not isinstance(policy, ChunkPolicy):
        raise ExportError(f"{source}: a {type(policy).__name__} cannot be exported; export a policy of one network")
    if target.exists():
        raise ExportError(f"{target}: is there already; remove it, or give another --out")
    staged = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        manifest = _checked(policy, source, staged, config)
        (staged / "contract.json").write_text(to_json(policy.contract))
        hashes = {file.name: sha256(file) for file in sorted(staged.iterdir())}
        manifest = replace(manifest, hashes=hashes)
        manifest.write(staged)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Exported(target, manifest, sum(file.stat().st_size for file in target.iterdir()) / 1e6)


def _checked(policy: ChunkPolicy, source: str, folder: Path, config: ExportConfig) -> Manifest:
    """The first way to write the models that passes the gate."""
    network = frozen_copy(policy.network)
    graphs = _graphs(network, config)
    plan = _plan(policy, network, source, config)
    asked = {steps: Asked.of(policy, steps, config.inputs, prefixes=plan.takes_prefix) for steps in _all_steps(network, config)}
    failed: list[str] = []
    for way in _ways(config):
        try:
            manifest = _written(policy, graphs, plan, folder, config, way)
            exported = opened(folder, manifest, policy.contract)
            runtime = f"{PACKAGE[config.format]} {version(PACKAGE[config.format])}" + (f", {way}" if way else "")
            if config.precision == "bf16" and exported.computes_in == {"f32"}:
                runtime += ", computed in f32: this processor has no bf16"
            results = tuple(parity(asked[steps], exported, steps, runtime) for steps in asked)
            manifest = replace(manifest, parity=results)
            if wrong := [_sentence(result) for result in results if not result.holds]:
                raise ExportError("; ".join(wrong))
            _golden(exported, policy)
            return replace(manifest, latency=tuple(_measured(folder, manifest, policy, config)))
        except ExportError as error:
            failed.append(str(error))
            for file in folder.iterdir():
                file.unlink()
    raise ExportError(f"{source}: refused in {config.format} {config.precision}: " + "; ".join(failed))


def _sentence(result: ParityResult) -> str:
    return (
        f"{result.model} in {result.runtime} {result.precision} differs from the policy by {result.error:.2g} of its spread "
        f"({result.inputs} inputs, median {result.median:.2g}, allowed {result.allowed:g})"
    )


def _golden(exported: ExportedPolicy, policy: ChunkPolicy) -> None:
    error, allowed = (
        error_of(exported.predict, policy.contract.interface, policy.contract.golden),
        exported.manifest.golden_tolerance,
    )
    if not error <= allowed:
        raise ExportError(f"the golden answer of its contract differs by {error:.2g} (allowed {allowed:g})")


def _measured(folder: Path, manifest: Manifest, policy: ChunkPolicy, config: ExportConfig) -> list[LatencyResult]:
    rows = []
    for threads in config.measured_threads:
        exported = opened(folder, manifest, policy.contract, threads)
        for steps in map(int, manifest.act):
            asked = Timed(f"act_{steps}", PACKAGE[config.format], config.precision, steps, threads)
            rows.append(latency(exported, asked))
    return rows


def _all_steps(network: PolicyNetwork, config: ExportConfig) -> list[int]:
    own = network.config.objective.sampler_spec().steps
    if config.steps and not hasattr(network.config.objective, "steps"):
        raise ExportError(
            f"a {type(network.config.objective).__name__} policy always takes {own} network calls; leave --steps out"
        )
    return [own, *(steps for steps in dict.fromkeys(config.steps) if steps != own)]


def _graphs(network: PolicyNetwork, config: ExportConfig) -> dict[str, Graph]:
    """All models by name: `act_N`, and `look_HxW` for each size of frames."""
    has_steps = hasattr(network.config.objective, "steps")
    graphs = {f"act_{steps}": act_graph(network, steps if has_steps else None) for steps in _all_steps(network, config)}
    if looks(network):
        interface = network.interface
        sizes = {(camera.height, camera.width) for camera in interface.cameras.values()}
        sizes |= {(goal.height, goal.width) for goal in interface.goals.values() if goal.kind in ("image", "video")}
        graphs |= {f"look_{height}x{width}": look_graph(network, height, width) for height, width in sorted(sizes)}
    return graphs


def _plan(policy: ChunkPolicy, network: PolicyNetwork, source: str, config: ExportConfig) -> Manifest:
    """The manifest without models, results and hashes."""
    steps = _all_steps(network, config)
    has_steps = hasattr(network.config.objective, "steps")
    runtime = PACKAGE[config.format]
    packages = {"kineflow": kineflow.__version__, **package_versions(), runtime: version(runtime)}
    return Manifest(
        source=source,
        format=config.format,
        precision=config.precision,
        threads=config.threads,
        default_steps=steps[0],
        draws={str(count): draws_of(network, count if has_steps else None) for count in steps},
        act={},
        look={},
        words=_words(network, config.instructions),
        takes_prefix=takes_prefix(network),
        explores=network.distance is not None and network.distance.explores,
        progress=network.config.progress,
        golden_tolerance=GOLDEN[config.precision],
        parity=(),
        latency=(),
        hashes={},
        versions=packages,
    )


def _written(
    policy: ChunkPolicy, graphs: Mapping[str, Graph], plan: Manifest, folder: Path, config: ExportConfig, way: str
) -> Manifest:
    if config.format == "onnx":
        return _filled(plan, {name: write_onnx(graph, folder, name) for name, graph in graphs.items()})
    if config.format == "torch":
        return _filled(plan, {name: write_torch(graph, folder, name) for name, graph in graphs.items()})
    way, _, rest = way.partition(", ")
    models = {name: _converted(graph, way, folder, name) for name, graph in graphs.items()}
    if rest == WEIGHTS_ONLY:
        models = {name: lighter(model) for name, model in models.items()}
    files = {name: write_openvino(models[name], graph, folder, name) for name, graph in graphs.items()}
    if config.precision == "int8" and not rest:
        seen = _seen(policy, folder, _filled(replace(plan, precision="fp32"), files))
        files = {name: write_openvino(quantised(models[name], seen[name]), graph, folder, name) for name, graph in graphs.items()}
    return _filled(plan, files)


def _ways(config: ExportConfig) -> Sequence[str]:
    """In which order to try; of one format there is one way."""
    if config.format != "openvino":
        return ("",)
    if config.precision == "int8":
        return (config.ways[0], f"{config.ways[0]}, {WEIGHTS_ONLY}")
    return config.ways


def _converted(graph: Graph, way: str, folder: Path, name: str) -> Any:
    """Where OpenVINO does not know an operation of torch, it may know that of ONNX."""
    try:
        return openvino_of(graph, way, folder, name)
    except ExportError:
        if way == WAYS[-1]:
            raise
        return openvino_of(graph, WAYS[-1], folder, name)


def _filled(plan: Manifest, files: Mapping[str, ModelFile]) -> Manifest:
    act = {name.removeprefix("act_"): model for name, model in files.items() if name.startswith("act_")}
    look = {name.removeprefix("look_"): model for name, model in files.items() if name.startswith("look_")}
    return replace(plan, act=act, look=look)


class _Recorded:
    """A model that remembers what it was asked."""

    def __init__(self, model: Model) -> None:
        self._model, self.seen = model, list[dict[str, np.ndarray]]()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(dict(inputs))
        return self._model(inputs)


def _seen(policy: ChunkPolicy, folder: Path, manifest: Manifest) -> dict[str, Sequence[Mapping[str, np.ndarray]]]:
    """What each model is asked when the policy answers random questions."""
    plain = opened(folder, manifest, policy.contract)
    recorded = {f"act_{steps}": _Recorded(model) for steps, model in plain.act.items()}
    watched = {f"look_{size}": (_Recorded(model), has_motion) for size, (model, has_motion) in plain.look.items()}
    act = {int(name.removeprefix("act_")): model for name, model in recorded.items()}
    look = {name.removeprefix("look_"): pair for name, pair in watched.items()}
    watching = ExportedPolicy(manifest, policy.contract, act, look)
    for steps in act:
        for question in random_questions(policy.contract, CALIBRATION, 1, steps=steps, prefixes=manifest.takes_prefix):
            watching.predict(*question)
    return {name: model.seen[:CALIBRATION] for name, model in {**recorded, **{n: m for n, (m, _) in watched.items()}}.items()}


def _words(network: PolicyNetwork, instructions: Sequence[str]) -> Words | None:
    """How texts become vectors where torch is not; of an encoder that needs torch the vectors of `instructions`."""
    encoder = network.encoder
    if not isinstance(encoder, GoalVisionEncoder) or encoder.words_of is None:
        return None
    text = encoder.text
    kind, identity = type(text).__name__, text._identity
    if kind == "HashedWordsEncoder":
        return Words("hashed", text.dim)
    if kind == "SceneWordsEncoder":
        return Words("named", text.dim, tuple(identity["words"]))
    texts = tuple(dict.fromkeys((WORDS, *instructions)))
    vectors = text(texts).detach().float().cpu().numpy()
    return Words("table", text.dim, (), {words: tuple(map(float, row)) for words, row in zip(texts, vectors)})
