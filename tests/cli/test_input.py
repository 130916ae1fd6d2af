"""What a user types or names that is not a question or a picture: one line and exit code 2, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoint
from PIL import Image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png")


def typed(command: str, picture: str | bytes | Path, question: str | bytes, *more: object) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of ``flowcut COMMAND`` as a shell starts it."""
    code = "from flowcut.cli import app; app()"
    arguments = [os.fsencode(one) if isinstance(one, bytes | os.PathLike) else str(one) for one in (picture, question)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, command, *arguments, *map(str, more)],
        capture_output=True,
        env=environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_question_with_a_byte_that_is_not_utf_8(picture: Path, command: str) -> None:
    code, out, said = typed(command, picture, b"what is \xe9?")
    assert (code, out) == (2, b"") and said.count(b"\n") == 1
    assert b"Error: The question is not UTF-8 text: what is \\udce9?." in said


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("name", ["https://example.org/cat.png", "s3://bucket//cat.jpg", "HTTP://example.org/cat"])
def test_a_web_address_is_shown_as_typed(command: str, name: str) -> None:
    code, out, said = typed(command, name, "what is shown?")
    assert (code, out) == (2, b"") and said.count(b"\n") == 1
    assert f"Error: {name} is a web address. Download the image first".encode() in said


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    whole = tiny_checkpoint.save_picture(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("a letter")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("cut.png", b"is a broken image"),
        ("text.png", b"is not an image in a format that can be read"),
        ("empty.png", b"is empty"),
        ("pipe.png", b"is a pipe or a device"),
        ("", b"it is a folder"),
        ("gone.png", b"No image found"),
    ):
        code, out, said = typed("run", tmp_path / name, "what is shown?")
        assert (code, out) == (2, b"") and said.count(b"\n") == 1 and message in said, said


def ours(said: bytes) -> str:
    """What was printed, without what torch logs while torchao is imported."""
    lines = said.decode().splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"W\d{4} .*torch/", line))


def test_16_bits_are_told_in_one_yellow_line_and_large_pictures_in_none(tmp_path: Path, checkpoint: Path) -> None:
    values = (np.arange(90 * 90).reshape(90, 90) * 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    fast = (
        "--model",
        checkpoint,
        "--repeats",
        1,
        "--max-new-tokens",
        2,
        "--target-num",
        8,
        "--device",
        "cpu",
        "--json",
    )
    code, out, said = typed("run", tmp_path / "deep.png", "what is shown?", *fast)
    assert code == 0 and out.startswith(b"{")
    warned = "has more than 8 bits: its own range, 0 to 64792, was brought to 0 to 255."
    assert ours(said) == f"Warning: {tmp_path}/deep.png {warned}\n"
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    code, out, said = typed("run", tmp_path / "large.png", "what is shown?", *fast)
    assert (code, ours(said)) == (0, "")


def test_a_path_with_a_byte_that_is_not_utf_8_works(tmp_path: Path, picture: Path, checkpoint: Path) -> None:
    strange = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(strange, "wb") as file:
        file.write(picture.read_bytes())
    fast = ("--model", checkpoint, "--repeats", 1, "--max-new-tokens", 2, "--target-num", 8, "--device", "cpu")
    code, out, _ = typed("run", strange, "what is shown?", *fast)
    assert code == 0 and b"visual tokens" in out
    code, _, said = typed("run", strange + b"x.png", "what is shown?", *fast)
    assert code == 2 and b"No image found" in said and said.count(b"\n") == 1
