"""A real video file, through each model's own processor, on the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoint
import tiny_video
from PIL import Image
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.errors import FlowCutError
from flowcut.inputs.clips import load_clip

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
    assert few.metadata.frames_indices.tolist() == [0, 8, 15, 23]
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
