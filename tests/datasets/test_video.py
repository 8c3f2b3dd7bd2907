"""Videos that are damaged where nothing says so, and videos that cannot be read from the middle without the frames before."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from kineflow.contracts import KineflowError
from kineflow.datasets.importers.video import VideoReader

SHAPE, RATE_HZ, FRAMES = (96, 128, 3), 20, 90


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Open groups of pictures: the frames shown before a key frame refer to the group before it."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE_HZ)
        stream.height, stream.width, stream.pix_fmt = *SHAPE[:2], "yuv420p"
        stream.options = {"x264-params": "open-gop=1:keyint=30:bframes=3:scenecut=0"}
        for number in range(FRAMES):
            frame = np.zeros(SHAPE, np.uint8)
            frame[:, 3 * number % 100 :][:, :20] = (200, 50, number)
            frame[10:20] = noise.integers(0, 256, (10, SHAPE[1], 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def pixels(film: Path) -> np.ndarray:
    with av.open(str(film)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("first", [0, 41, 80])
def test_frames_from_the_middle_are_those_of_the_whole(film: Path, first: int) -> None:
    found = VideoReader(SHAPE, RATE_HZ).read(film, first / RATE_HZ, 10, FRAMES, "episode 4")
    np.testing.assert_array_equal(found, pixels(film)[first : first + 10])


@pytest.mark.parametrize("first", [0, 30])
def test_damaged_bytes_are_an_error_and_no_guess_of_the_decoder(film: Path, tmp_path: Path, first: int) -> None:
    data = bytearray(film.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(byte ^ 0x5A for byte in data[middle : middle + 200])
    copy = tmp_path / "film.mp4"
    copy.write_bytes(data)
    assert len(pixels(copy)) == FRAMES  # FFmpeg by itself says nothing
    with pytest.raises(KineflowError, match=r"episode 4.*film.mp4 cannot be decoded.*damaged"):
        VideoReader(SHAPE, RATE_HZ).read(copy, first / RATE_HZ, FRAMES - first, FRAMES, "episode 4")
