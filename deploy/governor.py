"""The safety governor: it has the last word on every command, in simulation, in bag replay and on the robot.

    executor -> Intent -> Governor.govern(intent, now_s) -> Command -> robot

It reads no clock, keeps no thread, and knows time only as `now_s`, seconds of the monotonic clock. In order, each tick:

1. e-stop pressed or latched: zero at once (positions: held at once), exempt from every rate;
2. an interlock open, a watchdog run out, the tick itself late, the keep-out violated: brake at the limit of deceleration from
   this tick on, so that a velocity v is zero after v / deceleration;
3. no intent, or one that is not a command: ramp to zero within jerk (positions: brake and hold); no command is ever repeated;
4. else the intent, clamped to the limits, slowed before obstacles and fence, followed as fast as acceleration and jerk allow.

So velocity and acceleration hold on the published stream always, and jerk in all of 3 and 4, whatever arrives whenever; only
an e-stop is beyond acceleration. Published means at this rate: with a = dv / dt and j = da / dt of successive ticks.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kineflow.deploy.interlocks import Interlocks
from kineflow.deploy.keep_out import HalfPlanes, Motion, Mount, Pinhole, Place, from_depth, from_fence, from_ranges
from kineflow.deploy.ramp import Ramp
from kineflow.deploy.robot_profile import RobotProfile
from kineflow.interface import KineflowError

if TYPE_CHECKING:  # robots import this file with NumPy alone
    from jaxtyping import Float, UInt16

Outcome = Literal["pass", "clamp", "reject", "stop", "estop"]
Health = Literal["follows", "rests", "waits", "fault"]
SAME = 1e-6  # a command this close to the intent, in SI units, is the intent
BASE_AXES = ("vx", "vy", "vz")


@dataclass(frozen=True)
class Intent:
    """What the executor wants now: one command `[A]` in physical units of the profile's axes, or none and why.

    `observed_s` is when the newest observation was received (monotonic clock): the governor's watchdog. Its default is
    "never", so that an executor that forgets it does not move. `rests`: nothing is wanted on purpose (no goal, arrived, held by
    a person).
    """

    action: Float[np.ndarray, "A"] | None
    reason: str = ""
    observed_s: float = -math.inf
    chunk_epoch: int = 0
    chunk_index: int = 0
    rests: bool = False


@dataclass(frozen=True)
class Command:
    """What is published: `values` `[A]` always keep the limits.

    `outcome`: the intent itself ("pass"), a limited one ("clamp"), a ramp to zero or a hold because the intent cannot be
    used ("reject") or is missing or must not be followed ("stop"), or the immediate zero of the e-stop ("estop").
    `braking`: this tick brakes at the limit of deceleration at once; only here, in the tick after, and in an e-stop is jerk
    not bounded. `raw` is the intent's action.
    `health`, for bodies with a failsafe of their own: the intent is followed, as far as the limits and obstacles let it
    ("follows"); rest is wanted ("rests"); there is no plan just now ("waits"); or the robot must not move ("fault").
    """

    values: Float[np.ndarray, "A"]
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    raw: Float[np.ndarray, "A"] | None = None
    braking: bool = False
    health: Health = "fault"


class Governor:
    """One robot's governor. Starts inactive; `activate` it once everything else is ready.

    `estop`, `supervisor`, `ranges`, `depth` and `pose` may be called from another thread than `govern`.
    """

    def __init__(self, profile: RobotProfile) -> None:
        self.profile = profile
        self._interlocks = Interlocks(profile.watchdogs)
        self._ramp = Ramp(profile)
        self._last_s = math.nan
        self._observed_s = -math.inf
        self._seen: dict[str, tuple[HalfPlanes, Place, float]] = {}  # by sensor, and "fence": see keep_out.Motion
        self._braking: set[str] = set()  # for which of them
        self._expected: tuple[str, ...] = ()
        self._outside = ""
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._refused_in_a_row = 0
        axes = profile.command.names
        self._base = [axes.index(name) if name in axes else -1 for name in BASE_AXES]
        self._yaw = axes.index("yaw_rate") if "yaw_rate" in axes else -1
        fastest = math.sqrt(sum(max(abs(self._ramp.low[i]), self._ramp.high[i]) ** 2 for i in self._base if i >= 0))
        # Slowing down in time allows for the ramp to turn from speeding up to slowing down, so that a wall ahead is met
        # without hard braking; braking that must not wait acts in the next tick.
        moves = [i for i in self._base if i in self._ramp.axes] if profile.kind == "velocity" else []
        limits, keep = profile.limits, profile.keep_out
        self._deceleration = keep.deceleration if keep else min((limits.deceleration[i] for i in moves), default=1.0)
        latency_s = keep.latency_s if keep else 0.1
        self._places: deque[Place] = deque([(0.0, 0.0, 0.0, 0.0)], maxlen=1 + math.ceil(latency_s * profile.rate_hz))
        turning = ((self._deceleration + limits.acceleration[i] / 2) / limits.jerk[i] for i in moves)
        self._lag_s = max(turning, default=0.0) + 1 / profile.rate_hz
        longest = latency_s + self._lag_s + (keep.range_s if keep else 0.0)
        self._reach_m = fastest * longest + fastest * fastest / (2 * self._deceleration)

    # What must hold

    def activate(self, now_s: float, held: Sequence[float] | None = None) -> None:
        """From now on intents are followed, from rest. `held` `[A]`: positions where the joints are now (kind "position").

        Raises:
            KineflowError: an e-stop or a fault is latched; positions are missing.
        """
        size = self.profile.command.size
        if self.profile.kind == "position" and (held is None or len(held) != size or not np.isfinite(held).all()):
            raise KineflowError(
                f"robot '{self.profile.name}' holds positions: activate it with its {size} present ones, not {held}"
            )
        self._interlocks.activate()
        if now_s - self._last_s <= self.profile.watchdogs.tick_s and self._ramp.is_moving:
            return  # ticked, and still braking: the stream goes on from there
        self._ramp.start([0.0] * size if held is None else held)
        self._last_s = now_s

    def stopped(self) -> None:
        """The body was told to stop past this governor: its stream begins anew, from rest."""
        self._ramp.halt()

    def deactivate(self) -> None:
        """Brake from the next tick on; the node stops publishing once the command is zero."""
        self._interlocks.active = False

    def estop(self, pressed: bool, now_s: float) -> None:
        """What the e-stop source says. A press latches until `reset_estop` and `activate`."""
        self._interlocks.estop(bool(pressed))

    def reset_estop(self, now_s: float) -> str:
        """The operator's reset; then `activate`. Why the latch stays, or ""."""
        return self._interlocks.reset_estop()

    def trip(self, fault: str) -> None:
        """Latch a fault that the node found; brakes until `reset_fault` and `activate`."""
        self._interlocks.trip(fault)

    def reset_fault(self, now_s: float) -> None:
        """The operator's reset; then `activate`."""
        self._interlocks.reset_fault()
        self._refused_in_a_row = 0

    def supervisor(self, now_s: float, name: str = "") -> None:
        """A supervisor's heartbeat was received at `now_s`; each `name` is watched once it was heard."""
        self._interlocks.beat(name, now_s)

    # What is around

    def expect(self, sources: Sequence[str]) -> None:
        """Sensors that look for obstacles: nothing moves before each was heard. Not told, with keep-out, one must be."""
        self._expected = tuple(sources)

    def ranges(
        self,
        angles: Float[np.ndarray, "N"],
        metres: Float[np.ndarray, "N"],
        now_s: float,
        mount: Mount | None = None,
        source: str = "ranges",
    ) -> None:
        """A planar range scan received at `now_s`; each `source` is watched for silence once it was heard."""
        if self.profile.keep_out:
            keep, size = self.profile.keep_out, self.profile.footprint_radius_m
            self._see(source, from_ranges(angles, metres, mount or Mount(), size, keep, self._reach_m, now_s))

    def depth(
        self,
        depth: Float[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"],
        camera: Pinhole,
        now_s: float,
        mount: Mount | None = None,
        source: str = "depth",
    ) -> None:
        """A depth image received at `now_s`."""
        if self.profile.keep_out:
            keep, size = self.profile.keep_out, self.profile.footprint_radius_m
            self._see(source, from_depth(depth, camera, mount or Mount(), size, keep, self._reach_m, now_s))

    def pose(self, x: float, y: float, yaw: float, now_s: float, z: float = 0.0) -> None:
        """Where the base is, metres and radians in the frame of the fence."""
        fence = self.profile.geofence
        if fence and math.isfinite(x + y + yaw + z):
            planes = from_fence(fence, x, y, z, yaw, self.profile.footprint_radius_m, now_s)
            self._outside = "" if planes else "outside the fence"
            self._see("fence", planes)

    def _see(self, source: str, planes: HalfPlanes | None) -> None:
        if planes:
            seen = (planes, self._places[0], self._places[-1][3])
            self._seen = {**self._seen, source: seen}  # replaced as a whole: another thread may be reading

    # What may be executed

    def check_stamp(self, stamp_s: float, clock_s: float) -> str:
        """Why an observation with this header stamp, at `clock_s` of the same clock, is refused (and counted), or ""."""
        dogs, age = self.profile.watchdogs, clock_s - stamp_s
        if -dogs.stamp_ahead_s <= age <= dogs.stamp_age_s:
            return ""
        reason = "stamp in the future" if age < 0 else "stamp too old"  # NaN counts as old
        self._reasons[reason] += 1
        return reason

    def check_chunk(self, actions: Float[np.ndarray, "H A"], stamp_s: float, now_s: float) -> str:
        """Why this chunk, answering what was observed at `stamp_s` (monotonic), is refused as a whole, or "".

        Refused and counted; several malformed ones in a row are a fault. A late one is only refused.
        """
        reason, checks = self._malformed(np.asarray(actions)), self.profile.chunk
        if reason:
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= checks.in_a_row:
                self._interlocks.trip(f"{self._refused_in_a_row} chunks in a row refused, the last: {reason}")
        else:
            self._refused_in_a_row = 0
            if not -self.profile.watchdogs.stamp_ahead_s <= now_s - stamp_s <= checks.age_s:
                reason = "chunk too late"
        if reason:
            self._reasons[reason] += 1
            self._counts["chunk refused"] += 1
        return reason

    def _malformed(self, actions: np.ndarray) -> str:
        if (
            actions.ndim != 2
            or actions.shape[1] != self.profile.command.size
            or not len(actions)
            or actions.dtype.kind not in "fiu"
        ):
            return "chunk of wrong shape"
        if not np.isfinite(actions).all():
            return "chunk with NaN or Inf"
        ramp, ratio = self._ramp, self.profile.chunk.ratio
        for i in ramp.axes:
            half, middle = (ramp.high[i] - ramp.low[i]) / 2, (ramp.high[i] + ramp.low[i]) / 2
            if np.abs(actions[:, i] - middle).max() > ratio * half:
                return "chunk of absurd size"
        return ""

    # The tick

    def govern(self, intent: Intent, now_s: float) -> Command:
        """The command to publish now. `now_s` must not run backwards: if it does, that is a fault."""
        dt, late = self._elapsed(now_s)
        self._observed_s = intent.observed_s
        self._reckon(dt)
        if self._interlocks.estop_latched:
            self._ramp.halt()
            return self._publish(intent, "estop", ("e-stop",))
        why = self._interlocks.why_still(now_s) or late or self._watchdogs(now_s)
        if why:
            self._ramp.brake(dt)
            return self._publish(intent, "stop", (why,), braking=True)
        wanted = _as_command(intent.action, self.profile.command.size)
        if wanted is not None:
            return self._follow(intent, wanted, dt, now_s)
        missing = intent.action is None
        return self._rest(
            intent, "stop" if missing else "reject", intent.reason or "no intent" if missing else "no command", dt, now_s
        )

    def _follow(self, intent: Intent, wanted: list[float], dt: float, now_s: float) -> Command:
        ramp, reasons = self._ramp, []
        target = ramp.clamp(wanted)
        if any(abs(target[i] - wanted[i]) > SAME for i in ramp.axes):
            reasons.append("limit")
        for source, (planes, late, turned) in self._seen.items():
            factor = planes.share(self._motion(target, late, turned), self._deceleration, self._lag_s)
            if factor < 1:
                reasons.append(source)
                for i in self._base:  # not its turning: turning in place keeps the room
                    if i >= 0:
                        target[i] *= factor
        if too_close := self._step(target, dt, now_s):
            return self._publish(intent, "stop", (too_close,), braking=True, health="follows")
        if any(abs(ramp.value[i] - target[i]) > SAME for i in ramp.axes):
            reasons.append("rate")
        return self._publish(intent, "clamp" if reasons else "pass", tuple(reasons), health="follows")

    def _rest(self, intent: Intent, outcome: Outcome, reason: str, dt: float, now_s: float) -> Command:
        """Ramp to zero; positions brake and hold."""
        health: Health = "fault" if outcome == "reject" else "rests" if intent.rests else "waits"
        if self.profile.kind == "position":
            self._ramp.brake(dt)
            return self._publish(intent, outcome, (reason,), True, health)
        too_close = self._step([0.0] * self.profile.command.size, dt, now_s)
        return self._publish(intent, outcome, (reason, too_close) if too_close else (reason,), bool(too_close), health)

    def _step(self, target: list[float], dt: float, now_s: float) -> str:
        """An ordinary tick; where the body could then not stop in time any more, a braking one: why, or ""."""
        ramp = self._ramp
        before = list(ramp.value), list(ramp.rate)
        ramp.step(target, dt)
        for source, (planes, late, turned) in self._seen.items():
            # Once it brakes, it brakes down to what slowing down in time would have kept.
            lag, grace = (self._lag_s, 0.0) if source in self._braking else (1 / self.profile.rate_hz, planes.grace_m)
            if planes.is_too_fast(self._motion(ramp.value, late, turned), self._deceleration, lag, grace):
                self._braking.add(source)
                ramp.value, ramp.rate = before
                ramp.brake(dt)
                return f"too close: {source}"
            self._braking.discard(source)
        return ""

    def _motion(self, values: Sequence[float], late: Place, turned: float) -> Motion:
        vx, vy, vz = (values[i] if i >= 0 else 0.0 for i in self._base)
        return Motion((vx, vy, vz), self._places[-1], late, turned)

    def _reckon(self, dt: float) -> None:
        """Where the base is, if it does what it was told last."""
        vx, vy, vz, yaw_rate = (self._ramp.value[i] if i >= 0 else 0.0 for i in (*self._base, self._yaw))
        x, y, z, yaw = self._places[-1]
        c, s = math.cos(yaw), math.sin(yaw)
        place = (x + (c * vx - s * vy) * dt, y + (s * vx + c * vy) * dt, z + vz * dt, yaw + yaw_rate * dt)
        self._places.append(place)

    def _elapsed(self, now_s: float) -> tuple[float, str]:
        """Seconds since the last tick for the limiter, and why this tick must not follow its intent, or ""."""
        last, self._last_s = self._last_s, now_s
        if math.isnan(last):
            return 0.0, ""
        dt = now_s - last
        if not 0 <= dt < math.inf:
            self._last_s = now_s if math.isfinite(now_s) else last
            self._interlocks.trip("the clock ran backwards")
            return 1 / self.profile.rate_hz, "the clock ran backwards"
        longest = self.profile.watchdogs.tick_s
        return (dt, "") if dt <= longest else (longest, "tick came late")

    def _watchdogs(self, now_s: float) -> str:
        dogs, keep, fence = self.profile.watchdogs, self.profile.keep_out, self.profile.geofence
        if self._outside:
            return self._outside
        if not 0 <= now_s - self._observed_s <= dogs.observation_s:
            return "observation too old"
        for source, (planes, *_) in self._seen.items():
            longest = fence.pose_s if fence and source == "fence" else keep.range_s if keep else math.inf
            if now_s - planes.received_s > longest:
                return f"{source} went silent"
        if fence and "fence" not in self._seen:
            return "pose not known"
        looking = self._expected or self._seen.keys() - {"fence"} or ("ranges",)
        if keep and (unheard := next((source for source in looking if source not in self._seen), "")):
            return f"{unheard} not heard"
        return ""

    def _publish(
        self, intent: Intent, outcome: Outcome, reasons: tuple[str, ...], braking: bool = False, health: Health = "fault"
    ) -> Command:
        self._counts[outcome] += 1
        for reason in reasons:
            self._reasons[reason] += 1
        values = np.array(self._ramp.value)
        return Command(values, outcome, reasons, intent.action, braking, health)

    def state(self, now_s: float) -> dict[str, Any]:
        """For diagnostics: plain values only."""
        locks = self._interlocks
        return {
            "robot": self.profile.name,
            "active": locks.active,
            "fault": locks.fault,
            "estop_heard": locks.estop_heard,
            "estop_pressed": locks.estop_pressed,
            "estop_latched": locks.estop_latched,
            "still_because": "e-stop" if locks.estop_latched else locks.why_still(now_s) or self._watchdogs(now_s),
            "observation_age_s": now_s - self._observed_s,
            "supervisor_age_s": now_s - locks.supervisor_s,
            "source_age_s": {source: now_s - planes.received_s for source, (planes, *_) in self._seen.items()},
            "values": list(self._ramp.value),
            "counts": dict(self._counts),
            "reasons": dict(self._reasons),
        }


def _as_command(action: np.ndarray | None, size: int) -> list[float] | None:
    """The action as floats, or None when it is not `size` finite numbers."""
    if action is None:
        return None
    try:
        values = [float(v) for v in action]
    except (TypeError, ValueError):
        return None
    return values if len(values) == size and math.isfinite(sum(values)) else None
