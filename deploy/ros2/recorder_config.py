"""What the recorder is told; YAML in `configs/recorders/`."""

from __future__ import annotations

from dataclasses import dataclass

from kineflow.interface import KineflowError


@dataclass(frozen=True)
class RecorderConfig:
    """`node`: the policy node's configuration, for topics, policy and robot. `interface`: of the store, a configuration such as
    interfaces/navigation; "": the policy's own. `topics`: further ones, for the bag alone.

    `each_run`: an episode of each run of the policy, besides those that the service `~/record` begins. `before_s`: so much of
    what came before is in it. `flush_s`: a killed recorder loses at most so much of the bag; the store loses nothing that was
    counted.
    """

    node: str
    store: str
    bags: str
    interface: str = ""
    topics: tuple[str, ...] = ()
    each_run: bool = True
    before_s: float = 1.0
    flush_s: float = 0.5
    operator: str = ""

    def __post_init__(self) -> None:
        if not (self.store and self.bags):
            raise KineflowError("store and bags are folders to record into; name both")
        if self.before_s < 0 or not self.flush_s > 0:
            raise KineflowError(f"before_s {self.before_s} must not be negative, flush_s {self.flush_s} must be positive")
