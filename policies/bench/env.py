"""`kineflow bench env`: how much of bare MuJoCo's speed the environments keep, and what comes out of it per minute.

env.render   pictures of 96 x 96 pixels         beside  mjv_updateScene, mjr_render, mjr_readPixels of the same model
env.step     Navigation.step, picture and all   beside  as many mj_step with the very same controls, and one such picture
env.vector   steps per second of n processes    beside  n times one process
env.pusht    PushT.step                         beside  gym-pusht's own
env.collect  episodes per minute of one core, by processor time: what other programs do on the machine does not count
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import mujoco
import numpy as np

from kineflow.config import load_config
from kineflow.contracts import KineflowError
from kineflow.envs.navigation.navigation import Navigation
from kineflow.envs.navigation.tasks import Task
from kineflow.envs.navigation.vector import MakeNavigation, make_vector
from kineflow.policies.bench.rows import Row, alternate
from kineflow.policies.collect import CollectConfig, collect

REQUIRED = 0.9
EPISODES_PER_MINUTE = 150.0
PERIODS = 20  # of control in one measurement
SIZE = 96
_TURN = np.array([0.0, 0.0, 0.0, 0.4], np.float32)  # stays where it is and sees everything


def bench_env(*, quick: bool) -> Iterator[Row]:
    """Quick: the wheeled base, 2 worlds of collection. Full: all bodies, indoors and outdoors, 6 worlds."""
    rounds = 7 if quick else 21
    bodies = ("wheeled",) if quick else ("wheeled", "drone", "humanoid")
    for body in bodies:
        for kind in ("indoor", "outdoor") if body == "wheeled" else ("indoor",):
            try:
                env = Navigation(Task("point", kind, time_limit_s=1e9), body)
                env.reset(seed=1)
            except KineflowError:
                continue  # the humanoid's model cannot be fetched here
            name = f"{body}.{kind}"
            yield _render_row(name, env, rounds)
            yield _step_row(name, env, rounds)
            env.close()
    yield from _vector_rows(steps=60 if quick else 300)
    yield _pusht_row(rounds)
    yield _collect_row(worlds=2 if quick else 6)


def _render_row(name: str, env: Navigation, rounds: int) -> Row:
    stage, bare = env.stage, _BarePictures(env)
    pictures = 20

    def ours() -> None:
        for _ in range(pictures):
            stage.rgb()

    def reference() -> None:
        for _ in range(pictures):
            bare.picture()

    mine, theirs, ratio = alternate(ours, reference, rounds)
    note = f"{SIZE} x {SIZE} rgb, {stage.scene.model.ngeom} geoms, backend {bare.backend}; ours leaves out what is not in view"
    return _row(f"env.render.{name}", pictures / mine, "frames/s", pictures / theirs, 1 / ratio, rounds, note)


def _step_row(name: str, env: Navigation, rounds: int) -> Row:
    stage, bare = env.stage, _BarePictures(env)
    log = _Controls(env)
    state = np.empty(mujoco.mj_stateSize(stage.scene.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(stage.scene.model, stage.scene.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    controls = log.record(PERIODS)
    model, data = stage.scene.model, mujoco.MjData(stage.scene.model)
    substeps = len(controls) // PERIODS

    def ours() -> None:
        for _ in range(PERIODS):
            env.step(_TURN)

    def reference() -> None:
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        for period in range(PERIODS):
            for ctrl, force in controls[period * substeps : (period + 1) * substeps]:
                data.ctrl[:], data.qfrc_applied[:] = ctrl, force
                mujoco.mj_step(model, data)
            bare.picture(data)

    mine, theirs, ratio = alternate(ours, reference, rounds)
    note = (
        f"{substeps} physics steps and one picture each; ours adds the body's controller, contacts, observation, reward and info"
    )
    return _row(f"env.step.{name}", PERIODS / mine, "steps/s", PERIODS / theirs, 1 / ratio, rounds, note)


def _vector_rows(steps: int) -> Iterator[Row]:
    make = MakeNavigation(Task("point", time_limit_s=1e9))
    single = _vector_rate(make, 1, steps)
    counts = sorted({2, os.cpu_count() or 1} - {1})
    for count in counts:
        rate = _vector_rate(make, count, steps)
        note = f"{count} processes on {os.cpu_count()} cores; each step brings a picture of {SIZE} x {SIZE} pixels"
        version = f"{count} times one process"
        yield Row(
            f"env.vector.{count}",
            rate,
            "steps/s",
            "higher",
            count * single,
            version,
            rate / (count * single),
            None,
            None,
            1,
            note,
        )


def _vector_rate(make: MakeNavigation, count: int, steps: int) -> float:
    vector = make_vector(make, count)
    try:
        vector.reset(seed=0)
        actions = np.tile(_TURN, (count, 1))
        for _ in range(5):
            vector.step(actions)
        started = perf_counter()
        for _ in range(steps):
            vector.step(actions)
        return count * steps / (perf_counter() - started)
    finally:
        vector.close()


def _pusht_row(rounds: int) -> Row:
    from gym_pusht.envs.pusht import PushTEnv

    from kineflow.envs.pusht import PushT

    env, reference = PushT(), PushTEnv(obs_type="state", render_mode="rgb_array")
    env.reset(seed=0), reference.reset(seed=0)
    action = np.array([300.0, 200.0], np.float32)

    def drive(chosen: Any) -> None:
        for _ in range(50):
            chosen.step(action)

    mine, theirs, ratio = alternate(lambda: drive(env), lambda: drive(reference), rounds)
    return _row(
        "env.pusht", 50 / mine, "steps/s", 50 / theirs, 1 / ratio, rounds, "state observations", "gym-pusht: PushTEnv.step"
    )


def _collect_row(worlds: int) -> Row:
    config = load_config(CollectConfig, "collect/navigation_wheeled", ["--worlds", str(worlds)])
    with tempfile.TemporaryDirectory() as folder:
        report = collect(config, Path(folder) / "collected.eps")
    rate, goal = report.episodes_per_cpu_minute, f">= {EPISODES_PER_MINUTE:.0f} a minute and core"
    note = (
        f"{report.episodes} episodes of {report.steps / report.episodes:.0f} steps, {report.successes} successful; "
        f"by the clock, with the rest of the machine: {report.episodes_per_minute:.0f} a minute"
    )
    return Row("env.collect.wheeled", rate, "episodes/min", "higher", None, "", None, goal, rate >= EPISODES_PER_MINUTE, 1, note)


class _BarePictures:
    """MuJoCo's renderer as its documentation uses it, with shadows and reflections off as ours has them."""

    def __init__(self, env: Navigation) -> None:
        stage = env.stage
        stage.rgb()  # opens ours, and with it the thread's context
        ours = stage._renderer
        self.backend: Literal["egl", "osmesa", "ray"] = ours.backend
        if self.backend == "ray":
            raise KineflowError("bench env compares with MuJoCo's OpenGL renderer; install EGL or OSMesa (see envs/navigation)")
        self._model, self._data = stage.scene.model, stage.scene.data
        self._resources, self._rect = ours._resources, mujoco.MjrRect(0, 0, SIZE, SIZE)
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, stage.robot.front
        self._scene = mujoco.MjvScene(self._model, maxgeom=self._model.ngeom + 64)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._pixels = np.empty((SIZE, SIZE, 3), np.uint8)

    def picture(self, data: Any = None) -> np.ndarray:
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data or self._data, self._option, None, self._camera, every, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._resources)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._resources)
        return np.flipud(self._pixels)


class _Controls:
    """What the body's controller sets, physics step by physics step."""

    def __init__(self, env: Navigation) -> None:
        self._env = env

    def record(self, periods: int) -> list[tuple[np.ndarray, np.ndarray]]:
        robot, seen = self._env.stage.robot, list[tuple[np.ndarray, np.ndarray]]()
        control = robot._control

        def noted(index: int, command: Any) -> None:
            control(index, command)
            seen.append((robot.data.ctrl.copy(), robot.data.qfrc_applied.copy()))

        robot._control = noted  # type: ignore[method-assign]
        try:
            for _ in range(periods):
                self._env.step(_TURN)
        finally:
            del robot._control
        return seen


def _row(name: str, value: float, unit: str, reference: float, ratio: float, n: int, note: str, version: str = "") -> Row:
    version = version or f"bare MuJoCo {mujoco.__version__}, same model and pictures"
    return Row(name, value, unit, "higher", reference, version, ratio, f"ratio >= {REQUIRED}", ratio >= REQUIRED, n, note)
