"""The strict loader: what it accepts comes back equal, what it refuses is named with file, path and near match."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, strategies as st

from kineflow.config import ConfigError, find_config, from_plain, load_config, save_config
from kineflow.contracts import FeatureSpec, Interface, VectorSpec


@dataclass(frozen=True)
class Small:
    width: int = 8
    rate: float = 1e-3


@dataclass(frozen=True)
class Large:
    depth: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Root:
    head: Small | Large
    mode: Literal["fast", "exact"] = "fast"
    where: Path = Path("a")
    limit: float = math.inf
    table: Mapping[str, Small] = field(default_factory=dict)
    extra: Small | None = None


SMALL, LARGE = f"{__name__}:Small", f"{__name__}:Large"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return file


@given(
    st.builds(
        Root,
        head=st.builds(Small, st.integers(0, 99), st.floats(0, 1))
        | st.builds(Large, st.integers(), st.tuples(st.text(min_size=1))),
        mode=st.sampled_from(["fast", "exact"]),
        where=st.just(Path("x/y")),
        limit=st.sampled_from([math.inf, -math.inf, 2.5]),
        table=st.dictionaries(st.sampled_from(["p", "q"]), st.builds(Small)),
        extra=st.none() | st.builds(Small),
    )
)
def test_saved_config_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Root) -> None:
    file = tmp_path_factory.mktemp("c") / "c.yaml"
    save_config(config, file)
    assert load_config(Root, file) == config


def test_exponent_without_point_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1 reads 2e-3 as a string.
    assert load_config(Small, write(tmp_path, "rate: 2e-3")).rate == 0.002


def test_overrides_are_typed(tmp_path: Path) -> None:
    config = load_config(Root, write(tmp_path, f"head: {{kind: '{SMALL}'}}"), ["--head.width", "3", "--mode", "exact"])
    assert config == Root(Small(width=3), "exact")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"head: {{kind: '{SMALL}', widht: 3}}",
            r"c\.yaml: head: unknown key 'widht'; did you mean 'width'\?; Small has width, rate",
        ),
        (f"head: {{kind: '{LARGE}'}}", r"c\.yaml: head: missing field 'depth' of Large"),
        (f"head: {{kind: '{SMALL}', width: wide}}", r"c\.yaml: head\.width: expected int, got 'wide' \(str\)"),
        (f"head: {{kind: '{SMALL}', width: true}}", r"head\.width: expected int, got True"),
        (f"head: {{kind: '{SMALL}', rate: fast}}", r"head\.rate: expected float, got 'fast'"),
        ("head: {kind: Smal}", r"head\.kind: unknown kind 'Smal'"),
        ("head: {width: 3}", r"head: missing field 'kind'; one of"),
        ("head: {kind: 'nowhere:Head'}", r"head\.kind: cannot import 'nowhere:Head'"),
        (f"head: {{kind: '{SMALL}'}}\nmode: fats", r"mode: got 'fats'; did you mean 'fast'\?"),
        ("[1, 2", r"c\.yaml: not valid YAML"),
        ("mode: fast", r"c\.yaml: missing field 'head'"),
        ("3", r"c\.yaml: expected a mapping with the fields of Root, got 3"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Root, write(tmp_path, text))


def test_third_party_class_by_module_and_name(tmp_path: Path) -> None:
    """A kind outside the union is loaded by 'module:Class': a new head needs no change of ours."""
    file = write(
        tmp_path,
        f"head: {{kind: 'kineflow.contracts:Horizons', observation: 1, prediction: 2, execution: 1}}\nmode: fast  # {SMALL}",
    )
    loaded = load_config(Root, file)
    assert loaded.head.prediction == 2  # type: ignore[union-attr]


def test_unknown_name_lists_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'train/pusht_flwo'; did you mean 'train/pusht_flow'\?"):
        find_config("train/pusht_flwo")


def test_every_shipped_config_loads() -> None:
    from kineflow.config import CONFIG_ROOT
    from kineflow.datasets.doctor_checks.finding import DoctorConfig
    from kineflow.deploy.executor_config import ExecutorConfig
    from kineflow.deploy.live.drawing import LiveConfig
    from kineflow.deploy.robot_profile import RobotProfile
    from kineflow.deploy.ros2.node_config import NodeConfig
    from kineflow.deploy.ros2.recorder_config import RecorderConfig
    from kineflow.deploy.server.config import ServerConfig
    from kineflow.policies.collect import CollectConfig
    from kineflow.policies.compose.search import SearchConfig
    from kineflow.policies.eval_result import EvalConfig
    from kineflow.policies.flow_training import FlowTrainConfig
    from kineflow.policies.navigation_table import TableConfig
    from kineflow.policies.scene_training import SceneTraining
    from kineflow.policies.train import TrainConfig

    classes = {
        "collect": CollectConfig,
        "compose": SearchConfig,
        "data": DoctorConfig,
        "deploy": ExecutorConfig,
        "eval": EvalConfig,
        "interfaces": Interface,
        "live": LiveConfig,
        "nodes": NodeConfig,
        "recorders": RecorderConfig,
        "robots": RobotProfile,
        "train": TrainConfig,
        "train_flow": FlowTrainConfig,
        "table": TableConfig,
        "train_scene": SceneTraining,
    }
    files = sorted(CONFIG_ROOT.rglob("*.yaml"))
    assert len(files) >= 6
    for file in files:
        load_config(ServerConfig if file.name == "server.yaml" else classes[file.parent.name], file)


def test_infinite_limits_survive_plain_data() -> None:
    vector = VectorSpec(("x",), ("m",), "base_link", (-math.inf,), (1.0,))
    assert from_plain(
        FeatureSpec,
        {"vector": {"names": ["x"], "units": ["m"], "frame": "base_link", "low": ["-inf"], "high": [1.0]}, "rate_hz": 10},
        "f",
    ) == FeatureSpec(vector, 10.0)
