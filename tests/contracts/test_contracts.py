"""Contracts refuse every mismatch by field, both values and remedy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from kineflow.config import from_plain
from kineflow.contracts import (
    CameraSpec,
    ContractError,
    FeatureSpec,
    FeatureStatistics,
    GoldenPair,
    Horizons,
    Interface,
    PolicyContract,
    SamplerSpec,
    VectorSpec,
    to_json,
)

VECTOR = VectorSpec(("x", "y"), ("m", "m"), "base_link", (-1.0, -1.0), (1.0, 1.0))
INTERFACE = Interface({"state": FeatureSpec(VECTOR, 10.0)}, FeatureSpec(VECTOR, 10.0), {"top": CameraSpec(96, 96, 10.0)})
STATISTICS = FeatureStatistics(9, (0.0, 0.0), (1.0, 1.0), (-1.0, -1.0), (1.0, 1.0), (-0.9, -0.9), (0.9, 0.9))
CONTRACT = PolicyContract(
    INTERFACE,
    Horizons(2, 16, 8),
    SamplerSpec("CondOT()", "velocity", "euler", 10),
    {"state": STATISTICS, "action": STATISTICS},
    "abc",
    {"kineflow": "0.1.0"},
    GoldenPair(((0.0, 0.0),), 0, ((0.5, 0.5),)),
)


def with_state(vector: VectorSpec, rate_hz: float = 10.0) -> Interface:
    return replace(INTERFACE, features={"state": FeatureSpec(vector, rate_hz)})


def test_equal_interface_passes_and_extras_are_fine() -> None:
    CONTRACT.require(INTERFACE, "store")
    more = {**INTERFACE.features, "force": FeatureSpec(VECTOR, 100.0)}
    CONTRACT.require(replace(INTERFACE, features=more), "store")


THREE = VectorSpec(("x", "y", "z"), ("m",) * 3, "base_link", (-1.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (replace(INTERFACE, features={}), ["feature 'state'", "offered are []"]),
        (with_state(THREE), ["feature 'state'", "[2]", "[3]", "retrain"]),
        (with_state(VECTOR, 20.0), ["rate_hz is 10", "20 here", "resample"]),
        (with_state(replace(VECTOR, units=("m", "cm"))), ["units", "('m', 'm')", "('m', 'cm')"]),
        (with_state(replace(VECTOR, frame="odom")), ["frame", "base_link", "odom"]),
        (with_state(replace(VECTOR, names=("y", "x"))), ["names", "('x', 'y')", "('y', 'x')"]),
        (
            replace(INTERFACE, action=FeatureSpec(replace(VECTOR, high=(2.0, 1.0)), 10.0)),
            ["action", "high", "(1.0, 1.0)", "(2.0, 1.0)"],
        ),
        (replace(INTERFACE, action=FeatureSpec(replace(VECTOR, max_rate=(5.0, 5.0)), 10.0)), ["action", "max_rate"]),
        (replace(INTERFACE, cameras={}), ["camera 'top'"]),
        (replace(INTERFACE, cameras={"top": CameraSpec(48, 96, 10.0)}), ["camera 'top'", "height=96", "height=48"]),
    ],
)
def test_each_mismatch_names_field_and_both_values(offered: Interface, words: list[str]) -> None:
    with pytest.raises(ContractError, match="robot does not match the policy contract") as caught:
        CONTRACT.require(offered, "robot")
    assert [w for w in words if w not in str(caught.value)] == []


def test_all_mismatches_are_reported_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        CONTRACT.require(replace(with_state(THREE), cameras={}), "robot")
    assert "feature 'state'" in str(caught.value)
    assert "camera 'top'" in str(caught.value)


def test_declared_feature_without_statistics_is_an_error() -> None:
    with pytest.raises(ContractError, match="feature 'state' is declared but has no normalisation statistics"):
        replace(CONTRACT, statistics={"action": STATISTICS})


def test_contract_survives_json() -> None:
    unbounded = replace(VECTOR, low=(-math.inf, -1.0))
    contract = replace(CONTRACT, interface=with_state(unbounded))
    assert from_plain(PolicyContract, json.loads(to_json(contract)), "contract.json") == contract


def test_nan_never_enters_a_contract_file() -> None:
    broken = replace(STATISTICS, mean=(math.nan, 0.0))
    with pytest.raises(ValueError, match="Out of range float values"):
        to_json(replace(CONTRACT, statistics={"state": broken, "action": STATISTICS}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": ("m",)}, r"VectorSpec.units has 1 entries for 2 names"),
        ({"low": (2.0, -1.0)}, r"dimension 'x': low 2.0 is not below high 1.0"),
    ],
)
def test_vector_spec_is_checked(changes: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        replace(VECTOR, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("horizons", [(0, 16, 8), (2, 0, 0), (2, 16, 17), (2, 16, 0)])
def test_impossible_horizons_are_refused(horizons: tuple[int, int, int]) -> None:
    with pytest.raises(ContractError, match="horizons need"):
        Horizons(*horizons)
