"""Training that begins with the weights of another run: the same network, other data (pretrain on many, fine-tune on few).

The statistics come along, so that a normalised action means the same to the new run as it did to the old one.
"""

from __future__ import annotations

import torch

from kineflow.contracts import FeatureStatistics, Interface, KineflowError
from kineflow.policies.checkpoint import ChunkPolicy, load_policy
from kineflow.policies.policy import PolicyNetwork
from kineflow.policies.policy_config import PolicyConfig

# Or the weights mean nothing.
SAME = ("horizons", "head", "encoder", "features", "cameras", "goals", "relative_to", "action_scaling")


class Parent:
    """The run that another one starts from."""

    def __init__(self, source: str, policy: PolicyConfig, offered: Interface, device: str) -> None:
        """Load the averaged weights of the run, checkpoint or hub name `source`.

        Raises:
            KineflowError: its policy has another architecture, or the data are not what it takes.
        """
        self._policy: ChunkPolicy = load_policy(source, device)
        config = self._policy.network.config
        if other := [name for name in SAME if getattr(config, name) != getattr(policy, name)]:
            raise KineflowError(
                f"start_from {source}: policy.{other[0]} is {getattr(config, other[0])} there and "
                f"{getattr(policy, other[0])} here; weights only fit the same network: make them equal, or start from nothing"
            )
        self._policy.contract.require(offered, "the data to go on with")

    @property
    def statistics(self) -> dict[str, FeatureStatistics]:
        return dict(self._policy.contract.statistics)

    @torch.no_grad()
    def prepare(self, network: PolicyNetwork) -> None:
        """Copy the weights. What only one of the two has (a stop head, a null condition) starts, or stays, as it is."""
        mine, theirs = network.state_dict(), self._policy.network.state_dict()
        network.load_state_dict({name: theirs.get(name, value) for name, value in mine.items()})
