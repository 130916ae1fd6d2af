"""What a visitor of the page may send."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flowcut.app import uploads
from flowcut.app.uploads import read_upload


def save(path: Path, width: int = 60, height: int = 40) -> Path:
    Image.new("RGB", (width, height), "teal").save(path)
    return path


def test_a_picture_is_read_and_taken_off_the_disk(tmp_path: Path) -> None:
    path = save(tmp_path / "picture.png")
    picture = read_upload(path)
    assert isinstance(picture, Image.Image) and picture.size == (60, 40) and not path.exists()


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    picture = read_upload(save(tmp_path / "large.png", 4096, 100))
    assert isinstance(picture, Image.Image) and picture.size == (2048, 50)


def test_what_is_refused_is_taken_off_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MEGAPIXELS", 1)
    text = tmp_path / "page.html"
    text.write_text("<b>no picture</b>")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    film = tmp_path / "film.mp4"
    film.write_bytes(b"no film")
    cases = (
        (text, 20.0, "page.html is neither a picture nor a clip. Send one of .png,"),
        (broken, 20.0, "broken.jpg is not an image in a format that can be read"),
        (film, 20.0, "film.mp4 is not a video that can be decoded"),
        (save(tmp_path / "wide.png", 2000, 600), 20.0, "wide.png has 1 million pixels; at most 1 million are taken"),
        (save(tmp_path / "heavy.bmp", 600, 600), 0.5, "heavy.bmp has 1.0 MB; at most 0.5 MB are taken"),
    )
    for path, megabytes, message in cases:
        with pytest.raises(ValueError) as caught:
            read_upload(path, megabytes)
        assert str(caught.value).startswith(message) and str(tmp_path) not in str(caught.value)
        assert not path.exists()
