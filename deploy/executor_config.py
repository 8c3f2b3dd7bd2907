"""How an executor asks for chunks and executes them: YAML in configs/deploy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kineflow.contracts import ContractError, KineflowError, PolicyContract
from kineflow.deploy.observations import ObservationLimits
from kineflow.policies.prefix import MaskShape

# receding     s actions, then wait for the next chunk (Diffusion Policy); the robot rests while the policy thinks
# async        ask every s actions, go on with the old chunk meanwhile, switch without a seam's care
# ensemble     as async, but average all chunks that cover a moment (ACT)
# rtc          as async, the new chunk guided to continue the old one (Black et al. 2025), without gradients
# rtc_exact    the same with gradients through the network: eager PyTorch only
# trained_rtc  the new chunk begins with the committed actions, which the policy learned (objective.clean_start)
# hard_prefix  the same asked of a policy that did not learn it: a baseline for benchmarks
# bid          of several chunks the one nearest to the old plan (bidirectional decoding, backward coherence)
Mode = Literal["receding", "async", "ensemble", "rtc", "rtc_exact", "trained_rtc", "hard_prefix", "bid"]
PREFIXED: dict[Mode, Literal["guided", "exact", "start"]] = {
    "rtc": "guided",
    "rtc_exact": "exact",
    "trained_rtc": "start",
    "hard_prefix": "start",
}


@dataclass(frozen=True)
class ExecutorConfig:
    """`execution`: actions between questions, 0: as the contract says. `candidates`: of mode bid."""

    mode: Mode = "rtc"
    execution: int = 0
    candidates: int = 16
    ensemble_decay: float = 0.01
    mask: MaskShape = "exponential"
    delay_window: int = 10  # answers of which the slowest is expected again
    initial_delay: int = 1  # actions, before anything was measured
    latency_table: str = ""  # file of policies/deadline.py, measured on this machine; "": steps as the contract says
    roll_forward: bool = False  # show the policy the state in which its chunk will begin (VLASH)
    answer_timeout_s: float = 2.0  # a question without an answer is asked anew
    retry_s: float = 0.05  # after a failed answer
    max_failures: int = 10  # in a row: then a fault, until reset
    max_gap_s: float = 1.0  # between ticks: a longer one is a jump of the clock
    slack_s: float = 0.004  # an action may begin so much early: ticks jitter, and must not miss a boundary by a hair
    seed: int = 0
    observations: ObservationLimits = field(default_factory=ObservationLimits)

    def __post_init__(self) -> None:
        if self.execution < 0 or min(self.candidates, self.delay_window, self.max_failures) < 1 or self.initial_delay < 0:
            raise KineflowError(f"counts of an executor must be positive (execution and initial_delay may be 0), got {self}")
        if min(self.answer_timeout_s, self.max_gap_s) <= 0 or min(self.retry_s, self.slack_s) < 0:
            raise KineflowError(f"times of an executor must be positive (retry_s and slack_s may be 0), got {self}")
        if self.roll_forward and self.mode in ("receding", "trained_rtc", "hard_prefix"):
            raise KineflowError(
                f"roll_forward with mode {self.mode}: the chunk would begin after the committed actions or after a rest; use it "
                "with rtc, async, ensemble or bid"
            )

    @property
    def rows(self) -> int:
        """Chunks asked for at once."""
        return self.candidates if self.mode == "bid" else 1

    def check(self, contract: PolicyContract) -> None:
        """Raises ContractError where a policy of `contract` cannot be executed like this."""
        learned, horizons = contract.sampler.clean_start, contract.horizons
        if self.mode == "trained_rtc" and learned < 1:
            raise ContractError(
                "mode trained_rtc needs a policy that learned to begin with committed actions, this one did not (clean_start is "
                "0); train with objective.clean_start, or use mode rtc"
            )
        if self.mode in PREFIXED and contract.sampler.solver in ("regression", "mip"):
            raise ContractError(
                f"mode {self.mode} guides the sampling of a chunk, and a {contract.sampler.solver} policy does not sample; use "
                "receding or async"
            )
        execution = self.execution or horizons.execution
        if execution > horizons.prediction - (self.mode != "receding"):
            raise ContractError(
                f"{execution} of {horizons.prediction} actions executed leave no time to think in mode {self.mode}; lower "
                "execution, or use mode receding, in which the robot rests meanwhile"
            )
