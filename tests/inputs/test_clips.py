"""A real video file, through each model's own processor, on the command line."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny_checkpoint
import tiny_video
from PIL import Image
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.errors import FlowCutError
from flowcut.inputs.clips import Clip, load_clip

FRAMES = 6
GRIDS = {
    "video_llava": [FRAMES, 6, 6],
    "llava_onevision": [FRAMES, 3, 3],
    # Two frames make one time step, and a merge group is 28 x 28 pixels: 120 x 160 are rounded to 112 x 168.
    "qwen2_vl": [FRAMES // 2, 4, 6],
    "qwen2_5_vl": [FRAMES // 2, 4, 6],
    "qwen3_vl": [FRAMES // 2, 4, 6],
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(__file__).parents[2] / "examples" / "make_clip.py"
    spec = importlib.util.spec_from_file_location("make_clip", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: Path = module.make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")
    return written


def call(clip: Path, checkpoint: Path, *options: Any) -> Any:
    fast = ("--repeats", 1, "--max-new-tokens", 3, "--device", "cpu", "--frames", FRAMES)
    arguments = ("run", clip, "what is shown?", "--model", checkpoint, *fast, *options)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", tiny_video.NAMES)
def test_a_question_about_a_video(clip: Path, tmp_path: Path, name: str) -> None:
    checkpoint = tiny_video.save_checkpoint(tmp_path / "model", name)
    overlay = tmp_path / "frames.png"
    outcome = call(clip, checkpoint, "--retain-ratio", 0.25, "--overlay", overlay, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    (video,) = report["images"]
    assert video["grid"] == GRIDS[name] and len(video["kept"]) < video["patches"] == np.prod(GRIDS[name])
    assert report["cut"]["visual_tokens"] < report["uncut"]["visual_tokens"]
    assert report["cut"]["flops"]["total"] < report["uncut"]["flops"]["total"]
    with Image.open(overlay) as drawn:
        assert drawn.width > drawn.height
        # Every panel shows kept patches in colour, and darkened ones.
        pixels = np.asarray(drawn.convert("RGB"), dtype=float)
        assert pixels.std() > 20


def test_frames_are_those_of_the_file(clip: Path) -> None:
    few, whole = load_clip(clip, 4), load_clip(clip, 100)
    assert few.frames.shape == (4, 120, 160, 3) and whole.frames.shape == (24, 120, 160, 3)
    assert few.metadata.frames_indices == [0, 8, 15, 23]
    assert few.metadata.fps == 12 and few.metadata.total_num_frames == 24
    assert np.array_equal(few.frames, whole.frames[[0, 8, 15, 23]])
    assert not np.array_equal(few.frames[0], few.frames[1])


def test_mistakes(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match="not a video that can be decoded"):
        load_clip(text)
    with pytest.raises(FileNotFoundError, match="No video found"):
        load_clip(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match=r"https://example.org/clip.mp4 is a web address. Download the video first"):
        load_clip("https://example.org/clip.mp4")
    with pytest.raises(ValueError, match="frames must be at least 1"):
        load_clip(clip, 0)
    outcome = call(clip, tiny_checkpoint.save_checkpoint(tmp_path / "llava"))
    assert outcome.exit_code == 2 and "takes no videos" in outcome.stderr
    assert "VideoLlavaForConditionalGeneration" in outcome.stderr
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FlowCutError, match=r"pip install 'flowcut\[video\]'"):
        load_clip(clip)


def write_clip(path: Path, shown: list[int], codec: str = "mpeg4", rate: int = 100) -> Path:
    """A film with a ``codec`` of frames that grow brighter, each shown from so many ``1 / rate`` seconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, one in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * number, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = one, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(loaded: Clip) -> list[int]:
    """Which frames of :func:`write_clip` these are."""
    return (loaded.frames.mean(axis=(1, 2, 3)) / 8).round().astype(int).tolist()


def turned(clip: Path, path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same film with another display matrix in its header, as a phone writes that was held another way."""
    content = bytearray(clip.read_bytes())
    begin = content.index(b"tkhd") + 44
    a, b, c, d = (one << 16 for one in matrix)
    content[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2), ((1, 0, 0, 1), 0)]
)
def test_a_film_is_upright_however_the_camera_was_held(
    clip: Path, tmp_path: Path, matrix: tuple[int, int, int, int], quarters: int
) -> None:
    stored, loaded = load_clip(clip, 3), load_clip(turned(clip, tmp_path / "turned.mp4", matrix), 3)
    assert np.array_equal(loaded.frames, np.rot90(stored.frames, quarters, axes=(1, 2)))
    assert (loaded.metadata.height, loaded.metadata.width) == loaded.frames.shape[1:3]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_of_a_variable_rate_are_chosen_by_their_time(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"variable{suffix}", [0, 1, 2, 50, 51, 200, 201, 250, 400])
    assert numbers(load_clip(path, 5)) == [0, 4, 5, 7, 8]  # those nearest to 0, 1, 2, 3 and 4 s
    assert numbers(load_clip(path, 8)) == [0, 4, 5, 7, 8]  # none of them twice
    whole = load_clip(path, 9)
    assert numbers(whole) == list(range(9)) and whole.metadata.total_num_frames == 9
    real = np.array([0, 0.01, 0.02, 0.5, 0.51, 2, 2.01, 2.5, 4])
    assert np.abs(np.array(whole.metadata.timestamps) - real).max() <= 0.5 / whole.metadata.fps


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_and_odd_numbers_of_frames(tmp_path: Path, count: int) -> None:
    path = write_clip(tmp_path / "few.mp4", list(range(count)), rate=25)
    assert numbers(load_clip(path, 8)) == list(range(count))
    assert len(load_clip(path, 3).frames) == min(3, count)


def test_a_film_that_breaks_off_gives_what_is_there_of_it(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mpg", list(range(30)), "mpeg2video", 25)
    broken = tmp_path / "broken.mpg"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"broken\.mpg breaks off after \d+ of \d+ frames"):
        loaded = load_clip(broken, 4)
    assert len(loaded.frames) == len(loaded.metadata.frames_indices) == 4
    assert numbers(loaded) == loaded.metadata.frames_indices and 5 < numbers(loaded)[-1] < 29
    header = tmp_path / "header.mpg"
    header.write_bytes(whole.read_bytes()[:40])
    with pytest.raises(ValueError, match="not a video that can be decoded"):
        load_clip(header)


def test_a_film_of_which_nothing_is_left(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.avi", list(range(9)), "mpeg4", 25)
    content = bytearray(path.read_bytes())
    begin = content.index(b"movi") + 20
    content[begin:-300] = bytes(len(content) - 300 - begin)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"film\.avi is not a video that can be decoded"):
        load_clip(path)


def test_a_sound_is_no_film(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4 is not a video that can be decoded: it holds no video\."):
        load_clip(tmp_path / "sound.mp4")
