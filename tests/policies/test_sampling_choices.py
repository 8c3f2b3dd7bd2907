"""Solver, steps, grid and diffusion as they are chosen: in a configuration, in a contract, at evaluation and in a comparison."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from kineflow.config import ConfigError, from_plain, to_plain_config
from kineflow.contracts import KineflowError, SamplerSpec, to_plain
from kineflow.policies.compare import _sampler
from kineflow.policies.eval_result import EvalConfig
from kineflow.policies.objectives import Diffusion, FlowMatching, ObjectiveConfig
from kineflow.policies.time_grids import TimeGrid


def test_contract_says_how_chunks_are_sampled() -> None:
    objective = Diffusion(
        solver="sde", diffusion=2.0, grid=TimeGrid("shifted"), condition_dropout=0.1, guidance_interval=(-1.0, 2.0)
    )
    spec = objective.sampler_spec()
    assert (spec.solver, spec.grid, spec.diffusion, spec.clip) == ("sde", "shifted:3", 2.0, 1.0)
    assert spec.guidance_interval == (-1.0, 2.0)
    assert from_plain(SamplerSpec, to_plain(spec), "contract.json") == spec
    free = FlowMatching().sampler_spec()
    assert (free.grid, free.diffusion, free.clip) == ("uniform", None, math.inf)
    assert from_plain(SamplerSpec, to_plain(free), "contract.json") == free


def test_contracts_from_before_these_settings_load() -> None:
    old = {
        "path": "CondOT()",
        "prediction": "velocity",
        "solver": "euler",
        "steps": 10,
        "guidance_scale": 1.0,
        "clock": "t=0 noise",
    }
    spec = from_plain(SamplerSpec, old, "contract.json")
    assert (spec.grid, spec.clip, spec.guidance_interval, spec.diffusion) == ("uniform", None, (-math.inf, math.inf), None)


@pytest.mark.parametrize("kind", [FlowMatching, Diffusion])
def test_settings_survive_the_configuration(kind: type[FlowMatching] | type[Diffusion]) -> None:
    objective = kind(solver="sde", diffusion=0.5, grid=TimeGrid("lambda", ends=(-4.0, 3.0)), steps=8)
    assert from_plain(ObjectiveConfig, to_plain_config(objective), "train.yaml: objective") == objective


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"diffusion": -1.0}, "diffusion k is -1"),
        ({"grid": {"name": "lambda", "ends": [-9.0, 3.0]}}, "choose ends inside"),
        ({"grid": {"name": "karras"}}, "karras"),
        ({"grid": {"name": "lambda"}, "steps": 101}, "at most 100"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_plain(ObjectiveConfig, {"kind": "Diffusion", "solver": "sde"} | change, "train.yaml: objective")


def test_evaluation_asks_for_what_it_names() -> None:
    assert EvalConfig().sampling == {}
    assert EvalConfig(temperature=0.0).sampling == {"temperature": 0.0}
    config = EvalConfig(solver="sde", steps=5, grid="edm:3", diffusion=2.0)
    assert config.sampling == {"solver": "sde", "steps": 5, "grid": TimeGrid("edm", rho=3.0), "diffusion": 2.0}
    with pytest.raises(KineflowError, match="is not a time grid"):
        dataclasses.replace(config, grid="karras")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("ddpm:100", {"solver": "ddpm", "steps": 100}),
        ("dpmpp2m:8:lambda", {"solver": "dpmpp2m", "steps": 8, "grid": TimeGrid("lambda")}),
        ("sde=2:20:shifted:3", {"solver": "sde", "steps": 20, "grid": TimeGrid("shifted", shift=3.0), "diffusion": 2.0}),
    ],
)
def test_entries_of_a_comparison(text: str, asked: dict[str, object]) -> None:
    assert _sampler(text, f"run@{text}") == asked


@pytest.mark.parametrize("text", ["foo:3", "ddpm", "ddpm:", "ddpm:x", "ddpm:0", "ddim=2:5", "sde=x:5"])
def test_entries_that_name_no_sampler(text: str) -> None:
    with pytest.raises(KineflowError, match=re.escape(f"run@{text}: expected NAME@SOLVER:STEPS")):
        _sampler(text, f"run@{text}")
