"""A policy without torch: what `kineflow export RUN --format ...` wrote, run by ONNX Runtime or OpenVINO (contracts.Policy).

    policy = load_exported("runs/pusht_flow/export/onnx-fp32")
    chunk = policy.predict(observation, SamplingRequest(seeds))        the chunk that the run's own policy gives for these seeds

The files' hashes and the golden pair of the contract are checked when it is loaded. Rows are asked one by one. Frames that go
through a backbone are remembered by what is in them, so a goal's clip and a camera's earlier frames are looked at once, whoever
asks; answers do not depend on what is remembered.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from kineflow.contracts import (
    ActionChunk,
    CommittedPrefix,
    ContractError,
    GoalBatch,
    Observation,
    PolicyContract,
    SamplingRequest,
)
from kineflow.deploy.exported_manifest import EXPORT_FILE, ExportError, Manifest, ModelFile, Words, read_manifest
from kineflow.deploy.row_noise import SeedNoise
from kineflow.deploy.runtimes import Model, OpenVinoModel, load_model
from kineflow.policies.checkpoint_folder import read_contract
from kineflow.policies.golden import error_of
from kineflow.policies.observation_check import checked, observed_goals

REMEMBERED = 256  # pictures whose features are kept
SIDES = ("stop_probability", "ahead_s", "distance")


def is_exported(folder: str | Path) -> bool:
    """Does that folder hold an exported policy?"""
    return (Path(folder) / EXPORT_FILE).is_file()


def load_exported(folder: str | Path, threads: int | None = None) -> ExportedPolicy:
    """`threads` of the runtime; None: as many as it was exported with.

    Raises:
        ExportError: files that were changed, a runtime that refuses them, or an answer that is not the golden one.
        ContractError: a contract of a newer version, or a damaged one.
    """
    path = Path(folder)
    policy = opened(path, read_manifest(path), read_contract(path), threads)
    manifest, contract = policy.manifest, policy.contract
    error = error_of(policy.predict, contract.interface, contract.golden)
    if not error <= manifest.golden_tolerance:
        raise ExportError(
            f"{path}: does not give the golden answer of its contract (relative error {error:.2g}, allowed "
            f"{manifest.golden_tolerance:g}); this runtime computes it differently: export it again on this machine"
        )
    return policy


def opened(folder: Path, manifest: Manifest, contract: PolicyContract, threads: int | None = None) -> ExportedPolicy:
    """The models in `folder` that `manifest` names, in their runtime; nothing is checked. Raises ExportError."""
    count = threads or manifest.threads

    def loaded(model: ModelFile) -> Model:
        return load_model(folder, model, manifest.format, manifest.precision, count)

    act = {int(steps): loaded(model) for steps, model in manifest.act.items()}
    look = {size: (loaded(model), len(model.inputs) > 1) for size, model in manifest.look.items()}
    return ExportedPolicy(manifest, contract, act, look)


class ExportedPolicy:
    """See the module. `act`: models by number of steps; `look`: by size of frames, and whether they see the frame before."""

    def __init__(
        self, manifest: Manifest, contract: PolicyContract, act: Mapping[int, Model], look: Mapping[str, tuple[Model, bool]]
    ) -> None:
        self._contract, self.manifest = contract, manifest
        self.act, self.look = dict(act), dict(look)
        self._look = _Features(look) if look else None

    @property
    def computes_in(self) -> set[str]:
        """In which number formats its runtime really multiplies, where that says so."""
        models = [*self.act.values(), *(model for model, _ in self.look.values())]
        return {str(model.computes_in) for model in models if isinstance(model, OpenVinoModel)}

    @property
    def contract(self) -> PolicyContract:
        return self._contract

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """Observation `[B, T, ...]` and seeds `[B]` to actions `[B, H, A]`.

        Raises:
            ContractError: an observation or request that does not fit the contract, or a number of steps, guidance or kind of
                prefix that was not exported.
        """
        interface, rows = self._contract.interface, len(observation.state)
        if len(request.seeds) != rows:
            raise ContractError(f"{len(request.seeds)} seeds for {rows} observations; give one seed per row")
        steps = self._steps(request)
        state, images = checked(observation, interface, self._contract.horizons)
        goals = observed_goals(observation, interface.goals, needs_goal=not self.manifest.explores)
        answers = []
        for row in range(rows):
            given: dict[str, np.ndarray] = {"state": state[row : row + 1]}
            given |= {f"camera_{name}": self._seen(frames[row])[None] for name, frames in images.items()}
            if goals is not None:
                given |= self._goals(goals, row)
            given |= self._noise(int(request.seeds[row]), steps) | self._prefix(request.prefix, row, rows)
            answers.append(self.act[steps](given))
        sides = {name: np.concatenate([a[name] for a in answers]) for name in SIDES if rows and name in answers[0]}
        told = {name for name, rows_told in goals.given.items() if rows_told.any()} if goals else set()
        if self.manifest.progress not in told:
            sides.pop("ahead_s", None)
        if not told:
            sides.pop("distance", None)
        actions = np.concatenate([a["actions"] for a in answers]) if rows else np.zeros((0, *self._chunk_shape), np.float32)
        step_s, stamp_s = 1 / interface.action.rate_hz, np.asarray(observation.stamp_s)[..., -1]
        return ActionChunk(actions.astype(np.float32, copy=False), step_s, stamp_s, **sides)

    @property
    def look_at(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Neighbouring frames of one clip, uint8 `[N, H, W, 3]`, to float16 features `[N, P, F]`, which `predict` takes in place
        of frames; None where it takes frames alone. What moves in a clip is seen between neighbours, so look before choosing."""
        seen = self._look
        return None if seen is None else lambda clip: seen(clip).astype(np.float16)

    def resampled(self, **changes: object) -> ExportedPolicy:
        """An exported policy is sampled as it was exported. Raises ExportError."""
        raise ExportError(f"an exported policy cannot be sampled with {changes}; export the run so, or evaluate the run itself")

    @property
    def _chunk_shape(self) -> tuple[int, int]:
        return self._contract.horizons.prediction, self._contract.interface.action.vector.size

    def _steps(self, request: SamplingRequest) -> int:
        steps, scale = request.steps or self.manifest.default_steps, request.guidance_scale
        if steps not in self.act:
            raise ContractError(
                f"this policy was exported with {sorted(self.act)} steps, not {steps}; export it with --steps {steps}"
            )
        if scale is not None and scale != self._contract.sampler.guidance_scale:
            raise ContractError(
                f"guidance_scale {scale:g}: this policy was exported with {self._contract.sampler.guidance_scale:g}; leave it out"
            )
        return steps

    def _seen(self, frames: np.ndarray) -> np.ndarray:
        """What a model takes in place of the frames `[L, H, W, 3]` of one row, or of features of them."""
        if frames.dtype == np.float16:
            if self._look is None:
                raise ContractError("this policy was given features of frames, but it takes the frames themselves")
            return frames.astype(np.float32)
        return frames if self._look is None else self._look(frames)

    def _goals(self, goals: GoalBatch, row: int) -> dict[str, np.ndarray]:
        given: dict[str, np.ndarray] = {}
        for name, spec in self._contract.interface.goals.items():
            given[f"told_{name}"] = goals.given[name][row : row + 1]
            if spec.kind == "instruction":
                assert self.manifest.words is not None
                given[f"goal_{name}"] = vector_of(goals.instruction[row], self.manifest.words)[None]
                continue
            value = goals.values[name][row]
            if spec.kind == "image" and self._look is not None:
                value = value[None]  # a video of one frame
            pictures = spec.kind in ("image", "video")
            given[f"goal_{name}"] = (self._seen(value) if pictures else value)[None]
        return given

    def _noise(self, seed: int, steps: int) -> dict[str, np.ndarray]:
        draws = self.manifest.draws[str(steps)]
        return {"noise": SeedNoise(seed).draw(draws, self._chunk_shape)[None]} if draws else {}

    def _prefix(self, prefix: CommittedPrefix | None, row: int, rows: int) -> dict[str, np.ndarray]:
        if not self.manifest.takes_prefix:
            if prefix is not None:
                raise ContractError("this policy takes no prefix: it has no noise levels at which to guide it; leave it out")
            return {}
        shape = self._chunk_shape
        if prefix is None:
            return {"prefix": np.zeros((1, *shape), np.float32), "prefix_mask": np.zeros((1, shape[0]), np.float32)}
        if prefix.method != "guided":
            raise ContractError(f"an exported policy takes prefixes of method guided, not {prefix.method}")
        actions, mask = prefix.actions, prefix.soft_mask
        if actions.shape != (rows, *shape) or mask.shape != (rows, shape[0]):
            raise ContractError(f"the prefix has actions {actions.shape} and mask {mask.shape}; chunks are {(rows, *shape)}")
        if not ((mask >= 0) & (mask <= 1)).all() or not np.isfinite(actions[mask > 0]).all():
            raise ContractError("a prefix needs weights from 0 to 1 and finite actions where they are above 0; drop this prefix")
        kept = np.where(mask[row, :, None] > 0, actions[row], 0.0)
        return {"prefix": kept[None].astype(np.float32), "prefix_mask": mask[row : row + 1].astype(np.float32)}


class _Features:
    """The backbone, which looks at each frame once. Models by size, and whether they see the frame before as well."""

    def __init__(self, models: Mapping[str, tuple[Model, bool]]) -> None:
        self._models = dict(models)
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __call__(self, frames: np.ndarray) -> Float[np.ndarray, "L P F"]:
        size = f"{frames.shape[1]}x{frames.shape[2]}"
        if size not in self._models:
            raise ContractError(f"frames of {size} px, this policy was exported for {sorted(self._models)}")
        model, has_motion = self._models[size]
        # What moved since before the first frame is not part of a window: the model that acts leaves it out.
        pairs = pairwise([frames[0], *frames])
        return np.stack([self._of(model, frame, before if has_motion else None) for before, frame in pairs])

    def _of(self, model: Model, frame: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        parts = [frame] if before is None else [frame, before]
        key = hashlib.blake2b(b"".join(np.ascontiguousarray(part).data for part in parts), digest_size=16).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        seen = model({"frame": frame[None]} if before is None else {"frame": frame[None], "before": before[None]})
        self._known[key] = seen["features"][0]
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return self._known[key]


def vector_of(text: str, words: Words) -> Float[np.ndarray, "V"]:
    """A text as the policy's encoder sees it; no text is all zeros, which the policy does not see.

    Raises:
        ContractError: a text that the table of the export does not have.
    """
    if text in words.table:
        return np.array(words.table[text], np.float32)
    if not text:
        return np.zeros(words.dim, np.float32)
    if words.kind == "named":
        heard = [re.search(rf"\b{name}(e?s)?\b", text.lower()) is not None for name in words.names]
        return np.array(heard, np.float32)
    if words.kind == "hashed":
        return _hashed(re.findall(r"\w+", text.lower()), words.dim)
    raise ContractError(
        f"'{text}': this policy was exported for {len(words.table)} texts and has no text encoder of its own; export it with "
        f"--instruction '{text}'"
    )


def _hashed(spoken: Sequence[str], dim: int) -> Float[np.ndarray, "V"]:
    """`HashedWordsEncoder`: the unit vector of the sum of random signs of each word and each pair of neighbours."""
    total = np.zeros(dim, np.float32)
    for gram in [*spoken, *(" ".join(pair) for pair in pairwise(spoken))]:
        bits = np.frombuffer(hashlib.shake_256(gram.encode()).digest(dim), np.uint8) & 1
        total += bits.astype(np.float32) * 2 - 1
    length = max(float(np.sqrt((total**2).sum())), 1e-12)
    return (total / length).astype(np.float32)
