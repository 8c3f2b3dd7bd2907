"""Checkpoints: safetensors, JSON and YAML in one folder, written whole or not at all, checked when loaded.

<run>/checkpoints/<step>/{model.safetensors, ema.safetensors, contract.json, config.yaml, train_state/}
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kineflow.config import load_config, save_config
from kineflow.contracts import (
    ActionChunk,
    Observation,
    PolicyContract,
    SamplingRequest,
    to_json,
)
from kineflow.policies.checkpoint_folder import (
    CheckpointError as CheckpointError,
    checkpoint_steps as checkpoint_steps,
    find_checkpoint as find_checkpoint,
    read_contract as read_contract,
)
from kineflow.policies.frozen_weights import load_tensors, save_network
from kineflow.policies.golden import TOLERANCE, golden_error, golden_pair
from kineflow.policies.hub import upload
from kineflow.policies.policy import PolicyConfig, PolicyNetwork
from kineflow.policies.samplers import SolverName
from kineflow.policies.time_grids import TimeGrid


@dataclass(frozen=True)
class ChunkPolicy:
    """A network with its contract: what a checkpoint holds and what everything outside training uses (contracts.Policy)."""

    network: PolicyNetwork
    contract: PolicyContract

    def predict(self, observation: Observation, request: SamplingRequest) -> ActionChunk:
        """Observation `[B, T, S]` to actions `[B, H, A]` in physical units."""
        return self.network.predict(observation, request)

    def resampled(
        self,
        solver: SolverName | None = None,
        steps: int | None = None,
        grid: TimeGrid | None = None,
        diffusion: float | None = None,
        temperature: float | None = None,
    ) -> ChunkPolicy:
        """The same weights, sampled otherwise; None keeps what the checkpoint says.

        Raises:
            CheckpointError: a policy that has no such thing to choose.
            KineflowError: a solver, grid or number of steps that its noise levels do not allow.
        """
        config = self.network.config
        asked = {"solver": solver, "steps": steps, "grid": grid, "diffusion": diffusion, "temperature": temperature}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if unknown := sorted(set(changes) - {f.name for f in fields(config.objective)}):
            raise CheckpointError(
                f"a {type(config.objective).__name__} policy has no {', '.join(unknown)} to choose (it makes chunks without "
                "noise levels, or in jumps); leave that out"
            )
        if diffusion is not None and (solver or getattr(config.objective, "solver", None)) != "sde":
            raise CheckpointError(f"diffusion {diffusion:g} is a setting of the solver sde; add solver sde or leave it out")
        objective = replace(config.objective, **changes)
        network = copy.copy(self.network)  # shares the weights
        network.config = replace(config, objective=objective)
        return ChunkPolicy(network, replace(self.contract, sampler=objective.sampler_spec(), golden=golden_pair(network)))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ema.safetensors, contract.json and config.yaml into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        save_network(self.network, target / "ema.safetensors")
        (target / "contract.json").write_text(to_json(self.contract))
        save_config(self.network.config, target / "config.yaml")
        return target

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "cpu", *, revision: str | None = None) -> ChunkPolicy:
        """The same as `load_policy`."""
        return load_policy(source, device, revision=revision)

    def push_to_hub(self, name: str, *, private: bool = True) -> str:
        """Upload as `user/model`; returns its address. Needs a login (`hf auth login`)."""
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save_pretrained(folder), name, private=private)


def load_policy(source: str | Path, device: str = "cpu", *, weights: str = "ema", revision: str | None = None) -> ChunkPolicy:
    """Load from a run folder (its newest checkpoint), a checkpoint folder, or a hub name `user/model`.

    The golden pair in the contract is replayed; a policy that does not reproduce it is refused. `HF_HUB_OFFLINE=1` is
    honoured: then a hub name must already be in the local cache.

    Raises:
        CheckpointError: nothing usable there, or the weights do not give the recorded output.
    """
    folder = find_checkpoint(source, revision)
    if (folder / "compose.yaml").is_file():
        raise CheckpointError(f"{folder}: holds a composed policy; load it with kineflow.policies.load.load_policy")
    contract = read_contract(folder)
    network = PolicyNetwork(load_config(PolicyConfig, folder / "config.yaml"), contract.interface, contract.statistics)
    load_weights(network, folder / f"{weights}.safetensors")
    policy = ChunkPolicy(network.to(device).eval(), contract)
    if weights == "ema" and not (error := golden_error(network, contract.golden)) <= TOLERANCE:
        raise CheckpointError(
            f"{folder}: the policy does not reproduce the golden output in its contract (relative error {error:.2g}, allowed "
            f"{TOLERANCE:g}); weights, config or statistics were changed after it was saved: take the original files"
        )
    return policy


def load_weights(network: PolicyNetwork, file: Path) -> None:
    """Weights of `file` into `network`; raises CheckpointError when it is damaged, of another size or for another backbone."""
    try:
        network.load_state_dict(load_tensors(network, file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error}); the file is missing or cut short, use another checkpoint"
        ) from error
    except RuntimeError as error:
        raise CheckpointError(f"{file}: weights do not fit the config.yaml beside them: {error}") from error
