"""The command line as a user meets it: results as text and JSON, exit codes, and one clear message for each kind of bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from kineflow.cli import main
from kineflow.config import load_config
from kineflow.contracts import Episode, FeatureSpec, Interface, Stream, VectorSpec
from kineflow.datasets.demo_data import demo_data
from kineflow.datasets.episode_store import EpisodeStore
from kineflow.policies.train import TrainConfig, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def pusht_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("pusht") / "pusht.eps"
    assert main(["data", "import", "--format", "diffusion-policy-zarr", str(demo_data()), str(store)]) == 0
    return store


@pytest.fixture(scope="session")
def run(pusht_store: Path) -> Path:
    """A barely trained PushT policy; tests must not change it."""
    config = replace(load_config(TrainConfig, "train/pusht_flow"), store=pusht_store, steps=4, noise_samples=1, threads=1)
    train(config, pusht_store.parent / "run")
    return pusht_store.parent / "run"


def fails(argv: list[str | Path], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The command exits with 2 and one message that holds all `words` and no stack trace."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    message = capsys.readouterr().err
    assert [w for w in words if w not in message] == []
    assert "Traceback" not in message


def output(argv: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


# --- data --------------------------------------------------------------------------------------------------------------


def test_info_as_json_and_text(pusht_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = json.loads(output(["data", "info", pusht_store, "--json"], capsys))
    assert (info["episodes"], info["steps"], info["clock"]) == (206, 25650, "nominal_10hz")
    assert info["streams"]["state"]["units"] == ["px", "px", "px", "px", "rad"]
    assert "25650" in output(["data", "info", pusht_store], capsys).replace(",", "")


def test_doctor_passes_a_good_store_and_fails_a_bad_one(
    pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing to say of the demonstrations: nominal clocks, motions below a pixel without a new picture, people who rest a second.
    assert json.loads(output(["data", "doctor", pusht_store, "--json"], capsys)) == []
    broken = Path(shutil.copytree(pusht_store, tmp_path / "broken.eps"))
    victim = max((p for p in broken.rglob("*") if p.is_file() and "state" in str(p)), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    capsys.readouterr()
    assert main(["data", "doctor", str(broken), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert any(victim.name in f["where"] and f["severity"] == "error" for f in findings)


def test_truncated_store_is_refused_by_training(pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path(shutil.copytree(pusht_store, tmp_path / "broken.eps"))
    victim = next(p for p in broken.rglob("*") if p.is_file() and "/action/" in str(p) and p.name != "zarr.json")
    victim.write_bytes(victim.read_bytes()[:-10])
    fails(["train", "train/pusht_flow", "--run", tmp_path / "r", "--store", broken], capsys, str(victim), "kineflow data doctor")


def test_a_store_without_what_the_encoder_needs_is_refused_by_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interface = load_config(Interface, "interfaces/pusht")
    other = VectorSpec(("agent_x", "agent_y"), ("px", "px"), "board", (0.0, 0.0), (512.0, 512.0))
    store = EpisodeStore.create(tmp_path / "other.eps", change_state(interface, other), clock="nominal_10hz")
    values, stamps = np.random.default_rng(0).uniform(0, 512, (20, 2)).astype(np.float32), np.arange(20, dtype=np.int64) * 10**8
    with store.writer() as writer:
        for _ in range(4):
            writer.add(Episode({"state": Stream(values, stamps), "action": Stream(values, stamps)}, clock="nominal_10hz"))
    command: list[str | Path] = ["train", "train/pusht_flow", "--run", tmp_path / "r", "--store", store.path]
    fails(command, capsys, "block_x", "the state has ('agent_x', 'agent_y')")


def change_state(interface: Interface, vector: VectorSpec) -> Interface:
    return Interface({"state": replace(interface.features["state"], vector=vector)}, interface.action)


def test_kills_are_of_the_crash_bench_alone(capsys: pytest.CaptureFixture[str]) -> None:
    fails(["bench", "data", "--quick", "--kills", "3"], capsys, "bench data", "--kills 3", "bench crash")
    fails(["bench", "crash", "--kills", "0"], capsys, "--kills 0", "above 0")


def test_store_of_a_newer_schema_is_refused(pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = Path(shutil.copytree(pusht_store, tmp_path / "newer.eps"))
    manifest = newer / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**data, "version": 99}))
    fails(["data", "info", newer], capsys, "99", "upgrade")


def test_nan_in_an_episode_is_refused_at_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "replay.zarr"
    group = zarr.create_group(source, zarr_format=2)
    state = np.zeros((40, 5), np.float32)
    state[25, 3] = np.nan
    arrays = {"data/state": state, "data/action": np.ones((40, 2), np.float32), "meta/episode_ends": np.array([20, 40])}
    for name, values in arrays.items():
        group.create_array(name, data=values)
    command: list[str | Path] = ["data", "import", "--format", "diffusion-policy-zarr", source, tmp_path / "s.eps"]
    fails(command, capsys, "state", "episode 1", "step 5", "nan")
    assert not (tmp_path / "s.eps").exists(), "a refused import leaves nothing behind"


def test_nothing_is_overwritten_by_an_import(pusht_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["data", "import", "--format", "diffusion-policy-zarr", demo_data(), pusht_store], capsys, str(pusht_store), "exists")


# --- contract against data ---------------------------------------------------------------------------------------------


def change(interface: Interface, **parts: object) -> Interface:
    state = interface.features["state"]
    vector: VectorSpec = replace(state.vector, **parts.get("state", {}))  # type: ignore[arg-type]
    action = replace(interface.action, vector=replace(interface.action.vector, **parts.get("action", {})))  # type: ignore[arg-type]
    return Interface({"state": FeatureSpec(vector, float(parts.get("rate", state.rate_hz)))}, action)  # type: ignore[arg-type]


MISMATCHES: dict[str, tuple[Callable[[Interface], Interface], list[str]]] = {
    "missing feature": (lambda i: Interface({"pose": i.features["state"]}, i.action), ["feature 'state'", "['pose']"]),
    "other shape": (
        lambda i: change(i, state={"names": ("a", "b"), "units": ("px", "px"), "low": (0, 0), "high": (1, 1), "max_rate": ()}),
        ["feature 'state': shape is [5]", "[2] ('a', 'b')"],
    ),
    "other rate": (lambda i: change(i, rate=20.0), ["rate_hz is 10", "20 here", "resample"]),
    "other limits": (lambda i: change(i, action={"high": (600.0, 512.0)}), ["action: high is (512.0, 512.0)", "(600.0, 512.0)"]),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_checkpoint_that_does_not_fit_the_data(run: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    alter, words = MISMATCHES[case]
    interface = alter(replace(load_config(Interface, "interfaces/pusht"), cameras={}))
    store = EpisodeStore.create(tmp_path / "other.eps", interface)
    stamps = np.arange(3, dtype=np.int64)
    streams = {name: Stream(np.full((3, f.vector.size), 0.5, np.float32), stamps) for name, f in interface.features.items()}
    with store.writer() as writer:
        writer.add(Episode({**streams, "action": Stream(np.ones((3, 2), np.float32), stamps)}))
    capsys.readouterr()
    assert main(["data", "doctor", str(store.path), "--policy", str(run), "--json"]) == 1
    findings = [f for f in json.loads(capsys.readouterr().out) if "against policy" in f["where"]]
    text = " ".join(f"{f['problem']}; {f['remedy']}" for f in findings)
    assert str(store.path) in findings[0]["where"]
    assert [w for w in words if w not in text] == []


def test_checkpoint_that_does_not_fit_the_environment(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(shutil.copytree(run / "checkpoints" / "00000004", tmp_path / "c"))
    file = checkpoint / "contract.json"
    data = json.loads(file.read_text())
    data["interface"]["action"]["vector"]["high"] = [400.0, 512.0]
    file.write_text(json.dumps(data))
    fails(
        ["eval", checkpoint, "--episodes", "1"], capsys, "environment PushT", "action: high is (400.0, 512.0)", "(512.0, 512.0)"
    )


# --- train, eval -------------------------------------------------------------------------------------------------------


def test_unknown_config_key(tmp_path: Path, pusht_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "configs" / "train" / "pusht_flow.yaml").read_text()
    config = tmp_path / "mine.yaml"
    config.write_text(text.replace("learning_rate:", "learning_rte:"))
    fails(
        ["train", config, "--run", tmp_path / "r"],
        capsys,
        "mine.yaml",
        "unknown key 'learning_rte'",
        "did you mean 'learning_rate'?",
    )
    assert not (tmp_path / "r").exists()


def test_unknown_override_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "train/pusht_flow", "--run", str(tmp_path / "r"), "--policy.head.widht", "3"])
    assert stop.value.code == 2
    assert "widht" in capsys.readouterr().err


def test_overrides_before_the_name_are_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--episodes", "2", "runs/demo"])
    assert stop.value.code == 2
    assert "kineflow eval NAME --episodes" in capsys.readouterr().err


def test_json_is_all_there_is_on_stdout(pusht_store: Path, tmp_path: Path) -> None:
    """A whole process: progress bars of training must not reach stdout."""
    argv = ["train", "train/pusht_flow", "--run", tmp_path / "r", "--store", pusht_store, "--steps", "2", "--noise-samples", "1"]
    command = [sys.executable, "-m", "kineflow.cli", *map(str, argv), "--threads", "1", "--json"]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == {"run": str(tmp_path / "r")}


def test_demo_checks_its_arguments_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["demo", "--run", tmp_path / "d", "--episodes", "0"], capsys, "episodes")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main(["demo", "--minutes", "inf"])


def test_sampler_of_an_evaluation_can_be_chosen(run: Path, tmp_path: Path) -> None:
    """At load time, by name; the manifest says what was played."""
    asked = ["--solver", "sde", "--steps", "2", "--grid", "shifted:2", "--diffusion", "0.5"]
    short = ["--episodes", "1", "--videos", "0", "--fan-samples", "1", "--batch", "1", "--out"]
    assert main(["eval", str(run), *asked, *short, str(tmp_path / "e")]) == 0
    sampler = json.loads((tmp_path / "e" / "manifest.json").read_text())["sampler"]
    assert {"solver": "sde", "steps": 2, "grid": "shifted:2", "diffusion": 0.5}.items() <= sampler.items()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("karras", ["'karras' is not a time grid", "lambda"]),
        ("edm:x", ["'x' is not a number"]),
        ("leading", ["counts trained levels", "use trailing"]),
    ],
)
def test_grids_that_this_policy_cannot_take_are_refused(
    run: Path, grid: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(["eval", run, "--grid", grid, "--episodes", "1", "--out", tmp_path / "e"], capsys, *words)


def test_unknown_argument_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "info", "x", "--jsno"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train"], ["name a configuration"]),
        (["train", "train/pusht_flwo"], ["did you mean 'train/pusht_flow'?"]),
        (["train", "--resume", "nowhere"], ["nowhere", "not a run folder"]),
        (["train", "train/pusht_flow", "--resume", "nowhere"], ["--resume takes the run folder and nothing else"]),
        (["compare", "train/pusht_flow", "train/pusht_diffusion@foo:3"], ["train/pusht_diffusion@foo:3", "NAME@SOLVER:STEPS"]),
        (["eval", "nowhere"], ["nowhere", "give a run folder, a checkpoint folder, a hub name"]),
        (["data", "info", "nowhere"], ["nowhere", "not an episode store"]),
    ],
)
def test_bad_usage_names_the_remedy(argv: list[str | Path], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fails(argv, capsys, *words)


def test_eval_prints_intervals_as_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv: list[str | Path] = [
        "eval",
        run,
        "--episodes",
        "2",
        "--seed-start",
        "7",
        "--videos",
        "1",
        "--out",
        tmp_path / "e",
        "--json",
    ]
    result = json.loads(output(argv, capsys))
    for key in ("mean_max_reward", "success_rate"):
        assert set(result[key]) == {"value", "low", "high", "n"}
        assert 0 <= result[key]["low"] <= result[key]["value"] <= result[key]["high"] <= 1
        assert result[key]["n"] == 2
    rows = [json.loads(line) for line in (tmp_path / "e" / "results.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [7, 8]
    assert (tmp_path / "e" / "report.html").stat().st_size > 10_000


def test_a_missing_extra_is_named() -> None:
    """Without torch the message says which extra to install."""
    code = "import sys; sys.modules['torch'] = None; from kineflow.cli import main; sys.exit(main(['eval', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'kineflow[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_contracts_need_numpy_alone() -> None:
    """Robots and simulators with their own Python import the values without any of our other dependencies."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['jaxtyping', 'yaml', 'tyro', 'torch', 'rich'])); import kineflow.contracts"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- package -----------------------------------------------------------------------------------------------------------


def test_wheel_holds_everything(tmp_path: Path) -> None:
    """Code through the links, configurations, templates and the demonstrations."""
    copy = shutil.copytree(
        ROOT, tmp_path / "source", symlinks=True, ignore=shutil.ignore_patterns(".venv*", ".git", "runs", "*.egg-info", "build")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(copy),
    ]
    subprocess.run(command, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    tracked = [p for folder in ("policies", "envs", "datasets", "configs") for p in (ROOT / folder).rglob("*") if p.is_file()]
    expected = {f"kineflow/{p.relative_to(ROOT)}" for p in tracked if "__pycache__" not in p.parts} | {"kineflow/py.typed"}
    assert expected - names == set()
    assert len(expected) > 50
