"""The compiled reader by itself: found or not, its checksums, and damaged data under the compiler's sanitisers."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import simplejpeg
from numcodecs import blosc

from kineflow.datasets.checksums import without_crc
from kineflow.datasets.codecs import LZ4HC, encode_frame
from kineflow.datasets.native import library
from kineflow.datasets.native.library import CODECS, OK, PLACE, SHARD, NativeFrames, load, native, native_status
from tests.datasets.sample_frames import depth_frames, natural_frames, simulated_frames

SOURCE = Path(library.__file__).parent / "frames.c"


@pytest.fixture
def compiled() -> NativeFrames:
    found = native()
    if found is None:
        pytest.skip(f"no compiled reader: {native_status().reason}")
    return found


def decode(
    compiled: NativeFrames, payload: bytes, shape: tuple[int, ...], dtype: type, codec: str = "lz4hc"
) -> np.ndarray | None:
    data = np.frombuffer(payload + google_crc32c.value(payload).to_bytes(4, "little"), np.uint8)
    shards = np.array([(data.ctypes.data, len(data), CODECS[codec])], SHARD)
    out = np.empty((1, *shape), dtype)
    batches = compiled.batches(shards, np.array([(0, len(data), 0)], PLACE), shape, jpeg=codec == "jpeg")
    status, _ = batches.read(np.zeros(1, np.int64), out)
    return out[0] if status == OK else None


def test_checksums_are_those_of_google(compiled: NativeFrames) -> None:
    data = random.Random(0).randbytes(4096)
    for start in range(9):
        for size in (*range(40), 1000, 4000):
            part = data[start : start + size]
            assert compiled.crc32c(part) == compiled.crc32c(part, portable=True) == google_crc32c.value(part)


@pytest.mark.parametrize("name", [b"lz4", b"lz4hc"])
@pytest.mark.parametrize("shuffle", [blosc.NOSHUFFLE, blosc.SHUFFLE])
@pytest.mark.parametrize("block", [0, 128, 999, 4096])
def test_every_blosc_lz4_buffer_of_c_blosc_is_read(compiled: NativeFrames, name: bytes, shuffle: int, block: int) -> None:
    rng = np.random.default_rng(block)
    runs = np.repeat(rng.integers(0, 256, 4000), rng.integers(1, 9, 4000))[: 37 * 41 * 3].astype(np.uint8).reshape(37, 41, 3)
    for frame in (natural_frames(1, 37, 41)[0], simulated_frames(1, 37, 41)[0], runs, runs * 0):
        for level in (0, 1, 9):
            payload = blosc.compress(frame.reshape(-1), name, level, shuffle, block, 1)
            found = decode(compiled, payload, frame.shape, np.uint8)
            assert found is not None
            np.testing.assert_array_equal(found, frame)
    for depth in depth_frames(2, 37, 41):
        payload = blosc.compress(depth.reshape(-1), name, 5, shuffle, block, 2)
        found = decode(compiled, payload, depth.shape, np.uint16)
        assert found is not None
        np.testing.assert_array_equal(found, depth)


@pytest.mark.parametrize("period", [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 63, 64, 65, 300])
def test_matches_that_overlap_with_what_they_write(compiled: NativeFrames, period: int) -> None:
    rng = np.random.default_rng(period)
    # Without a rest behind them matches are copied byte by byte.
    motif, rest = rng.integers(0, 256, period, np.uint8), rng.integers(0, 256, 60, np.uint8)
    for size in range(period + 20, period + 140, 3):
        frame = np.concatenate([np.resize(motif, 3 * size), rest]).reshape(1, size + 20, 3)
        payload = blosc.compress(frame.reshape(-1), b"lz4hc", 9, blosc.NOSHUFFLE, 0, 1)
        np.testing.assert_array_equal(decode(compiled, payload, frame.shape, np.uint8), frame)


def test_other_codecs_and_other_sizes_are_refused(compiled: NativeFrames) -> None:
    frame = simulated_frames(1)[0]
    for name, shuffle in ((b"zstd", blosc.NOSHUFFLE), (b"blosclz", blosc.NOSHUFFLE), (b"lz4", blosc.BITSHUFFLE)):
        payload = blosc.compress(frame.reshape(-1), name, 5, shuffle, 0, 1)
        assert decode(compiled, payload, frame.shape, np.uint8) is None
    assert decode(compiled, without_crc(encode_frame(frame, LZ4HC), ""), (96, 95, 3), np.uint8) is None


def test_jpegs_of_another_size_or_cut_off_are_refused(compiled: NativeFrames) -> None:
    if not native_status().jpeg:
        pytest.skip(f"no compiled JPEG: {native_status().reason}")
    frame = natural_frames(1)[0]
    payload = simplejpeg.encode_jpeg(frame, 90, "RGB", "420")
    np.testing.assert_array_equal(decode(compiled, payload, (96, 96, 3), np.uint8, "jpeg"), simplejpeg.decode_jpeg(payload))
    for shape in ((96, 95, 3), (48, 48, 3), (192, 192, 3)):
        assert decode(compiled, payload, shape, np.uint8, "jpeg") is None
    assert decode(compiled, payload[: len(payload) // 2], (96, 96, 3), np.uint8, "jpeg") is None


def test_damaged_data_touch_nothing_outside_their_buffers(tmp_path: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "fuzz"
    flags = ["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all"]
    flags += [f'-DKINEFLOW_FRAMES_C="{SOURCE}"', "-o", str(program), str(Path(__file__).with_name("fuzz_frames.c"))]
    built = subprocess.run([compiler, *flags], capture_output=True, text=True)
    if built.returncode and "sanitize" in built.stderr + built.stdout:
        pytest.skip("the C compiler has no sanitisers")
    assert built.returncode == 0, built.stderr
    for frames, pixel_bytes in ((simulated_frames(2, 40, 30), 3), (natural_frames(1, 40, 30), 3), (depth_frames(2, 40, 30), 2)):
        files = [tmp_path / f"{number}.payload" for number in range(len(frames))]
        for file, frame in zip(files, frames):
            file.write_bytes(without_crc(encode_frame(frame, LZ4HC), ""))
        result = subprocess.run([program, "40", "30", str(pixel_bytes), "4000", *files], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        assert int(result.stdout) > 500 * len(files)


def test_why_there_is_no_compiled_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path)[0] is None
    assert "was not built" in load(tmp_path)[1]
    (tmp_path / f"_frames{EXTENSION_SUFFIXES[0]}").write_text("no library")
    assert "cannot be loaded" in load(tmp_path)[1]
    monkeypatch.setenv("KINEFLOW_NATIVE", "0")
    assert native() is None
    assert native_status().reason == "switched off by KINEFLOW_NATIVE=0"
    assert "read by Python" in native_status().summary
    assert "switched off" in native_status().summary


def test_a_library_of_another_version_is_not_used(compiled: NativeFrames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_INTERFACE_VERSION", -1)
    found, problem = load(SOURCE.parent)
    assert found is None
    assert "built from another version" in problem


def test_without_the_system_library_only_jpeg_is_read_by_python(compiled: NativeFrames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_TURBOJPEG", ("libturbojpeg.so.none",))
    found, _ = load(SOURCE.parent)
    assert found is not None
    assert found.jpeg_problem == "no libturbojpeg.so.none on this machine"


def test_a_libturbojpeg_with_other_pixels_is_not_used(compiled: NativeFrames, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native_status().jpeg:
        pytest.skip(f"no compiled JPEG: {native_status().reason}")
    monkeypatch.setattr(library.simplejpeg, "decode_jpeg", lambda data: np.zeros((35, 54, 3), np.uint8))
    found, _ = load(SOURCE.parent)
    assert found is not None
    assert "does not give the pixels of simplejpeg" in found.jpeg_problem


def test_nothing_here_needs_the_library_at_import() -> None:
    code = "import kineflow.datasets.frames; from kineflow.datasets.native.library import native_status as s; print(s().lossless)"
    environment = {**os.environ, "KINEFLOW_NATIVE": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "False\n"
