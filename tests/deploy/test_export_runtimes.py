"""Exported policies in their runtimes: the same chunks without torch, and what is wrong is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kineflow.cli import main
from kineflow.contracts import (
    CommittedPrefix,
    ContractError,
    FeatureSpec,
    Horizons,
    Interface,
    Observation,
    Policy,
    SamplingRequest,
    VectorSpec,
)
from kineflow.deploy.export import folder as exporting
from kineflow.deploy.export.folder import ExportConfig, Exported, export_models
from kineflow.deploy.export.graphs import Graph
from kineflow.deploy.export.questions import random_questions
from kineflow.deploy.export.random_policies import random_policy
from kineflow.deploy.exported import load_exported, vector_of
from kineflow.deploy.exported_manifest import ExportError, Words
from kineflow.deploy.loading import load_policy
from kineflow.deploy.runtimes import onnx_options, openvino_options
from kineflow.policies.checkpoint import ChunkPolicy
from kineflow.policies.encoders.state import State
from kineflow.policies.encoders.static_words import HashedWords
from kineflow.policies.heads.flow_dit import FlowDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.objectives import FlowMatching
from kineflow.policies.policy_config import PolicyConfig
from tests.contracts.policy_suite import PolicySuite

POSE = VectorSpec(("x", "y"), ("m", "m"), "odom", (-9.0, -9.0), (9.0, 9.0))
INTERFACE = Interface({"state": FeatureSpec(POSE, 10.0)}, FeatureSpec(POSE, 10.0))
SMALL = PolicyConfig(Horizons(1, 8, 4), MLP(16, 1), FlowMatching(steps=2), State(width=16, depth=1, token=16))


@pytest.fixture(scope="module")
def original() -> ChunkPolicy:
    return random_policy(SMALL, INTERFACE)


@pytest.fixture(scope="module")
def made(original: ChunkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_models(original, "test", tmp_path_factory.mktemp("export") / "onnx", ExportConfig(steps=(1,)))


class TestIsAPolicy(PolicySuite):
    @pytest.fixture
    def policy(self, made: Exported) -> Policy:
        return load_policy(made.folder)  # type: ignore[no-any-return]


def test_what_was_checked_is_written_down(made: Exported) -> None:
    results = {result.model: result for result in made.manifest.parity}
    assert set(results) == {"act_2", "act_1"}
    assert all(result.holds and result.inputs >= 8 and result.error < 1e-5 for result in results.values())
    assert set(made.manifest.hashes) == {"act_1.onnx", "act_2.onnx", "contract.json"}


def test_same_chunks_without_torch(original: ChunkPolicy, made: Exported, tmp_path: Path) -> None:
    """In a process in which torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from kineflow.contracts import Observation, SamplingRequest\n"
        "from kineflow.deploy.loading import load_policy\n"
        f"policy = load_policy({str(made.folder)!r})\n"
        "state = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 1, 2)\n"
        "chunk = policy.predict(Observation(state, np.zeros((3, 1))), SamplingRequest(np.arange(3) * 2**40, steps=1))\n"
        f"np.save({str(tmp_path / 'chunk.npy')!r}, chunk.actions)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    state = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 1, 2)
    chunk = original.predict(Observation(state, np.zeros((3, 1))), SamplingRequest(np.arange(3) * 2**40, steps=1))
    np.testing.assert_allclose(np.load(tmp_path / "chunk.npy"), chunk.actions, atol=1e-5)


def test_requests_that_were_not_exported_are_refused(made: Exported) -> None:
    exported = load_exported(made.folder)
    observation, request = random_questions(exported.contract, 1, 0)[0]
    prefix = CommittedPrefix(np.zeros((1, 8, 2), np.float32), np.ones((1, 8), np.float32), 1, "exact")
    for changes, message in (
        ({"steps": 3}, r"exported with \[1, 2\] steps, not 3"),
        ({"guidance_scale": 2.0}, "guidance_scale 2"),
        ({"prefix": prefix}, "method guided, not exact"),
        ({"seeds": np.zeros(2, np.int64)}, "one seed per row"),
    ):
        with pytest.raises(ContractError, match=message):
            exported.predict(observation, replace(request, **changes))  # type: ignore[arg-type]


def test_changed_files_are_refused(made: Exported, tmp_path: Path) -> None:
    copy = shutil.copytree(made.folder, tmp_path / "copy")
    model = copy / "act_2.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ExportError, match=r"act_2\.onnx: is not the file that was exported"):
        load_exported(copy)
    model.unlink()
    with pytest.raises(ExportError, match=r"act_2\.onnx: is missing"):
        load_exported(copy)


def test_other_golden_answer_is_refused(made: Exported, tmp_path: Path) -> None:
    """As when a runtime computes the same files differently."""
    copy = shutil.copytree(made.folder, tmp_path / "copy")
    contract = json.loads((copy / "contract.json").read_text())
    contract["golden"]["actions"][0][0] += 0.1
    (copy / "contract.json").write_text(json.dumps(contract))
    manifest = json.loads((copy / "export.json").read_text())
    del manifest["hashes"]["contract.json"]
    (copy / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="golden answer"):
        load_exported(copy)


def test_a_fault_is_refused_and_nothing_is_left(original: ChunkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the written model are off by a part in a hundred."""
    write = exporting.write_torch

    def faulty(graph: Graph, folder: Path, name: str) -> object:
        for value in graph.module.buffers():
            if value.ndim == 2:
                value *= 1.01
        return write(graph, folder, name)

    monkeypatch.setattr(exporting, "write_torch", faulty)
    with pytest.raises(ExportError, match=r"act_2 in torch .* differs from the policy by .* allowed 0\.0001"):
        export_models(original, "test", tmp_path / "torch", ExportConfig("torch"))
    assert list(tmp_path.iterdir()) == []


def test_openvino(original: ChunkPolicy, tmp_path: Path) -> None:
    made = export_models(original, "test", tmp_path / "fp32", ExportConfig("openvino"))
    assert made.manifest.parity[0].error < 1e-5
    assert load_exported(made.folder).manifest.precision == "fp32"


@pytest.mark.slow
def test_attention_that_openvino_gets_wrong_is_refused_or_right(tmp_path: Path) -> None:
    """As many tokens as heads, through ONNX: wrong by half in 2026.4.1. Whatever a version does, what is written is right."""
    config = replace(SMALL, head=FlowDiT(width=64, depth=1, attention_heads=8), objective=FlowMatching(steps=1))
    policy = random_policy(config, INTERFACE)
    refused = ""
    try:
        made = export_models(policy, "test", tmp_path / "fp32", ExportConfig("openvino", ways=("through ONNX",)))
    except ExportError as error:
        refused = str(error)
    assert "differs from the policy by" in refused or made.manifest.parity[0].error < 1e-4


def test_words_without_torch() -> None:
    text = "Go to the RED door, then left"
    expected = HashedWords(64).build()([text])[0].numpy()
    np.testing.assert_allclose(vector_of(text, Words("hashed", 64)), expected, atol=1e-6)
    named = Words("named", 3, ("red", "blue", "door"))
    assert vector_of("two doors, one redish; RED", named).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(ContractError, match="export it with --instruction 'go home'"):
        vector_of("go home", Words("table", 2, (), {"go": (1.0, 0.0)}))


def test_the_verb_asks_for_one_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--format", "onnx", "--name", "mine"]):
        assert main(["export", "kineflow://nothing", *words]) == 2
        assert "give --format" in capsys.readouterr().err
    assert main(["export", "kineflow://navigation_flow_small", "--format", "onnx", "--precision", "int8"]) == 2
    assert "format onnx has no precision int8" in capsys.readouterr().err


def test_threads_do_not_spin() -> None:
    options = onnx_options(2)
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert openvino_options(2, "bf16")["ENABLE_CPU_PINNING"] is False
